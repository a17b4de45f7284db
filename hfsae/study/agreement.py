"""How far raters agree: Krippendorff's alpha, Gwet's AC1 and AC2, with intervals over items.

Ratings are arrays [raters, items] of whole numbers 0 to n_levels - 1; NaN: not rated.
"""

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
from scipy import stats

from ..evaluation.statistics import Interval

Scale = Literal["nominal", "ordinal", "interval"]
Coefficient = Callable[[np.ndarray], float]
"""Of counts [items, levels]: how many raters gave an item a level."""


def counts_of(ratings: np.ndarray, n_levels: int) -> np.ndarray:
    """[items, levels] the raters that gave each item each level."""
    return (ratings[:, :, None] == np.arange(n_levels)).sum(0).astype(float)


def krippendorff(counts: np.ndarray, scale: Scale) -> float:
    """Alpha = 1 - observed / expected disagreement; NaN where all ratings are equal.

    Krippendorff, Content Analysis, ch. 12: over coincidences of levels within items that two or
    more raters rated.

    Args:
        counts: [items, levels], from `counts_of`.
    """
    counts = counts[counts.sum(1) >= 2]
    pairs = counts[:, :, None] * counts[:, None] - counts[:, :, None] * np.eye(counts.shape[1])
    coincidences = (pairs / (counts.sum(1) - 1)[:, None, None]).sum(0)
    of_level = coincidences.sum(1)
    distances = _distances(of_level, scale)
    expected = (np.outer(of_level, of_level) * distances).sum() / max(of_level.sum() - 1, 1)
    return 1 - float((coincidences * distances).sum() / expected) if expected > 0 else math.nan


def _distances(of_level: np.ndarray, scale: Scale) -> np.ndarray:
    """[levels, levels] the squared differences of a scale."""
    level = np.arange(len(of_level))
    if scale == "nominal":
        return (level[:, None] != level).astype(float)
    if scale == "ordinal":
        level = of_level.cumsum() - of_level / 2
    return (level[:, None] - level).astype(float) ** 2


def gwet(counts: np.ndarray, *, weighted: bool) -> float:
    """AC1, or with ordinal weights AC2; NaN where no item has two ratings.

    Gwet, Handbook of Inter-Rater Reliability. Unlike kappa and alpha it stays high where nearly
    all raters give the same level to nearly all items.

    Args:
        counts: [items, levels], from `counts_of`.
    """
    counts = counts[counts.sum(1) >= 1]
    n, q = counts.sum(1), counts.shape[1]
    if not (n >= 2).any():
        return math.nan
    weights = _ordinal_weights(q) if weighted else np.eye(q)
    shares = (counts / n[:, None]).mean(0)
    expected = weights.sum() / (q * (q - 1)) * (shares * (1 - shares)).sum()
    observed = _agreement(counts[n >= 2], weights)
    return float((observed - expected) / (1 - expected)) if expected < 1 else math.nan


def percent(counts: np.ndarray) -> float:
    """Share of pairs of raters who gave an item the same level, mean over items."""
    counts = counts[counts.sum(1) >= 2]
    return _agreement(counts, np.eye(counts.shape[1])) if len(counts) else math.nan


def _agreement(counts: np.ndarray, weights: np.ndarray) -> float:
    n = counts.sum(1)
    return float(((counts * (counts @ weights - 1)).sum(1) / (n * (n - 1))).mean())


def _ordinal_weights(q: int) -> np.ndarray:
    apart = np.abs(np.arange(q)[:, None] - np.arange(q))
    pairs = apart * (apart + 1) / 2
    return 1 - pairs / pairs.max()


def jackknife(counts: np.ndarray, coefficient: Coefficient) -> Interval:
    """A coefficient with its 95 % jackknife interval over items (Hughes 2022, arXiv:2210.13265: the
    bootstrap is too narrow for few items).

    Args:
        counts: [items, levels], from `counts_of`.
    """
    counts = counts[counts.sum(1) >= 2]
    value, n = coefficient(counts), len(counts)
    without = np.array([coefficient(np.delete(counts, i, axis=0)) for i in range(n)])
    if n < 3 or not np.isfinite([value, *without]).all():
        return Interval(value, math.nan, math.nan)
    error = math.sqrt((n - 1) / n * ((without - without.mean()) ** 2).sum())
    reach = float(stats.t.ppf(0.975, n - 1)) * error
    return Interval(value, max(-1.0, value - reach), min(1.0, value + reach))
