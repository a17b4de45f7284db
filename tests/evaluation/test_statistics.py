"""Ranks, correlations, AUC and eta squared against scipy, scikit-learn and literal loops."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from hfsae.evaluation.statistics import (
    auc,
    aucs,
    cluster_interval,
    correlation_p,
    correlations,
    eta_squared,
    holm,
    mid_ranks,
    pearson,
    weighted_pearson,
)

RNG = np.random.default_rng(0)
N, M = 60, 9


def variables(n: int = N) -> np.ndarray:
    """With many ties, as latents have, a constant one, and one of a single value that is not 0."""
    values = np.maximum(RNG.normal(size=(M, n)).round(1) - 0.5, 0).astype(np.float32)
    values[3], values[4] = 0, np.eye(n)[7] * 2.5
    return values


@pytest.mark.parametrize("n", [5, N])
def test_spearman_and_its_p_values_are_scipys(n):
    values, numbers = variables(n + 3)[:, :n], RNG.normal(size=n).round(1)
    values[0] = numbers  # as close as can be
    rho = correlations(stats.rankdata(values, axis=1), mid_ranks(numbers))
    p = correlation_p(rho, n)
    for i in range(M):
        if np.ptp(values[i]) == 0:
            assert (rho[i], p[i]) == (0, 1)
            continue
        expected = stats.spearmanr(values[i], numbers)
        np.testing.assert_allclose(rho[i], expected.statistic, atol=1e-12)
        np.testing.assert_allclose(p[i], expected.pvalue, atol=1e-12 if i else 1e-7)


def test_auc_is_scikit_learns_and_the_share_of_pairs():
    values, classes = variables(), RNG.integers(0, 3, N)
    is_in = classes[:, None] == np.arange(3)
    got = aucs(stats.rankdata(values, axis=1), is_in)
    for c in range(3):
        for i in range(M):
            assert got[c, i] == pytest.approx(roc_auc_score(is_in[:, c], values[i]), abs=1e-12)
            pairs = [
                1.0 if a > b else 0.5 if a == b else 0.0
                for a in values[i][is_in[:, c]]
                for b in values[i][~is_in[:, c]]
            ]
            assert got[c, i] == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)


def eta_by_hand(values, classes) -> float:
    mean = sum(values) / len(values)
    between = within = 0.0
    for c in set(classes):
        own = [v for v, its in zip(values, classes, strict=True) if its == c]
        own_mean = sum(own) / len(own)
        between += len(own) * (own_mean - mean) ** 2
        within += sum((v - own_mean) ** 2 for v in own)
    return between / (between + within) if between + within else 0.0


def test_eta_squared_is_that_of_a_literal_loop():
    values, classes = variables().astype(float), RNG.integers(0, 4, N)
    got = eta_squared(values, classes[:, None] == np.arange(4))
    for i in range(M):
        expected = eta_by_hand(values[i].tolist(), classes.tolist())
        assert got[i] == pytest.approx(expected, abs=1e-12)


def test_holm_multiplies_by_the_number_that_is_left_and_counts_no_missing_value():
    corrected = holm([0.01, np.nan, 0.04, 0.03, 0.5])
    np.testing.assert_allclose(corrected, [0.04, np.nan, 0.09, 0.09, 0.5])


def test_a_weight_counts_a_pair_as_often_as_it_says():
    a, b, weights = RNG.normal(size=20), RNG.normal(size=20), RNG.integers(0, 4, 20)
    expected = np.corrcoef(a.repeat(weights), b.repeat(weights))[0, 1]
    assert weighted_pearson(a, b, weights) == pytest.approx(expected)
    assert weighted_pearson(a, 0 * b + 0.1, weights) == 0
    assert np.isnan(weighted_pearson(a, b, 0 * weights))


def test_an_auc_without_a_unit_on_each_side_has_no_value():
    values = np.array([3.0, 4, 1, 2])
    assert np.isnan(auc(values, np.ones(4, bool))) and np.isnan(auc(values, np.zeros(4, bool)))
    assert auc(values, np.array([True, True, False, False])) == 1


def spearman_of(x, y):
    return lambda drawn: pearson(mid_ranks(x[drawn]), mid_ranks(y[drawn]))


def test_an_interval_is_as_wide_as_the_spread_of_correlations_over_samples():
    def sample(rng):
        x = rng.normal(size=200)
        return x, 0.5 * x + rng.normal(size=200)

    over_samples = [
        stats.spearmanr(*sample(np.random.default_rng(i))).statistic for i in range(300)
    ]
    widths = []
    for i in range(5):
        x, y = sample(np.random.default_rng(1000 + i))
        low, high = cluster_interval(spearman_of(x, y), np.arange(200), n_resamples=300, seed=i)
        assert low < stats.spearmanr(x, y).statistic < high
        widths.append(high - low)
    expected = np.diff(np.quantile(over_samples, [0.025, 0.975]))[0]
    assert np.mean(widths) == pytest.approx(expected, rel=0.2)


def test_units_of_a_document_are_drawn_together():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=40), rng.normal(size=40)
    of_documents = cluster_interval(spearman_of(x, y), np.arange(40), n_resamples=200, seed=1)
    twice = np.repeat(np.arange(40), 2)  # each document has two rows, alike
    both = spearman_of(x[twice], y[twice])
    np.testing.assert_allclose(
        cluster_interval(both, twice, n_resamples=200, seed=1), of_documents, atol=1e-12
    )


def test_draws_are_those_of_one_table_of_counts():
    """As a multinomial over documents gives them at once: kept intervals do not move."""
    x, y, of = RNG.normal(size=50), RNG.normal(size=50), np.arange(50) // 2
    counts = np.random.default_rng(3).multinomial(25, np.full(25, 1 / 25), size=100)[:, of]
    values = [
        stats.spearmanr(np.repeat(x, count), np.repeat(y, count)).statistic for count in counts
    ]
    expected = np.quantile(values, [0.025, 0.975])
    got = cluster_interval(spearman_of(x, y), of, n_resamples=100, seed=3)
    np.testing.assert_allclose(got, expected, atol=1e-12)
