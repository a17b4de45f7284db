"""The exact k-th largest number of a batch or of a row, also if processes hold parts of it.

For tokens spread over processes, by counting: counts are summed over processes (a few hundred
kilobytes for any batch), so a batch in parts has the same cut as a whole one. For latents spread
over processes (DTensors), each process sends its k largest.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard

Summed = Callable[[Tensor], Tensor]

# There only what is positive is counted, which is quicker; elsewhere it would make the host wait,
# as sizes depend on values.
_COUNTED_ON = ("cpu",)


def one_process(x: Tensor) -> Tensor:
    """The sum over processes, if there is only one: x itself."""
    return x


@torch.no_grad()
def kth_positive(
    values: Float[Tensor, "..."], k: int | Int[Tensor, ""], summed: Summed = one_process
) -> Float[Tensor, ""]:
    """The k-th largest positive value in all processes together; the smallest if there are fewer.

    Infinity without positive values: so values `>=` the result are always the k largest.

    Args:
        summed: sums a tensor over the processes that hold parts of the values; a DTensor does not
            need it.
    """
    if isinstance(values, DTensor):
        mesh, mine = values.device_mesh, _by_latent(values).to_local().flatten()
        assert isinstance(k, int)  # each process has all tokens
        if k < values.numel():
            best = mine.topk(min(k, len(mine)), sorted=False).values.float()
        else:
            best = kth_positive(mine, k)[None]
        every = DTensor.from_local(best, mesh, [Shard(0)]).full_tensor()
        return DTensor.from_local(kth_positive(every, k), mesh, [Replicate()])
    if summed is one_process and isinstance(k, int) and values.device.type not in _COUNTED_ON:
        values = values.flatten().float()
        best = values if k >= len(values) else values.topk(k, sorted=False).values
        return torch.where(best > 0, best, torch.inf).amin()
    if values.device.type in _COUNTED_ON:
        values = values[values > 0]
    bits = torch.where(values > 0, values, 0).float().flatten()
    bits = bits.view(torch.int32)  # same order as the floats above 0
    high = summed(_counts(bits >> 16, bits > 0, 2**15))
    n_positive = high.sum()
    top, rank = _digit(high, n_positive.clamp(max=k))
    low = summed(_counts(bits & 0xFFFF, (bits > 0) & (bits >> 16 == top), 2**16))
    bottom, _ = _digit(low, rank)
    kth = (top << 16 | bottom).to(torch.int32).view(torch.float32)
    return kth.where(n_positive > 0, torch.inf)


def _counts(digits: Int[Tensor, " m"], counted: Bool[Tensor, " m"], n: int) -> Int[Tensor, " n"]:
    """How often each of n digits stands where `counted` holds."""
    if digits.device.type in _COUNTED_ON:
        return torch.bincount(digits[counted], minlength=n)
    counts = torch.zeros(n, dtype=torch.long, device=digits.device)
    return counts.scatter_add_(0, digits.long(), counted.long())


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
    """[*batch, 1], in all processes. The k largest of all are among the parts' k largest."""
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
    """The digit of the rank-th largest number, and its rank among numbers with that digit."""
    at_least = counts.flip(0).cumsum(0).flip(0)  # numbers with this digit or a larger one
    digit = (at_least >= rank).sum() - 1
    return digit, rank - (at_least - counts).take(digit)
