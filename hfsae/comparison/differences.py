"""Differences of arms from the reference at equal L0; a metric's are one table, for Holm."""

from functools import cached_property

from .arms import Comparison
from .estimates import Estimate, corrected
from .frontier import METRICS, Frontiers


class Differences:
    """All differences of a comparison's arms from its reference, in log ratios.

    Attributes:
        l0s: those of `at_l0` that the reference and at least one other arm reach.
    """

    def __init__(self, comparison: Comparison, frontiers: Frontiers) -> None:
        self.frontiers = frontiers
        self.reference = comparison.reference_arm
        self.others = [arm for arm in comparison.arms if arm != self.reference]
        reach = {arm: frontiers.reach([arm]) for arm in comparison.arms}
        self.l0s = [
            l0
            for l0 in comparison.at_l0
            if _within(l0, reach[self.reference])
            and any(_within(l0, reach[arm]) for arm in self.others or [self.reference])
        ]

    @cached_property
    def tables(self) -> dict[str, dict[str, list[Estimate]]]:
        """[metric][arm] -> differences at each L0, and with several L0s the area."""
        tables = {}
        for metric in METRICS:
            rows = [self._row(arm, metric) for arm in self.others]
            cells = iter(corrected([e for row in rows for e in row]))
            tables[metric] = {
                arm: [next(cells) for _ in row] for arm, row in zip(self.others, rows, strict=True)
            }
        return tables

    def _row(self, arm: str, metric: str) -> list[Estimate]:
        cells = [self.frontiers.difference(arm, self.reference, metric, l0) for l0 in self.l0s]
        if len(self.l0s) > 1:
            ends = self.l0s[0], self.l0s[-1]
            cells.append(self.frontiers.area(arm, self.reference, metric, *ends))
        return cells


def _within(x: float, sides: tuple[float, float]) -> bool:
    return sides[0] <= x <= sides[1]
