"""Differences over all places: random effects against closed forms, an example, and draws."""

import math

import numpy as np
import pytest
from comparisons.pooled import Verdict, over_places, pooled
from scipy import stats

from hfsae.comparison import Estimate


def test_the_bcg_trials_have_their_published_mean_and_spread():
    # Colditz et al. 1994: infected and healthy, vaccinated and not; metafor's rma(method="PM") has
    # tau^2 0.3181, and its mean and Hartung-Knapp interval by REML are -0.7145 (-1.1084 to -0.3206)
    ill = np.array([4, 6, 3, 62, 33, 180, 8, 505, 29, 17, 186, 5, 27])
    well = [119, 300, 228, 13536, 5036, 1361, 2537, 87886, 7470, 1699, 50448, 2493, 16886]
    ill_without = np.array([11, 29, 11, 248, 47, 372, 10, 499, 45, 65, 141, 3, 29])
    well_without = [128, 274, 209, 12619, 5761, 1079, 619, 87892, 7232, 1600, 27197, 2338, 17825]
    all_with, all_without = ill + well, ill_without + well_without
    ratios = np.log(ill / all_with / (ill_without / all_without))
    errors = np.sqrt(1 / ill - 1 / all_with + 1 / ill_without - 1 / all_without)
    found = pooled(ratios, errors)
    assert found.tau**2 == pytest.approx(0.3181, abs=5e-5)
    assert found.value == pytest.approx(-0.7145, abs=1e-3)
    assert found.interval == pytest.approx((-1.1084, -0.3206), abs=1e-3)


def test_equal_errors_give_students_t_over_places_and_its_spread_less_the_error():
    values, error = [0.02, 0.14, 0.06, 0.09], 0.01
    found = pooled(values, [error] * 4)
    assert found.tau**2 == pytest.approx(np.var(values, ddof=1) - error**2)
    own = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert found.interval == pytest.approx(own)
    assert found.p == pytest.approx(stats.ttest_1samp(values, 0).pvalue)
    width = stats.t.ppf(0.975, 2) * (found.tau**2 + stats.sem(values) ** 2) ** 0.5
    assert found.predicted == pytest.approx((np.mean(values) - width, np.mean(values) + width))


def test_places_closer_than_their_errors_have_no_spread_and_no_shorter_interval():
    values, errors = [0.10, 0.11, 0.10], np.array([0.05, 0.1, 0.2])
    found = pooled(values, errors)
    precise = float((errors**-2).sum() ** -0.5)
    assert found.tau == 0
    assert found.interval[1] - found.value == pytest.approx(stats.t.ppf(0.975, 2) * precise)


def test_one_place_with_a_wide_error_hardly_counts():
    found = pooled([0.1, 0.12, 0.11, 5.0], [0.01, 0.01, 0.01, 20.0])
    assert found.value == pytest.approx(0.11, abs=1e-3)
    assert pooled([0.1, 0.12, 5.0], [0.01, 0.01, math.inf]).value == pytest.approx(0.11)


@pytest.mark.parametrize("n, tau", [(3, 0.0), (3, 0.05), (6, 0.01), (6, 0.05)])
def test_intervals_hold_planted_means_and_new_places(n, tau):
    """95 %, less twice the standard error of a share of 1,500 draws; of new places 90 % where tau
    is smaller than the errors."""
    rng = np.random.default_rng(n)
    hits = []
    for _ in range(1500):
        errors = rng.uniform(0.005, 0.03, n)
        values = 0.07 + tau * rng.standard_normal(n) + errors * rng.standard_normal(n)
        found = pooled(values, errors)
        new = 0.07 + tau * rng.standard_normal()
        sides = (found.interval, 0.07), (found.predicted, new)
        hits.append([low <= value <= high for (low, high), value in sides])
    of_mean, of_new = np.mean(hits, axis=0)
    assert of_mean > 0.939 and of_new > (0.885 if tau == 0.01 else 0.939)


def verdict(arm: str, value: float, *, half=0.01, reference="JumpReLU", n_seeds=3) -> Verdict:
    of_seeds = stats.t.ppf(0.975, n_seeds - 1) * half
    seeds = (value - of_seeds, value + of_seeds)
    items = (value - half, value + 0.5 * half)
    return Verdict("a place", arm, [20.0], Estimate(value, seeds, items), 0, reference, n_seeds)


def test_arms_are_pooled_by_title_and_reference_and_corrected_for_their_number():
    unknown, nan = (math.nan, math.nan), math.nan
    rows = [verdict("TopK", x) for x in (0.10, 0.11, 0.13)]
    rows += [verdict("Gated", x) for x in (0.2, 0.3)]
    rows += [verdict("TopK", 0.5, reference="ReLU"), verdict("alone", 0.5)]
    rows.append(Verdict("b", "TopK", [20.0], Estimate(nan, unknown, unknown), 0, "JumpReLU", 3))
    rows.append(Verdict("c", "TopK", [20.0], Estimate(9.0, unknown, (8, 10)), 0, "JumpReLU", 1))
    topk, gated = over_places(rows)
    assert (topk.arm, topk.values, gated.values) == ("TopK", [0.10, 0.11, 0.13], [0.2, 0.3])
    own = pooled([0.10, 0.11, 0.13], [0.01] * 3)  # the error of seeds, larger than the bootstrap's
    assert topk.pooled.interval == pytest.approx(own.interval) and topk.pooled.is_significant
    assert topk.pooled.p == pytest.approx(2 * own.p)
    assert math.isnan(gated.pooled.predicted[0]) and not gated.pooled.is_significant


def test_the_error_is_the_bootstraps_where_documents_differ_more():
    places = [verdict("TopK", x)._replace(n_seeds=3) for x in (0.1, 0.1)]
    wide = [
        p._replace(estimate=p.estimate._replace(items=(0.05, 0.1 + 1.96 * 0.2))) for p in places
    ]
    (found,) = over_places(wide)
    error = stats.t.ppf(0.975, 1) * 0.2 / 2**0.5
    assert found.pooled.interval[1] - 0.1 == pytest.approx(error, rel=1e-3)
