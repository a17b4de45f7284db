"""The published cards are what the records beside them give."""

import json
import re
import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from hfsae import cards
from hfsae.cli.show import print_folder

from .helpers import script

ROOT = Path(__file__).parent.parent
FOLDERS = sorted(path.parent for path in (ROOT / "model_cards").glob("*/README.md"))
FOLDERS = [folder for folder in FOLDERS if not (folder / "model.safetensors").is_file()]


def test_the_cards_that_are_published_are_there():
    assert {"quickstart", "gemma2_2b_16k_layer12_res"} <= {folder.name for folder in FOLDERS}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_card_is_what_its_records_give(folder):
    assert (folder / "README.md").read_text(encoding="utf-8") == cards.render_card(folder)
    data = ModelCard.load(folder / "README.md").data
    assert data.library_name == "hfsae" and data.base_model and "jumprelu" in data.tags


def test_planned_cards_are_what_their_recipes_give(tmp_path):
    module = script("model_cards")
    for name, (recipe, sae, d_in) in module.PLANNED.items():
        module.plan(module.RECIPES / recipe, sae, d_in, tmp_path / name)
        for file in ("config.json", "training.json"):
            made = (tmp_path / name / file).read_text(encoding="utf-8")
            assert made == (module.CARDS / name / file).read_text(encoding="utf-8")


def test_the_quickstarts_card_shows_what_its_page_says():
    """One run's numbers, in both places."""
    evaluation = json.loads((ROOT / "model_cards/quickstart/evaluation.json").read_text())
    page = (ROOT / "scripts/recipes/quickstart.md").read_text(encoding="utf-8")
    for name, metric in evaluation["metrics"].items():
        values = [f"{metric[key]:.4g}" for key in ("value", "low", "high")]
        line = rf"^{name}\s+{values[0]}\s+{values[1]} to {values[2]}\s"
        assert re.search(line, page, re.MULTILINE), name


def test_what_a_run_was_trained_on_says_how_often_each_activation_was_seen(tmp_path, capsys):
    folder = ROOT / "model_cards/quickstart"
    record = json.loads((folder / "training.json").read_text())
    kept = record["harvested"]["kept"]
    seen = f"{record['n_tokens']:,} activations ({kept:,} of the text, each about 6 times)"
    assert round(record["n_tokens"] / kept) == 6
    for file in ("config.json", "training.json"):
        shutil.copy(folder / file, tmp_path)
    print_folder(tmp_path, [], "runs/quickstart")
    assert f"trained on {seen} in " in capsys.readouterr().out
    assert seen in (ROOT / "scripts/recipes/quickstart.md").read_text(encoding="utf-8")
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "each activation 6 times" in card
    assert f"Small budget: {kept:,} activations" in card
    # as a run of so few steps that its six passes are not through
    few = record | {"n_tokens": 39_936, "harvested": {"kept": 8_051}}
    (tmp_path / "training.json").write_text(json.dumps(few))
    print_folder(tmp_path, [], "runs/quickstart")
    assert "39,936 activations (8,051 of the text, each about 5 times)" in capsys.readouterr().out
