"""A comparison from recipe to report, on a tiny language model."""

import json

import pytest
from transformers import AutoModel

from hfsae import recipe as recipes
from hfsae.comparison import Comparison, compare

from ..tiny import tiny_fields

ARMS = {
    "jumprelu": {"title": "JumpReLU", "sweep": {"target_l0": [3, 6]}},
    "topk": {
        "sae": {"model_type": "topk_sae", "target_l0": None},
        "sweep": {"k": [3, 6]},
        "training": {"warm_start_steps": 0, "learning_rate": 2e-3},
    },
}


def tiny_comparison(folder, **fields) -> Comparison:
    given = tiny_fields(folder, collect_tokens=0, **fields)
    given["sae"] = {k: v for k, v in given["sae"].items() if k in ("site", "d_sae", "target_l0")}
    return Comparison(**given, arms=ARMS, seeds=[0, 1], at_l0=[4.0, 5.0])


def test_a_comparison_leaves_trained_saes_and_a_report(tmp_path, loads):
    report = compare(tiny_comparison(tmp_path / "c"), command="hfsae compare x.yaml")
    text = (report / "report.md").read_text()
    for part in ("Against JumpReLU", "## Differences", "| topk |", "hfsae compare x.yaml", "kept"):
        assert part in text, part
    html = (report / "report.html").read_text()
    assert html.count("data:image/png;base64,") == 3 and "<table>" in html
    results = json.loads((report / "results.json").read_text())
    assert len(results["saes"]) == 8
    assert len(loads) == 1, "the language model is loaded once"
    sae = AutoModel.from_pretrained(tmp_path / "c" / "topk" / "seed_1" / "k_6")
    assert sae.config.k == 6 and sae.config.activation_scale == 1.0


def test_what_is_there_is_not_done_again_and_an_arm_may_be_added(tmp_path, loads):
    fields = {"folder": tmp_path / "c"}
    compare(tiny_comparison(**fields))
    weights = tmp_path / "c" / "topk" / "seed_0" / "k_3" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    again = tiny_comparison(**fields)
    compare(again)
    assert len(loads) == 1, "nothing was missing"
    again.arms = {**ARMS, "wide": {"sae": {"d_sae": 48}, "sweep": {"target_l0": [3, 6]}}}
    report = compare(again)
    assert weights.stat().st_mtime_ns == before
    assert "| wide |" in (report / "report.md").read_text()


def test_one_arm_alone_gives_the_same_numbers(tmp_path, loads):
    """What the report says: `hfsae train` of an arm's recipe.yaml, into another folder."""
    compare(tiny_comparison(tmp_path / "c"))
    plain = recipes.load_plain(tmp_path / "c" / "topk" / "seed_1")
    own = tiny_fields(tmp_path / "again", training={"learning_rate": 2e-3, "warm_start_steps": 0})
    own |= {key: plain[key] for key in ("sae", "saes", "seed")}
    own["shuffle"].seed, own["collect_tokens"] = plain["shuffle"]["seed"], 0
    recipes.run(recipes.Recipe(**own))
    for name in ("k_3", "k_6"):
        here, there = (
            json.loads((folder / name / "evaluation.json").read_text())
            for folder in (tmp_path / "again", tmp_path / "c" / "topk" / "seed_1")
        )
        assert here["metrics"] == there["metrics"]


def test_saes_of_different_documents_are_not_compared(tmp_path, loads):
    compare(tiny_comparison(tmp_path / "c"))
    other = tiny_comparison(tmp_path / "c")
    (tmp_path / "c" / "topk" / "seed_1" / "k_6" / "evaluation.json").unlink()
    other.evaluation.n_tokens = 150
    with pytest.raises(ValueError, match="evaluated on different documents"):
        compare(other)


def test_a_comparison_without_evaluation_is_refused_before_anything_is_trained(tmp_path, loads):
    comparison = tiny_comparison(tmp_path / "c")
    comparison.evaluation.n_tokens = 0
    with pytest.raises(ValueError, match=r"evaluation.n_tokens is 0"):
        compare(comparison)
    assert not (tmp_path / "c").exists()
