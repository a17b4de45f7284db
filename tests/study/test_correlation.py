"""Ratings beside scores: corrected correlations and the AUC, against planted truths."""

import math
from itertools import combinations, product

import numpy as np
import pytest
from scipy import stats
from studies.correlation import auc_interval, corrected, correlate, rank_correlations


def test_correlations_are_scipys_and_are_corrected_for_the_raters_noise():
    rng = np.random.default_rng(4)
    quality = rng.normal(size=400)
    ratings = np.stack([np.digitize(quality + rng.normal(size=400), [-0.5, 0.5]) for _ in range(3)])
    scores = quality + rng.normal(0, 0.5, size=400)
    scores[:10] = math.nan
    result = correlate(ratings.astype(float), scores, seed=0)
    means = ratings.mean(0)[10:]
    assert result.n == 390
    assert result.spearman.value == pytest.approx(stats.spearmanr(means, scores[10:])[0])
    assert result.pearson.value == pytest.approx(stats.pearsonr(means, scores[10:])[0])
    assert result.spearman.low < result.spearman.value < result.spearman.high
    assert result.spearman.value < result.corrected.value
    # quality and score are normal with a correlation of 0.894: Spearman's is 0.885
    assert result.corrected.low < 0.885 < result.corrected.high
    assert result.corrected.value == pytest.approx(0.885, abs=0.04)


def test_the_auc_is_the_share_of_pairs_of_a_yes_and_a_no_in_which_the_yes_scores_higher():
    rng = np.random.default_rng(6)
    means = rng.integers(5, size=60) / 2  # 0 to 2, as of two raters
    scores = (means + rng.normal(0, 1, size=60)).round(0)  # with ties
    result = correlate(np.stack([means, means]), scores, seed=0)
    yes, no = scores[means >= 1.5], scores[means <= 0.5]
    pairs = [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in product(yes, no)]
    assert (result.n_yes, result.n_no) == (len(yes), len(no))
    assert result.auc.value == pytest.approx(np.mean(pairs))
    assert result.auc.low < result.auc.value < result.auc.high < 1


def test_an_auc_of_four_latents_rated_no_has_no_interval_and_of_none_no_value():
    few = auc_interval(np.arange(4.0, 10), np.arange(4.0))
    assert few.value == 1 and math.isnan(few.low)
    assert math.isnan(auc_interval(np.arange(4.0, 10), np.empty(0)).value)


def test_five_against_eight_that_do_not_overlap_may_have_an_auc_of_0_7():
    """Newcombe's equation at an AUC of 1, solved here on a grid; the other end is 1."""
    value, low, high = auc_interval(np.arange(8.0, 13), np.arange(8.0))
    assert (value, high) == (1, 1)
    true = np.linspace(0.5, 0.999, 50_000)
    shape = 1 + 5.5 * ((1 - true) / (2 - true) + true / (1 + true))
    is_held = (1 - true) ** 2 <= 1.959964**2 * true * (1 - true) * shape / 40
    assert low == pytest.approx(true[is_held].min(), abs=1e-4)
    assert low == pytest.approx(0.697, abs=1e-3)
    mirrored = auc_interval(np.arange(5.0), np.arange(5.0, 13))
    assert mirrored == pytest.approx((0, 0, 1 - low), abs=1e-4)


def test_an_auc_of_many_latents_may_be_one_pair_below_1():
    yes = np.append(np.arange(1000.0, 1999), 998.5)
    value, low, high = auc_interval(yes, np.arange(1000.0))
    assert value == 1 - 1e-6 and 0.99 < low < value < high <= 1


@pytest.mark.parametrize(("n_yes", "n_no"), [(5, 8), (15, 15), (8, 22)])
@pytest.mark.parametrize("truth", [0.5, 0.75, 0.95])
def test_intervals_of_the_auc_hold_it_in_at_least_93_of_100_studies(n_yes, n_no, truth):
    """A percentile bootstrap does in 56 to 95 of 100."""
    rng = np.random.default_rng(0)
    yes = rng.normal(stats.norm.ppf(truth) * math.sqrt(2), 1, size=(400, n_yes))
    no = rng.normal(size=(400, n_no))
    intervals = [auc_interval(*each) for each in zip(yes, no, strict=True)]
    assert 0.93 <= np.mean([low <= truth <= high for _, low, high in intervals]) <= 0.99


def test_classes_that_are_not_spread_alike_have_a_wider_interval():
    """DeLong's variance is 0.0141 for these, Hanley and McNeil's at 0.5 is 0.0106."""
    no = stats.norm.ppf((np.arange(25) + 0.5) / 25)
    alike, wider = (auc_interval(no[::3] * spread, no) for spread in (1.0, 4.0))
    assert alike.value == wider.value == 0.5
    assert wider.high - wider.low > 1.1 * (alike.high - alike.low)


@pytest.mark.parametrize(("n_raters", "n_random"), [(3, 0), (3, 1), (5, 2)])
def test_a_rater_who_answers_at_random_does_not_raise_the_corrected_correlation(n_raters, n_random):
    """200 studies of 40 latents; with Cronbach's alpha for the raters' reliability the mean is 0.79
    for one rater of three at random, and a fifth of the studies would be above 1."""
    rng = np.random.default_rng(0)
    truth = (
        6 / math.pi * math.asin(0.7 / 2)
    )  # Spearman's of normal values with a correlation of 0.7
    results = [corrected(*a_study(n_raters, n_random, rng)) for _ in range(200)]
    known = [each for each in results if not math.isnan(each.value)]
    assert len(known) > 0.9 * len(results)
    assert np.mean([value for value, _, _ in known]) == pytest.approx(truth, abs=0.04)
    assert np.mean([low <= truth <= high for _, low, high in known]) >= 0.92


def a_study(n_raters: int, n_random: int, rng: np.random.Generator, n: int = 40):
    """Ratings of a quality, the last raters at random, and a score."""
    quality = rng.normal(size=n)
    scores = 0.7 * quality + math.sqrt(1 - 0.7**2) * rng.normal(size=n)
    seen = quality + 0.7 * rng.normal(size=(n_raters, n))
    ratings = np.digitize(seen, [-0.8, 0.2]).astype(float)
    ratings[n_raters - n_random :] = rng.integers(3, size=(n_random, n))
    return ratings, scores


def test_of_two_raters_with_one_at_random_no_correction_can_be_estimated():
    rng = np.random.default_rng(1)
    results = [corrected(*a_study(2, 1, rng)) for _ in range(100)]
    assert np.mean([math.isnan(value) for value, _, _ in results]) > 0.75
    ratings, scores = a_study(2, 0, rng)
    assert math.isnan(corrected(ratings[:1], scores).value)


def test_a_corrected_correlation_above_1_is_shown_as_it_is():
    """A score that is the quality itself, which raters see with errors."""
    rng = np.random.default_rng(2)
    quality = rng.normal(size=(200, 30))
    seen = quality[:, None] + rng.normal(size=(200, 3, 30))
    values = [corrected(*each).value for each in zip(seen.round(), quality, strict=True)]
    assert 0.3 < np.mean(np.array(values) > 1) < 0.7


def test_a_rater_who_always_says_yes_changes_nothing():
    ratings, scores = a_study(3, 0, np.random.default_rng(3))
    yes = np.vstack([ratings, np.full(40, 2.0)])
    assert corrected(yes, scores) == pytest.approx(corrected(ratings, scores))


def test_rank_correlations_are_scipys():
    rows = np.random.default_rng(4).integers(4, size=(3, 30)).astype(float)
    assert rank_correlations(rows[None])[0] == pytest.approx(stats.spearmanr(rows.T)[0])


def test_where_a_rating_is_missing_ranks_are_correlated_over_what_both_have():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(3, 12))
    rows[0, :4], rows[1, 2:7] = np.nan, np.nan
    found = rank_correlations(rows[None])[0]
    ranks = stats.rankdata(rows, axis=-1, nan_policy="omit")
    for i, j in combinations(range(3), 2):
        both = ~np.isnan(rows[i]) & ~np.isnan(rows[j])
        expected = stats.pearsonr(ranks[i, both], ranks[j, both]).statistic
        assert found[i, j] == found[j, i] == pytest.approx(expected, abs=1e-12)
    assert np.allclose(np.diag(found), 1)
