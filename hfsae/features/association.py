"""How many variables go with a label: ranks, correlations, AUC, eta squared, and p-values.

A matrix of variables is [m, n], a row a variable and a column a unit (a document, or a row of one).
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Int

Values = Float[np.ndarray, "m n"]
Weights = Float[np.ndarray, "draws n"]
Statistic = Callable[[Float[np.ndarray, " n"], np.ndarray, Weights], Float[np.ndarray, " draws"]]
"""Of one variable, its labels, and how often each unit counts in each draw."""
_AT_ONCE = 2**22  # weights of bootstrap draws


class Ordered:
    """Variables, sorted once for the ranks among any of their units."""

    def __init__(self, values: Values):
        self.values = values
        self.order = np.argsort(values, axis=1)

    def ranks(self, among: Bool[np.ndarray, " n"]) -> Float[np.ndarray, "m _"]:
        """Ranks from 1 among some units, in the order of these; equal values share their mean."""
        place = np.cumsum(among) - 1
        order = self.order[among[self.order]].reshape(len(self.order), -1)
        ordered = np.take_along_axis(self.values, order, 1)
        is_first = np.ones(order.shape, dtype=bool)
        is_first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
        is_last = np.roll(is_first, -1, axis=1)  # a row's first value is never equal to one before
        at = np.arange(order.shape[1], dtype=np.int32)
        low = np.maximum.accumulate(np.where(is_first, at, 0), axis=1)
        high = np.where(is_last, at, at[-1])[:, ::-1]
        high = np.minimum.accumulate(high, axis=1)[:, ::-1]
        ranks = np.empty(order.shape)
        np.put_along_axis(ranks, place[order], (low + high) / 2 + 1, 1)
        return ranks


def mid_ranks(numbers: np.ndarray) -> Float[np.ndarray, " n"]:
    """Ranks from 1; equal numbers share their mean."""
    return Ordered(numbers[None]).ranks(np.ones(len(numbers), dtype=bool))[0]


def correlations(values: Values, numbers: Float[np.ndarray, " n"]) -> Float[np.ndarray, " m"]:
    """Pearson's correlation of each variable with numbers, Spearman's if all are ranks; 0 where one
    of them is constant."""
    values = values - values.mean(1, keepdims=True)
    numbers = numbers - numbers.mean()
    sizes = np.sqrt((values**2).sum(1) * (numbers**2).sum())
    return np.divide(values @ numbers, sizes, out=np.zeros(len(values)), where=sizes > 0)


def correlation_p(rho: np.ndarray, n: int) -> np.ndarray:
    """Two-sided p-values of Spearman's correlations over n units, by Student's t distribution."""
    from scipy.special import stdtr

    with np.errstate(divide="ignore"):
        t = np.abs(rho) * np.sqrt((n - 2) / ((1 - rho) * (1 + rho)).clip(min=0))
    return 2 * stdtr(n - 2, -t)


def false_discovery_rates(p: np.ndarray) -> np.ndarray:
    """The least rate of false discoveries at which each of all p-values counts as one.

    Benjamini and Hochberg 1995.
    """
    order = np.argsort(p, axis=None)
    rates = p.ravel()[order] * p.size / np.arange(1, p.size + 1)
    q = np.empty(p.size)
    q[order] = np.minimum.accumulate(rates[::-1])[::-1].clip(max=1)
    return q.reshape(p.shape)


def aucs(ranks: Values, is_in: Bool[np.ndarray, "n classes"]) -> Float[np.ndarray, "classes m"]:
    """The chance that a variable is larger in a unit of a class than in one of the others, a tie
    half, for each class (Mann-Whitney's U over its largest value)."""
    n_in = is_in.sum(0)
    sums = ranks @ is_in.astype(float)  # [m, classes]
    return ((sums - n_in * (n_in + 1) / 2) / (n_in * (len(is_in) - n_in))).T


def eta_squared(values: Values, is_in: Bool[np.ndarray, "n classes"]) -> Float[np.ndarray, " m"]:
    """Share of each variable's variance that lies between classes; 0 where it is constant. Each
    unit is in one class, and each class has a unit."""
    centred = values - values.mean(1, keepdims=True)
    total = (centred**2).sum(1)
    between = ((centred @ is_in.astype(float)) ** 2 / is_in.sum(0)).sum(1)
    return np.divide(between, total, out=np.zeros(len(values)), where=total > 0)


def weighted_correlation(
    variable: Float[np.ndarray, " n"], numbers: np.ndarray, weights: Weights
) -> Float[np.ndarray, " draws"]:
    """Spearman's, where each unit counts as often as its weight says."""
    x, y = (_weighted_ranks(each, weights) for each in (variable, numbers))
    n = weights.sum(1, keepdims=True)
    x, y = (each - (weights * each).sum(1, keepdims=True) / n for each in (x, y))
    sizes = np.sqrt((weights * x**2).sum(1) * (weights * y**2).sum(1))
    products = (weights * x * y).sum(1)
    return np.divide(products, sizes, out=np.zeros(len(weights)), where=sizes > 0)


def weighted_auc(
    variable: Float[np.ndarray, " n"], is_in: np.ndarray, weights: Weights
) -> Float[np.ndarray, " draws"]:
    """AUC, where each unit counts as often as its weight says; NaN without a unit on each side."""
    ranks = _weighted_ranks(variable, weights)
    n_in = weights[:, is_in].sum(1)
    n_pairs = n_in * (weights.sum(1) - n_in)
    u = (weights * ranks)[:, is_in].sum(1) - n_in * (n_in + 1) / 2
    return np.divide(u, n_pairs, out=np.full(len(weights), np.nan), where=n_pairs > 0)


def weighted_eta_squared(
    variable: Float[np.ndarray, " n"], codes: np.ndarray, weights: Weights
) -> Float[np.ndarray, " draws"]:
    """Eta squared of classes given by numbers, where each unit counts as its weight says."""
    is_in = (codes[:, None] == np.unique(codes)).astype(float)
    variable = variable - variable.mean()  # so that a constant one has no variance at all
    n, n_in = weights.sum(1), weights @ is_in  # [draws], [draws, classes]
    mean = weights @ variable / n
    total = weights @ variable**2 - n * mean**2
    sums = weights @ (variable[:, None] * is_in) - n_in * mean[:, None]
    between = np.divide(sums**2, n_in, out=np.zeros_like(n_in), where=n_in > 0).sum(1)
    return np.divide(between, total, out=np.zeros_like(n), where=total > 0)


def _weighted_ranks(numbers: np.ndarray, weights: Weights) -> Weights:
    """The mean rank of each number, where each counts as often as its weight says."""
    distinct, which = np.unique(numbers, return_inverse=True)
    order = np.argsort(which, kind="stable")
    starts = np.searchsorted(which[order], np.arange(len(distinct)))
    counts = np.add.reduceat(weights[:, order], starts, axis=1)
    return (counts.cumsum(1) - (counts - 1) / 2)[:, which]


def interval(
    statistic: Statistic,
    variable: Float[np.ndarray, " n"],
    labels: np.ndarray,
    cluster: Int[np.ndarray, " n"],
    *,
    n_resamples: int,
    seed: int,
) -> tuple[float, float]:
    """The 95 % percentile interval of a bootstrap over clusters, such as documents; NaN if no draw
    has a value.

    Args:
        cluster: the number of each unit's cluster, from 0.
    """
    generator, n = np.random.default_rng(seed), int(cluster.max()) + 1
    draws = []
    for _ in range(0, n_resamples, step := max(1, _AT_ONCE // len(cluster))):
        size = min(step, n_resamples - sum(map(len, draws)))
        counts = generator.multinomial(n, np.full(n, 1 / n), size=size).astype(float)
        draws.append(statistic(variable, labels, counts[:, cluster]))
    values = np.concatenate(draws)
    if np.isnan(values).all():
        return np.nan, np.nan
    low, high = np.nanquantile(values, [0.025, 0.975])
    return float(low), float(high)
