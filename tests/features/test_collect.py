"""collect: every number of a store against closed forms and a slow dense count."""

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from hfsae.activations.token_text import token_text
from hfsae.features import CollectArguments, FeatureStore, collect, collecting, nearest_rows
from hfsae.features.collecting import window_texts


def run(planted, batches=None, **arguments):
    args = CollectArguments(**arguments)
    batches = planted.batches() if batches is None else batches
    return collect(planted.lm, planted.sae, batches, args, tokenizer=planted.tokenizer)


def test_a_latent_planted_on_a_token_is_found_with_its_counts(one_latent_a_token):
    planted = one_latent_a_token
    store = run(planted)
    n_tokens = planted.rows.keep.sum().item()
    for i in range(1, 23):
        where = planted.rows.input_ids == i
        activations = 1 + i + where.nonzero()[:, 1] / 64
        latent = store[i]
        assert latent.n_firings == where.sum() == sum(latent.histogram)
        assert latent.density == pytest.approx(where.sum().item() / n_tokens, rel=1e-12)
        assert latent.max_activation == activations.max()
        assert latent.mean_activation == pytest.approx(activations.mean().item(), rel=1e-6)
        assert {e.tokens[e.firing] for e in latent.examples} == {
            planted.tokenizer.convert_ids_to_tokens(i)
        }


def test_limits_of_other_sites_than_the_saes_are_no_matter(one_latent_a_token):
    planted = one_latent_a_token
    site = planted.sae.config.site
    limits = {site: 1e9, "layers.7": 1.0}
    store = collect(
        planted.lm,
        planted.sae,
        planted.batches(),
        tokenizer=planted.tokenizer,
        norm_limits=limits,
    )
    assert store[1].n_firings > 0


def test_latents_that_never_fire_have_no_examples_and_zeros(one_latent_a_token):
    store = run(one_latent_a_token)
    for i in (0, 23):  # token 0 is special, token 23 does not occur
        assert store[i][1:6] == (0.0, 0, 0.0, 0.0, [0] * len(store[i].histogram))
        assert store[i].examples == []


def test_an_sae_that_never_fires_has_a_store_without_examples(one_latent_a_token, tmp_path, caplog):
    planted = one_latent_a_token
    planted.sae.b_enc.data.fill_(-1e6)
    store = run(planted)
    (message,) = caplog.messages
    assert message.startswith("no latent fired on any of the 450 tokens: the feature store has no")
    store.save(tmp_path)
    loaded = FeatureStore.load(tmp_path)
    assert list(loaded) == list(store) and len(loaded) == planted.sae.config.d_sae
    assert loaded.max_activations.sum() == loaded.densities.sum() == 0
    assert not any(latent.examples for latent in loaded) and loaded.firings().latent == []


def test_top_examples_are_what_a_dense_search_finds(random_latents):
    store, latents = run(random_latents, window=3), random_latents.latents()
    peaks, places = latents.max(1)  # [rows, d_sae]
    for i in range(24):
        order = peaks[:, i].sort(descending=True, stable=True).indices[:10].tolist()
        top = [e for e in store[i].examples if e.kind == "top"]
        assert [e.row for e in top] == [row for row in order if peaks[row, i] > 0]
        assert [e.rank for e in top] == list(range(len(top)))
        for e in top:
            assert (e.activation, e.position) == (peaks[e.row, i], places[e.row, i])
            assert e.document == 100 + e.row


def test_windows_are_cut_at_the_row_and_hold_activations_of_every_token(random_latents):
    planted = random_latents
    store, latents, ids = run(planted, window=5), planted.latents(), planted.rows.input_ids
    seen_cut = 0
    for i in range(24):
        for e in store[i].examples:
            start, end = max(0, e.position - 5), min(16, e.position + 6)
            assert e.token_ids == ids[e.row, start:end].tolist()
            assert e.tokens == planted.tokenizer.convert_ids_to_tokens(e.token_ids)
            assert torch.equal(torch.tensor(e.activations), latents[e.row, start:end, i])
            assert e.activations[e.firing] == e.activation == max(e.activations)
            seen_cut += end - start < 11
    assert seen_cut > 20


def test_the_histogram_is_numpys(random_latents):
    store, latents = run(random_latents), random_latents.latents().numpy()
    edges = np.array(store.meta["histogram_edges"])
    for i in range(24):
        fired = latents[..., i][latents[..., i] > 0]
        assert store[i].histogram == np.histogram(fired, edges)[0].tolist()


def test_activations_beyond_the_edges_are_counted_in_the_outer_bins(one_latent_a_token):
    planted = one_latent_a_token
    planted.lm.transformer.wte.weight[2, 2] = 1e9
    latent = run(planted)[2]
    assert latent.histogram[-1] == latent.n_firings == (planted.rows.input_ids == 2).sum()


def test_quantile_examples_come_from_their_group_and_are_no_top_examples(random_latents):
    # no token twice, so no ties; and room for every row makes the groups exact
    generator = torch.Generator().manual_seed(0)
    random_latents.input_ids = torch.randperm(800, generator=generator).view(50, 16)
    store = run(random_latents, reservoir=50, top=4, quantiles=5, per_quantile=2)
    peaks = random_latents.latents().amax(1)
    for i in range(24):
        fired = peaks[:, i].nonzero().squeeze(1)
        order = fired[peaks[fired, i].argsort(stable=True)].tolist()
        examples = store[i].examples
        top = {e.row for e in examples if e.kind == "top"}
        assert len({e.row for e in examples}) == len(examples)
        for q in range(1, 6):
            group = {r for rank, r in enumerate(order) if rank * 5 // len(order) == q - 1} - top
            drawn = {e.row for e in examples if e.kind == f"quantile_{q}"}
            assert drawn <= group
            assert len(drawn) == min(2, len(group))


def test_examples_stand_from_strong_to_weak(random_latents):
    for latent in run(random_latents, reservoir=50):
        kinds = [e.kind for e in latent.examples]
        order = ["top", *(f"quantile_{q}" for q in (5, 4, 3, 2, 1))]
        assert kinds == sorted(kinds, key=order.index)
        activations = [e.activation for e in latent.examples]
        assert activations == sorted(activations, reverse=True)


def test_the_same_seed_gives_the_same_store_and_another_seed_other_quantile_examples(
    random_latents,
):
    arguments = {"reservoir": 12, "top": 2}
    first, second = run(random_latents, **arguments), run(random_latents, **arguments)
    other = run(random_latents, seed=1, **arguments)
    assert list(first) == list(second)
    tops = [[e for e in latent.examples if e.kind == "top"] for latent in first]
    assert tops == [[e for e in latent.examples if e.kind == "top"] for latent in other]
    assert list(first) != list(other)


@pytest.mark.parametrize("size", [1, 7, 50])
def test_the_size_of_batches_changes_nothing(random_latents, size):
    arguments = {"reservoir": 12, "top": 2}
    expected = run(random_latents, **arguments)
    assert list(run(random_latents, random_latents.batches(size), **arguments)) == list(expected)


def test_encoding_in_small_blocks_changes_nothing(random_latents, monkeypatch):
    expected = list(run(random_latents))
    monkeypatch.setattr(collecting, "BLOCK_LATENTS", 3 * 16 * 24)
    assert list(run(random_latents)) == expected


def test_norm_outliers_are_left_out_of_counts_and_windows(one_latent_a_token):
    planted = one_latent_a_token
    store = collect(
        planted.lm,
        planted.sae,
        planted.batches(),
        tokenizer=planted.tokenizer,
        norm_limits={"drop": 15.0},
    )
    # the norm at token i is at least 1 + i
    assert store[20].n_firings == 0 < store[5].n_firings
    assert store.meta["n_tokens"] < planted.rows.keep.sum()
    assert run(planted)[20].n_firings > 0


def test_a_bfloat16_sae_is_collected_in_its_own_precision(one_latent_a_token):
    planted = one_latent_a_token
    planted.sae.to(torch.bfloat16)
    exact = planted.latents().bfloat16().float().amax((0, 1))
    assert [latent.max_activation for latent in run(planted)] == exact.tolist()


def test_promoted_tokens_are_those_of_the_place_that_a_transcoder_writes_to(one_latent_a_token):
    planted = one_latent_a_token
    lm, sae = planted.lm, planted.sae
    sae.config.target_site = "h.1.attn.c_proj:in"  # read at the site, written before a linear map
    lens = run(planted, lens_tokens=3)
    written = sae.W_dec @ lm.transformer.h[1].attn.c_proj.weight
    centred = written - written.mean(1, keepdim=True)
    logits = centred @ lm.lm_head.weight.T  # the gain of a fresh LayerNorm is 1
    for i in range(24):
        expected = logits[i].sort(descending=True)
        texts = [token_text(planted.tokenizer, t) for t in expected.indices.tolist()]
        assert [token for token, _ in lens[i].promoted] == texts[:3]
        assert [token for token, _ in lens[i].suppressed] == texts[:-4:-1]
        assert lens[i].promoted[0][1] == pytest.approx(expected.values[0].item(), rel=1e-4)
        assert lens[i].suppressed[0][1] == pytest.approx(expected.values[-1].item(), rel=1e-4)


def test_a_site_without_a_logit_lens_is_collected_all_the_same(one_latent_a_token):
    planted = one_latent_a_token
    planted.sae.config.target_site = "h.0.mlp.c_fc:in"
    store = run(planted)
    assert "does not write to the residual stream" in store.meta["logit_lens"]
    assert store[5].promoted == store[5].suppressed == []
    assert store[5].n_firings > 0


def test_neighbours_are_the_most_similar_other_rows():
    rows = torch.randn(30, 8, generator=torch.Generator().manual_seed(0))
    neighbours, cosines = nearest_rows(rows, 3, block=7)
    for i in range(30):
        similarity = torch.cosine_similarity(rows[i], rows, dim=1)
        similarity[i] = -2
        expected = similarity.sort(descending=True)
        assert neighbours[i].tolist() == expected.indices[:3].tolist()
        torch.testing.assert_close(cosines[i], expected.values[:3])


def test_a_small_dictionary_has_fewer_neighbours():
    neighbours, _ = nearest_rows(torch.eye(3), 5)
    assert neighbours.shape == (3, 2)


def test_progress_is_told_the_tokens_of_each_batch(one_latent_a_token):
    planted, told = one_latent_a_token, []
    rows, tokenizer = planted.batches(), planted.tokenizer
    collect(planted.lm, planted.sae, rows, tokenizer=tokenizer, progress=told.append)
    assert told == [8 * 16, 8 * 16, 8 * 16, 6 * 16]


def test_meta_says_what_was_read(one_latent_a_token):
    meta = run(one_latent_a_token, seed=5).meta
    assert meta["n_tokens"] == one_latent_a_token.rows.keep.sum()
    assert (meta["n_rows"], meta["context_size"], meta["d_sae"]) == (30, 16, 24)
    assert (meta["site"], meta["model_name"], meta["arguments"]["seed"]) == ("drop", "m", 5)


def test_no_tokens_no_site_and_senseless_sizes_are_one_sentence(one_latent_a_token):
    with pytest.raises(ValueError, match="no token is left to collect from"):
        run(one_latent_a_token, batches=[])
    one_latent_a_token.sae.config.site = None
    with pytest.raises(ValueError, match="names no site"):
        run(one_latent_a_token)
    with pytest.raises(ValueError, match="top is 0; it must be 1 or more"):
        CollectArguments(top=0)


def _tokenizer(vocabulary: list[str], decoder) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(vocabulary)}, []))
    tokenizer.decoder = decoder
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_texts_of_byte_level_tokens_keep_spaces_and_spell_parts_of_characters():
    tokenizer = _tokenizer(["Ġthe", "the", "Ċ", "Ã", "Ã©"], decoders.ByteLevel())
    assert [token_text(tokenizer, i) for i in range(5)] == [" the", "the", "\n", "Ã", "é"]


def test_texts_of_sentencepiece_tokens_keep_spaces():
    decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer = _tokenizer(["▁the", "the", "▁", "<0x0A>", "<0xE2>"], decoder)
    assert [token_text(tokenizer, i) for i in range(5)] == [" the", "the", " ", "\n", "<0xE2>"]


def test_characters_of_several_tokens_stand_at_one_of_them():
    # "a", then the three bytes of "—" in two tokens, then "é" in two, and half of another.
    tokenizer = _tokenizer(["a", "âĢ", "Ķ", "Ã", "©"], decoders.ByteLevel())
    ids = np.array([[0, 1, 2, 3, 4, 3], [2, 0, 0, 0, 1, 2]])
    inside = np.array([[True] * 6, [False, True, True, True, True, True]])
    texts = window_texts(tokenizer, ids, inside, firing=np.array([2, 0])).to_pylist()
    assert texts == [["a", "", "—", "é", "", "\ufffd"], ["a", "a", "a", "—", ""]]
    texts = window_texts(tokenizer, ids[1:], inside[:1], firing=np.array([5])).to_pylist()
    assert texts == [["\ufffd", "a", "a", "a", "", "—"]]
