"""One search: by name, by what latents fire on, and by meaning."""

from dataclasses import fields
from types import SimpleNamespace

import pytest
import torch

from hfsae.demo.actions import Actions
from hfsae.demo.subject import Subject
from hfsae.demo.word_search import find, title_of
from hfsae.features import Hit


class Near:
    """Stands in for meanings."""

    def __init__(self, near: dict[str, dict[int, float]]) -> None:
        self._near = near

    def near(self, query: str, k: int = 12) -> dict[int, float]:
        return {**self._near.get(query, {})}

    fired = near


class Named(Subject):
    """Its meanings are given, and so is what its latents fire on, if `fires` is."""

    near: Near
    fires: dict[str, list[Hit]] | None = None
    dense: tuple[int, ...] = ()

    def cached(self, name, make):
        return self.near

    @property
    def feature_search(self):
        if self.fires is None:
            return super().feature_search
        return SimpleNamespace(by_token=lambda text, k: self.fires.get(text, []))

    def density(self):
        return torch.zeros(self.d_sae).index_fill_(0, torch.tensor(self.dense, dtype=int), 0.06)


@pytest.fixture
def named(subject):
    own = Named(**{field.name: getattr(subject, field.name) for field in fields(Subject)})
    own.labels = {7: "The sea", 8: "ships at sea"}
    own.automatic = {9: "rough seas", 10: "the sea in verse", 11: '"sea" 90%'}
    own.automatic[16] = "ships that cross the sea by night"
    own.sources = {9: "lm", 10: "lm", 11: "template", 16: "lm"}
    own.near = Near({"the sea": {7: 0.9, 10: 0.3, 12: 0.4, 16: 0.2}, "climate": {13: 0.5}})
    return own


def test_names_come_first_then_what_fires_then_what_is_near_each_latent_once(named):
    named.fires = {"sea": [Hit(8, 0.5, "sea"), Hit(14, 0.3, "sea"), Hit(15, 0.01, "sea")]}
    named.fires["seas"] = [Hit(14, 0.1, "seas"), Hit(17, 0.1, "seas")]
    hits = find(named, "the sea")
    assert [(h.latent, round(h.score, 2)) for h in hits] == [
        (7, 1.0),
        (8, 0.67),
        (10, 0.48),
        (14, 0.4),
        (16, 0.3),
        (12, 0.4),
        (9, 0.33),
        (17, 0.1),
    ]
    assert hits[0].why == "is named “The sea”" and hits[2].why == "is named “the sea in verse”"
    assert hits[3].why == "fires on “sea”" and hits[5].why == "is about something near"
    assert hits[4].why == "has it in its name, “ships that cross the sea by night”"
    assert [title_of(hit) for hit in hits[2:]] == [
        "named so",
        "fires on it",
        "has it in a longer name",
        "about something near, by the model's own word vectors",
        "has it in its name, but fires on other words",
        "fires on it now and then",
    ]
    assert all(hit.score <= 1 for hit in hits) and find(named, " the sea?") == hits


def test_what_a_latent_fires_on_and_the_head_of_its_name_count_more_than_examples_in_it(named):
    """As on the packaged SAEs: of mail, of what is beside cities, of many words at once."""
    names = {20: "'mail' (ocean mail service)", 21: "the word 'sea', ocean", 22: "oceans"}
    names |= {23: "seas: the ocean, bays", 24: "'of' after ocean", 25: "ocean"}
    named.automatic, named.sources = names, dict.fromkeys(names, "lm")
    named.near = Near({"ocean": {21: 0.6, 23: 0.6, 26: 0.3}})
    named.fires = {"ocean": [Hit(22, 0.2, "ocean"), Hit(27, 0.4, "ocean"), Hit(28, 0.5, "ocean")]}
    named.fires["oceans"] = [Hit(22, 0.6, "oceans")]
    named.dense = (27, 28)
    hits = find(named, "ocean")
    assert [h.latent for h in hits] == [25, 22, 21, 28, 23, 26, 24, 20, 27]
    # by hand: 2 / (1 + 2) words in common; half of 1 of 1 + (1 + 2 * 0.5); each with what fires
    assert [round(h.score, 2) for h in hits[1:5]] == [0.9, 0.63, 0.5, 0.47]
    assert title_of(hits[-1]) == "on more than 5 % of tokens, so in most texts"
    assert hits[-1].why == "is in most texts, fires on “ocean”"


def test_of_several_words_that_nothing_is_about_each_is_looked_for_alone(named):
    hits = find(named, "climate change")
    assert [(h.latent, h.why) for h in hits] == [(13, "for “climate” alone")]
    assert title_of(hits[0]).startswith("for one of the words alone")
    assert find(named, "quartz") == []


def test_each_word_of_a_sentence_counts(named):
    gold = [Hit(20, 0.9, "gold"), Hit(21, 0.8, "gold")]
    named.fires = {"gold": gold, "spice": [Hit(22, 0.6, "spice")]}
    hits = find(named, "find those who trade spice and gold")
    assert [hit.latent for hit in hits] == [20, 22, 21]
    assert hits[1].why == "fires on “spice”, for “spice” alone"


def test_the_page_says_why_and_what_there_is_not(named):
    view = Actions(named).search("the sea")
    assert view["found"][0]["why"] == "is named “The sea”" and view["score"] == "match, at most 1"
    assert Actions(named).search("quartz")["found"] == []


def test_a_part_of_a_name_finds_it_where_nothing_else_does(named):
    view = Actions(named).search("shi")
    assert view["found"][0]["latent"] == 8 and view["score"] == "match, at most 1"
    assert view["found"][0]["value"] == 0.25 and "in its name" in view["found"][0]["why"]
