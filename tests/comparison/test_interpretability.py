"""Means and differences of latents' scores where they are known."""

from pathlib import Path

import numpy as np
import pytest
import torch
from comparisons.at_l0 import at_l0
from comparisons.interpretability import Interpretability, Score

from hfsae.comparison import Measured
from hfsae.evaluation.statistics import interval

PEARSON, LEXICAL = Score("pearson"), "explained/lexical/latents/"


def measured(
    arm: str, seed: int, values, densities, l0: float = 50.0, value: float = 50.0, **columns
) -> Measured:
    """An SAE with these scores."""
    columns = {"pearson": values, "density": densities, **columns}
    lexical = {f"{LEXICAL}{k}": torch.as_tensor(v).float() for k, v in columns.items()}
    name = f"k_{value:g}"
    return Measured(arm, seed, name, value, Path(), {"l0": l0}, {}, {}, more_tensors=lexical)


def drawn(arm: str, seed: int, above: float = 0.0, slope: float = 0.0, low: float = -4) -> Measured:
    """100 latents of densities from 10^low to 0.1, whose scores depend on density alike."""
    rng = np.random.default_rng([seed, sum(map(ord, arm))])
    logs = rng.uniform(low, -1, 100)
    values = 0.5 + above + slope * logs + rng.normal(0, 0.05, 100)
    return measured(arm, seed, values, 10**logs)


def test_a_mean_is_that_of_the_seeds_and_its_interval_of_one_seed_that_over_latents():
    saes = [drawn("a", s, above=0.1 * s) for s in range(3)]
    means = [float(m.more_tensors[f"{LEXICAL}pearson"].double().mean()) for m in saes]
    spread = Interpretability(saes, 50.0).mean("a", PEARSON)
    assert spread.value == pytest.approx(np.mean(means))
    assert spread.items[0] < spread.value < spread.items[1]
    one = Interpretability(saes[:1], 50.0, n_resamples=4000).mean("a", PEARSON)
    values = saes[0].more_tensors[f"{LEXICAL}pearson"].tolist()
    expected = interval(values, [1.0] * 100, n_resamples=4000, seed=0)
    assert one.items == pytest.approx(expected[1:], abs=2e-3)
    assert np.isnan(one.seeds).all() and one.holds_0, "one seed shows nothing"


def test_latents_count_by_frequency_where_they_should():
    saes = [measured("a", 0, [0.2, 0.8], [0.01, 0.03])]
    values = Interpretability(saes, 50.0)
    assert values.mean("a", PEARSON).value == pytest.approx(0.5)
    weighted = values.mean("a", PEARSON._replace(by_frequency=True))
    assert weighted.value == pytest.approx(0.2 * 0.25 + 0.8 * 0.75)


def test_above_another_s_is_a_difference_latent_by_latent_and_nan_is_left_out():
    nan = float("nan")
    saes = [measured("a", 0, [0.5, 0.7, nan], [0.01] * 3, shuffled_pearson=[0.4, 0.2, 0.1])]
    above = Interpretability(saes, 50.0).mean("a", Score("pearson", "shuffled_pearson"))
    assert above.value == pytest.approx(0.3)
    assert np.isnan(Interpretability(saes, 50.0).mean("a", Score("auc")).value)


def test_a_planted_difference_is_shown_and_none_where_there_is_none():
    saes = [drawn(arm, s, above) for s in range(3) for arm, above in (("a", 0), ("b", 0.1))]
    saes += [drawn("c", s) for s in range(3)]
    values = Interpretability(saes, 50.0)
    planted, none = values.difference("b", PEARSON, "a"), values.difference("c", PEARSON, "a")
    assert planted.value == pytest.approx(0.1, abs=0.02) and not planted.holds_0
    assert abs(none.value) < 0.02 and none.holds_0


def test_a_difference_in_density_alone_is_none_within_strata():
    saes = [
        drawn(arm, s, slope=0.1, low=low) for s in range(3) for arm, low in (("a", -4), ("b", -2.5))
    ]
    values = Interpretability(saes, 50.0)
    gap = values.mean("b", PEARSON).value - values.mean("a", PEARSON).value
    assert gap > 0.05
    assert abs(values.difference("b", PEARSON, "a").value) < gap / 5


def test_strata_are_tenths_of_all_latents():
    saes = [drawn(arm, s) for s in range(2) for arm in ("a", "b")]
    values = Interpretability(saes, 50.0)
    n = [sum(values.n_in_stratum(arm, PEARSON, i) for arm in ("a", "b")) for i in range(10)]
    assert n == [40] * 10
    means = [values.stratum("a", PEARSON, i).value for i in range(10)]
    counts = [values.n_in_stratum("a", PEARSON, i) for i in range(10)]
    whole = values.mean("a", PEARSON).value
    assert np.average(means, weights=counts) == pytest.approx(whole, abs=0.01)


def test_values_between_two_sparsities_are_interpolated_in_log_l0():
    saes = [measured("a", 0, [v, v], [0.01, 0.02], l0, l0) for v, l0 in ((0.2, 10.0), (0.6, 40.0))]
    assert Interpretability(saes, 20.0).mean("a", PEARSON).value == pytest.approx(0.4)
    assert Interpretability(saes, 20.0).l0s("a") == [20]
    beyond = Interpretability(saes, 80.0)
    assert beyond.mean("a", PEARSON).value == pytest.approx(0.6) and beyond.l0s("a") == [40]


def test_no_line_joins_saes_that_are_not_neighbours_in_the_sweep():
    saes = [
        measured("a", 0, [v], [0.01], l0, k)
        for v, l0, k in ((0.1, 10.0, 16.0), (0.3, 40.0, 64.0), (0.2, 5.0, 32.0))
    ]
    ((sae, share),) = at_l0(saes, 35.0, lambda m: True).shares
    assert (sae.value, share) == (64, 1.0)
