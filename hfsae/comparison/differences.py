"""Differences of arms from the reference at equal L0; a metric's are one table, for Holm."""

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

from .arms import Comparison
from .estimates import Estimate, corrected
from .frontier import Frontiers
from .results import Measured


class Verdict(NamedTuple):
    """An arm's difference from the reference of its comparison, over L0s."""

    of: str
    """the comparison: its report's folder, and its site where it has several"""
    arm: str
    """its title"""
    l0s: list[float]
    estimate: Estimate
    n_shown: int
    """of these L0s, at how many a difference is shown in the comparison's own table"""
    reference: str
    """its title"""
    n_seeds: int


class Differences:
    """All differences of a comparison's arms from its reference, in log ratios.

    Attributes:
        l0s: those of `at_l0` that the reference and at least one other arm reach.
        metrics: as in `Frontiers`.
    """

    def __init__(self, comparison: Comparison, measured: Sequence[Measured]) -> None:
        self.c, self.measured = comparison, measured
        self.frontiers = frontiers = Frontiers(measured, **resampling(comparison))
        self.metrics, self.reference = frontiers.metrics, comparison.reference_arm
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
        for metric in self.metrics:
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

    def over_all(self, arm: str, metric: str) -> tuple[list[float], Estimate | None]:
        """The L0s of the tables that an arm reaches, and its difference over them: the area, or
        at one L0 the difference there, or none; not corrected."""
        sides = self.frontiers.reach([arm])
        l0s = [l0 for l0 in self.l0s if _within(l0, sides)]
        if len(l0s) > 1:
            return l0s, self.frontiers.area(arm, self.reference, metric, l0s[0], l0s[-1])
        at = [self.frontiers.difference(arm, self.reference, metric, l0) for l0 in l0s]
        return l0s, at[0] if at else None


def resampling(comparison: Comparison) -> dict[str, int]:
    """How a comparison's documents and seeds are resampled."""
    args = comparison.evaluation
    return {"n_resamples": args.bootstrap_samples, "seed": args.seed}


def _within(x: float, sides: tuple[float, float]) -> bool:
    return sides[0] <= x <= sides[1]
