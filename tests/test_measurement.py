"""SAEs without a recipe, of other formats and from repositories, measured by the command."""

import json
from pathlib import Path

import pytest

import hfsae
from hfsae.cli import main
from hfsae.evaluation import EvaluationArguments, evaluate
from hfsae.io.errors import Refused
from hfsae.io.files import read_json
from hfsae.runs import Recipe, read_rows

from .helpers import make, refused
from .tiny import TEXTS

ID = "alice/sae"
FIELDS = ["--text.context_size", "16", "--harvest.rows", "8"]
EVALUATION = ["--evaluation.n_tokens", "300", "--evaluation.bootstrap_samples", "20"]


@pytest.fixture
def sae() -> hfsae.SAE:
    sae = make(hfsae.JumpReLUSAEConfig, d_in=16, d_sae=32, site="layers.1").eval()
    sae.config.model_name = "tiny/gemma"
    sae.config.bos = "row"
    return sae


@pytest.fixture
def text(tmp_path) -> list[str]:
    path = tmp_path / "my.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return ["--text.dataset", str(path), *FIELDS]


def test_an_sae_of_another_format_is_evaluated_collected_shown_and_has_a_card(
    sae, text, tmp_path, loads, capsys, tiny_lm, tiny_tokenizer, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    hfsae.save_as(sae, "foreign", "saelens")
    assert main(["show", "foreign"]) == 0
    assert "`hfsae evaluate foreign --text.dataset TEXT` makes it" in capsys.readouterr().out
    assert main(["evaluate", "foreign", *text, *EVALUATION]) == 0
    assert loads == ["tiny/gemma"]
    out = Path("runs/foreign")
    found = read_json(out / "evaluation.json")
    recipe = Recipe(evaluation=EvaluationArguments(n_tokens=300, bootstrap_samples=20))
    recipe.text.dataset, recipe.text.context_size = TEXTS, 16
    recipe.text.held_out_fraction, recipe.harvest.rows = 1.0, 8
    rows = read_rows(recipe, hfsae.LoadedLM(tiny_lm, tiny_tokenizer, ""), "test", 300)
    expected = evaluate(tiny_lm, hfsae.load("foreign"), rows, recipe.evaluation)
    assert found["metrics"]["fvu"]["value"] == pytest.approx(expected.metrics["fvu"].value)
    assert found["metrics"]["l0"]["value"] == pytest.approx(expected.metrics["l0"].value)
    measured = found["measured_with"]
    assert measured["text"]["origin"] == "local files"
    assert measured["source"] == "foreign" and measured["norm_limits"] == {}
    assert measured["text"]["dataset"] == "./my.jsonl" and measured["lm"]["name"] == "tiny/gemma"
    card = (out / "README.md").read_text()
    assert "measured with `hfsae`. Weights: foreign." in card and "Trained with" not in card
    assert "my.jsonl, read by tiny/gemma; no norm left out" in card and "held-out" not in card
    assert "The training text is unknown: the SAE may have been trained on these" in card
    few = ["--collect_tokens", "300", "--harvest.max_norm_ratio", "5"]
    assert main(["collect", "foreign", *text, *few]) == 0
    assert {*read_json(out / "features/meta.json")["measured_with"]["norm_limits"]} == {"layers.1"}
    assert read_json(out / "evaluation.json") == found
    capsys.readouterr()
    assert main(["show", str(out), "3"]) == 0 and "latent 3: " in capsys.readouterr().out
    assert main(["evaluate", str(out), *text, *EVALUATION]) == 0  # in place
    recipe = str(out / "recipe.yaml")
    capsys.readouterr()
    assert refused(["train", recipe], capsys).startswith("a recipe has no section 'source'")
    hfsae.save_as(make(hfsae.JumpReLUSAEConfig, d_in=16, d_sae=8).eval(), "other", "saelens")
    capsys.readouterr()
    there = ["--output_dir", str(out), "--site", "layers.1", "--lm.name", "a/b"]
    assert "holds another SAE" in refused(["evaluate", "other", *text, *there], capsys)


def test_an_sae_in_a_repository_is_measured_with_what_lies_beside_it(
    hub, sae, text, tmp_path, loads, capsys
):
    sae.save_pretrained(tmp_path / "sae")
    for path in (tmp_path / "sae").iterdir():
        hub.add_file(ID, f"layers.1/l0_5/{path.name}", path.read_bytes())
    choice, out = ["--layer", "1"], ["--output_dir", str(tmp_path / "out")]
    assert main(["show", ID, *choice]) == 0
    assert f"{ID}: jumprelu_sae, 32 latents" in capsys.readouterr().out
    assert main(["evaluate", ID, *choice, *out, *text, *EVALUATION]) == 0
    made = tmp_path / "out"
    hub.add_file(ID, "layers.1/l0_5/evaluation.json", (made / "evaluation.json").read_bytes())
    assert (made / "model.safetensors").read_bytes() == (
        tmp_path / "sae" / "model.safetensors"
    ).read_bytes()
    assert main(["card", ID, *choice, "--output_dir", str(tmp_path / "card")]) == 0
    assert f"Weights: {ID} layer=1" in (tmp_path / "card" / "README.md").read_text()
    capsys.readouterr()
    assert main(["show", ID, *choice]) == 0
    shown = capsys.readouterr().out
    assert "tokens of" in shown and "held-out tokens" not in shown and "fvu" in shown


@pytest.mark.parametrize(
    "more, sentence",
    [
        (["--sae.site", "layers.2"], "`hfsae evaluate` cannot change sae.site"),
        (["--site", "layers.2"], "was trained at layers.1, not at layers.2; leave out --site"),
        (["--evaluation.n_tokens", "0"], "evaluation.n_tokens is 0"),
        (["--layer", "3"], "was trained at layers.1, not at layer 3"),
    ],
)
def test_what_cannot_be_measured_is_said_before_a_model_is_loaded(
    more, sentence, sae, text, tmp_path, loads, capsys
):
    hfsae.save_as(sae, tmp_path / "foreign", "saelens")
    assert sentence in refused(["evaluate", str(tmp_path / "foreign"), *text, *more], capsys)
    assert not loads and not Path("runs/foreign").exists()


def test_a_text_whose_package_is_missing_is_told_before_a_model_is_loaded(
    sae, tmp_path, loads, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    hfsae.save_as(sae, "mine/inner", "hfsae")
    monkeypatch.setattr("os.access", lambda path, mode: False)

    def missing(name: str) -> Path:
        raise Refused(f"the package of {name} is not installed")

    monkeypatch.setattr("hfsae.activations.tokens.text_folder", missing)
    sentence = refused(["evaluate", "mine", "--text.dataset", "packaged:books"], capsys)
    assert "the package of books is not installed" in sentence
    assert not loads and not Path("runs").exists()


def test_a_model_that_a_config_names_is_not_taken_for_a_folder_here(
    sae, text, tmp_path, loads, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("tiny/gemma").mkdir(parents=True)
    hfsae.save_as(sae, "foreign", "saelens")
    said = refused(["evaluate", "foreign", *text], capsys)
    assert said.startswith("foreign does not name its language model; give --lm.name ")
    assert not loads and not Path("runs").exists()
