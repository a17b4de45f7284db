"""Statistics of every room: ranks, correlations, AUC, bootstrap intervals, p-values of several.

A bootstrap draws whole items (documents, latents, tasks) with replacement: `bootstrap_weights` says
how often each is drawn, for sums; `cluster_interval` gives the units of each draw to any statistic.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_AT_ONCE = 2**22  # numbers in one block of bootstrap weights


class Interval(NamedTuple):
    """A mean over items, and its 95 % percentile bootstrap interval."""

    value: float
    low: float
    high: float


def interval(
    values: Sequence[float], weights: Sequence[float], *, n_resamples: int, seed: int
) -> Interval:
    """A weighted mean, with the percentile bootstrap over items; NaNs are left out."""
    value, weight = (torch.tensor(each, dtype=torch.float64) for each in (values, weights))
    known = ~value.isnan()
    if not known.any():
        return Interval(float("nan"), float("nan"), float("nan"))
    mean = float((value * weight)[known].sum() / weight[known].sum())
    return around(mean, resampled_means(values, weights, n_resamples=n_resamples, seed=seed))


def resampled_means(
    values: Sequence[float], weights: Sequence[float], *, n_resamples: int, seed: int
) -> Tensor:
    """[n_resamples] the weighted mean in each resample of items; NaNs are left out."""
    value, weight = (torch.tensor(each, dtype=torch.float64) for each in (values, weights))
    known = ~value.isnan()
    value, weight = value[known], weight[known]
    if not len(value):
        return torch.full((n_resamples,), torch.nan, dtype=torch.float64)
    table = torch.stack([value * weight, weight], dim=1)
    sums = torch.cat([block @ table for block in bootstrap_weights(len(value), n_resamples, seed)])
    return sums[:, 0] / sums[:, 1]


def around(value: float, draws: Tensor) -> Interval:
    """A value with the 95 % interval of its draws, which holds the value."""
    low, high = torch.quantile(draws, torch.tensor([0.025, 0.975]).double()).tolist()
    return Interval(value, min(low, value), max(high, value))


def bootstrap_weights(
    n: int, n_resamples: int, seed: int, *, width: int = 1
) -> Iterator[Float[Tensor, "block n"]]:
    """Number of draws of each of n items in each resample, in blocks that bound the memory.

    `width`: numbers per resample that the caller computes from a block, if more than n.
    """
    generator = torch.Generator().manual_seed(seed)
    for block in torch.arange(n_resamples).split(max(1, _AT_ONCE // max(n, width))):
        drawn = torch.randint(n, (len(block), n), generator=generator)
        ones = torch.ones((), dtype=torch.float64).expand(drawn.shape)
        yield torch.zeros(drawn.shape, dtype=torch.float64).scatter_add_(1, drawn, ones)


def cluster_interval(
    statistic: Callable[[Int[np.ndarray, " k"]], float],
    cluster: Int[np.ndarray, " n"],
    *,
    n_resamples: int,
    seed: int,
) -> tuple[float, float]:
    """The 95 % percentile interval of a bootstrap over clusters of units, such as the rows of
    documents; NaN if no draw has a value.

    Args:
        statistic: of the units of a draw, as often as they are drawn; NaN where it has no value.
        cluster: the number of each unit's cluster, from 0.
    """
    generator, n = np.random.default_rng(seed), int(cluster.max()) + 1
    units, values = np.arange(len(cluster)), []
    for _ in range(n_resamples):
        counts = generator.multinomial(n, np.full(n, 1 / n))
        values.append(statistic(np.repeat(units, counts[cluster])))
    if np.isnan(values).all():
        return math.nan, math.nan
    low, high = np.nanquantile(values, [0.025, 0.975])
    return float(low), float(high)


def derangement(n: int, seed: int) -> np.ndarray:
    """A random permutation of one cycle (Sattolo's), in which nothing stays in its place."""
    rng, items = np.random.default_rng(seed), np.arange(n)
    for last in range(n - 1, 0, -1):
        other = int(rng.integers(last))
        items[[last, other]] = items[[other, last]]
    return items


def holm(ps: Sequence[float]) -> list[float]:
    """P-values corrected for their number (Holm 1979)."""
    corrected, highest = [math.nan] * len(ps), 0.0
    known = sorted((p, i) for i, p in enumerate(ps) if not math.isnan(p))
    for rank, (p, i) in enumerate(known):
        highest = max(highest, min(1.0, p * (len(known) - rank)))
        corrected[i] = highest
    return corrected


def mid_ranks(values: Float[np.ndarray, "*m n"]) -> Float[np.ndarray, "*m n"]:
    """Ranks from 1 along the last axis; equal values share their mean."""
    from scipy.stats import rankdata

    return rankdata(values, axis=-1)


def correlations(
    values: Float[np.ndarray, "m n"], numbers: Float[np.ndarray, " n"]
) -> Float[np.ndarray, " m"]:
    """Pearson's correlation of each row with numbers, Spearman's if all are ranks; 0 where one of
    them is constant, since it predicts nothing."""
    values = values - values.mean(1, keepdims=True, dtype=np.float64)
    numbers = numbers - numbers.mean(dtype=np.float64)
    sizes = np.sqrt((values**2).sum(1) * (numbers**2).sum())
    return np.divide(values @ numbers, sizes, out=np.zeros(len(values)), where=sizes > 0)


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's correlation; 0 where either is constant."""
    return float(correlations(a[None], b)[0])


def weighted_pearson(a: np.ndarray, b: np.ndarray, weights: np.ndarray) -> float:
    """Pearson's correlation with weights; 0 where either is constant, NaN without a positive
    weight."""
    total = weights.sum()
    if not total > 0:
        return float("nan")
    a, b = a - (a * weights).sum() / total, b - (b * weights).sum() / total
    norms = np.sqrt((weights * a * a).sum() * (weights * b * b).sum())
    # what rounding leaves of a constant is no variation
    return float((weights * a * b).sum() / norms) if norms > 1e-12 * total else 0.0


def correlation_p(rho: np.ndarray, n: int) -> np.ndarray:
    """Two-sided p-values of Spearman's correlations over n units, by Student's t distribution."""
    from scipy.special import stdtr

    with np.errstate(divide="ignore"):
        t = np.abs(rho) * np.sqrt((n - 2) / ((1 - rho) * (1 + rho)).clip(min=0))
    return 2 * stdtr(n - 2, -t)


def aucs(
    ranks: Float[np.ndarray, "m n"], is_in: Bool[np.ndarray, "n classes"]
) -> Float[np.ndarray, "classes m"]:
    """The chance that a row of `mid_ranks` is larger in a unit of a class than in one of the
    others, a tie half, for each class; NaN for one without a unit in it, or outside it."""
    n_in = is_in.sum(0)
    n_pairs = n_in * (len(is_in) - n_in)
    u = ranks @ is_in.astype(float) - n_in * (n_in + 1) / 2  # [m, classes], Mann-Whitney's
    return np.divide(u, n_pairs, out=np.full(u.shape, np.nan), where=n_pairs > 0).T


def auc(scores: np.ndarray, positive: Bool[np.ndarray, " n"]) -> float:
    """Share of pairs of a positive and a negative in which the positive's score is larger; ties are
    half. NaN if there is no positive or no negative."""
    return float(aucs(mid_ranks(scores)[None], positive[:, None])[0, 0])


def average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
    """The sum over thresholds of precision times the gain in recall; equal scores share a
    threshold. NaN without a positive."""
    if not positive.any():
        return float("nan")
    levels, group = np.unique(-scores, return_inverse=True)
    hits = np.bincount(group, weights=positive, minlength=len(levels)).cumsum()
    calls = np.bincount(group, minlength=len(levels)).cumsum()
    gained = np.diff(hits, prepend=0.0)
    return float((hits / calls * gained).sum() / hits[-1])


def eta_squared(
    values: Float[np.ndarray, "m n"], is_in: Bool[np.ndarray, "n classes"]
) -> Float[np.ndarray, " m"]:
    """Share of each row's variance that lies between classes; 0 where it is constant. Each unit is
    in one class, and each class has a unit."""
    centred = values - values.mean(1, keepdims=True)
    total = (centred**2).sum(1)
    between = ((centred @ is_in.astype(float)) ** 2 / is_in.sum(0)).sum(1)
    return np.divide(between, total, out=np.zeros(len(values)), where=total > 0)
