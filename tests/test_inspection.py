"""What an SAE sees in a text, against latents that are known in closed form or computed plainly."""

import math

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

import hfsae
from hfsae.activations.token_text import Tokens, spell, tokenise
from hfsae.features.inspection import compare, firings_in, inspect


@pytest.fixture(scope="module")
def sae() -> hfsae.SAE:
    config = hfsae.JumpReLUSAEConfig(d_in=16, d_sae=24, site="layers.1", initial_threshold=0.5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return hfsae.JumpReLUSAE(config)


@pytest.fixture(scope="module")
def seen(tiny_lm, tiny_tokenizer, sae):
    return inspect(tiny_lm, sae, tokenise(tiny_tokenizer, "the cat"))


@pytest.fixture(scope="module")
def latents(tiny_lm, sae, seen):
    """[tokens, d_sae], by a plain forward pass."""
    with torch.no_grad(), hfsae.capture(tiny_lm, ["layers.1"]) as activations:
        tiny_lm(torch.tensor([seen.tokens.ids]))
    return sae.encode(activations["layers.1"][0]).detach()


def test_a_sentencepiece_token_keeps_the_space_that_its_decoder_drops():
    """As with Gemma's tokenizer, whose tokens begin with a mark for a space."""
    words = {word: i for i, word in enumerate(["<unk>", "\u2581the", "\u2581cat", "s"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.decoder = decoders.Metaspace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    assert fast.decode([2]) == "cat"
    assert spell(fast, [1, 2, 3]) == [" the", " cat", "s"]


def test_tokens_have_texts_that_join_and_special_ones_their_names(tiny_tokenizer):
    tokens = tokenise(tiny_tokenizer, "a é")
    assert tokens.texts == ["<bos>", "a", " ", "é", ""]
    assert tokens.special == [True, False, False, False, False]
    assert tokenise(tiny_tokenizer, "a", bos=False).ids == tokens.ids[1:2]


def test_bytes_that_spell_no_character_are_given_as_the_vocabulary_has_them(tiny_tokenizer):
    ids = tokenise(tiny_tokenizer, "é!", bos=False).ids
    assert spell(tiny_tokenizer, ids[1:]) == [tiny_tokenizer.convert_ids_to_tokens(ids[1]), "!"]
    assert spell(tiny_tokenizer, ids[:1]) == [tiny_tokenizer.convert_ids_to_tokens(ids[0])]


def test_what_cannot_be_tokenised_is_told(tiny_tokenizer):
    with pytest.raises(ValueError, match="there is no text"):
        tokenise(tiny_tokenizer, "")
    with pytest.raises(ValueError, match="has 4 tokens; at most 3"):
        tokenise(tiny_tokenizer, "abc", max_tokens=3)
    with pytest.raises(ValueError, match="no chat template"):
        tokenise(tiny_tokenizer, "abc", chat=True)


def test_a_latent_along_the_text_is_what_encode_gives_and_nothing_on_bos(seen, latents):
    for latent in range(24):
        expected = [0.0, *latents[1:, latent].tolist()]
        assert seen.trace(latent) == pytest.approx(expected, abs=1e-5)
    assert seen.l0 == [0, *(latents[1:] != 0).sum(1).tolist()]
    with pytest.raises(ValueError, match="there is no latent 24; this SAE has 24, 0 to 23"):
        seen.trace(24)


def test_latents_on_a_token_come_strongest_first(seen, latents):
    order = latents[2].argsort(descending=True)[: int((latents[2] != 0).sum())].tolist()
    ranking = seen.at(2).ranking()
    assert seen.at(0).ranking() == []
    assert [r.latent for r in ranking] == order and {r.peak for r in ranking} == {2}


def test_latents_that_only_fire_below_zero_have_a_peak_too(seen):
    below = seen._replace(activation=-seen.activation.abs())
    assert {r.latent for r in below.ranking()} == {r.latent for r in seen.ranking()} != set()
    for row in below.ranking():
        trace = torch.tensor(below.trace(row.latent))
        assert row.max == trace[trace != 0].max() < 0
        assert trace[row.peak] == row.max


def test_the_ranking_counts_tokens_and_finds_peaks(seen, latents):
    kept = latents[1:]
    ranking = seen.ranking()
    assert ranking[0].latent == int(kept.amax(0).argmax())
    for row in ranking:
        column = kept[:, row.latent]
        assert row.max == pytest.approx(float(column.max()), abs=1e-5)
        assert row.mean == pytest.approx(float(column.mean()), abs=1e-5)
        assert row.n_tokens == int((column != 0).sum())
        assert row.peak == int(column.argmax()) + 1


def test_variance_unexplained_is_that_of_the_texts_own_tokens(tiny_lm, sae, seen, latents):
    with torch.no_grad(), hfsae.capture(tiny_lm, ["layers.1"]) as activations:
        tiny_lm(torch.tensor([seen.tokens.ids]))
    x = activations["layers.1"][0, 1:]
    error = x - sae.decode(latents[1:]).detach()
    expected = error.pow(2).sum() / (x - x.mean(0)).pow(2).sum()
    assert seen.fvu == pytest.approx(float(expected), rel=1e-4)


def test_variance_unexplained_at_several_sites_is_their_mean():
    torch.manual_seed(0)
    fields = {"d_in": 8, "d_sae": 12, "sites": ["layers.0", "layers.1"], "k": 3}
    sae = AutoModel.from_config(AutoConfig.for_model("batch_topk_sae", **fields)).eval()
    x = torch.randn(9, 8) * torch.tensor([1.0] * 4 + [50.0] * 4)  # the second would decide
    tokens = Tokens(list(range(9)), list("abcdefghi"), [False] * 9)
    with torch.no_grad():
        recon = sae.decode(sae.encode(x))
    squares = (x - recon).pow(2).sum(0), (x - x.mean(0)).pow(2).sum(0)
    each = [squares[0][s].sum() / squares[1][s].sum() for s in (slice(4), slice(4, 8))]
    seen = firings_in(sae, x, torch.arange(9), tokens)
    assert seen.fvu == pytest.approx(float(sum(each)) / 2, rel=1e-4)


def test_one_token_has_no_variance(tiny_lm, tiny_tokenizer, sae):
    assert math.isnan(inspect(tiny_lm, sae, tokenise(tiny_tokenizer, "a")).fvu)


def test_two_texts_are_compared_by_largest_activations(tiny_lm, tiny_tokenizer, sae, seen):
    other = inspect(tiny_lm, sae, tokenise(tiny_tokenizer, "dogs"))
    found = compare(seen, other)
    gaps = [abs(first - second) for _, first, second in found]
    assert gaps == sorted(gaps, reverse=True) and min(gaps) > 0
    best, first, second = found[0]
    assert first == pytest.approx(max(seen.trace(best)))
    assert second == pytest.approx(max(other.trace(best)))
    assert compare(seen, seen) == []


def test_an_sae_without_a_site_is_refused(tiny_lm, tiny_tokenizer):
    homeless = hfsae.JumpReLUSAE(hfsae.JumpReLUSAEConfig(d_in=16, d_sae=4))
    with pytest.raises(ValueError, match="names no site"):
        inspect(tiny_lm, homeless, tokenise(tiny_tokenizer, "a"))
