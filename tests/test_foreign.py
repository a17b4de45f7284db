"""Texts unlike the training text: measured beside the held-out one, and refused where they cannot
be."""

import json
from pathlib import Path

import pytest
import yaml

import hfsae
from hfsae.activations import TextArguments
from hfsae.cards import render_card, texts_section
from hfsae.cli import main
from hfsae.demo.parts import html
from hfsae.evaluation import EvaluationArguments, EvaluationResult, evaluate
from hfsae.io.file_names import EVALUATION
from hfsae.io.files import read_json
from hfsae.runs import load_trained, norm_limits, outdated, run
from hfsae.runs.inputs import foreign_text

from .helpers import make, refused
from .tiny import tiny_recipe

HEALTH = {"name": "sae", "facts": [], "metrics": [], "charts": []}
OTHERS = [f"{i}: 0 1 2 3 4 5 6 7 8 9 " * (2 + i % 3) for i in range(40)]


@pytest.fixture
def foreign(tmp_path) -> str:
    path = tmp_path / "others.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in OTHERS))
    return str(path)


def test_a_foreign_text_is_read_whole_whatever_is_read_of_the_training_text(foreign):
    text = TextArguments(dataset="packaged:wiki", fractions={"wiki": 0.5})
    assert foreign_text(text, foreign).fractions == {}


def test_a_run_measures_foreign_texts_as_a_call_does(
    tmp_path, loads, foreign, tiny_lm, tiny_tokenizer, capsys
):
    few = {"n_tokens": 200, "bootstrap_samples": 20}
    training = {"n_tokens": 96, "warm_start_steps": 1}
    recipe = tiny_recipe(tmp_path / "out", collect_tokens=0, training=training)
    (folder,) = run(recipe)
    plain = yaml.safe_load((folder / "recipe.yaml").read_text())
    for new in ("texts", "n_foreign_tokens"):
        del plain["evaluation"][new]  # as runs of older versions left it
    (folder / "recipe.yaml").write_text(yaml.safe_dump(plain))
    assert outdated(folder, recipe) == {}
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
    shown = capsys.readouterr().out
    assert "\ntext      L0" in shown and "\ncode      " in shown
    assert "## Beyond the training text" in (folder / "README.md").read_text()
    again = EvaluationResult.from_dict(record)
    assert again.to_dict()["texts"] == record["texts"]
    del record["texts"]  # as older versions wrote it
    assert EvaluationResult.from_dict(record).texts == {}
    assert EVALUATION in outdated(folder, recipe)  # which has no foreign text


def metric(value: float | None, low: float | None, high: float | None) -> dict:
    return {"value": value, "low": low, "high": high}


LOSS = (0.0623, 0.04, 0.09)


def text(fvu: tuple, l0: tuple = (50.0, 49.0, 51.0), loss: tuple = LOSS) -> dict:
    """A record of one text."""
    metrics = {"l0": metric(*l0), "fvu": metric(*fvu)}
    metrics |= {"delta_loss": metric(*loss), "kl": metric(None, None, None)}
    about = {"dataset": "packaged:x", "origin": "Python packages", "licence": "PSF"}
    return {"metrics": metrics, "n_tokens": 5000, "n_documents": 1200, **about}


@pytest.mark.parametrize(
    "fvu, is_far",
    [
        ((0.25, 0.19, 0.3), True),  # 1.5 * 0.12 = 0.18
        ((0.25, 0.17, 0.3), False),
        ((0.19, None, None), True),  # one document: no interval
        ((None, None, None), False),
    ],
)
def test_an_fvu_is_far_above_by_its_intervals_lower_end(fvu, is_far, tmp_path):
    evaluation = {**text((0.1, 0.09, 0.12)), "texts": {"code": text(fvu)}}
    sentences = texts_section(tmp_path, {}, evaluation)["warnings"]
    assert len(sentences) == is_far
    if is_far:
        expected = f"FVU is far above the 0.1 of held-out text on code ({fvu[0]}, "
        assert sentences[0].startswith(expected)


def test_a_rise_of_the_loss_is_far_above_by_the_same_rule(tmp_path):
    fvu = (0.1, 0.09, 0.12)
    texts = {"news": text(fvu, loss=(0.29, 0.24, 0.33)), "mail": text(fvu, loss=(0.15, 0.13, 0.2))}
    (sentence,) = texts_section(tmp_path, {}, {**text(fvu), "texts": texts})["warnings"]
    assert sentence == (
        "Delta loss is far above the 0.0623 of held-out text on news (0.29, 4.7 times)"
    )
    below = {**text(fvu, loss=(-0.01, -0.02, 0.01)), "texts": texts}
    assert texts_section(tmp_path, {}, below)["warnings"] == []


def test_the_card_and_the_command_show_foreign_texts_and_warn(sae, capsys):
    config = read_json(sae / "config.json") | {"target_l0": 50}
    (sae / "config.json").write_text(json.dumps(config))
    far, near = text((0.4, 0.3, 0.5), (61.0, 60.0, 62.0)), text((0.11, 0.1, 0.12))
    del near["licence"]
    texts = {"code|": far, "mail": near, "C": far}
    evaluation = {**text((0.1, 0.09, 0.12)), "side": "test", "texts": texts}
    (sae / EVALUATION).write_text(json.dumps(evaluation))
    section = render_card(sae).partition("## Beyond the training text\n")[2].partition("\n## ")[0]
    cells = "50, 49 to 51 | 0.11, 0.1 to 0.12 | 0.0623, 0.04 to 0.09 | - |"
    assert f"| mail | 5,000 | {cells}" in section
    assert "| held-out | 5,000 | 50, 49 to 51 | 0.1, 0.09 to 0.12 |" in section
    assert "; mail: packaged:x, 1,200 documents; C: packaged:x, 1,200 documents, licence PSF." in (
        section
    )
    assert r"on code\| (0.4, 4.0 times) and C (0.4, 4.0 times).**" in section
    assert r"**L0 is off its target of 50 on code\| (61.0, +22%) and C (61.0, +22%).**" in section
    section = texts_section(sae, config, read_json(sae / EVALUATION))
    assert "FVU is far above" in html("health", {**HEALTH, "texts": section})
    assert "Beyond" not in html("health", {**HEALTH, "texts": {}})
    del evaluation["texts"]["C"]["metrics"]["kl"]
    (sae / EVALUATION).write_text(json.dumps(evaluation))
    with pytest.raises(ValueError, match=r"evaluation\.json is damaged"):
        render_card(sae)


@pytest.fixture
def sae(tmp_path) -> Path:
    """The folder of an SAE with the record of its training's text, but without a recipe."""
    sae = make(hfsae.JumpReLUSAEConfig, d_in=16, d_sae=32, site="layers.1").eval()
    sae.config.model_name = "tiny/gemma"
    sae.save_pretrained(tmp_path / "sae")
    record = {"text": {"dataset": "packaged:wiki"}, "harvested": {"norm_limits": {}}}
    (tmp_path / "sae" / "training.json").write_text(json.dumps(record))
    return tmp_path / "sae"


@pytest.mark.parametrize(
    "texts, sentence",
    [
        ("{a: packaged:pile}", "evaluation.texts.a: packaged text 'pile' does not exist"),
        ("{a: EMPTY.jsonl}", "evaluation.texts.a: data set 'EMPTY.jsonl' holds no text"),
        ("{a: MISSING.txt}", "evaluation.texts.a: no .txt, .jsonl or .parquet file"),
        ("{a: packaged:wiki}", "packaged:wiki is in the training text; give a text that"),
        ("{a: 3}", "evaluation.texts must be names with a text each"),
        ("{a: ' '}", "evaluation.texts must be names with a text each"),
        ("{a: ' '}", "got the name 'a' with ' '"),
        ("packaged:wiki", "evaluation.texts must be names with a text each"),
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
