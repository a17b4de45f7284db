"""Meanings by word vectors: against vectors that are known."""

import pyarrow as pa
import pyarrow.dataset
import pytest
import torch

from hfsae.features import FeatureStore
from hfsae.features.search import CHANCE, Meaning, common_directions, words_of

WORDS = ["sea", "ocean", "king", "queen", "even", "ships"]
D = 256


def ids_of(text: str) -> list[int]:
    """Tokens are whole words."""
    return [WORDS.index(word) for word in text.split() if word in WORDS]


def meaning(latents, names=None) -> Meaning:
    """Of latents given by the tokens of their strongest examples. "sea" and "ocean" have a cosine
    of .8, as have "king" and "queen"; other words have none in common."""
    vectors = torch.eye(D)[:6]
    vectors[1] = 0.8 * vectors[0] + 0.6 * torch.eye(D)[7]
    vectors[3] = 0.8 * vectors[2] + 0.6 * torch.eye(D)[8]
    # all else of the vocabulary varies most in two directions, around another mean
    generator = torch.Generator().manual_seed(0)
    others = torch.randn(4000, 2, generator=generator) * 30 @ torch.eye(D)[10:12]
    others += 0.05 * torch.randn(4000, D, generator=generator)
    table = torch.cat([vectors, others]) + 5.0
    rows = [
        {"latent": i, "kind": "top", "rank": r, "activation": 1.0, "firing": 0, "tokens": [token]}
        for i, tokens in enumerate(latents)
        for r, token in enumerate(tokens)
    ]
    examples = pyarrow.dataset.dataset(pa.Table.from_pylist(rows))
    store = FeatureStore(pa.table({"density": [0.01] * len(latents)}), examples, {})
    return Meaning(store, table, ids_of, names or {})


def test_a_latent_is_as_near_as_the_words_that_it_fires_on():
    made = meaning([[" sea"] * 4, [" ocean"] * 2 + [" king"] * 2, [" king"], [" even"], ["sea"]])
    near = made.near("sea", 9)
    assert list(near) == [0, 1]
    assert near[0] == pytest.approx(1, abs=0.02) and near[1] == pytest.approx(0.4, abs=0.02)
    assert made.near("even", 9) == {} and made.near("xylophone", 9) == {}
    assert list(made.near("sea", 1)) == [0]


def test_a_word_is_found_with_a_capital_where_it_is_a_token_without_one():
    made = meaning([[" sea"], [" king"]])
    assert made.near("SEA", 9) == made.near("Sea", 9) == made.near("sea", 9) != {}


def test_near_is_nearer_than_chance():
    """Of random directions in 256 dimensions, cosines have a spread of 1/16."""
    made = meaning([[" sea"], [" king"], [" even"]])
    quantile = torch.distributions.Normal(0.0, 1 / 16).icdf(torch.tensor(1 - CHANCE))
    assert made.least == pytest.approx(float(quantile), rel=0.15)


def test_a_name_is_near_by_its_own_words():
    made = meaning([[" king"], [" king"]], names={1: "the ocean, and ships"})
    assert list(made.near("sea", 9)) == [1] and made.near("sea", 9)[1] > made.least
    assert sorted(made.near("queen", 9)) == [0, 1], "by tokens, too"


def test_of_several_words_a_latent_is_near_to_each():
    made = meaning([[" sea"], [" sea", " king"], [" king"]])
    assert list(made.near("ocean queen", 9)) == [1]


def test_the_commonest_directions_are_those_of_the_largest_variance():
    generator = torch.Generator().manual_seed(1)
    table = torch.randn(500, 5, generator=generator) * torch.tensor([1.0, 9.0, 1.0, 4.0, 1.0]) + 3
    mean, common = common_directions(table)
    assert mean == pytest.approx(table.mean(dim=0), abs=1e-5)
    assert common.abs().argmax(dim=0).tolist() == [3, 1]


def test_words_of_content_are_those_that_stand_for_something():
    assert words_of("The sea, and the SEA of 1812: it is wide") == ["sea", "SEA", "wide"]
    assert words_of("also because of it") == []
