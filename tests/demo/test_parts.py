"""The markup: whatever is shown is text, and nothing in it is markup or code."""

import re
from html.parser import HTMLParser

import pytest

from hfsae.demo.pages.about import shown_card
from hfsae.demo.parts import html, number, percent, visible

from .conftest import HOSTILE


class Tags(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.found, self.texts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data)


def test_what_is_hostile_stays_text():
    row = {"latent": 0, "value": 1.0, "label": HOSTILE, "promotes": [HOSTILE]}
    token = {"text": HOSTILE, "special": False, "activation": 1.0, "share": 1.0, "l0": 1}
    pieces = [
        html("rows", [row, row | {"label": ""}], 1.0),
        html("strip", [token]),
        html("error", HOSTILE),
        html("pair", {"prompt": HOSTILE, "plain": HOSTILE, "steered": HOSTILE, "done": True}
             | {"plain_repetition": 0.0, "steered_repetition": 0.0, "kl": None}),
    ]  # fmt: skip
    for piece in pieces:
        tags = Tags(piece)
        assert not {tag for tag, _ in tags.found} & {"img", "script"}
        assert not any(name.startswith("on") for _, attrs in tags.found for name in attrs)
        assert "onerror" in "".join(tags.texts)


def test_panels_are_given_finished_markup_only():
    """Gradio evaluates `${...}` in a filled-in template; ours holds nothing but its value."""
    from hfsae.demo.parts import panel

    assert panel("x").html_template == "${value}"


@pytest.mark.parametrize(
    "value, shown",
    [(0, "0"), (12.345, "12.3"), (1234.5, "1,234"), (0.00012, "1.2e-04"), (-0.5, "-0.5")],
)
def test_numbers_as_people_write_them(value, shown):
    assert number(value) == shown


def test_shares():
    assert [percent(s) for s in (0.0012, 0.05, 0.5, 1.0)] == ["0.12 %", "5 %", "50 %", "100 %"]


def test_characters_that_would_act_are_spelt_out():
    assert visible("a\nb\tc\u202e\x1b") == "a↵b⇥c\\u202e\\x1b"


def test_a_card_is_shown_without_front_matter_and_pictures():
    card = "---\nlicense: mit\n---\n# T\n![a](https://spy.example/a.png) <img src='//spy'> ok\n"
    card += "## Figures\n![b](figures/b.png)\n## Next\n![c][ref]\n"
    shown = shown_card(card)
    assert re.sub(r"\s+", " ", shown).strip() == "# T a ok ## Next c"
    assert shown_card("") == "This SAE comes without a card."
