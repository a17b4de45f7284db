"""`python -m comparisons --explain`, on a tiny language model."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from comparisons.__main__ import with_explanations
from comparisons.experiment import Experiment, InterpretArguments, compare

from hfsae.activations import TextArguments
from hfsae.comparison import results_in
from hfsae.explanations import ExplainArguments
from hfsae.runs import explain_sae, of_run

from ..conftest import every_lm_is
from ..explanations.oracle import Oracle
from ..tiny import letters, tiny_fields

ARMS = {
    "jumprelu": {"title": "JumpReLU", "sweep": {"target_l0": [4]}},
    "topk": {
        "sae": {"model_type": "topk_sae", "target_l0": None},
        "sweep": {"k": [4]},
        "training": {"warm_start_steps": 0},
    },
}
EXPLAIN = InterpretArguments(n_latents=20, n_tokens=2500, max_density=1.0, judged_latents=20)


def tiny_comparison(folder, explain=EXPLAIN) -> Experiment:
    text = TextArguments(dataset=letters(), context_size=64, held_out_fraction=0.6)
    given = tiny_fields(folder / "saes", collect_tokens=0, text=text)
    given["evaluation"].texts = {"products": str(Path(__file__).with_name("foreign.txt"))}
    given["sae"] = {"site": "layers.1", "d_sae": 48}
    report = str(folder / "report")
    return Experiment(**given, arms=ARMS, seeds=[0, 1], at_l0=[4.0], explain=explain, report=report)


@pytest.fixture(scope="module")
def explained(tmp_path_factory, tiny_lm, tiny_tokenizer):
    """The folder of a comparison with explanations, and how often a language model was loaded."""
    folder = tmp_path_factory.mktemp("explained")
    with pytest.MonkeyPatch.context() as monkeypatch:
        loads = every_lm_is(tiny_lm, tiny_tokenizer, monkeypatch)
        compare(tiny_comparison(folder), command="python -m comparisons x.yaml --explain")
    return folder, len(loads)


def test_a_report_has_scores_beside_controls_and_latents_with_evidence(explained):
    folder, _ = explained
    text = (folder / "report/report.md").read_text()
    section = text.partition("## Interpretability")[2].partition("\n## ")[0]
    for part in (
        "| JumpReLU |",
        "| topk |",
        "| random directions (JumpReLU) |",
        "tenth of density",
    ):
        assert part in section, part
    tenths = section.partition("by tenth of density; in brackets")[2].split("\n\n")[1].splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in tenths]
    assert len(cells) == 12 and cells[0] == ["fires on", "JumpReLU", "topk"]
    for arm in (1, 2):
        told = [re.fullmatch(r"-?\d\.\d{3} \((\d+)\)|-", row[arm]) for row in cells[2:]]
        assert sum(int(one[1] or 0) for one in told) == 40, "20 latents of each of two seeds"
    beyond = text.partition("## Beyond the training text")[2].partition("\n## ")[0]
    assert "| products |" in beyond and re.search(r"\| topk \| .* x\) \|", beyond)
    assert "re-drawn weights (JumpReLU)" in section and "judge" not in section.partition("![")[2]
    page = (folder / "report/latents.md").read_text()
    assert page.count("### Random ones") == 2 and page.count("    seed ") >= 20
    assert (folder / "report/figures/interpretability.png").is_file()
    assert not list((folder / "saes").rglob("explanations.*")), "`hfsae explain` names latents"


def test_the_report_is_made_again_from_its_numbers_alone(explained, tmp_path, loads):
    shutil.copytree(explained[0] / "report", tmp_path / "report")
    names = ("report.md", "latents.md", "results.safetensors")
    before = {name: (tmp_path / "report" / name).read_bytes() for name in names}
    saes = saes_in(tmp_path / "report")
    compare(tiny_comparison(tmp_path), command="python -m comparisons x.yaml --explain")
    assert {name: (tmp_path / "report" / name).read_bytes() for name in names} == before
    assert saes_in(tmp_path / "report") == saes and saes[0]["explained"]["examples"]
    assert not loads
    other = InterpretArguments(n_latents=21, n_tokens=2500, max_density=1.0)
    with pytest.raises(ValueError, match="no weights to explain; leave --explain out"):
        compare(tiny_comparison(tmp_path, other))
    compare(tiny_comparison(tmp_path, InterpretArguments()))
    assert "## Interpretability" not in (tmp_path / "report/report.md").read_text()
    compare(tiny_comparison(tmp_path), command="python -m comparisons x.yaml --explain")
    assert (tmp_path / "report/report.md").read_bytes() == before["report.md"], "none forgotten"


def saes_in(report) -> list:
    return json.loads((report / "results.json").read_text())["saes"]


def test_scores_are_those_of_hfsae_explain(explained, tmp_path, loads):
    shutil.copytree(explained[0] / "saes", tmp_path / "saes")
    home = tmp_path / "saes/topk/seed_1/k_4"
    args = ExplainArguments(n_latents=20, n_tokens=2500, max_density=1.0)
    rows = explain_sae(of_run(home), args).rows
    kept = results_in(explained[0] / "report")["topk", 1, "k_4"].more_tensors
    own, other = (kept[f"explained/lexical/{part}/pearson"] for part in ("latents", "untrained"))
    assert own.tolist() == torch.tensor([row["pearson"] for row in rows]).float().tolist()
    assert len(own) == len(other) == 20


def test_explain_alone_stands_for_its_default_and_a_number_wins():
    assert with_explanations(["x.yaml", "--explain"]) == ["x.yaml", "--explain.n_latents", "100"]
    given = ["x.yaml", "--explain", "--explain.n_latents=30"]
    assert with_explanations(given) == ["x.yaml", "--explain.n_latents=30"]


def test_scores_without_latents_are_refused():
    with pytest.raises(ValueError, match=r"no latents are explained; add --explain$"):
        InterpretArguments(scores=["detection"])
    with pytest.raises(ValueError, match="there is no score 'x'"):
        InterpretArguments(n_latents=20, scores=["x"])


def test_a_judge_is_asked_about_the_first_seeds_saes_alone(explained, tmp_path, loads, monkeypatch):
    shutil.copytree(explained[0], tmp_path, dirs_exist_ok=True)
    judge = Oracle()  # which knows no word of these texts
    monkeypatch.setattr("comparisons.explaining.judge_of", lambda args, calls: judge)
    asked = replace(EXPLAIN, scores=["detection"])
    report = compare(tiny_comparison(tmp_path, asked))
    kept = results_in(tmp_path / "report")
    assert {key[1] for key, m in kept.items() if m.more["explained"]["judged"]} == {0}
    section = (report / "report.md").read_text().partition("### A judge's scores (seeds: 0)")[2]
    assert section.count("| detection |") == 2 and section.count("| cannot tell |") == 2
    assert "auc 0.500 [0.500, 0.500]" in section and "| 0.0% |" in section
    n = len(judge.questions)
    shutil.rmtree(tmp_path / "saes")
    before = (report / "report.md").read_bytes()
    compare(tiny_comparison(tmp_path, asked))
    assert (report / "report.md").read_bytes() == before and len(judge.questions) == n
    monkeypatch.setattr("comparisons.explaining.prompts_hash", lambda *scorers: "other prompts")
    with pytest.raises(ValueError, match="no weights to explain"):
        compare(tiny_comparison(tmp_path, asked))
