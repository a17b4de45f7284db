"""The k-th largest number of a batch, found by counting: exact, wherever its parts lie.

Counts are summed over processes, a few hundred kilobytes whatever the batch, so that a batch which
is spread over them is cut where a whole one would be.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

Summed = Callable[[Tensor], Tensor]


def alone(x: Tensor) -> Tensor:
    """The sum over processes where there is one."""
    return x


@torch.no_grad()
def kth_positive(values: Float[Tensor, "..."], k: int, summed: Summed = alone) -> Float[Tensor, ""]:
    """The k-th largest positive value in all processes together; the least if there are fewer.

    Infinity where there is none, so that the k largest are always those `>=` what is returned.

    Args:
        summed: sums a tensor over the processes that hold parts of the values.
    """
    bits = values[values > 0].float().view(torch.int32)  # ordered as floats above 0 are
    high = summed(torch.bincount(bits >> 16, minlength=2**15))
    rank = high.sum().clamp(max=k)
    if rank == 0:
        return torch.full((), torch.inf, device=values.device)
    top, rank = _digit(high, rank)
    low = summed(torch.bincount(bits[bits >> 16 == top] & 0xFFFF, minlength=2**16))
    bottom, _ = _digit(low, rank)
    return (top << 16 | bottom).to(torch.int32).view(torch.float32)


def _digit(
    counts: Int[Tensor, " n"], rank: Int[Tensor, ""]
) -> tuple[Int[Tensor, ""], Int[Tensor, ""]]:
    """The digit of the rank-th largest number, and its rank among those of the same digit."""
    at_least = counts.flip(0).cumsum(0).flip(0)  # how many have this digit or a larger one
    digit = (at_least >= rank).sum() - 1
    return digit, rank - (at_least - counts)[digit]
