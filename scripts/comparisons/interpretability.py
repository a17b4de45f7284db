"""Scores of latents at equal L0: means over an arm's latents, differences by stratum, intervals.

An arm's value is the mean over its seeds of the mean over latents. Differences are paired by
stratum, since latents of two SAEs do not correspond: site, seed and tenth of density, tenths being
those of all latents of the comparison. Two 95 % intervals, as for fidelity: Student's t over the
seeds, and percentiles of a bootstrap of seeds and, in each, of latents (for differences within
strata). Where an arm has several sparsities, values are those `at_l0`.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
from torch import Tensor

from hfsae.comparison import Estimate, Measured, estimate

from .at_l0 import at_l0

N_STRATA = 10
_PARTS = LATENTS, DIRECTIONS, UNTRAINED = "latents", "directions", "untrained"


def columns_of(m: Measured, kind: str) -> dict[str, Tensor]:
    """Scores of an SAE's latents and of its controls, "lexical" or "judged"; empty: not measured.
    Names have a part before them: "latents/density", "directions/pearson",
    "untrained/shuffled_pearson". NaN: a latent has no such score."""
    prefix = f"explained/{kind}/"
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in m.more_tensors.items()
        if name.startswith(prefix)
    }


class Score(NamedTuple):
    """A column of scores, or what its values are above another column's, latent by latent."""

    column: str
    above: str | None = None
    by_frequency: bool = False
    """whether latents count by how often they fire"""
    part: str = LATENTS
    """whose: `latents`, `directions` or `untrained`"""
    is_judged: bool = False

    def of(self, m: Measured) -> tuple[np.ndarray, np.ndarray]:
        """Values and densities of the latents that have a value; empty without the column."""
        columns = columns_of(m, "judged" if self.is_judged else "lexical")
        names = [name for name in (self.column, self.above, "density") if name]
        if any(f"{self.part}/{name}" not in columns for name in names):
            return np.zeros(0), np.zeros(0)
        arrays = {n: columns[f"{self.part}/{n}"].double().numpy() for n in names}
        values = arrays[self.column] - (arrays[self.above] if self.above else 0.0)
        is_known = np.isfinite(values)
        return values[is_known], arrays["density"][is_known]


class Interpretability:
    """Scores of a comparison's SAEs, arm by arm and seed by seed.

    Args:
        l0: at which arms of several sparsities are compared.
        n_resamples: resamples of seeds and latents.
    """

    def __init__(
        self, measured: Sequence[Measured], l0: float, *, n_resamples: int = 1000, seed: int = 0
    ) -> None:
        self.arms = list(dict.fromkeys(m.arm for m in measured))
        self.seeds = sorted({m.seed for m in measured})
        self.l0, self.n_resamples, self._seed = l0, n_resamples, seed
        self._measured = measured
        self._at = {
            (arm, s): at_l0(
                [m for m in measured if (m.arm, m.seed) == (arm, s)],
                l0,
                lambda m: bool(columns_of(m, "lexical")),
            )
            for arm in self.arms
            for s in self.seeds
        }

    @cached_property
    def edges(self) -> np.ndarray:
        """[9] densities between the tenths."""
        densities = np.concatenate([Score("density").of(m)[1] for m in self._measured])
        inner = np.arange(1, N_STRATA) / N_STRATA
        return np.quantile(densities, inner) if len(densities) else np.zeros(N_STRATA - 1)

    def l0s(self, arm: str) -> list[float]:
        """The L0s that its values are at, one a seed."""
        return [self._at[arm, s].l0 for s in self.seeds]

    def saes(self, arm: str) -> list[Measured]:
        """Its SAEs that count most at this L0, one a seed."""
        return [self._at[arm, s].main for s in self.seeds]

    def n_latents(self, arm: str, score: Score) -> int:
        """Latents with a value, over seeds."""
        return sum(len(score.of(m)[0]) for m in self.saes(arm))

    def mean(self, arm: str, score: Score) -> Estimate:
        """An arm's mean; NaN without values."""
        return self._estimate([self._means(arm, s, score) for s in self.seeds])

    def stratum(self, arm: str, score: Score, stratum: int) -> Estimate:
        """An arm's mean in one tenth of density, over the seeds that have latents there."""
        of_seeds = [self._by_stratum(arm, s, score).means[:, stratum] for s in self.seeds]
        return self._estimate([means for means in of_seeds if np.isfinite(means[0])])

    def n_in_stratum(self, arm: str, score: Score, stratum: int) -> int:
        """Latents of an arm in a tenth of density, over seeds."""
        tenths = (np.searchsorted(self.edges, score.of(m)[1]) for m in self.saes(arm))
        return sum(int((tenth == stratum).sum()) for tenth in tenths)

    def difference(
        self, arm: str, score: Score, reference: str, other: Score | None = None
    ) -> Estimate:
        """An arm's values minus the reference's, stratum by stratum; strata count by their numbers
        of latents n m / (n + m), and those that one of both lacks are left out.

        Args:
            other: the reference's score, if it is not the same.
        """
        differences = []
        for s in self.seeds:
            ours = self._by_stratum(arm, s, score)
            theirs = self._by_stratum(reference, s, other or score)
            weights = ours.n * theirs.n / np.maximum(ours.n + theirs.n, 1)
            both = weights > 0
            gaps = (ours.means - theirs.means)[:, both] @ weights[both]
            differences.append(gaps / weights.sum() if both.any() else gaps + np.nan)
        return self._estimate(differences)

    def _means(self, arm: str, seed: int, score: Score) -> np.ndarray:
        """[1 + resamples] means over latents; entry 0 is of the original ones."""

        def of(m: Measured) -> np.ndarray:
            values, densities = score.of(m)
            weights = densities if score.by_frequency else np.ones(len(values))
            return self._resampled(values, weights, m, score)

        return self._at[arm, seed].mean(of)

    def _by_stratum(self, arm: str, seed: int, score: Score) -> "_Strata":
        means, n = np.zeros((1 + self.n_resamples, N_STRATA)), np.zeros(N_STRATA)
        for m, share in self._at[arm, seed].shares:
            values, densities = score.of(m)
            stratum = np.searchsorted(self.edges, densities)
            for i in range(N_STRATA):
                own = values[stratum == i]
                means[:, i] += share * self._resampled(own, np.ones(len(own)), m, score, i)
                n[i] += share * len(own)
        return _Strata(means, np.where(np.isfinite(means[0]), n, 0.0))

    def _resampled(
        self,
        values: np.ndarray,
        weights: np.ndarray,
        m: Measured,
        score: Score,
        stratum: int = N_STRATA,
    ) -> np.ndarray:
        """[1 + resamples] weighted means: of the values, then of values drawn with replacement, the
        same draws for all scores of the same latents."""
        n = len(values)
        if not n:
            return np.full(1 + self.n_resamples, np.nan)
        whose = [self.arms.index(m.arm), _PARTS.index(score.part), stratum, round(1000 * m.value)]
        rng = np.random.default_rng([self._seed, m.seed, *whose])
        drawn = rng.multinomial(n, np.full(n, 1 / n), self.n_resamples)
        counts = np.concatenate([np.ones((1, n)), drawn])
        return counts @ (values * weights) / (counts @ weights)

    def _estimate(self, of_seeds: Sequence[np.ndarray]) -> Estimate:
        """From the values [1 + resamples] of each seed."""
        if not of_seeds or not all(np.isfinite(values).all() for values in of_seeds):
            return Estimate(np.nan, (np.nan, np.nan), (np.nan, np.nan))
        return estimate(np.stack(of_seeds), n_resamples=self.n_resamples, seed=self._seed)


class _Strata(NamedTuple):
    means: np.ndarray
    """[1 + resamples, strata]; NaN: no latents"""
    n: np.ndarray
    """[strata] latents"""
