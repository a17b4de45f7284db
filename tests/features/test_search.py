"""Searches, against planted latents whose answers are known."""

import pytest
import torch

from hfsae import capture
from hfsae.features import (
    FeatureSearch,
    FeatureStore,
    firing_on,
    promoting,
    search_labels,
    similar_latents,
)
from hfsae.features.search import words_of
from hfsae.models import ReLUSAE, ReLUSAEConfig

from ..wordless import folder_of_rows


def make_sae() -> ReLUSAE:
    sae = ReLUSAE(ReLUSAEConfig(d_in=16, d_sae=40, site="layers.1")).requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    for parameter in sae.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) / 3)
    return sae


def tokens() -> dict[str, torch.Tensor]:
    """Random rows behind a BOS, one of them padded on the left."""
    ids = torch.randint(3, 259, (3, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    ids[0, :3] = mask[0, :3] = 0
    ids[0, 3] = 2
    ids[1:, 0] = 2
    return {"input_ids": ids, "attention_mask": mask}


def test_latents_are_found_by_a_part_of_their_captions(tmp_path):
    store = FeatureStore.load(folder_of_rows(tmp_path / "sae"))
    expected = {}
    for latent in map(store.__getitem__, range(len(store))):
        shares = [e.activation / latent.max_activation for e in latent.examples if e.document == 1]
        if shares:
            expected[latent.index] = max(shares)
    hits = FeatureSearch(store).by_caption(" Document 1", 100)
    assert {hit.latent: hit.score for hit in hits} == pytest.approx(expected)
    assert [hit.score for hit in hits] == sorted(expected.values(), reverse=True)
    assert not FeatureSearch(store).by_caption("no such document")


def test_labels_are_ranked_by_the_words_that_they_have_in_common():
    labels = {1: "the sea", 2: "the sea, the sea and ships", 3: "the land", 4: "Berlin"}
    assert [hit.latent for hit in search_labels(labels, "Ships")] == [2]
    assert {hit.latent for hit in search_labels(labels, "the")} == {1, 2, 3}
    # by hand: 2 of 2 and 2 words, 2 of 2 and 4, 1 of 2 and 2
    hits = search_labels(labels, "sea, the")
    assert [(hit.latent, hit.score) for hit in hits] == [(1, 1.0), (2, 4 / 6), (3, 0.5)]
    assert search_labels(labels, "berl")[0] == (4, 0.5, "Berlin")
    assert not search_labels(labels, "be") and not search_labels(labels, "xyz")
    assert not search_labels({}, "sea") and not search_labels(labels, " .*")


def test_a_token_finds_the_latent_that_it_fires(store, one_latent_a_token):
    search = FeatureSearch(store)
    for token in (1, 2, 5, 8, 15):
        text = store[token].examples[0].tokens[store[token].examples[0].firing]
        hits = search.by_token(f" {text.upper()} " if text.strip() else text)
        assert token in [hit.latent for hit in hits]
        hit = next(hit for hit in hits if hit.latent == token)
        assert hit.score == pytest.approx(1.0)  # all its examples, the strongest among them
    assert search.by_token("nowhere") == [] == search.by_token("")


def test_maxima_and_densities_are_those_of_the_latents(store):
    assert store.max_activations.tolist() == [latent.max_activation for latent in store]
    assert store.densities.tolist() == pytest.approx([latent.density for latent in store])


def test_a_text_finds_the_latents_that_fire_most_on_it(tiny_lm):
    sae, batch = make_sae(), tokens()
    with capture(tiny_lm, ["layers.1"]) as activations:
        tiny_lm(**batch)
    latents = sae.encode(activations["layers.1"])
    special = torch.isin(batch["input_ids"], torch.tensor([0, 1, 2]))
    peak = latents[~special].amax(0)
    hits = firing_on(tiny_lm, sae, batch, k=5)
    assert [hit.latent for hit in hits] == peak.topk(5).indices.tolist()
    assert [hit.score for hit in hits] == pytest.approx(peak.topk(5).values.tolist(), rel=1e-4)
    maxima = torch.linspace(0, 9, 40)
    share = torch.where(maxima > 0, peak / maxima, 0)
    hits = firing_on(tiny_lm, sae, batch, k=5, max_activations=maxima)
    assert [hit.latent for hit in hits] == share.topk(5).indices.tolist()
    scored = firing_on(tiny_lm, sae, batch, k=40, max_activations=maxima)
    assert 0 not in [hit.latent for hit in scored], "it never fired on the text of the store"
    special = {name: t[:, :1] for name, t in batch.items()}
    assert special["input_ids"].max() <= 2 and firing_on(tiny_lm, sae, special) == []


def test_promoting_ranks_all_latents_by_the_lens(store, one_latent_a_token):
    planted = one_latent_a_token
    token, size = store[7].promoted[0]
    token_id = planted.tokenizer.convert_tokens_to_ids(token)
    by_latent = {hit.latent: hit.score for hit in promoting(planted.lm, planted.sae, token_id, 24)}
    assert len(by_latent) == 24 and by_latent[7] == pytest.approx(size, rel=1e-4)
    with pytest.raises(ValueError, match="token 24 is not in the vocabulary"):
        promoting(planted.lm, planted.sae, 24)


def test_similar_latents_have_the_largest_cosines():
    sae = make_sae()
    with torch.no_grad():
        sae.W_dec[9] = 3 * sae.W_dec[4] + 0.01
    best = similar_latents(sae, 4, k=5)
    assert best[0].latent == 9 and best[0].score == pytest.approx(1, abs=1e-3)
    cosine = torch.nn.functional.cosine_similarity(sae.W_dec[4], sae.W_dec[best[3].latent], dim=0)
    assert best[3].score == pytest.approx(float(cosine), rel=1e-4)
    assert 4 not in [hit.latent for hit in similar_latents(sae, 4, k=100)]
    assert len(similar_latents(sae, 4, k=100)) == 39
    with pytest.raises(ValueError, match="there is no latent 40; this SAE has 40, 0 to 39"):
        similar_latents(sae, 40)


def test_words_of_content_are_those_that_stand_for_something():
    assert words_of("The sea, and the SEA of 1812: it is wide") == ["sea", "SEA", "wide"]
    assert words_of("also because of it") == []
