"""What counts as shown in a table: both intervals, and a p corrected for the number of cells."""

import math

import numpy as np
import pytest
from scipy import stats

from hfsae.comparison import Estimate, corrected, estimate


def of(own: list[float], spread: float) -> Estimate:
    """Seeds with these values; resampled items add a normal error of this size."""
    rng = np.random.default_rng(0)
    draws = np.array(own)[:, None] + spread * rng.standard_normal((len(own), 1001))
    draws[:, 0] = own
    return estimate(draws, n_resamples=1000, seed=0)


def test_p_is_that_of_students_t_where_seeds_differ_most():
    own = [0.9, 1.0, 1.3]
    assert of(own, 1e-6).p == pytest.approx(stats.ttest_1samp(own, 0).pvalue, rel=1e-6)


def test_p_is_that_of_the_bootstrap_where_items_differ_most():
    own, spread = [0.3, 0.3001, 0.3002], 0.25
    # a seed that is drawn twice brings the same items twice: 5/9 of the variance, not 3/9
    p = 2 * stats.norm.sf(0.3001 / (spread * 5**0.5 / 3))
    assert of(own, spread).p == pytest.approx(p, rel=0.25)


def test_a_wide_side_away_from_0_takes_nothing_from_what_is_shown():
    rng = np.random.default_rng(0)
    own = np.array([1.0, 1.01, 1.02])
    draws = own[:, None] + np.where(rng.random(1001) < 0.2, 50.0, 0.1 * rng.standard_normal(1001))
    draws[:, 0] = own
    found = estimate(draws, n_resamples=1000, seed=0)
    assert found.items[1] > 20 and found.is_significant


def test_an_interval_excludes_0_where_p_alone_is_below_its_level():
    for own in ([0.5, 1.0, 1.4], [0.2, 1.0, 1.9], [-0.1, 1.0, 2.0]):
        one = of(own, 1e-6)
        assert (one.seeds[0] > 0) == (one.p < 0.05)


def test_what_one_table_shows_among_twenty_is_not_shown():
    one, nothing = of([0.9, 1.0, 1.3], 0.01), of([-0.1, 0.0, 0.1], 0.01)
    assert corrected([one])[0].is_significant and one.marked("1") == "**1**"
    (first, *_) = corrected([one, *[nothing] * 19])
    assert not first.is_significant and not first.holds_0 and first.marked("1") == "*1*"
    assert nothing.marked("0") == "0"


def test_cells_without_a_value_are_not_counted():
    one = of([0.9, 1.0, 1.3], 0.01)
    empty = Estimate(math.nan, (math.nan,) * 2, (math.nan,) * 2)
    assert corrected([one, *[empty] * 19])[0].p == one.p


def test_one_seed_shows_nothing():
    one = of([1.0], 0.01)
    assert math.isnan(one.p) and not one.is_significant
