"""Intervals and permutations of ratings, against what is known of them."""

import math
from itertools import combinations, product

import numpy as np
import pytest
from scipy import stats

from hfsae.evaluation.statistics import holm
from hfsae.study.estimates import (
    N_PERMUTATIONS,
    compare,
    over_both,
    over_latents,
    share_interval,
    signed_rank,
)


def test_intervals_hold_the_true_mean_in_93_to_97_of_100_studies():
    """1,000 studies of 30 latents and 2 raters, who differ; the truth is these raters' mean over
    all latents."""
    rng = np.random.default_rng(0)
    bias, n_held = np.array([-0.3, 0.4]), 0
    population = rng.normal(1.0, 0.8, size=200_000)
    truth = np.mean([rated(population, b, rng).mean() for b in bias])
    for number in range(1000):
        latents = rng.choice(population, 30)
        ratings = np.stack([rated(latents, b, rng) for b in bias])
        ratings[rng.random(ratings.shape) < 0.05] = math.nan
        _, low, high = over_latents(ratings, seed=number)
        n_held += low <= truth <= high
    assert 930 <= n_held <= 970


def rated(quality: np.ndarray, bias: float, rng: np.random.Generator) -> np.ndarray:
    """No, maybe or yes, by the quality of latents and the rater's bias."""
    return np.digitize(quality + bias + rng.normal(0, 0.5, len(quality)), [0.5, 1.5]).astype(float)


def test_raters_who_differ_widen_the_interval_over_both():
    ratings = np.tile([0.0, 1.0, 2.0, 1.0, 1.0, 0.0, 2.0, 1.0], (2, 5))
    ratings[1] = np.minimum(ratings[1] + 1, 2)
    one, both = over_latents(ratings, 0), over_both(ratings, 0)
    assert both.value == pytest.approx(one.value) == pytest.approx(ratings.mean())
    assert both.low < one.low and both.high > one.high
    assert math.isnan(over_both(ratings[:1], 0).low)


@pytest.mark.parametrize(("n_raters", "bias"), [(2, 0.6), (3, 0.0), (3, 0.6)])
def test_the_interval_over_both_holds_the_mean_over_all_raters_in_93_of_100_studies(n_raters, bias):
    """300 studies of 30 latents, at most 1.6 standard errors below 95 %; the interval over latents
    alone holds it in 60 to 70 of 100 where the raters differ."""
    rng, n_held = np.random.default_rng(0), 0
    for number in range(300):
        quality = rng.normal(1.0, 0.8, size=30)
        biases = rng.normal(0, bias, size=n_raters)
        ratings = np.stack([rated(quality, b, rng) for b in biases])
        ratings[rng.random(ratings.shape) < 0.05] = math.nan
        _, low, high = over_both(ratings, seed=number)
        n_held += low <= 1.0 <= high  # by symmetry
    assert n_held >= 0.93 * 300


def test_raters_of_whom_each_rated_latents_of_their_own_cannot_be_compared():
    ratings = np.full((2, 10), math.nan)
    ratings[0, :5], ratings[1, 5:] = [0, 1, 2, 1, 0], [2, 1, 2, 2, 1]
    both = over_both(ratings, 0)
    assert both.value == 1.2 and math.isnan(both.low)


def test_latents_that_are_all_alike_have_wilsons_interval_or_none():
    all_right = np.ones((2, 8))
    assert over_latents(all_right, 0, 1.0) == pytest.approx(share_interval(8, 8))
    assert math.isnan(over_latents(2 * all_right, 0).low)


def test_the_permutation_test_agrees_with_full_enumeration():
    rng = np.random.default_rng(2)
    blocks = np.array([0] * 6 + [1] * 6)
    is_first = np.array([True, True, True, False, False, False] * 2)
    ratings = np.digitize(rng.normal(size=(3, 12)) + 0.8 * is_first, [0, 1]).astype(float)
    means = ratings.mean(0)
    observed = means[is_first].mean() - means[~is_first].mean()
    differences = []
    for parts in product(combinations(range(6), 3), combinations(range(6, 12), 3)):
        first = np.isin(np.arange(12), [*parts[0], *parts[1]])
        differences.append(means[first].mean() - means[~first].mean())
    exact = np.mean(np.abs(differences) >= abs(observed) - 1e-12)
    result = compare(ratings, is_first, blocks, seed=0)
    assert result.value.value == pytest.approx(observed)
    error = math.sqrt(exact * (1 - exact) / N_PERMUTATIONS)
    assert 0.01 < exact < 0.99 and abs(result.p - exact) < 4 * error + 1e-4


def test_two_raters_who_answer_alike_are_no_more_evidence_than_one():
    rng = np.random.default_rng(3)
    one = rng.integers(3, size=(1, 20)).astype(float)
    is_first, blocks = np.arange(20) % 2 == 0, np.arange(20) // 10
    alone, twice = (compare(r, is_first, blocks, seed=0) for r in (one, np.repeat(one, 2, axis=0)))
    assert alone.p == twice.p and alone.value.low == pytest.approx(twice.value.low)


def test_the_signed_rank_test_agrees_with_all_signs_of_differences_with_ties_and_zeros():
    """Pratt (1959): ranks with the zeros, statistic without them."""
    differences = np.array([0, 0, 0, 1, 1, -1, 2, 2, 0.5, 0.5, -0.5, 1.5]) / 3
    ranks = stats.rankdata(np.abs(differences))[differences != 0]
    signs = np.array(list(product([-1, 1], repeat=len(ranks))))
    observed = abs(np.sum(ranks * np.sign(differences[differences != 0])))
    assert signed_rank(differences) == pytest.approx(
        np.mean(np.abs(signs @ ranks) >= observed - 1e-9)
    )
    ranked_without = signed_rank(differences[differences != 0])
    assert signed_rank(differences) != pytest.approx(ranked_without, abs=1e-3)


def test_the_signed_rank_test_has_published_values():
    """Hollander and Wolfe's depression scores: one-sided p 0.01953 in the documentation of R's
    wilcox.test; then the data of SciPy's tests, whose value with Pratt's zeros is that of R's coin
    (by a normal, of 42 differences that are not 0: the exact value is 0.0028)."""
    before = np.array([1.83, 0.50, 1.62, 2.48, 1.68, 1.88, 1.55, 3.06, 1.30])
    after = np.array([0.878, 0.647, 0.598, 2.05, 1.06, 1.29, 1.06, 3.14, 1.29])
    assert signed_rank(before - after) == pytest.approx(2 * 0.01953, abs=1e-5)
    many = np.repeat(np.arange(-4.0, 5.0), [1, 4, 16, 15, 8, 4, 5, 1, 2])
    assert signed_rank(many) == pytest.approx(0.0031724568, abs=5e-4)


def test_the_signed_rank_test_is_scipys_where_that_is_exact_and_near_it_where_it_is_not():
    rng = np.random.default_rng(7)
    plain = rng.normal(0.3, 1, size=15)
    assert signed_rank(plain) == pytest.approx(stats.wilcoxon(plain, method="exact").pvalue)
    ties = rng.choice([-2.0, -1, 0, 1, 2], size=300, p=[0.14, 0.14, 0.4, 0.2, 0.12])
    approximate = stats.wilcoxon(ties, zero_method="pratt", method="approx").pvalue
    assert signed_rank(ties) == pytest.approx(approximate, rel=0.1)
    assert signed_rank(np.zeros(4)) == 1 and math.isnan(signed_rank(np.array([math.nan])))


def test_holm_is_his_own_step_down():
    assert holm([0.01, 0.04, 0.03, math.nan]) == pytest.approx(
        [0.03, 0.06, 0.06, math.nan], nan_ok=True
    )


def test_a_share_of_8_of_10_has_wilsons_published_interval():
    assert share_interval(8, 10) == pytest.approx((0.8, 0.4902, 0.9433), abs=1e-4)
