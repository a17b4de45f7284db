"""All latents on a map, two SAEs side by side, and a latent's page as people know it."""

import json
import math
import re
import shutil
from copy import copy

import pytest
import torch
from playwright.sync_api import expect

import hfsae
from hfsae.demo.actions import Actions
from hfsae.demo.health_actions import other_of
from hfsae.demo.inspect_actions import find_on_map, latent_map, places_of
from hfsae.demo.pages.feature import axis_ticks, export
from hfsae.demo.parts import html

from ..helpers import unseal
from .conftest import D_SAE, HOSTILE


def test_the_map_has_a_place_a_shade_and_a_name_for_each_latent(subject):
    view = latent_map(subject)
    numbers = [int(number) for number in view["points"].split(" ")]
    assert len(numbers) == 3 * D_SAE and len(view["names"].split("\n")) == D_SAE
    fires = subject.density() > 0
    assert [shade >= 0 for shade in numbers[2::3]] == fires.tolist()


def test_a_store_without_a_map_gets_the_one_that_collecting_makes(subject):
    stored = subject.store.places
    older = copy(subject)
    kept = [n for n in subject.store.latents.column_names if not n.startswith("map_")]
    older.store = copy(subject.store)
    older.store.latents = subject.store.latents.select(kept)
    vars(older).pop("_memory", None)
    assert older.store.places is None
    assert torch.allclose(places_of(older), stored, atol=1e-4)


def test_a_store_of_an_earlier_version_is_read(sae_folder, tmp_path):
    import pyarrow.parquet as pq

    path = shutil.copytree(sae_folder / "features", tmp_path / "features") / "latents.parquet"
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(["map_x", "map_y"]), path)
    unseal(tmp_path)
    store = hfsae.FeatureStore.load(tmp_path)
    assert store.places is None and store[3] == hfsae.FeatureStore.load(sae_folder)[3]


def test_the_map_finds_what_the_search_finds_and_more_of_it(subject):
    labelled = find_on_map(subject, "ONERROR")
    assert labelled["hits"] == [0] and labelled["rows"][0]["latent"] == 0
    view, found = find_on_map(subject, "e"), Actions(subject).search("e")["found"]
    assert found and {row["latent"] for row in found} <= {*view["hits"]}
    assert [row["latent"] for row in view["rows"]] == view["hits"][:12]


def test_a_latent_can_be_taken_away(subject):
    view = Actions(subject).feature(3)
    assert json.loads(export(subject, view).read_text()) == view


@pytest.fixture
def other(sae_folder, tmp_path, monkeypatch):
    """A folder of the same SAE with other evaluation results, below the working directory."""
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(sae_folder, tmp_path / "other")
    path = folder / "evaluation.json"
    evaluation = json.loads(path.read_text())
    for name, change in {"fvu": 0.5, "cosine": 0.5, "l0": 0.5}.items():
        evaluation["metrics"][name]["value"] *= change
    path.write_text(json.dumps(evaluation))
    return folder


def test_metrics_of_two_saes_stand_beside_each_other_with_intervals(subject, other):
    view = Actions(subject).compare_saes("other")
    rows = {row["name"]: row for row in view["rows"]}
    own = {metric["name"]: metric for metric in Actions(subject).health()["metrics"]}
    assert rows["fvu"]["first"] == own["fvu"] and rows["fvu"]["unit"] == own["fvu"]["unit"]
    assert rows["l0"]["second"]["value"] == own["l0"]["value"] / 2
    assert view["same_text"] and not view["equal_l0"] and view["apart"] == ""
    drawn = html("versus", {**view, "unit": subject.unit})
    assert "The two fire at different rates" in drawn and drawn.count(" to ") >= 2 * len(own)


@pytest.mark.parametrize("n_tokens, loss", [(7, 1.0), (None, 1.1)])
def test_saes_that_were_not_measured_on_one_text_are_not_ranked(subject, other, n_tokens, loss):
    path = other / "evaluation.json"
    evaluation = json.loads(path.read_text()) | {"n_tokens": n_tokens}
    evaluation["metrics"]["ce_clean"]["value"] *= loss
    path.write_text(json.dumps(evaluation))
    view = Actions(subject).compare_saes("other")
    assert not view["same_text"] and "Not measured on the same text" in html("versus", view)


@pytest.mark.parametrize(
    "of, apart",
    [
        ({"model_name": "someone/else"}, "models (./lm and someone/else)"),
        ({"site": "layers.2"}, "sites (layers.1 and layers.2)"),
        ({"model_name": None}, ""),
    ],
)
def test_saes_of_different_models_or_sites_are_not_ranked(subject, other, of, apart):
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | of))
    views = Actions(subject).compare_saes("other"), Actions(subject).side_by_side("other", "a cat")
    assert [view["apart"] for view in views] == [apart] * 2
    for name, view in zip(("versus", "beside"), views, strict=True):
        assert ("neither is better" in html(name, view)) == bool(apart)


def test_an_sae_beside_itself_fires_on_the_same_tokens(subject, other):
    view = Actions(subject).side_by_side("other", "the cat sat")
    assert view["first"]["fvu"] == pytest.approx(view["second"]["fvu"]) and view["equal_l0"]
    assert [r["latent"] for r in view["first"]["rows"]] == [
        r["latent"] for r in view["second"]["rows"]
    ]
    assert len(view["tokens"]) == len("the cat sat")
    for row in view["tokens"]:
        assert row["latents"][0] == row["latents"][1]
        assert row["cosine"] is None or row["cosine"] == pytest.approx(1)


def test_a_second_sae_is_of_the_same_model_and_not_loaded_on_a_space(subject, other):
    config = hfsae.JumpReLUSAEConfig(d_in=8, d_sae=8, site="layers.1", model_name="someone/else")
    hfsae.JumpReLUSAE(config).save_pretrained(other.parent / "narrow")
    with pytest.raises(ValueError, match="narrow reads vectors of 8 numbers, this SAE of 16"):
        other_of(subject, "narrow")
    shown = copy(subject)
    shown.label_home = None
    with pytest.raises(ValueError, match="on your own machine"):
        other_of(shown, "other")


@pytest.mark.browser
def test_a_point_of_the_map_opens_its_latent_and_a_word_highlights_some(visit):
    page = visit("tab=map")
    page.wait_for_selector("#map-all .hf-ready")
    page.get_by_label("Highlight", exact=True).fill("onerror")
    page.get_by_role("button", name="Highlight").click()
    page.wait_for_selector("#map-found [data-hits='0'] .hf-id")
    page.wait_for_url(re.compile("tab=map&query=onerror"))
    place = page.locator("#map-all .hf-map").evaluate(
        "node => node.dataset.points.split(' ').slice(0, 2).map(Number)"
    )
    box = page.locator("#map-all canvas").bounding_box()
    size = min(box["width"], box["height"]) / 1000
    x = box["width"] / 2 + (place[0] - 500) * size * min(1.5, box["width"] / box["height"])
    page.locator("#map-all canvas").hover(
        position={"x": x, "y": box["height"] / 2 + (place[1] - 500) * size}
    )
    expect(page.locator("#map-all .hf-map-name button")).to_have_text(re.compile("^0: <img"))
    page.locator("#map-all .hf-map-name button").click()
    page.wait_for_selector("#feature-main h2:has-text('Latent 0')")
    assert page.title() != "hit"


@pytest.mark.browser
def test_on_a_phone_examples_are_folded_and_lists_of_ones_own_stay(visit):
    page = visit("tab=feature&latent=3", width=390)
    page.wait_for_selector("#feature-main h2:has-text('Latent 3')")
    examples = page.locator("#feature-main .hf-example > summary")
    shown = sum(examples.nth(i).is_visible() for i in range(examples.count()))
    assert 0 < shown <= 3
    page.get_by_role("button", name="Keep latent 3").click()
    note = page.get_by_label("note on latent 3")
    note.fill(HOSTILE)
    note.press("Tab")
    page.reload()
    page.wait_for_selector("#feature-list .hf-id")
    expect(page.get_by_label("note on latent 3")).to_have_value(HOSTILE)
    page.get_by_role("button", name="remove latent 3 from the list").click()
    expect(page.locator("#feature-list .hf-id")).to_have_count(0)


def test_a_histogram_has_round_numbers_at_their_places_on_its_logarithmic_scale():
    ticks = axis_ticks(2**1.5, 2**5.5)  # edges of bins, four an octave
    assert [tick["text"] for tick in ticks] == ["5", "10", "20"]
    assert [16 * tick["at"] for tick in ticks] == pytest.approx(  # in bars, by hand
        [4 * math.log2(value) - 6 for value in (5, 10, 20)]
    )
    assert [(t["at"], t["text"]) for t in axis_ticks(38.1, 45.3)] == [(0, "38.1"), (1, "45.3")]
    assert axis_ticks(0.0, 1.0) == []


@pytest.mark.browser
def test_two_saes_are_read_side_by_side(visit, sae_folder):
    page = visit(f"tab=compare&other={sae_folder}&text=the+cat")
    page.wait_for_selector("#compare-result table")
    lines = "cells => cells.map(cell => getComputedStyle(cell).whiteSpace)"  # none within a word
    assert set(page.eval_on_selector_all("#compare-metrics td", lines)) == {"nowrap"}
    page.locator("#compare-result button.hf-id").first.click()
    page.wait_for_selector("#feature-main h2:has-text('Latent')")
