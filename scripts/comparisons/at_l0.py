"""Where an L0 lies among the SAEs of an arm, and what they measure there.

Figures are interpolated linearly in log L0 between neighbours in the sweep; an arm with one SAE, or
without neighbours around the L0, has those of its SAE of the nearest L0. (The curves of
`hfsae.comparison.Frontiers` are in log-log, and their points move on resampled documents.)
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from hfsae.comparison import Measured

LEAST_L0 = 1e-3
"""Smallest L0 with a logarithm."""
SLACK = 1.05
"""An SAE alone counts for L0s up to this ratio from its own."""


class AtL0(NamedTuple):
    """An L0 among the SAEs of an arm and seed."""

    shares: list[tuple[Measured, float]]
    """SAEs that stand for it, with their shares"""
    l0: float
    """the L0 that they stand for"""

    @property
    def main(self) -> Measured:
        """The SAE with the largest share."""
        return max(self.shares, key=lambda of: of[1])[0]

    def mean(self, figure: Callable[[Measured], Any]) -> Any:
        """A figure there: a number or an array of numbers, weighted by the SAEs' shares."""
        return sum(share * figure(m) for m, share in self.shares)


def at_l0(saes: Sequence[Measured], l0: float, counts: Callable[[Measured], bool]) -> AtL0:
    """The two neighbours in the sweep around an L0, or the SAE whose L0 is nearest by ratio.

    Args:
        saes: of one arm and seed.
        counts: others are left out, unless none counts.
    """
    known = [m for m in saes if counts(m)] or list(saes)
    logs = {id(m): float(np.log(max(m.metrics["l0"], LEAST_L0) / l0)) for m in known}
    order = sorted(known, key=lambda m: logs[id(m)])
    values = sorted(m.value for m in saes)
    for left, right in pairwise(order):
        low, high = logs[id(left)], logs[id(right)]
        are_neighbours = abs(values.index(left.value) - values.index(right.value)) == 1
        if low <= 0 <= high and low < high and are_neighbours:
            share = -low / (high - low)
            return AtL0([(left, 1 - share), (right, share)], l0)
    nearest = min(known, key=lambda m: abs(logs[id(m)]))
    return AtL0([(nearest, 1.0)], nearest.metrics["l0"])


def seeds_at_l0(
    measured: Sequence[Measured], arm: str, l0: float, counts: Callable[[Measured], bool]
) -> dict[int, AtL0]:
    """An arm's SAEs at an L0, by seed; without seeds of which none that counts is within 5 %."""
    found = {}
    for seed in sorted({m.seed for m in measured}):
        saes = [m for m in measured if (m.arm, m.seed) == (arm, seed)]
        if any(map(counts, saes)):
            at = at_l0(saes, l0, counts)
            if abs(np.log(at.l0 / l0)) <= np.log(SLACK):
                found[seed] = at
    return found
