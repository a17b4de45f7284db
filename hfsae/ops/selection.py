"""The k-th largest number of a batch or of a row: exact, wherever its parts lie.

Of a batch it is found by counting. Counts are summed over processes, a few hundred kilobytes
whatever the batch, so that a batch which is spread over them is cut where a whole one would be. Of
a row whose latents are spread over processes (DTensors), each sends its k largest.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

Summed = Callable[[Tensor], Tensor]


def one_process(x: Tensor) -> Tensor:
    """The sum over processes where there is one."""
    return x


@torch.no_grad()
def kth_positive(
    values: Float[Tensor, "..."], k: int, summed: Summed = one_process
) -> Float[Tensor, ""]:
    """The k-th largest positive value in all processes together; the least if there are fewer.

    Infinity where there is none, so that the k largest are always those `>=` what is returned.

    Args:
        summed: sums a tensor over the processes that hold parts of the values; not of a DTensor,
            which knows where its parts are.
    """
    if isinstance(values, DTensor):
        mesh, mine = values.device_mesh, _by_latent(values).to_local()

        def over_latents(x: Tensor) -> Tensor:
            return DTensor.from_local(x, mesh, [Partial()]).full_tensor()

        return DTensor.from_local(kth_positive(mine, k, over_latents), mesh, [Replicate()])
    bits = values[values > 0].float().view(torch.int32)  # ordered as floats above 0 are
    high = summed(torch.bincount(bits >> 16, minlength=2**15))
    rank = high.sum().clamp(max=k)
    if rank == 0:
        return torch.full((), torch.inf, device=values.device)
    top, rank = _digit(high, rank)
    low = summed(torch.bincount(bits[bits >> 16 == top] & 0xFFFF, minlength=2**16))
    bottom, _ = _digit(low, rank)
    return (top << 16 | bottom).to(torch.int32).view(torch.float32)


def largest(z: Float[Tensor, "*batch d_sae"], k: int) -> Float[Tensor, "*batch d_sae"]:
    """z at the k largest of each row, 0 elsewhere; k is at most d_sae.

    Ties at the k-th value: a DTensor keeps all of them, a plain tensor the first.
    """
    if isinstance(z, DTensor):
        z = _by_latent(z)
        return torch.where(z >= _kth_of_rows(z, k), z, torch.zeros_like(z))
    values, indices = z.topk(k, dim=-1, sorted=False)
    return torch.zeros_like(z).scatter(-1, indices, values)


@torch.no_grad()
def _kth_of_rows(z: DTensor, k: int) -> DTensor:
    """[*batch, 1], in all processes. The k largest of all are among each part's k largest."""
    mine, mesh = z.to_local(), z.device_mesh
    best = mine.topk(min(k, mine.shape[-1]), dim=-1, sorted=False).values
    every = DTensor.from_local(best, mesh, [Shard(best.ndim - 1)]).full_tensor()
    kth = every.topk(k, dim=-1).values[..., -1:]
    return DTensor.from_local(kth, mesh, [Replicate()])


def _by_latent(x: DTensor) -> DTensor:
    return x.redistribute(x.device_mesh, [Shard(x.ndim - 1)])


def _digit(
    counts: Int[Tensor, " n"], rank: Int[Tensor, ""]
) -> tuple[Int[Tensor, ""], Int[Tensor, ""]]:
    """The digit of the rank-th largest number, and its rank among those of the same digit."""
    at_least = counts.flip(0).cumsum(0).flip(0)  # how many have this digit or a larger one
    digit = (at_least >= rank).sum() - 1
    return digit, rank - (at_least - counts)[digit]
