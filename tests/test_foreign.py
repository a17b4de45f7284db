"""Texts unlike the training text: measured beside the held-out one, and refused where they cannot
be."""

import json
from pathlib import Path

import pytest
import yaml

import hfsae
from hfsae.activations import TextArguments
from hfsae.cli import main
from hfsae.evaluation import EvaluationArguments, EvaluationResult, evaluate
from hfsae.machine.files import read_json
from hfsae.machine.names import EVALUATION
from hfsae.recipe import load_trained, norm_limits, run, stale_stages

from .helpers import make, refused
from .tiny import tiny_recipe

OTHERS = [f"{i}: 0 1 2 3 4 5 6 7 8 9 " * (2 + i % 3) for i in range(40)]


@pytest.fixture
def foreign(tmp_path) -> str:
    path = tmp_path / "others.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in OTHERS))
    return str(path)


def test_a_run_measures_foreign_texts_as_a_call_does(
    tmp_path, loads, foreign, tiny_lm, tiny_tokenizer
):
    few = {"n_tokens": 200, "bootstrap_samples": 20}
    training = {"n_tokens": 96, "warm_start_steps": 1}
    recipe = tiny_recipe(tmp_path / "out", collect_tokens=0, training=training)
    (folder,) = run(recipe)
    plain = yaml.safe_load((folder / "recipe.yaml").read_text())
    for new in ("texts", "n_foreign_tokens"):
        del plain["evaluation"][new]  # as runs of older versions left it
    (folder / "recipe.yaml").write_text(yaml.safe_dump(plain))
    assert stale_stages(recipe) == []
    fields = ["--evaluation.texts", f"{{code: {foreign}}}", "--evaluation.n_foreign_tokens", "200"]
    held_out = read_json(folder / EVALUATION)["metrics"]
    assert main(["evaluate", str(folder), *fields]) == 0
    record = read_json(folder / EVALUATION)
    assert record["metrics"] == held_out
    code = record["texts"]["code"]
    assert (code["dataset"], code["origin"]) == ("./others.jsonl", "local files")
    assert code["licence"] is None
    text = TextArguments(dataset=OTHERS, context_size=16, held_out_fraction=1.0)
    sae = load_trained(folder)
    more = {"tokenizer": tiny_tokenizer, "norm_limits": norm_limits(sae, folder)}
    expected = evaluate(tiny_lm, sae, text, EvaluationArguments(**few), **more)
    assert code["n_tokens"] == expected.n_tokens and code["n_documents"] == expected.n_documents
    for name, metric in expected.metrics.items():  # in batches of other sizes
        interval = [code["metrics"][name][key] for key in ("value", "low", "high")]
        assert interval == pytest.approx([metric.value, metric.low, metric.high], rel=1e-4), name
    assert code["metrics"]["fvu"]["value"] != held_out["fvu"]["value"]
    again = EvaluationResult.from_dict(record)
    assert again.to_dict()["texts"] == record["texts"]
    del record["texts"]  # as older versions wrote it
    assert EvaluationResult.from_dict(record).texts == {}
    assert stale_stages(recipe) == [EVALUATION]  # which has no foreign text


@pytest.fixture
def sae(tmp_path) -> Path:
    """The folder of an SAE with the record of its training's text, but without a recipe."""
    sae = make(hfsae.JumpReLUSAEConfig, d_in=16, d_sae=32, site="layers.1").eval()
    sae.config.model_name = "tiny/gemma"
    sae.save_pretrained(tmp_path / "sae")
    record = {"text": {"dataset": "packaged:wiki,python"}, "harvested": {"norm_limits": {}}}
    (tmp_path / "sae" / "training.json").write_text(json.dumps(record))
    return tmp_path / "sae"


@pytest.mark.parametrize(
    "texts, sentence",
    [
        ("{a: packaged:pile}", "evaluation.texts.a: packaged text 'pile' does not exist"),
        ("{a: EMPTY.jsonl}", "evaluation.texts.a: data set 'EMPTY.jsonl' holds no text"),
        ("{a: MISSING.txt}", "evaluation.texts.a: no .txt, .jsonl or .parquet file"),
        ("{a: packaged:python}", "packaged:python is in the training text; give a text that"),
        ("{a: 3}", "evaluation.texts must be names with a text each"),
        ("{a: ' '}", "got the name 'a' with ' '"),
        ("packaged:python", "evaluation.texts must be names with a text each"),
    ],
)
def test_a_text_that_cannot_be_foreign_is_one_sentence_before_a_model_is_loaded(
    texts, sentence, sae, tmp_path, loads, capsys, monkeypatch, foreign
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "EMPTY.jsonl").write_text("\n")
    fields = ["--text.dataset", foreign, "--evaluation.texts", texts]
    assert sentence in refused(["evaluate", str(sae), *fields, "--output_dir", "out"], capsys)
    assert not loads and not Path("out").exists() and not (sae / EVALUATION).exists()


def test_a_foreign_text_too_short_for_a_row_leaves_the_old_results(
    sae, tmp_path, loads, capsys, foreign
):
    (tmp_path / "short.txt").write_text("ab")
    old = (sae / "training.json").read_bytes()
    fields = ["--text.dataset", foreign, "--evaluation.texts.short", str(tmp_path / "short.txt")]
    fields += ["--text.context_size", "16", "--evaluation.n_tokens", "100"]
    sentence = refused(["evaluate", str(sae), *fields], capsys)
    assert sentence.startswith("evaluation.texts.short: ") and "fills no row" in sentence
    assert (sae / "training.json").read_bytes() == old and not (sae / EVALUATION).exists()


def test_a_training_refuses_a_part_of_its_own_text_as_foreign(tmp_path, loads, foreign):
    texts = {"own": str(Path(foreign).parent)}  # the folder that it lies in
    evaluation = EvaluationArguments(n_tokens=100, texts=texts)
    text = TextArguments(dataset=foreign, context_size=16, held_out_fraction=0.2)
    with pytest.raises(ValueError, match=r"texts\.own: .*others\.jsonl is in the training text"):
        run(tiny_recipe(tmp_path / "out", text=text, evaluation=evaluation))
    assert not (tmp_path / "out").exists() and not loads
