"""Scores against their definitions, controls, and intervals."""

from itertools import pairwise

import numpy as np
import pytest

from hfsae.evaluation.statistics import (
    auc,
    average_precision,
    derangement,
    interval,
    pearson,
    weighted_pearson,
)
from hfsae.explanations.lexical import Lexicon, aggregate, lexical
from hfsae.explanations.scorers import decisions, strata_of, stratum_weights
from hfsae.explanations.verdicts import weighted_means
from hfsae.explanations.windows import ExplainArguments, select

from .conftest import N_TOKENS, read_planted


def cases() -> list[tuple[np.ndarray, np.ndarray]]:
    """Scores with many ties and without, and few or many positives."""
    rng, made = np.random.default_rng(0), []
    for n, levels, share in ((30, 5, 0.3), (200, 1000, 0.05), (50, 2, 0.5), (7, 3, 0.6)):
        positive = rng.random(n) < share
        positive[:2] = [True, False]
        made.append((rng.integers(levels, size=n).astype(float), positive))
    return made


@pytest.mark.parametrize("scores, positive", cases())
def test_auc_is_the_share_of_pairs_in_order(scores, positive):
    pairs = [
        1.0 if p > q else 0.5 if p == q else 0.0
        for p in scores[positive]
        for q in scores[~positive]
    ]
    assert auc(scores, positive) == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)


@pytest.mark.parametrize("scores, positive", cases())
def test_average_precision_is_the_sum_over_thresholds(scores, positive):
    points = [(0.0, 1.0)]
    for threshold in sorted({*scores.tolist()}, reverse=True):
        called = scores >= threshold
        hits = (called & positive).sum()
        points.append((hits / positive.sum(), hits / called.sum()))
    expected = sum((b[0] - a[0]) * b[1] for a, b in pairwise(points))
    assert average_precision(scores, positive) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("scores, positive", cases())
def test_auc_average_precision_and_f1_are_those_of_scikit_learn(scores, positive):
    metrics = pytest.importorskip("sklearn.metrics")
    assert auc(scores, positive) == pytest.approx(metrics.roc_auc_score(positive, scores))
    expected = metrics.average_precision_score(positive, scores)
    assert average_precision(scores, positive) == pytest.approx(expected)
    is_yes, share = scores > np.median(scores), 0.03
    weights = np.where(positive, share / positive.mean(), (1 - share) / (1 - positive.mean()))
    ours = decisions(is_yes, positive, ~positive, share)
    at_density = {"sample_weight": weights, "zero_division": 0.0}
    assert ours["f1"] == pytest.approx(metrics.f1_score(positive, is_yes, **at_density))
    precision = metrics.precision_score(positive, is_yes, **at_density)
    assert ours["precision"] == pytest.approx(precision)
    balanced = metrics.balanced_accuracy_score(positive, is_yes)
    assert ours["balanced_accuracy"] == pytest.approx(balanced)


def test_pearson_is_numpys_and_0_for_a_constant():
    rng = np.random.default_rng(1)
    a, b = rng.random(50), rng.random(50)
    assert pearson(a, b) == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-12)
    assert pearson(a, np.ones(50)) == 0


def test_scores_without_both_classes_are_nan():
    assert np.isnan(auc(np.ones(3), np.ones(3, dtype=bool)))
    assert np.isnan(average_precision(np.ones(3), np.zeros(3, dtype=bool)))


def test_accuracy_precision_and_f1_are_those_of_a_sample_at_the_density():
    """The same by writing the sample out: each kind repeated until the shares are right."""
    rng = np.random.default_rng(5)
    truth = np.arange(20) < 10
    is_hard = (np.arange(20) >= 10) & (np.arange(20) < 15)
    is_yes = np.where(truth, rng.random(20) < 0.7, rng.random(20) < 0.4)
    share = 0.02  # 10 active ones and 5 random ones: of 5000 windows, 100 and 4900
    n_true = 10 * is_yes[truth].sum()
    n_false = 980 * is_yes[~truth & ~is_hard].sum()
    precision, recall = n_true / (n_true + n_false), n_true / 100
    scores = decisions(is_yes, truth, ~is_hard, share)
    assert scores["precision"] == pytest.approx(precision)
    assert scores["f1"] == pytest.approx(2 * precision * recall / (precision + recall))
    sides = is_yes[truth].mean(), 1 - is_yes[~truth].mean()
    assert scores["balanced_accuracy"] == pytest.approx(np.mean(sides))
    never = decisions(np.zeros(20, dtype=bool), truth, ~is_hard, share)
    assert (never["precision"], never["f1"], never["balanced_accuracy"]) == (0, 0, 0.5)
    lacking = decisions(is_yes[:10], truth[:10], truth[:10], share)
    assert all(np.isnan(value) for value in lacking.values())


def test_weights_give_the_sums_of_all_tokens_from_a_sample():
    """Horvitz-Thompson: exactly from all tokens, and on average from samples of each stratum."""
    rng = np.random.default_rng(6)
    fires, near = rng.random(2000) < 0.05, rng.random(2000) < 0.3
    strata = strata_of(fires, near)
    population = np.bincount(strata, minlength=3)
    assert population.tolist() == [
        fires.sum(),
        (~fires & near).sum(),
        (~fires & ~near).sum(),
    ]
    value = rng.random(2000) + 3 * fires - near
    assert (stratum_weights(strata, population) == 1).all()
    sums = []
    for _ in range(400):
        parts = [rng.permutation(np.flatnonzero(strata == s))[:n] for s, n in ((0, 30), (1, 60))]
        parts.append(rng.permutation(np.flatnonzero(strata == 2))[:20])
        sample = np.concatenate(parts)
        sums.append(float((value[sample] * stratum_weights(strata[sample], population)).sum()))
    error = np.std(sums) / len(sums) ** 0.5
    assert abs(np.mean(sums) - value.sum()) < 4 * error < 0.05 * np.abs(value).sum()
    left_out = stratum_weights(np.array([0, -1, 0]), np.array([10, 5, 5]))
    assert left_out.tolist() == [5, 0, 5]


def test_a_weighted_correlation_is_that_of_repeated_tokens():
    rng = np.random.default_rng(7)
    a, b, times = rng.random(40), rng.random(40), rng.integers(0, 5, size=40)
    expected = np.corrcoef(np.repeat(a, times), np.repeat(b, times))[0, 1]
    assert weighted_pearson(a, b, times.astype(float)) == pytest.approx(expected)
    assert weighted_pearson(a, np.full(40, 0.1), times.astype(float)) == 0
    assert np.isnan(weighted_pearson(a, b, np.zeros(40)))


def test_a_difference_from_directions_is_of_two_samples():
    rng = np.random.default_rng(8)
    own, others = rng.normal(0.5, 0.1, 80).tolist(), rng.normal(0.2, 0.1, 50).tolist()
    columns = {"accuracy": {"own": own, "direction": others}}
    means = weighted_means(columns, [1.0] * 80, [1.0] * 50, n_resamples=2000, seed=0)
    value, low, high = means["uniform"]["accuracy"]["difference"]
    assert value == pytest.approx(np.mean(own) - np.mean(others))
    half = 1.96 * (np.var(own) / 80 + np.var(others) / 50) ** 0.5
    assert (high - low) / 2 == pytest.approx(half, rel=0.1)


@pytest.mark.parametrize("n", [2, 3, 20, 101])
def test_a_derangement_maps_nothing_to_itself_and_misses_nothing(n):
    for seed in range(20):
        others = derangement(n, seed).tolist()
        assert sorted(others) == [*range(n)]
        assert all(i != other for i, other in enumerate(others))
    assert n < 4 or derangement(n, 0).tolist() != derangement(n, 1).tolist()


@pytest.fixture(scope="module")
def scored(planted):
    reading = read_planted(planted, n_directions=40)
    selection = select(reading, ExplainArguments(n_latents=40))
    return selection, *lexical(reading, selection.latents, selection.directions, seed=0)


def test_latents_of_tokens_are_predicted_and_another_ones_windows_predict_nothing(scored):
    selection, scores, _ = scored
    assert len(scores) == 40
    for evidence, row in zip(selection.latents, scores, strict=True):
        assert row["pearson"] == pytest.approx(1) == row["auprc"] == row["auc"]
        assert row["token_ceiling_pearson"] == pytest.approx(1)
        assert row["shuffled_latent"] != evidence.latent
        assert abs(row["shuffled_pearson"]) < 0.05 and row["shuffled_auprc"] < 0.1
        assert row["anything_pearson"] == 0 and row["anything_auc"] == 0.5
        assert row["anything_auprc"] < 0.1, "the share of tokens that it fires on"
    shuffled = [row["shuffled_auc"] for row in scores]
    assert 0.4 < np.mean(shuffled) < 0.6


def test_a_prediction_is_a_mean_shrunk_by_its_count(planted):
    reading = read_planted(planted, [4, 9])
    evidence = select(reading, ExplainArguments(latents=[9, 4])).latents[1]
    lexicon = Lexicon(reading)
    table = lexicon.of_windows(evidence)
    inside = np.concatenate([np.arange(w.start, w.stop) for w in evidence.shown])
    n = (reading.ids[inside] == 9).sum()
    kind = lexicon.kind[np.flatnonzero(reading.ids == 9)[0]]
    assert table[kind] == pytest.approx(10.0 * n / (n + 1))
    assert np.count_nonzero(table) == 1
    whole = lexicon.of_half(evidence)
    n = ((reading.ids == 9) & (reading.half == 0) & reading.computed).sum()
    assert whole[kind] == pytest.approx(10.0 * n / (n + 1))


def test_intervals_cover_the_mean_as_often_as_they_should():
    rng = np.random.default_rng(4)
    n_covering = 0
    for seed in range(100):
        values = rng.normal(1.0, 0.5, size=60).tolist()
        mean, low, high = interval(values, [1.0] * 60, n_resamples=300, seed=seed)
        assert mean == pytest.approx(np.mean(values)) and low < mean < high
        n_covering += low <= 1.0 <= high
    assert n_covering >= 87


def test_an_interval_is_weighted_and_leaves_out_what_has_no_score():
    values, weights = [1.0, 3.0, float("nan"), 5.0], [1.0, 2.0, 50.0, 1.0]
    mean, low, high = interval(values, weights, n_resamples=500, seed=0)
    assert mean == 3.0 and (low, high) == (1.0, 5.0)
    assert np.isnan(interval([float("nan")], [1.0], n_resamples=5, seed=0).value)


def test_the_difference_is_paired(scored):
    selection, scores, of_directions = scored
    densities = [e.density for e in selection.latents]
    means = aggregate(
        scores,
        of_directions,
        densities,
        [e.density for e in selection.directions],
        n_resamples=200,
        seed=0,
    )
    for weighting, weights in (("uniform", np.ones(40)), ("by_frequency", np.array(densities))):
        by_score = means[weighting]["auc"]
        expected = np.average([r["auc"] - r["shuffled_auc"] for r in scores], weights=weights)
        assert by_score["difference"].value == pytest.approx(expected)
        parts = by_score["own"].value - by_score["shuffled"].value
        assert by_score["difference"].value == pytest.approx(parts)
        assert by_score["difference"].low > 0.3
    assert N_TOKENS > len(of_directions) > 20
