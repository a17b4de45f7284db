"""Fidelity at equal L0: curves through an arm's SAEs, paired differences, and their intervals.

Between two SAEs of an arm, log(metric) is interpolated linearly in log(L0). Beyond the sparsest and
the densest SAE the value is NaN; an arm with one SAE counts for all L0s within 5 % of its own. No
line joins SAEs that are not neighbours in the sweep: bridging a collapsed one would flatter the
arm. A delta loss of 0 or below has no logarithm, and leaves a gap as well. L0s change a little on
resampled documents, so the outermost lines are extended there as far as needed. Differences are
paired: by seed (the same initial weights and order of activations) and by document (the same
held-out text). An estimate has two 95 % intervals and a p, and is shown or not:

    seeds            Student's t over the seeds' differences: would other seeds agree?
    seeds and items  percentiles of a bootstrap over both, items being documents (or latents): would
                     other text agree, too?
    p                two-sided, of no difference: the larger one of Student's t over seeds and of a
                     normal distribution as wide as the bootstrap's interval on the side of 0 (the
                     other side may be much wider, as for a ratio of losses near 0); in a table
                     corrected by Holm (1979) for the number of its differences
    shown            both intervals exclude 0, and the corrected p is below 0.05

Without a language model there is no loss: SAEs are compared by FVU alone.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.special import ndtr, ndtri, stdtr, stdtrit

from ..evaluation.statistics import bootstrap_weights, holm
from ..io.units import unit_of
from .arms import Comparison
from .results import Measured

METRICS = {"fvu": "FVU", "delta_loss": "delta LM loss"}
"""All metrics that arms are compared by, with their names."""
LEVEL = 0.05
_ROUNDING = 1e-12
_LEAST = 1e-9  # smallest value with a logarithm
_LEAST_L0 = 1e-3
_SLACK = 1.05  # an SAE alone counts for L0s up to this ratio from its own
_AREA_POINTS = 65


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


def estimate(values: np.ndarray, *, n_resamples: int, seed: int) -> Estimate:
    """From values [seeds, 1 + resamples], entry 0 being of the original items; this function
    resamples the seeds."""
    own, n = values[:, 0], len(values)
    drawn = np.random.default_rng(seed).integers(n, size=(n_resamples, n))
    means = values[drawn, 1 + np.arange(n_resamples)[:, None]].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    mean, p = float(own.mean()), float("nan")
    near = float(low if mean > 0 else high)  # the interval's end on the side of 0
    if n > 1 and np.isfinite(near):
        half = max(abs(mean - near), _ROUNDING)
        p = float(max(t_p(own), 2 * ndtr(-ndtri(0.975) * abs(mean) / half)))
    return Estimate(mean, t_interval(own), (float(low), float(high)), p)


def corrected(table: Sequence[Estimate]) -> list[Estimate]:
    """The differences of one table, each p corrected for their number; NaNs do not count."""
    ps = holm([e.p for e in table])
    return [e._replace(p=p) for e, p in zip(table, ps, strict=True)]


def t_p(values: np.ndarray) -> float:
    """Student's two-sided p of a mean of 0; NaN for one value."""
    n = len(values)
    if n < 2:
        return float("nan")
    error = max(values.std(ddof=1) / n**0.5, _ROUNDING)
    return float(2 * stdtr(n - 1, -abs(values.mean()) / error))


def t_interval(values: np.ndarray) -> tuple[float, float]:
    """Student's 95 % interval of the mean; NaN for one value."""
    n = len(values)
    if n < 2:
        return float("nan"), float("nan")
    half = float(stdtrit(n - 1, 0.975)) * values.std(ddof=1) / n**0.5
    return float(values.mean() - half), float(values.mean() + half)


class Frontiers:
    """The curves of a comparison: [arm][seed] -> metric as a function of L0.

    Args:
        n_resamples: resamples of seeds and documents; all SAEs share the draws of documents.

    Attributes:
        metrics: those of `METRICS` that the SAEs have.
        unit: what one activation is of.
    """

    def __init__(
        self, measured: Sequence[Measured], *, n_resamples: int = 1000, seed: int = 0
    ) -> None:
        self.metrics = {
            metric: name
            for metric, name in METRICS.items()
            if all(metric in m.metrics for m in measured)
        }
        self.unit = unit_of(measured[0].recipe)
        self.arms = list(dict.fromkeys(m.arm for m in measured))
        self.seeds = sorted({m.seed for m in measured})
        self.n_resamples, self._seed = n_resamples, seed
        self._saes = {
            (arm, s): [m for m in measured if (m.arm, m.seed) == (arm, s)]
            for arm in self.arms
            for s in self.seeds
        }

    def n_saes(self, arm: str) -> int:
        """Number of SAEs per seed."""
        return len(self._saes[arm, self.seeds[0]])

    def at(self, arm: str, metric: str, l0: float) -> Estimate:
        """An arm's metric at an L0: the mean over seeds, with its intervals."""
        curves = [self._curve(arm, s, metric, [l0]) for s in self.seeds]  # each [1 + resamples, 1]
        return self._estimate(np.stack(curves)[:, :, 0])

    def difference(self, arm: str, reference: str, metric: str, l0: float) -> Estimate:
        """log(metric of arm / metric of reference) at an L0; -0.1 is a tenth better."""
        return self._estimate(self._log_ratios(arm, reference, metric, [l0])[:, :, 0])

    def area(self, arm: str, reference: str, metric: str, low: float, high: float) -> Estimate:
        """The mean of log(metric of arm / metric of reference) over log L0 from low to high: the
        area between two frontiers, over its width."""
        return self._estimate(self.areas(arm, reference, metric, low, high))

    def areas(
        self, arm: str, reference: str, metric: str, low: float, high: float
    ) -> Float[np.ndarray, "seeds resamples"]:
        """The `area` of each seed, over the original documents and in each resample of them."""
        l0s = list(np.geomspace(low, high, _AREA_POINTS))
        ratios = self._log_ratios(arm, reference, metric, l0s)
        return (ratios[..., 1:] + ratios[..., :-1]).mean(axis=-1) / 2

    def reach(self, arms: Sequence[str]) -> tuple[float, float]:
        """The range of L0 in which each of these arms has a curve for every seed."""
        sides = [self._sides(arm, s) for arm in arms for s in self.seeds]
        return max(low for low, _ in sides), min(high for _, high in sides)

    def _sides(self, arm: str, seed: int) -> tuple[float, float]:
        l0s = [max(m.metrics["l0"], _LEAST_L0) for m in self._saes[arm, seed]]
        return (l0s[0] / _SLACK, l0s[0] * _SLACK) if len(l0s) == 1 else (min(l0s), max(l0s))

    def _log_ratios(
        self, arm: str, reference: str, metric: str, l0s: Sequence[float]
    ) -> np.ndarray:
        """[seeds, 1 + resamples, l0s]; entry 0 of the resamples is the original documents."""
        ours, theirs = (
            np.stack([self._curve(a, s, metric, l0s) for s in self.seeds]) for a in (arm, reference)
        )
        return np.log(np.maximum(ours, _LEAST)) - np.log(np.maximum(theirs, _LEAST))

    def _estimate(self, values: np.ndarray) -> Estimate:
        """An estimate from values [seeds, 1 + resamples]."""
        return estimate(values, n_resamples=self.n_resamples, seed=self._seed)

    def _curve(self, arm: str, seed: int, metric: str, l0s: Sequence[float]) -> np.ndarray:
        """The interpolated metric, [1 + resamples, l0s]."""
        saes = self._saes[arm, seed]
        points = [self._resampled[id(m)] for m in saes]
        l0 = np.stack([p["l0"] for p in points], axis=1)  # [1 + resamples, saes]
        x = np.log(np.maximum(l0, _LEAST_L0))
        measured = np.stack([p[metric] for p in points], axis=1)
        y = np.log(np.maximum(measured, _LEAST))
        at = np.log(np.asarray(l0s))
        curves = np.exp(_on_lines(at, x, y))
        low, high = np.log(self._sides(arm, seed))
        is_between = (at >= low) & (at <= high)
        values = np.array([m.value for m in saes])
        has_line = _lies_between_neighbours(at, x[0], values, measured[0] > 0)
        return np.where(is_between & has_line, curves, np.nan)

    @cached_property
    def _resampled(self) -> Mapping[int, dict[str, np.ndarray]]:
        """L0 and metrics of each SAE, [1 + resamples]; entry 0 is the original documents."""
        resampled = {}
        for m in (m for those in self._saes.values() for m in those):
            names = [f"fidelity.{name}" for name in ("active", "tokens", "error", "spread")]
            active, tokens, error, spread = _drawn(m, names, self.n_resamples, self._seed)
            values = {"l0": active / tokens, "fvu": error / spread}
            if "delta_loss" in m.metrics:
                names = [f"losses.{name}" for name in ("spliced", "clean", "tokens")]
                spliced, clean, n = _drawn(m, names, self.n_resamples, self._seed)
                values["delta_loss"] = (spliced - clean) / n
            resampled[id(m)] = values
        return resampled


class Differences:
    """All differences of a comparison's arms from its reference, in log ratios.

    Attributes:
        l0s: those of `at_l0` that the reference and at least one other arm reach.
        metrics: as in `Frontiers`.
    """

    def __init__(self, comparison: Comparison, measured: Sequence[Measured]) -> None:
        self.c, self.measured = comparison, measured
        args = comparison.evaluation
        self.frontiers = frontiers = Frontiers(
            measured, n_resamples=args.bootstrap_samples, seed=args.seed
        )
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
            rows = []
            for arm in self.others:
                of_arm = arm, self.reference, metric
                rows.append([self.frontiers.difference(*of_arm, l0) for l0 in self.l0s])
                if len(self.l0s) > 1:
                    rows[-1].append(self.frontiers.area(*of_arm, self.l0s[0], self.l0s[-1]))
            cells = iter(corrected([e for row in rows for e in row]))
            tables[metric] = {
                arm: [next(cells) for _ in row] for arm, row in zip(self.others, rows, strict=True)
            }
        return tables


def _within(x: float, sides: tuple[float, float]) -> bool:
    return sides[0] <= x <= sides[1]


def _drawn(m: Measured, names: list[str], n_resamples: int, seed: int) -> np.ndarray:
    """Sums [names, 1 + resamples]: over the original documents, then over resampled ones."""
    table = torch.stack([m.sums[name] for name in names], dim=-1)  # [documents, names]
    blocks = bootstrap_weights(len(table), n_resamples, seed)
    sums = [table.sum(dim=0, keepdim=True), *(weights @ table for weights in blocks)]
    return torch.cat(sums).T.numpy()


def _lies_between_neighbours(
    at: np.ndarray, x: np.ndarray, values: np.ndarray, has_log: np.ndarray
) -> np.ndarray:
    """Whether the points on both sides of `at` have logarithms, and are neighbours in the swept
    `values`, too."""
    if len(x) == 1:
        return np.repeat(has_log, len(at))
    order = np.argsort(x)
    ranks, has_log = np.argsort(np.argsort(values))[order], has_log[order]
    left = _left(at, x[order][None])[0]
    return (np.abs(ranks[left + 1] - ranks[left]) == 1) & has_log[left] & has_log[left + 1]


def _left(
    at: Float[np.ndarray, " l0s"], x: Float[np.ndarray, "resamples saes"]
) -> Int[np.ndarray, "resamples l0s"]:
    """Index of the (rising) x to the left of each value; 0 left of all, n - 2 right of all."""
    n_left = (x[:, None, :] < at[:, None]).sum(axis=-1)
    return np.clip(n_left - 1, 0, x.shape[1] - 2)


def _on_lines(
    at: Float[np.ndarray, " l0s"],
    x: Float[np.ndarray, "resamples saes"],
    y: Float[np.ndarray, "resamples saes"],
) -> Float[np.ndarray, "resamples l0s"]:
    """y at the values `at`, on the lines between neighbouring points; outermost lines extend."""
    if x.shape[1] == 1:
        return np.repeat(y, len(at), axis=1)
    of = np.take_along_axis
    order = np.argsort(x, axis=1)
    x, y = of(x, order, axis=1), of(y, order, axis=1)
    left = _left(at, x)
    x0, y0 = of(x, left, axis=1), of(y, left, axis=1)
    slope = (of(y, left + 1, axis=1) - y0) / (of(x, left + 1, axis=1) - x0)
    return y0 + slope * (at - x0)
