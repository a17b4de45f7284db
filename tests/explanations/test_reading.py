"""The pass over held-out text: halves of documents, shared runs, firings, random directions."""

import numpy as np
import pytest
import torch

from hfsae.activations import TokenBatch
from hfsae.explanations.corpus import CUT, RUN, SHOWN, TESTED, CorpusActivations, read

from .conftest import N_TOKENS, read_planted


def runs_of(reading: CorpusActivations, half: int) -> set[tuple[int, ...]]:
    """All runs of RUN tokens that a stretch of one half has."""
    ids, at = reading.ids.tolist(), np.flatnonzero(reading.half == half).tolist()
    return {tuple(ids[i : i + RUN]) for i in at if i + RUN <= reading.stop[i]}


def test_no_document_and_no_run_of_twelve_tokens_is_on_both_halves(planted):
    reading = read_planted(planted)
    document = np.repeat(np.arange(len(planted.input_ids)), planted.input_ids.shape[1] - 1)
    for number in range(len(planted.input_ids)):
        halves = {*reading.half[document == number].tolist()} - {CUT}
        assert len(halves) <= 1
    assert (reading.half == CUT).sum() >= RUN, "some rows repeat text of the other half"
    assert runs_of(reading, SHOWN) and not runs_of(reading, SHOWN) & runs_of(reading, TESTED)


def test_copies_of_a_document_are_on_one_half_whatever_else_is_read(planted):
    reading = read_planted(planted)
    n = planted.input_ids.shape[1] - 1
    half = reading.half.reshape(-1, n)
    assert (half[41:61:2] == half[40:60:2]).all()
    ids = planted.input_ids[:150]
    part = TokenBatch(ids, ids != 0, torch.arange(150)[:, None].expand_as(ids))
    fewer = read(
        planted.lm, planted.sae, [part], np.arange(3), n_directions=1, keep_all=True, seed=0
    )
    same = fewer.half == half[:150].ravel()
    assert same[fewer.half != CUT].mean() > 0.95, "but for text that is cut"


def test_stretches_are_text_of_one_row_without_special_tokens(planted):
    reading = read_planted(planted)
    n = planted.input_ids.shape[1] - 1
    at = np.arange(len(reading.ids))
    assert (reading.start // n == at // n).all() and ((reading.stop - 1) // n == at // n).all()
    assert (reading.start <= at).all() and (at < reading.stop).all()
    assert 0 not in reading.ids
    assert all((reading.half[a:b] == reading.half[a]).all() for a, b in _spans(reading))


def _spans(reading: CorpusActivations) -> set[tuple[int, int]]:
    return {*zip(reading.start.tolist(), reading.stop.tolist(), strict=True)}


@pytest.mark.parametrize("size", [7, 300])
def test_firings_are_those_of_a_dense_pass_behind_the_first_token_of_each_row(planted, size):
    reading, kept = read_planted(planted, size=size), planted.rows.keep
    latents = planted.latents()
    latents[:, 1] = 0  # the first behind the special one
    latents = latents[kept]
    assert reading.n_firings.tolist() == (latents > 0).sum(0).tolist()
    for latent in (1, 17, N_TOKENS - 1):
        trace = reading.trace(latent)
        dense = torch.zeros(len(latents))
        dense[torch.from_numpy(trace.token)] = torch.from_numpy(trace.value)
        assert torch.equal(dense, latents[:, latent])
        assert reading.density(latent) == pytest.approx(
            float((latents[:, latent] > 0).sum() / reading.n_computed)
        )


def test_short_memory_gives_up_latents_at_the_end_of_the_order(planted):
    order, few = np.random.default_rng(0).permutation(N_TOKENS), {"most_firings": 4000}
    whole = read_planted(planted, order, keep_all=True, **few)
    short = read_planted(planted, order, **few)
    n = len(short.order)
    assert 3 < n < N_TOKENS and short.order.tolist() == order[:n].tolist()
    assert len(whole.order) == N_TOKENS
    for latent in short.order.tolist():
        ours, theirs = short.trace(latent), whole.trace(latent)
        assert (ours.token == theirs.token).all() and (ours.value == theirs.value).all()
    assert (short.n_firings == whole.n_firings).all(), "densities are of all tokens"


def test_first_tokens_of_rows_and_outliers_of_the_norm_are_read_but_not_computed(planted):
    site = planted.sae.config.site
    reading = read_planted(planted, norm_limits={site: 50.0, "elsewhere": 0.1})
    assert len(reading.ids) == planted.rows.keep.sum()
    is_first = np.arange(len(reading.ids)) % 32 == 0
    computed = (reading.ids < 50) & ~is_first
    assert (reading.computed == computed).all()
    assert reading.n_computed == computed.sum()
    assert not reading.n_firings[50:].any()
    inside = [reading.computed[a:b] for a, b in _spans(reading)]
    assert all(part.all() or not part.any() for part in inside), "text ends where one of them is"


def test_of_rows_without_a_special_token_the_first_one_is_not_computed_either(planted):
    rows = planted.rows._replace(keep=torch.ones_like(planted.rows.keep))
    reading = read(
        planted.lm, planted.sae, [rows], np.arange(3), n_directions=1, keep_all=True, seed=0
    )
    assert (reading.computed == (np.arange(len(reading.ids)) % 33 > 0)).all()


def test_a_random_direction_fires_as_often_as_it_should(planted):
    reading = read_planted(planted)
    # tokens of one kind have the same projection: the share is met up to one kind of token
    trace = reading.densest(2, 0.1)
    along = reading.projections[:, 2]
    assert 0.05 < len(trace.token) / reading.n_computed <= 0.1
    others = np.delete(along, trace.token)
    assert along[trace.token].min() > others[np.isfinite(others)].max()
    assert (trace.value > 0).all()


def test_documents_that_are_all_on_one_half_are_refused(planted):
    ids = planted.input_ids[:8]
    row = TokenBatch(ids, ids != 0, torch.zeros_like(ids))
    with pytest.raises(ValueError, match=r"1 held-out documents .* all in one half"):
        read(planted.lm, planted.sae, [row], np.arange(3), n_directions=1, keep_all=True, seed=0)


def test_text_without_a_token_is_refused(planted):
    ids = torch.zeros(1, 4, dtype=torch.long)
    row = TokenBatch(ids, ids != 0, ids)
    with pytest.raises(ValueError, match="no token is left"):
        read(planted.lm, planted.sae, [row], np.arange(3), n_directions=1, keep_all=True, seed=0)
