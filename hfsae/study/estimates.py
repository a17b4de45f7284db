"""Means of ratings with intervals, differences between SAEs, and correlations with scores.

Ratings are arrays [raters, latents] of 0 (no), 1 (maybe), 2 (yes); NaN: not rated.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from scipy import stats

from ..evaluation.intervals import Interval, around, resampled_means
from ..evaluation.metrics import bootstrap_weights

N_RESAMPLES = 2000
N_PERMUTATIONS = 10_000
LEAST = 5
"""Latents that a correlation needs, and of each class an AUC's interval."""
NO_INTERVAL = Interval(math.nan, math.nan, math.nan)


class Difference(NamedTuple):
    """Mean of one SAE minus that of another."""

    value: Interval
    p: float
    """two-sided, by permutation"""
    signed_rank: float = math.nan
    """two-sided p of Wilcoxon's signed-rank test over pairs of latents, zeros by Pratt"""


class Correlation(NamedTuple):
    """Between the mean rating of latents and a score of theirs."""

    n: int
    """latents"""
    spearman: Interval
    pearson: Interval
    corrected: float
    """Spearman's over the root of the raters' reliability"""
    n_yes: int = 0
    """latents whose mean rating is nearest to yes"""
    n_no: int = 0
    """and nearest to no"""
    auc: Interval = NO_INTERVAL
    """of the score for these against those"""


def over_latents(ratings: np.ndarray, seed: int, highest: float = 2.0) -> Interval:
    """The mean over ratings [raters, latents], with a 95 % bootstrap interval over latents: for
    these raters, and other latents. Where all latents are alike it is Wilson's for a share (highest
    1), else NaN. Percentiles are expanded as a t-interval is (Hesterberg 2015),
    since those of 30 latents alone cover less than 95 %."""
    means, counts = _of_latents(ratings)
    if not len(means):
        return NO_INTERVAL
    draws = resampled_means(
        means.tolist(), counts.astype(float).tolist(), n_resamples=N_RESAMPLES, seed=seed
    )
    return _expanded(float(np.average(means, weights=counts)), draws, len(means), highest)


def over_both(ratings: np.ndarray, seed: int, highest: float = 2.0) -> Interval:
    """The mean, with a 95 % bootstrap interval over latents and raters: each is drawn anew. NaN
    bounds for a single rater."""
    ratings = ratings[~np.isnan(ratings).all(1)][:, ~np.isnan(ratings).all(0)]
    if ratings.size == 0 or len(ratings) < 2:
        value = float(np.nanmean(ratings)) if ratings.size else math.nan
        return Interval(value, math.nan, math.nan)
    sums, counts = np.nan_to_num(ratings), (~np.isnan(ratings)).astype(float)
    raters, latents = (
        torch.cat([*bootstrap_weights(n, N_RESAMPLES, seed + i)]).numpy()
        for i, n in enumerate(ratings.shape)
    )
    n_drawn = np.einsum("br,rl,bl->b", raters, counts, latents)
    draws = np.einsum("br,rl,bl->b", raters, sums, latents)[n_drawn > 0] / n_drawn[n_drawn > 0]
    value = float(sums.sum() / counts.sum())
    return _expanded(value, torch.from_numpy(draws), min(ratings.shape[1], 1000), highest)


def _of_latents(ratings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means and numbers of ratings of the latents that have any."""
    counts = (~np.isnan(ratings)).sum(0)
    ratings, counts = ratings[:, counts > 0], counts[counts > 0]
    return np.nansum(ratings, axis=0) / counts, counts


def _expanded(value: float, draws: torch.Tensor, n: int, highest: float) -> Interval:
    if n < 2 or float(draws.max() - draws.min()) < 1e-12:  # all alike: nothing to draw from
        share = NO_INTERVAL if highest != 1 else share_interval(round(value * n), n)
        return Interval(value, share.low, share.high)
    factor = float(stats.t.ppf(0.975, n - 1) / stats.norm.ppf(0.975)) * math.sqrt(n / (n - 1))
    _, low, high = around(value, value + (draws.double() - value) * factor)
    return Interval(value, max(0.0, low), min(highest, high))


def compare(ratings: np.ndarray, is_first: np.ndarray, blocks: np.ndarray, seed: int) -> Difference:
    """The mean rating of one SAE's latents minus that of another's.

    Labels of latents are permuted within a block, for all raters at once, so that each rater's
    ratings stay together in their block: two ratings of one latent are not two independent ones.

    Args:
        ratings: [raters, latents] of both SAEs.
        is_first: [latents] whether a latent is of the first.
        blocks: [latents] the block of its item.
    """
    means, counts = _of_latents(ratings)
    is_rated = ~np.isnan(ratings).all(0)
    is_first, blocks = is_first[is_rated], blocks[is_rated]
    if is_first.all() or not is_first.any():
        return Difference(NO_INTERVAL, math.nan)
    value = float(difference(means * counts, counts, is_first[None])[0])
    drawn = permuted(is_first, blocks, N_PERMUTATIONS, seed)
    others = difference(means * counts, counts, drawn)
    n_as_far = int((np.abs(others) >= abs(value) - 1e-12).sum())
    p = (n_as_far + 1) / (N_PERMUTATIONS + 1)
    return Difference(_around_difference(ratings[:, is_rated], is_first, value, seed), p)


def _around_difference(
    ratings: np.ndarray, is_first: np.ndarray, value: float, seed: int
) -> Interval:
    """The bootstrap interval over latents of a difference, either SAE's drawn on their own."""
    one, other = (
        over_latents(ratings[:, is_first], seed),
        over_latents(ratings[:, ~is_first], seed + 1),
    )
    low = value - math.hypot(one.value - one.low, other.high - other.value)
    high = value + math.hypot(one.high - one.value, other.value - other.low)
    return Interval(value, low, high)


def difference(sums: np.ndarray, counts: np.ndarray, is_first: np.ndarray) -> np.ndarray:
    """[draws] mean of the first minus mean of the others, for labels [draws, latents]."""
    first, n_first = is_first @ sums, is_first @ counts
    return first / n_first - (sums.sum() - first) / (counts.sum() - n_first)


def permuted(is_first: np.ndarray, blocks: np.ndarray, n: int, seed: int) -> np.ndarray:
    """[n, latents] labels in random orders within blocks."""
    rng = np.random.default_rng(seed)
    by_block = np.argsort(blocks, kind="stable")
    keys = blocks[by_block] + rng.random((n, len(blocks)))
    drawn = np.empty((n, len(blocks)), dtype=bool)
    drawn[:, by_block] = is_first[by_block][np.argsort(keys, axis=1)]
    return drawn


def signed_rank(differences: np.ndarray) -> float:
    """Two-sided exact p of Wilcoxon's signed-rank test, zeros by Pratt (1959).

    Zeros are ranked with the others, then left out; ties have mean ranks. The null distribution is
    that of all signs of the differences that are not 0.

    Args:
        differences: [pairs]; NaN: left out. NaN comes out where none is left, 1 where all are 0.
    """
    differences = differences[~np.isnan(differences)]
    if not len(differences):
        return math.nan
    is_zero = np.abs(differences) < 1e-12
    ranks = stats.rankdata(np.where(is_zero, 0.0, np.abs(differences).round(12)))
    doubled = np.rint(2 * ranks[~is_zero]).astype(int)  # whole numbers, mean ranks too
    chances = np.ones(1)  # of each sum of the ranks of positive differences
    for rank in doubled:
        chances = (np.pad(chances, (0, rank)) + np.pad(chances, (rank, 0))) / 2
    total = doubled.sum()
    positive = doubled[differences[~is_zero] > 0].sum()
    as_far = np.abs(2 * np.arange(total + 1) - total) >= abs(2 * positive - total)
    return min(1.0, float(chances[as_far].sum()))


def reliability(ratings: np.ndarray) -> float:
    """Of the mean over raters: Cronbach's alpha, the mean of all split halves, over latents that
    all raters rated; NaN for one rater."""
    full = ratings[:, ~np.isnan(ratings).any(0)]
    n = len(full)
    if n < 2 or full.shape[1] < LEAST or full.sum(0).var() == 0:
        return math.nan
    return float(n / (n - 1) * (1 - full.var(1).sum() / full.sum(0).var()))


def correlate(ratings: np.ndarray, scores: np.ndarray, seed: int) -> Correlation:
    """Between the mean rating of latents and a score; intervals are bootstraps over latents.

    The correction is for the raters' reliability alone: that of the score is not known, so that it
    stays a lower bound.

    Args:
        ratings: [raters, latents].
        scores: [latents]; NaN: not scored.
    """
    known = ~np.isnan(scores) & ~np.isnan(ratings).all(0)
    if known.sum() < LEAST:
        return Correlation(int(known.sum()), NO_INTERVAL, NO_INTERVAL, math.nan)
    ratings, scores = ratings[:, known], scores[known]
    means = np.nanmean(ratings, axis=0)
    drawn = np.random.default_rng(seed).integers(len(means), size=(N_RESAMPLES, len(means)))
    spearman = _resampled(means, scores, drawn, lambda x: stats.rankdata(x, axis=-1))
    pearson = _resampled(means, scores, drawn, lambda x: x)
    share = reliability(ratings)
    corrected = spearman.value / math.sqrt(share) if share > 0 else math.nan
    corrected = float(np.clip(corrected, -1, 1))
    is_yes, is_no = means >= 1.5, means <= 0.5
    auc = yes_against_no(scores, is_yes, is_no, drawn)
    n_yes, n_no = int(is_yes.sum()), int(is_no.sum())
    return Correlation(len(means), spearman, pearson, corrected, n_yes, n_no, auc)


def yes_against_no(
    scores: np.ndarray, is_yes: np.ndarray, is_no: np.ndarray, drawn: np.ndarray
) -> Interval:
    """How often a latent rated yes has the larger score than one rated no; equal scores are half.

    Args:
        scores: [latents]
        is_yes: [latents]
        is_no: [latents]; those of neither are left out.
        drawn: [draws, latents] indices of a bootstrap over latents; with fewer than 5 of a class
            there is no interval.
    """
    value = float(_auc(scores[None], is_yes[None], is_no[None])[0])
    if min(is_yes.sum(), is_no.sum()) < LEAST:
        return Interval(value, math.nan, math.nan)
    draws = _auc(scores[drawn], is_yes[drawn], is_no[drawn])
    return around(value, torch.from_numpy(draws[~np.isnan(draws)]))


def _auc(scores: np.ndarray, is_yes: np.ndarray, is_no: np.ndarray) -> np.ndarray:
    """[draws] of rows; NaN without one of the classes."""
    ranks = stats.rankdata(np.where(is_yes | is_no, scores, math.inf), axis=-1)  # others behind
    n_yes, n_no = is_yes.sum(-1), is_no.sum(-1)
    above = (ranks * is_yes).sum(-1) - n_yes * (n_yes + 1) / 2
    n_pairs = n_yes * n_no
    return np.divide(above, n_pairs, out=np.full(len(scores), math.nan), where=n_pairs > 0)


def _resampled(
    x: np.ndarray, y: np.ndarray, drawn: np.ndarray, ranked: Callable[[np.ndarray], np.ndarray]
) -> Interval:
    value = float(_pearson(ranked(x)[None], ranked(y)[None])[0])
    draws = _pearson(ranked(x[drawn]), ranked(y[drawn]))
    draws = draws[~np.isnan(draws)]
    if math.isnan(value) or len(draws) < N_RESAMPLES // 2:
        return Interval(value, math.nan, math.nan)
    return around(value, torch.from_numpy(draws))


def _pearson(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """[draws] of rows; NaN where one is constant."""
    x, y = (a - a.mean(-1, keepdims=True) for a in (x, y))
    norm = np.sqrt((x**2).sum(-1) * (y**2).sum(-1))
    return np.divide((x * y).sum(-1), norm, out=np.full(len(x), math.nan), where=norm > 1e-12)


def share_interval(n_right: int, n: int) -> Interval:
    """A share of independent answers with Wilson's 95 % interval."""
    if not n:
        return NO_INTERVAL
    interval = stats.binomtest(n_right, n).proportion_ci(method="wilson")
    return Interval(n_right / n, float(interval.low), float(interval.high))
