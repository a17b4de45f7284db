"""Random numbers that follow from what they are drawn for, in whatever order that is read."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

# Steele, Lea and Flood 2014 (SplitMix64), as signed numbers: products of int64 wrap.
_STEP, _FIRST, _SECOND = (
    number - 2**64 for number in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


def hashed(numbers: Int[Tensor, "*shape"], seed: int) -> Int[Tensor, "*shape"]:
    """A number from 0 to 2^63 - 1 for each, without order among them."""
    start = _mixed(torch.tensor(seed % 2**63, device=numbers.device))
    return _shifted(_mixed(_mixed(numbers) ^ start), 1)


def uniform(
    numbers: Int[Tensor, " n"], n_columns: int, seed: int
) -> Float[Tensor, "n {n_columns}"]:
    """From 0 to 1, drawn for each pair of a number and a column."""
    column = torch.arange(n_columns, device=numbers.device)
    bits = _mixed(hashed(numbers, seed)[:, None] + column)
    return _shifted(bits, 40).float() / 2**24  # as many bits as a float32 holds


def _mixed(x: Tensor) -> Tensor:
    x = x + _STEP
    x = (x ^ _shifted(x, 30)) * _FIRST
    x = (x ^ _shifted(x, 27)) * _SECOND
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, by: int) -> Tensor:
    """To the right, with zeros on the left: of a negative number, torch's shift brings ones."""
    return (x >> by) & (2 ** (64 - by) - 1)
