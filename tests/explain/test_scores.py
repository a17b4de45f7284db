"""Scores against their definitions, controls, and intervals."""

from itertools import pairwise

import numpy as np
import pytest

from hfsae.explain.scores import (
    Lexicon,
    aggregate,
    auc,
    average_precision,
    derangement,
    interval,
    lexical,
    pearson,
)
from hfsae.explain.windows import ExplainArguments, select

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


def test_pearson_is_numpys_and_0_for_a_constant():
    rng = np.random.default_rng(1)
    a, b = rng.random(50), rng.random(50)
    assert pearson(a, b) == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-12)
    assert pearson(a, np.ones(50)) == 0


def test_scores_without_both_classes_are_nan():
    assert np.isnan(auc(np.ones(3), np.ones(3, dtype=bool)))
    assert np.isnan(average_precision(np.ones(3), np.zeros(3, dtype=bool)))


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


def test_latents_of_tokens_are_foretold_and_another_ones_windows_foretell_nothing(scored):
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
    n = ((reading.ids == 9) & (reading.half == 0)).sum()
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
