"""Windows that explain, windows that test, and which latents have enough of them."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from hfsae.explanations.corpus import SHOWN, TESTED, CorpusActivations, Firings
from hfsae.explanations.windows import (
    Evidence,
    ExplainArguments,
    Selection,
    Window,
    order_of,
    over_quantiles,
    select,
)
from hfsae.models import ReLUSAE, ReLUSAEConfig

from .conftest import N_TOKENS, read_planted

D_SAE = 40


@pytest.fixture(scope="module")
def reading(planted) -> CorpusActivations:
    """Of latents of many densities, which fire on several tokens each."""
    sae = ReLUSAE(ReLUSAEConfig(d_in=N_TOKENS, d_sae=D_SAE, site="drop", model_name="m"))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        sae.W_enc.copy_(torch.randn(N_TOKENS, D_SAE, generator=generator) / 8)
        sae.b_enc.copy_(-torch.linspace(0, 8, D_SAE))
    limit = {"drop": 60.5}  # two kinds of tokens are not computed
    return read_planted(replace(planted, sae=sae), range(D_SAE), norm_limits=limit)


@pytest.fixture(scope="module")
def selection(reading) -> Selection:
    return select(reading, args())


def args(**changes) -> ExplainArguments:
    return ExplainArguments(**{"n_latents": 20, "max_density": 1.0} | changes)


def activations(reading: CorpusActivations, trace: Firings) -> np.ndarray:
    dense = np.zeros(len(reading.ids), dtype=np.float32)
    dense[trace.token] = trace.value
    return dense


def evidences(selection: Selection) -> list[Evidence]:
    return selection.latents + selection.directions


def test_no_window_holds_a_token_that_was_not_computed_nor_an_inactive_one_a_firing(
    reading, selection
):
    n_inactive = 0
    for evidence in evidences(selection):
        for window in (*evidence.shown, *evidence.active):
            assert reading.computed[window.start : window.stop].all()
        dense = activations(reading, evidence.trace)
        for window in evidence.inactive:
            assert not dense[window.start : window.stop].any()
            assert reading.computed[window.start : window.stop].all()
            n_inactive += 1
    assert n_inactive > 200


def test_windows_lie_in_their_half_in_one_text_and_do_not_overlap(reading, selection):
    for evidence in evidences(selection):
        for windows, half in (
            (evidence.shown, SHOWN),
            (evidence.active, TESTED),
            (evidence.inactive, TESTED),
        ):
            spans = sorted((w.start, w.stop) for w in windows)
            assert all(a[1] <= b[0] for a, b in pairwise(spans))
            for window in windows:
                assert (reading.half[window.start : window.stop] == half).all()
                assert (
                    reading.start[window.start : window.stop] == reading.start[window.peak]
                ).all()
                assert window.start <= window.peak < window.stop <= window.start + 21
                cut_left, cut_right = window.peak - window.start, window.stop - window.peak - 1
                assert cut_left == 10 or window.start == reading.start[window.peak]
                assert cut_right == 10 or window.stop == reading.stop[window.peak]


def test_the_peak_is_the_largest_activation_of_its_window(reading, selection):
    for evidence in evidences(selection):
        dense = activations(reading, evidence.trace)
        for window in (*evidence.shown, *evidence.active):
            assert (
                window.activation
                == dense[window.peak]
                == dense[window.start : window.stop].max()
                > 0
            )


def test_shown_are_the_top_ones_and_others_over_quantiles(reading, selection):
    for evidence in evidences(selection):
        kinds = [window.kind for window in evidence.shown]
        assert kinds[:5] == ["top"] * 5 and len(kinds) <= 20
        top = [w.activation for w in evidence.shown if w.kind == "top"]
        rest = [w.activation for w in evidence.shown if w.kind != "top"]
        assert not rest or min(top) >= max(rest)
        assert top == sorted(top, reverse=True)
        dense = activations(reading, evidence.trace)
        assert top[0] == dense[reading.half == SHOWN].max(), "the strongest of all is one of them"


def test_hard_windows_are_at_a_common_peak_token_where_the_latent_is_silent(reading, selection):
    n_hard = 0
    for evidence in selection.latents:
        dense = activations(reading, evidence.trace)
        hard = [w for w in evidence.inactive if w.kind == "hard"]
        assert len(hard) <= 10
        for window in hard:
            fires = (
                (reading.ids == reading.ids[window.peak]) & (reading.half == SHOWN) & (dense > 0)
            )
            assert fires.any()
            n_hard += 1
    assert n_hard == 0, "latents of token embeddings are never silent at their tokens"


def test_hard_windows_exist_where_context_matters(planted):
    """A latent of token 7 that position 20 and later lack."""
    reading = read_planted(planted, [5, 7])
    trace = reading.trace(7)
    early = trace.token % 32 < 20
    reading._traces[7] = Firings(trace.token[early], trace.value[early])
    evidence = next(e for e in select(reading, args(latents=[5, 7])).latents if e.latent == 7)
    hard = [w for w in evidence.inactive if w.kind == "hard"]
    assert len(hard) == 10 and {int(reading.ids[w.peak]) for w in hard} == {7}
    assert len(evidence.inactive) == 20
    assert all(w.kind == "random" for w in evidence.inactive if w not in hard)


def test_groups_are_of_equal_size_and_drawn_from_equally():
    windows = [Window(i, i + 1, i, 100.0 - i, "") for i in range(100)]
    drawn = over_quantiles(windows, 20, np.random.default_rng(0))
    assert [w.kind for w in drawn] == [f"quantile_{q}" for q in (5, 4, 3, 2, 1) for _ in range(4)]
    for window in drawn:
        assert window.kind == f"quantile_{5 - window.peak // 20}"
    again = over_quantiles(windows, 20, np.random.default_rng(1))
    assert again != drawn, "random ones of each group"
    assert over_quantiles(windows[:3], 20, np.random.default_rng(0)) == [
        windows[0]._replace(kind="quantile_5"),
        windows[1]._replace(kind="quantile_4"),
        windows[2]._replace(kind="quantile_2"),
    ]
    assert over_quantiles([], 20, np.random.default_rng(0)) == []


def test_latents_are_drawn_uniformly_among_those_that_fit(planted):
    reading = read_planted(planted)
    chosen = np.zeros(N_TOKENS)
    for seed in range(25):
        drawn = args(seed=seed)
        order = order_of(drawn, N_TOKENS)
        again = replace(reading, order=order)
        selection = select(again, drawn)
        latents = [e.latent for e in selection.latents]
        assert len(latents) == 20 and latents == sorted({*latents})
        chosen[latents] += 1
    fitting = np.flatnonzero(chosen)
    assert set(fitting) <= {*range(1, N_TOKENS - 2)}
    assert len(fitting) == N_TOKENS - 3, "each may be drawn"
    assert chosen[fitting].max() < 20 and chosen[fitting].min() > 1


def test_each_latent_is_chosen_or_counted_as_left_out_for_a_reason(reading):
    for changes in ({}, {"min_density": 0.05, "max_density": 0.4}, {"n_latents": "all"}):
        selection = select(reading, args(**changes))
        assert len(selection.latents) + sum(selection.left_out.values()) == D_SAE
        assert all(count > 0 for count in selection.left_out.values())
    explained = range(30)
    drawn = args(n_latents="all")
    part = replace(reading, order=order_of(drawn, D_SAE, explained))
    selection = select(part, drawn, explained)
    assert selection.left_out["without an explanation"] == 10
    assert len(selection.latents) + sum(selection.left_out.values()) == D_SAE


def test_reasons_are_those_of_the_densities(reading):
    selection = select(reading, args(n_latents="all", min_density=0.05, max_density=0.4))
    density = reading.n_firings / reading.n_computed
    assert selection.left_out["denser than 0.4"] == (density > 0.4).sum() > 0
    assert selection.left_out["rarer than 0.05"] == ((density < 0.05) & (density > 0)).sum() > 0
    assert all(0.05 <= e.density <= 0.4 for e in selection.latents)


def test_named_latents_may_have_any_density_and_directions_have_theirs(reading):
    named = args(latents=[3, 1], min_density=0.2, max_density=0.2)
    selection = select(replace(reading, order=order_of(named, D_SAE)), named)
    assert [e.latent for e in selection.latents] == [1, 3]
    densities = sorted(e.density for e in selection.latents)
    assert sorted(e.density for e in selection.directions) == densities


def test_too_few_latents_are_refused_with_the_reasons(planted):
    reading = read_planted(planted)
    with pytest.raises(ValueError, match=r"^no latent qualifies; scores need 20 \(.* silent on "):
        select(reading, args(least=1000))
    one = select(replace(reading, order=np.array([0, 5])), args(latents=[0, 5]))
    assert [e.latent for e in one.latents] == [5], "of named ones any number will do"
    assert len(select(reading, args(n_latents=3)).latents) == 3


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"n_latents": 0}, "n_latents is 0; it must be 1 or more"),
        ({"latents": []}, "latents is empty; name one or more"),
        ({"n_tokens": 0}, "n_tokens is 0; it must be 1 or more"),
        ({"min_density": 0.5, "max_density": 0.2}, "the smaller first"),
        ({"window": 0}, "window is 0"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        ExplainArguments(**changes)


def test_a_latent_out_of_range_is_refused():
    with pytest.raises(ValueError, match="there is no latent 40; this SAE has 40, 0 to 39"):
        order_of(args(latents=[1, 40]), D_SAE)
