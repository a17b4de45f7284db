"""The order in which a text's latents are shown."""

import pyarrow as pa
import pyarrow.dataset
import torch

from hfsae.activations.token_text import Tokens
from hfsae.demo.rows import by_salience, token_frequencies
from hfsae.features import FeatureStore
from hfsae.features.inspection import Inspection

THE, WAR, SEA, FIRST, BOS = 1, 2, 3, 4, 0
TEXTS = {BOS: "<bos>", FIRST: "Once", THE: " the", WAR: " war", SEA: " sea"}
IDS = [BOS, FIRST, THE, WAR, SEA]


def store(latents: list[tuple[float, float, int]]) -> FeatureStore:
    """Of (density, largest activation, the token that all its examples fire on)."""
    around = [THE] * 500
    rows = [
        {"latent": i, "kind": "top", "rank": r, "activation": 1.0, "firing": 0}
        | {"tokens": [TEXTS[token]], "token_ids": [token, *around]}
        for i, (_, _, token) in enumerate(latents)
        for r in range(2)
    ]
    density, largest, _ = zip(*latents, strict=True)
    table = pa.table({"density": density, "max_activation": largest})
    return FeatureStore(table, pyarrow.dataset.dataset(pa.Table.from_pylist(rows)), {})


def order(latents: list[tuple[float, float, int]], fires: list[tuple[int, float]]) -> list[int]:
    """The latents in order, of each the place in the text where it fires, and how strongly."""
    tokens = Tokens(IDS, [TEXTS[i] for i in IDS], [i == BOS for i in IDS])
    place, activation = (torch.tensor(column) for column in zip(*fires, strict=True))
    seen = Inspection(tokens, place, torch.arange(len(fires)), activation, len(fires), 0.0)
    of = store(latents)
    return [r.latent for r in by_salience(of, token_frequencies(of), seen)]


def test_a_latent_near_its_largest_activation_comes_before_a_weak_one():
    assert order([(0.01, 10.0, WAR), (0.01, 1.0, WAR)], [(3, 2.0), (3, 0.9)]) == [1, 0]


def test_a_rare_latent_comes_before_a_frequent_one():
    assert order([(0.3, 1.0, WAR), (0.001, 1.0, WAR)], [(3, 0.9), (3, 0.9)]) == [1, 0]


def test_a_word_of_content_comes_before_a_frequent_word_and_before_the_first_token():
    alike = [(0.01, 1.0, THE), (0.01, 1.0, FIRST), (0.01, 1.0, WAR)]
    assert order(alike, [(2, 1.0), (1, 1.0), (3, 0.7)]) == [2, 1, 0]


def test_a_latent_whose_examples_fire_on_the_same_word_comes_first():
    assert order([(0.01, 1.0, SEA), (0.01, 1.0, WAR)], [(3, 1.0), (3, 0.8)]) == [1, 0]


def test_the_third_latent_of_a_token_comes_after_those_of_other_tokens():
    alike = [(0.01, 1.0, WAR)] * 3 + [(0.01, 1.0, SEA)]
    assert order(alike, [(3, 1.0), (3, 0.9), (3, 0.8), (4, 0.2)]) == [0, 1, 3, 2]


def test_a_latent_that_never_fired_before_tells_nothing():
    assert order([(0.0, 0.0, WAR), (0.2, 9.0, WAR)], [(3, 1.0), (3, 1.0)]) == [1, 0]
