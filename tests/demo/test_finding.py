"""One search: by name, by what latents fire on, and by near words."""

from dataclasses import fields
from types import SimpleNamespace

import pytest
import torch

from hfsae.demo.actions import Actions
from hfsae.demo.subject import Subject
from hfsae.demo.word_search import find, near_words, title_of
from hfsae.features import Hit


class Named(Subject):
    """What its latents fire on is given, if `fires` is."""

    fires: dict[str, list[Hit]] | None = None
    dense: tuple[int, ...] = ()

    @property
    def feature_search(self):
        if self.fires is None:
            return super().feature_search
        return SimpleNamespace(by_token=lambda text, k: self.fires.get(text, []))

    def density(self):
        return torch.zeros(self.d_sae).index_fill_(0, torch.tensor(self.dense, dtype=int), 0.06)


@pytest.fixture
def named(subject, monkeypatch):
    near = {"sea": {"ocean": 0.5, "water": 0.4}}
    monkeypatch.setattr(
        "hfsae.demo.word_search.near_words",
        lambda subject, words: {k: v for word in words for k, v in near.get(word, {}).items()},
    )
    own = Named(**{field.name: getattr(subject, field.name) for field in fields(Subject)})
    own.labels = {7: "The sea", 8: "ships at sea"}
    own.automatic = {9: "rough seas", 10: "the sea in verse", 11: '"sea" 90%'}
    own.automatic[16] = "ships that cross the sea by night"
    own.sources = {9: "lm", 10: "lm", 11: "template", 16: "lm"}
    return own


def test_names_come_first_then_what_fires_then_what_is_near_each_latent_once(named):
    named.fires = {"sea": [Hit(8, 0.5, "sea"), Hit(14, 0.3, "sea"), Hit(15, 0.01, "sea")]}
    named.fires |= {"seas": [Hit(14, 0.1, "seas"), Hit(17, 0.1, "seas")]}
    named.fires |= {"ocean": [Hit(14, 0.9, "ocean"), Hit(18, 0.6, "ocean")]}
    named.fires |= {"waters": [Hit(19, 1.0, "waters")]}
    hits = find(named, "the sea")
    # by hand: 2 / (1 + 2), 2 / (1 + 4) words in common; .5 * .6 and .4 * 1.0 of near words
    assert [(h.latent, round(h.score, 2)) for h in hits] == [
        (7, 1.0),
        (8, 0.67),
        (9, 0.67),
        (10, 0.67),
        (14, 0.4),
        (17, 0.1),
        (16, 0.4),
        (19, 0.4),
        (18, 0.3),
    ]
    assert hits[0].why == "is named “The sea”" and hits[3].why == "is named “the sea in verse”"
    assert hits[4].why == "fires on “sea”" and hits[8].why == "fires near it, on “ocean”"
    assert hits[6].why == "has it in its name, “ships that cross the sea by night”"
    assert [title_of(hit) for hit in hits[3:8]] == [
        "named so",
        "fires on it",
        "fires on it",
        "has it in a longer name",
        "fires on words near it, by the model's own word vectors",
    ]
    assert all(hit.score <= 1 for hit in hits) and find(named, " the sea?") == hits


def test_the_head_of_a_name_counts_more_than_examples_in_it(named):
    """As on the packaged SAEs: of mail, of what is beside cities, of many words at once."""
    names = {20: "'mail' (ocean mail service)", 21: "the word 'sea', ocean", 22: "oceans"}
    names |= {23: "seas: the ocean, bays", 24: "'of' after ocean", 25: "ocean"}
    named.automatic, named.sources = names, dict.fromkeys(names, "lm")
    named.fires = {"ocean": [Hit(22, 0.2, "ocean"), Hit(27, 0.4, "ocean"), Hit(28, 0.5, "ocean")]}
    named.dense = (27, 28)
    hits = find(named, "ocean")
    assert [h.latent for h in hits] == [25, 22, 24, 21, 28, 20, 23, 27]
    # by hand: 2 / (1 + 2) words in common, and half of 2 of 1 + (1 + 2 * 0.5)
    assert [round(h.score, 2) for h in hits[3:7]] == [0.67, 0.5, 0.33, 0.33]
    assert title_of(hits[-1]) == "on more than 5 % of tokens, so in most texts"
    assert hits[-1].why == "is in most texts, fires on “ocean”"


def test_each_word_of_a_sentence_counts(named):
    gold = [Hit(20, 0.9, "gold"), Hit(21, 0.8, "gold")]
    named.fires = {"gold": gold, "spice": [Hit(22, 0.6, "spice"), Hit(21, 0.6, "spice")]}
    hits = find(named, "find those who trade spice and gold")
    assert [hit.latent for hit in hits] == [21, 20, 22]
    assert hits[2].why == "fires on “spice”" and find(named, "quartz") == []


def test_near_words_are_those_whose_rows_point_the_same_way_but_for_the_mean():
    words = ["sea", "ocean", "king", "the", "seas"]
    table = torch.randn(2000, 256, generator=torch.Generator().manual_seed(0))
    table[1] = 0.8 * table[0] + 0.6 * table[1]
    table[3] = table[4] = table[0]  # no word of content, and another form of the same
    lm = SimpleNamespace(get_input_embeddings=lambda: SimpleNamespace(weight=table + 5.0))
    spelt = [f" {word}" for word in words] + ["x"] * 2000

    class Tokenizer:
        def __call__(self, text, add_special_tokens):
            return {"input_ids": [spelt.index(text)]}

        def decode(self, ids):
            return spelt[ids[0]]

    subject = SimpleNamespace(lm=lm, tokenizer=Tokenizer(), cached=lambda name, make: make())
    near = near_words(subject, ["sea"])
    assert list(near) == ["ocean"] and near["ocean"] == pytest.approx(0.8, abs=0.1)
    assert near_words(subject, ["king"]) == near_words(subject, []) == {}


def test_the_page_says_why_and_what_there_is_not(named):
    view = Actions(named).search("the sea")
    assert view["found"][0]["why"] == "is named “The sea”" and view["score"] == "match, at most 1"
    assert Actions(named).search("quartz")["found"] == []


def test_a_part_of_a_name_finds_it_where_nothing_else_does(named):
    view = Actions(named).search("shi")
    assert view["found"][0]["latent"] == 8 and view["score"] == "match, at most 1"
    assert view["found"][0]["value"] == 0.25 and "in its name" in view["found"][0]["why"]
