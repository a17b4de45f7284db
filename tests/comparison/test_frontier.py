"""Frontiers against closed forms: power laws, whose curves in log-log are straight lines."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from hfsae.comparison import Frontiers, Measured, plots

L0S = (16.0, 32.0, 64.0)


def sae(arm: str, seed: int, l0: float, factor: float, *, scatter: float = 0.0) -> Measured:
    """FVU = factor / sqrt(l0) and delta loss = factor / l0 on 20 documents."""
    g = torch.Generator().manual_seed(int(l0))  # the same for both arms: they are paired
    tokens = torch.full((20,), 100.0, dtype=torch.float64)
    noise = 1 + scatter * torch.randn(20, generator=g, dtype=torch.float64)
    sums = {
        "fidelity.tokens": tokens,
        "fidelity.active": tokens * l0,
        "fidelity.error": tokens * factor / l0**0.5 * noise,
        "fidelity.spread": tokens,
        "losses.tokens": tokens,
        "losses.spliced": tokens * (2 + factor / l0 * noise),
        "losses.clean": 2 * tokens,
    }
    fvu = float(sums["fidelity.error"].sum() / tokens.sum())
    metrics = {"l0": l0, "fvu": fvu, "delta_loss": factor / l0}
    return Measured(arm, seed, f"l0_{l0:g}", l0, Path(), metrics, sums, {})


def frontiers(factors: dict[str, list[float]], scatter: float = 0.0) -> Frontiers:
    """An arm's factor for each seed."""
    saes = [
        sae(arm, seed, l0, factor, scatter=scatter)
        for arm, of_seeds in factors.items()
        for seed, factor in enumerate(of_seeds)
        for l0 in L0S
    ]
    return Frontiers(saes, n_resamples=200)


def test_a_power_law_is_interpolated_exactly():
    curves = frontiers({"a": [1.0, 1.0]})
    for l0 in (16.0, 20.0, 45.0, 64.0):
        assert curves.at("a", "fvu", l0).value == pytest.approx(l0**-0.5, rel=1e-9)
        assert curves.at("a", "delta_loss", l0).value == pytest.approx(1 / l0, rel=1e-9)


def test_without_losses_saes_are_compared_by_fvu_alone_in_words_of_their_inputs():
    saes = []
    for m in (sae("a", 0, l0, 1.0) for l0 in L0S):
        sums = {name: x for name, x in m.sums.items() if name.startswith("fidelity.")}
        metrics = {name: value for name, value in m.metrics.items() if name != "delta_loss"}
        recipe = {"images": {"folder": "pictures"}}
        saes.append(m._replace(sums=sums, metrics=metrics, recipe=recipe))
    curves = Frontiers(saes, n_resamples=20)
    assert curves.metrics == {"fvu": "FVU"} and curves.unit.many == "patches"
    assert curves.at("a", "fvu", 20.0).value == pytest.approx(20**-0.5, rel=1e-9)
    (axes,) = plots._frontier(curves, saes, {"a": "a"}).axes
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("FVU", "L0 (latents/patch)")


def test_nothing_is_said_beyond_the_saes():
    curves = frontiers({"a": [1.0]})
    assert math.isnan(curves.at("a", "fvu", 15.0).value)
    assert math.isnan(curves.at("a", "fvu", 65.0).value)
    assert curves.reach(["a"]) == (16.0, 64.0)


def test_there_is_no_line_across_an_sae_that_collapsed():
    saes = [sae("relu", 0, l0, 1.0)._replace(value=value) for l0, value in ((16, 16), (32, 32))]
    saes += [
        sae("relu", 0, 2.0, 1.0)._replace(value=64),
        sae("relu", 0, 128.0, 1.0)._replace(value=128),
    ]
    f = Frontiers(saes, n_resamples=20)
    assert f.at("relu", "fvu", 20.0).value == pytest.approx(20**-0.5)
    assert math.isnan(f.at("relu", "fvu", 64.0).value)
    assert math.isnan(f.at("relu", "fvu", 8.0).value)


def test_a_splice_that_costs_no_loss_is_not_compared_as_if_it_cost_little():
    saes = [sae(arm, 0, l0, 1.0)._replace(value=l0) for arm in "ab" for l0 in L0S]
    for m in saes[1:3]:  # a at 32 and 64
        m.sums["losses.spliced"] = m.sums["losses.clean"] - 1
    f = Frontiers(saes, n_resamples=20)
    for l0 in (20.0, 40.0):
        assert math.isnan(f.at("a", "delta_loss", l0).value)
        assert math.isnan(f.difference("a", "b", "delta_loss", l0).value)
        assert math.isnan(f.difference("b", "a", "delta_loss", l0).value)
        assert f.difference("a", "b", "fvu", l0).value == pytest.approx(0.0)


def test_an_sae_that_fires_nothing_is_no_error():
    saes = [sae("a", 0, l0, 1.0)._replace(value=l0) for l0 in L0S]
    dead = saes[0].sums | {"fidelity.active": torch.zeros(20, dtype=torch.float64)}
    saes[0] = saes[0]._replace(sums=dead, metrics=saes[0].metrics | {"l0": 0.0})
    assert Frontiers(saes, n_resamples=20).at("a", "fvu", 40.0).value == pytest.approx(40**-0.5)


def test_one_sae_alone_stands_for_l0s_near_its_own():
    f = Frontiers([sae("a", 0, 64.0, 1.0)])
    assert f.at("a", "fvu", 62.0).value == f.at("a", "fvu", 64.0).value > 0
    assert np.isnan(f.at("a", "fvu", 70.0).value)
    assert f.reach(["a"]) == pytest.approx((64 / 1.05, 64 * 1.05))


def test_an_interval_at_the_end_of_a_curve_is_no_empty_one():
    """On documents drawn anew an SAE's L0 lies to one side or the other of its own."""
    saes = [sae("a", s, l0, 1.0, scatter=0.2) for s in (0, 1) for l0 in L0S]
    for m in saes:
        m.sums["fidelity.active"] *= 1 + 0.1 * torch.linspace(-1, 1, 20, dtype=torch.float64)
    low, high = Frontiers(saes, n_resamples=200).at("a", "fvu", 16.000001).items
    assert low < 16.0**-0.5 < high


def test_differences_and_areas_are_log_ratios():
    curves = frontiers({"a": [0.9, 0.9], "b": [1.0, 1.0]})
    for found in (
        curves.difference("a", "b", "fvu", 20.0),
        curves.area("a", "b", "fvu", 20.0, 60.0),
    ):
        assert found.value == pytest.approx(math.log(0.9), rel=1e-9)
        assert found.seeds == pytest.approx((math.log(0.9),) * 2, rel=1e-6)
        assert found.items == pytest.approx((math.log(0.9),) * 2, rel=1e-6)
        assert not found.holds_0


def test_the_interval_over_seeds_is_students():
    factors = [0.90, 0.95, 0.85]
    found = frontiers({"a": factors, "b": [1.0] * 3}).difference("a", "b", "fvu", 30.0)
    logs = np.log(factors)
    half = 4.302652729911275 * logs.std(ddof=1) / 3**0.5  # of a table, for 2 degrees of freedom
    assert found.seeds == pytest.approx((logs.mean() - half, logs.mean() + half), rel=1e-9)
    assert found.holds_0, "three seeds so far apart show nothing"
    assert found.items[1] < 0, "though the bootstrap alone would"


def test_pairing_takes_out_what_arms_have_in_common():
    """Documents that are hard for both arms widen each arm's interval, not the difference's."""
    curves = frontiers({"a": [0.9, 0.9], "b": [1.0, 1.0]}, scatter=0.3)
    low, high = curves.at("a", "fvu", 30.0).items
    assert high - low > 0.02
    low, high = curves.difference("a", "b", "fvu", 30.0).items
    assert high - low < 1e-9


def test_one_seed_shows_no_difference():
    found = frontiers({"a": [0.5], "b": [1.0]}).difference("a", "b", "fvu", 30.0)
    assert math.isnan(found.seeds[0]) and found.holds_0


@pytest.mark.parametrize(("n_below_0", "scale"), [(0, "log"), (1, "log"), (3, "linear")])
def test_losses_are_drawn_by_logarithm_where_most_have_one(n_below_0, scale):
    saes = [sae("a", 0, l0, 1.0)._replace(value=l0) for l0 in L0S]
    losses = [-0.01] * n_below_0 + [0.01] * (len(saes) - n_below_0)
    saes = [
        m._replace(metrics=m.metrics | {"delta_loss": loss})
        for m, loss in zip(saes, losses, strict=True)
    ]
    figure = plots._frontier(Frontiers(saes, n_resamples=20), saes, {"a": "a"})
    assert [axes.get_yscale() for axes in figure.axes] == ["log", scale]


def test_arms_at_other_l0s_than_the_references_have_no_line_of_differences(tmp_path):
    saes = [
        sae(arm, 0, l0, 1.0)
        for arm, l0s in {"dense": (100.0, 200.0), "sparse": (8.0, 15.0)}.items()
        for l0 in l0s
    ]
    health = dict.fromkeys(
        ("relative_reconstruction_bias", "dead_share", "above_10_percent_share"), 1.0
    )
    saes = [m._replace(metrics=m.metrics | health) for m in saes]
    titles = {"dense": "dense", "sparse": "sparse"}
    drawn = plots.draw(tmp_path, Frontiers(saes, n_resamples=20), saes, titles, "dense")
    assert set(drawn) == {"frontier", "health"}
