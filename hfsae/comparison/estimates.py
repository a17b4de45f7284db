"""A number of a comparison with its intervals, and which of a table's differences are shown.

intervals  over seeds: Student's t; over seeds and items (documents or latents): percentiles of
           a bootstrap of both
p          two-sided, of no difference: the larger one of Student's t over seeds and of a normal
           distribution as wide as the bootstrap's interval on the side of 0 (the other side may be
           much wider, as for a ratio of losses near 0); in a table corrected by Holm (1979) for the
           number of its differences
shown      both intervals exclude 0, and the corrected p is below 0.05
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import ndtr, ndtri, stdtr, stdtrit

from ..evaluation.statistics import holm

LEVEL = 0.05
_LEAST = 1e-12


class Estimate(NamedTuple):
    """A number, and its 95 % intervals: over seeds, and over seeds and items."""

    value: float
    seeds: tuple[float, float]
    items: tuple[float, float]
    p: float = float("nan")
    """that it is 0; NaN for one seed"""

    @property
    def holds_0(self) -> bool:
        """Whether at least one interval holds 0, or is unknown."""
        return any(not (low > 0 or high < 0) for low, high in (self.seeds, self.items))

    @property
    def is_significant(self) -> bool:
        """Whether it differs from 0 by both intervals and by p."""
        return not self.holds_0 and self.p < LEVEL

    def marked(self, text: str) -> str:
        """Markdown: bold if it is shown; in italics if the correction alone forbids it."""
        mark = "**" if self.is_significant else "" if self.holds_0 else "*"
        return f"{mark}{text}{mark}"

    def cell(self, write: Callable[[float], str], unit: str = "", *, has_items: bool = True) -> str:
        """Markdown: the number, `marked`, and its known intervals; a dash where it is unknown.

        Args:
            has_items: whether there are other items than seeds.
        """
        if math.isnan(self.value):
            return "-"
        sides = [self.seeds, self.items] if has_items else [self.seeds]
        known = [f"{write(low)} to {write(high)}" for low, high in sides if not math.isnan(low)]
        return self.marked(write(self.value) + unit) + (f" ({'; '.join(known)})" if known else "")


UNKNOWN = Estimate(math.nan, (math.nan, math.nan), (math.nan, math.nan))


def estimate(values: np.ndarray, *, n_resamples: int, seed: int) -> Estimate:
    """From values [seeds, 1 + resamples], entry 0 being of the original items; this function
    resamples the seeds."""
    own, n = values[:, 0], len(values)
    drawn = np.random.default_rng(seed).integers(n, size=(n_resamples, n))
    means = values[drawn, 1 + np.arange(n_resamples)[:, None]].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    mean = float(own.mean())
    near = float(low if mean > 0 else high)
    return Estimate(mean, t_interval(own), (float(low), float(high)), _p(own, near))


def corrected(table: Sequence[Estimate]) -> list[Estimate]:
    """The differences of one table, each p corrected for their number; NaNs do not count."""
    ps = holm([e.p for e in table])
    return [e._replace(p=p) for e, p in zip(table, ps, strict=True)]


def _p(own: np.ndarray, near: float) -> float:
    """Args: near: the bootstrap interval's end on the side of 0."""
    mean = own.mean()
    if len(own) < 2 or not np.isfinite(near):
        return float("nan")
    half = max(abs(mean - near), _LEAST)
    return float(max(t_p(own), 2 * ndtr(-ndtri(0.975) * abs(mean) / half)))


def t_p(values: np.ndarray) -> float:
    """Student's two-sided p of a mean of 0; NaN for one value."""
    n = len(values)
    if n < 2:
        return float("nan")
    error = max(values.std(ddof=1) / n**0.5, _LEAST)
    return float(2 * stdtr(n - 1, -abs(values.mean()) / error))


def t_interval(values: np.ndarray) -> tuple[float, float]:
    """Student's 95 % interval of the mean; NaN for one value."""
    n = len(values)
    if n < 2:
        return float("nan"), float("nan")
    half = float(stdtrit(n - 1, 0.975)) * values.std(ddof=1) / n**0.5
    return float(values.mean() - half), float(values.mean() + half)
