"""Agreement of raters against published values."""

import math
from functools import partial

import numpy as np
import pytest
from studies.agreement import counts_of, gwet, jackknife, krippendorff, percent

# Krippendorff's data "C": 4 observers, 12 units, 5 levels (Content Analysis, ch. 12; Gwet 2014)
OBSERVERS = """
    1 2 3 3 2 1 4 1 2 . . .
    1 2 3 3 2 2 4 1 2 5 . 3
    . 3 3 3 2 3 4 2 2 5 1 .
    1 2 3 3 2 4 4 1 2 5 1 .
"""
RATINGS = np.array(
    [
        [math.nan if level == "." else int(level) - 1 for level in line.split()]
        for line in OBSERVERS.split("\n")
        if line.strip()
    ]
)
COUNTS = counts_of(RATINGS, 5)


@pytest.mark.parametrize(
    ("scale", "published"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)]
)
def test_alpha_of_krippendorffs_own_example(scale, published):
    assert krippendorff(COUNTS, scale) == pytest.approx(published, abs=6e-4)


def test_gwets_coefficients_of_the_same_data():
    """0.77544 is in the documentation of irrCAC 0.4.4; 0.89894 is what it gives with ordinal
    weights and these five categories, and its share of equal answers is 0.81818."""
    assert gwet(COUNTS, weighted=False) == pytest.approx(0.77544, abs=1e-5)
    assert gwet(COUNTS, weighted=True) == pytest.approx(0.89894, abs=1e-5)
    assert percent(COUNTS) == pytest.approx(0.81818, abs=1e-5)


def test_alpha_is_0_at_chance_and_gwet_is_high_where_nearly_all_say_yes():
    rng = np.random.default_rng(0)
    at_random = counts_of(rng.integers(3, size=(4, 5000)).astype(float), 3)
    assert abs(krippendorff(at_random, "ordinal")) < 0.02
    nearly = np.full((2, 40), 2.0)
    nearly[0, 0] = nearly[1, 1] = 0
    assert (
        krippendorff(counts_of(nearly, 3), "ordinal")
        < 0
        < 0.9
        < gwet(counts_of(nearly, 3), weighted=True)
    )
    assert math.isnan(krippendorff(counts_of(np.full((2, 40), 2.0), 3), "nominal"))


def test_the_jackknife_of_a_mean_is_its_t_interval():
    """Percent agreement is a mean over items, whose jackknife is known in closed form."""
    rng = np.random.default_rng(1)
    counts = counts_of(rng.integers(2, size=(2, 30)).astype(float), 2)
    value, low, high = jackknife(counts, percent)
    of_item = (counts.max(1) == 2).astype(float)
    reach = 2.045 * of_item.std(ddof=1) / math.sqrt(30)  # t of 29 degrees of freedom
    assert value == of_item.mean()
    assert (low, high) == pytest.approx((value - reach, value + reach), abs=1e-3)


def test_the_interval_of_alpha_holds_it():
    value, low, high = jackknife(COUNTS, partial(krippendorff, scale="ordinal"))
    assert low < value < high <= 1
