"""What there is to click on where an SAE comes without presets."""

import shutil

import gradio as gr
import pyarrow as pa
import pyarrow.dataset
import pytest

from hfsae.demo import Choice, open_subject
from hfsae.demo.actions import Actions
from hfsae.demo.pages import InspectPage
from hfsae.demo.parts import html
from hfsae.demo.presets import (
    PROMPT,
    TEXTS,
    clear_words,
    excerpt,
    first_texts,
    lacking,
    presets,
    searches,
    why_random,
)
from hfsae.features import Example, FeatureStore
from hfsae.packaged import SHIPPED_SAE

from .conftest import TEXTS as TEXTS_OF_SAE

GOLD = {"name": "gold", "prompt": "the", "latents": {"3": 2.0}, "mode": "add", "seeds": 3}

# latent: density, and of each of its strongest examples the token and the activation
LATENTS = {
    "clear": (1e-3, [(" sea", 9.0), (" Senate", 8.0), (" Senate", 8.0), (" senate", 8.0)]),
    "clearest": (1e-3, [(" large", 8.0), (" large", 7.9), (" large", 7.8), (" large", 7.7)]),
    "always": (0.2, [(" public", 9.0), (" public", 9.0), (" public", 9.0)]),
    "short": (1e-3, [(" a", 9.0), (" a", 9.0)]),
    "says nothing": (1e-3, [(" Also", 9.0), (" also", 9.0)]),
    "no word": (1e-3, [(" 1998", 9.0), (" 1998", 9.0)]),
    "pieces": (1e-3, [("inating", 9.0), ("inating", 9.0)]),
}


def store() -> FeatureStore:
    rows = [
        {"latent": i, "kind": "top", "rank": r, "activation": a, "firing": 1, "tokens": ["x", t]}
        for i, (_, examples) in enumerate(LATENTS.values())
        for r, (t, a) in enumerate(examples)
    ]
    latents = pa.table({"density": [density for density, _ in LATENTS.values()]})
    return FeatureStore(latents, pyarrow.dataset.dataset(pa.Table.from_pylist(rows)), {})


def test_clear_latents_fire_on_one_word_and_the_clearest_is_first():
    assert clear_words(store()) == {1: "large", 0: "senate"}


def test_presets_are_labelled_latents_then_clear_ones_and_none_is_given_a_name(sae_folder):
    subject = open_subject(Choice(str(sae_folder)), with_lm=False)
    subject.store, subject.labels = store(), {2: "people", 3: "dead", 47: "alive"}
    assert [(p["name"], p["prompt"], list(p["latents"])) for p in presets(subject)] == [
        ("people", PROMPT, ["2"]),
        ("dead", PROMPT, ["3"]),
        ("fires on “large”", PROMPT, ["1"]),
        ("fires on “senate”", PROMPT, ["0"]),
    ]
    assert searches(subject) == [("large", "word"), ("senate", "word"), ("people", "label")]


def test_without_a_store_there_is_still_something_to_click(sae_folder, tmp_path):
    folder = shutil.copytree(sae_folder, tmp_path / "sae", ignore=lambda *_: ["features"])
    subject = open_subject(Choice(str(folder)), with_lm=False)
    assert all(p["name"] == f"latent {next(iter(p['latents']))}" for p in presets(subject))
    assert len(presets(subject)) == 4 and searches(subject)[0][1] == "fires on"
    assert why_random(subject).startswith("These latents were drawn at random, as no examples")
    assert first_texts(subject) == TEXTS


def test_where_no_latent_fires_on_a_word_of_content_one_sentence_says_so(sae_folder):
    subject = open_subject(Choice(str(sae_folder)), with_lm=False)
    subject.labels = {}
    assert [p["name"].partition(" ")[0] for p in presets(subject)] == ["latent"] * 4
    why = why_random(subject)
    assert "has a label, or fires on one word of content" in why
    drawn = html("presets", ["latent 3"], None, why)
    assert f'<p class="hf-quiet hf-find">{why}.</p>' in drawn
    subject.store = store()
    assert presets(subject) and why_random(subject) == ""


def test_an_sae_of_ones_own_opens_with_excerpts_of_its_own_text(sae_folder, subject):
    with gr.Blocks():
        page = InspectPage(Actions(subject))
    excerpts = first_texts(subject)
    assert len(excerpts) == 3 and all(len(excerpt) > 5 for excerpt in excerpts)
    assert all(
        any(excerpt in " ".join(text.split()) for text in TEXTS_OF_SAE) for excerpt in excerpts
    )
    assert page.first().prompt == page.prompt.value == excerpts[0]
    assert page._example("example", "1", "", *page.inputs).prompt == excerpts[1]
    shipped = open_subject(Choice(str(SHIPPED_SAE)), with_lm=False)
    assert first_texts(shipped) == TEXTS


@pytest.mark.parametrize(
    "tokens, text",
    [
        (["iver", " flows", "\n\n", "south", " to", " the", " S"], "flows south to the"),
        (
            ["the end.", "<|endoftext|>", " The", " river", " flows", " south", "."],
            "The river flows south.",
        ),
        (["<bos>", "", "", "sea"], "sea"),
    ],
)
def test_an_excerpt_is_whole_words_of_one_document(tokens, text):
    example = Example("top", 0, 1, 1, 3, 9.0, 3, tokens, [], [])
    assert excerpt(example) == text


def test_what_the_shipped_sae_would_show_is_found_and_works():
    subject = open_subject(Choice(str(SHIPPED_SAE)), with_lm=False)
    own, subject.presets = subject.presets, []
    assert own
    first, found = presets(subject)[0], searches(subject)
    assert first["name"] == subject.labels[int(next(iter(first["latents"])))]
    actions = Actions(subject)
    assert all(actions.search(*query)["found"] for query in found)


def test_a_command_makes_what_an_sae_lacks_for_presets_where_they_would_be_kept(
    sae_folder, monkeypatch
):
    subject = open_subject(Choice(str(sae_folder)))
    command, notes = lacking(subject)
    assert command == f"hfsae presets {sae_folder}" and notes == ["Then start the app again."]
    assert f"<code>{command}</code>" in html("presets", ["latent 3"], (command, notes), "")
    subject.presets = [GOLD]
    assert lacking(subject) is None
    assert lacking(open_subject(Choice(str(sae_folder)), with_lm=False)) is None
    subject.presets, subject.store = [], None
    assert lacking(subject)[0].startswith("hfsae collect ")
    monkeypatch.setenv("SPACE_ID", "me/space")
    assert lacking(open_subject(Choice(str(sae_folder)))) is None
