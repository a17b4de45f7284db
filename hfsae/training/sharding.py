"""Latents spread over processes, for a dictionary that is too wide for one device.

Each process holds d_sae / n latents: their part of W_enc, W_dec and every vector of length d_sae,
and of gradients and moments. The parameters are torch's DTensors, so that an SAE's code stays as it
is: torch splits products and sums by latent and joins them where a sum runs over latents, which
happens in the reconstruction (batch * d_out numbers, most of the traffic between devices) and in
penalties. Selection by rank exchanges each process's largest values, or counts of them
(`hfsae.ops.selection`).
"""

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from ..io.errors import Refused
from ..models import SAE, SAEConfig


def check_spread(config: SAEConfig, n: int) -> None:
    """Refuse an SAE whose latents cannot be spread over n processes.

    Raises:
        ValueError: the variant takes latents in groups, or d_sae cannot be split into n parts.
    """
    selection = getattr(config, "selection", "topk")
    if selection != "topk":
        raise Refused(
            f"training.shard_latents: selection={selection!r} takes latents in groups, which must "
            "stay on one device; selection='topk' can be spread"
        )
    n_sources = len(config.reads) if config.is_causal else 1
    if config.d_sae // n_sources % n:
        parts = f"{n} processes" if n_sources == 1 else f"{n_sources} sources times {n} processes"
        raise Refused(
            f"training.shard_latents: sae.d_sae ({config.d_sae}) is not divisible by {parts}"
        )


def shard_(sae: SAE, mesh: DeviceMesh) -> None:
    """Make each parameter a DTensor, split by latent; whole if it has no `latent_dims`.

    All processes must hold the same values; each keeps its part, stored with the split dimension
    outermost, as in `SAE.lay_out_by_latent`.
    """
    config = sae.config
    for name, p in list(sae.named_parameters()):
        dim = sae.latent_dims.get(name)
        if dim is None and config.d_sae in {*p.shape} - {config.d_in, config.d_out}:
            raise Refused(
                f"training.shard_latents: {type(sae).__name__}.{name} has as many numbers as there "
                "are latents and is not in latent_dims, so that each process would keep all of "
                "them; add it there"
            )
        if dim is None:
            spread = distribute_tensor(p.data, mesh)
        else:
            by_latent = p.data.transpose(0, dim).contiguous()
            spread = distribute_tensor(by_latent, mesh, [Shard(0)]).transpose(0, dim)
        setattr(sae, name, nn.Parameter(spread))


def unshard_(module: nn.Module) -> None:
    """Undo `shard_`: whole parameters everywhere, in main memory, since they may not fit elsewhere.

    Every process must take part.
    """
    for name, p in list(module.named_parameters()):
        setattr(module, name, nn.Parameter(whole(p.detach()).cpu()))


def local(x: Tensor) -> Tensor:
    """This process's part of x; a plain tensor is returned whole."""
    return x.to_local() if isinstance(x, DTensor) else x


def whole(x: Tensor) -> Tensor:
    """All processes' parts together, as a plain tensor. Every process must take part."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def part(x: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole x, placed as `like` is."""
    if not isinstance(like, DTensor):
        return x.to(like.device)
    return local(distribute_tensor(x, like.device_mesh, like.placements))


def joined(x: Tensor, like: Tensor) -> Tensor:
    """The whole of which x is this process's part, placed as `like` is: `part` undone."""
    if not isinstance(like, DTensor):
        return x
    return whole(DTensor.from_local(x, like.device_mesh, like.placements))


def everywhere(x: Tensor, mesh: DeviceMesh, *, is_slice: bool) -> DTensor:
    """x whole in all processes: as each holds it already, or joined from their slices."""
    placed = DTensor.from_local(x, mesh, [Shard(0) if is_slice else Replicate()])
    return placed.redistribute(mesh, [Replicate()])


def placed_as(gradient: Tensor, parameter: Tensor) -> Tensor:
    """A gradient placed as its parameter; partial sums over processes are added up."""
    if isinstance(gradient, DTensor) and isinstance(parameter, DTensor):
        return gradient.redistribute(parameter.device_mesh, parameter.placements)
    return gradient
