"""The search for presets at the end of a run."""

import json

import pytest

from hfsae import TextArguments
from hfsae.runs import run

from .tiny import tiny_recipe

TEXTS = [f"the sea and ship {i} " * 40 for i in range(30)]
TEXT = TextArguments(dataset=TEXTS, context_size=64, held_out_fraction=0.3)


def test_a_run_looks_for_presets_once_and_says_what_it_found(tmp_path, loads, caplog):
    caplog.set_level("INFO", "hfsae")
    recipe = tiny_recipe(tmp_path / "sae", text=TEXT, preset_seconds=5)
    run(recipe)
    found = json.loads((tmp_path / "sae" / "presets.json").read_text())
    names = ", ".join(preset["name"] for preset in found) or "none"
    said = f"presets that work with three seeds each, of 0 latents tried: {names}; `hfsae presets "
    assert said in caplog.text
    run(recipe)
    assert len(loads) == 1, "an empty list is a result"
    run(tiny_recipe(tmp_path / "sae", text=TEXT, preset_seconds=9))
    assert len(loads) == 2, "with more time it is looked again"
    assert caplog.text.count(said) == 2


def test_presets_that_people_wrote_stand(tmp_path, loads):
    folder, own = tmp_path / "sae", [{"name": "mine", "prompt": "the", "latents": {"1": 2.0}}]
    run(tiny_recipe(folder, text=TEXT))
    assert not (folder / "presets.json").exists()
    (folder / "presets.json").write_text(json.dumps(own))
    run(tiny_recipe(folder, text=TEXT, preset_seconds=5))
    assert json.loads((folder / "presets.json").read_text()) == own


def test_without_examples_there_is_nothing_to_look_for(tmp_path, loads):
    run(tiny_recipe(tmp_path / "sae", text=TEXT, preset_seconds=5, collect_tokens=0))
    assert not (tmp_path / "sae" / "presets.json").exists()


@pytest.mark.parametrize("seconds", [-1, 100_000])
def test_time_without_sense_is_refused(tmp_path, seconds):
    with pytest.raises(ValueError, match=f"preset_seconds is {seconds}; it can be 0"):
        tiny_recipe(tmp_path, preset_seconds=seconds)
