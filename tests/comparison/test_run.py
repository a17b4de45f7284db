"""A comparison from recipe to report, on a tiny language model."""

import json
import re
import shutil
from pathlib import Path

import pytest
from accelerate import Accelerator
from safetensors.torch import load_file
from transformers import AutoModel

from hfsae.comparison import compare
from hfsae.io import processor
from hfsae.io.checksums import KEY
from hfsae.io.files import read_tensors, write_tensors

from ..helpers import held_elsewhere
from .conftest import ARMS, tiny_comparison


def test_a_comparison_leaves_trained_saes_and_a_report(trained):
    folder, loads = trained
    report = folder / "report"
    text = (report / "report.md").read_text()
    for part in (
        "Compared with JumpReLU",
        "## Differences",
        "| topk |",
        "hfsae compare x.yaml",
        "kept",
    ):
        assert part in text, part
    html = (report / "report.html").read_text()
    assert html.count("data:image/png;base64,") == 3 and "<table>" in html
    assert "## Learned thresholds" in text and "causes" not in text
    results = json.loads((report / "results.json").read_text())
    assert len(results["saes"]) == 8
    assert len(loads) == 1, "the language model is loaded once"
    home = folder / "topk" / "seed_1" / "k_6"
    card = (home / "README.md").read_text()
    assert "This SAE is *topk*, one of 2 arms (JumpReLU, topk)" in card
    link = card.partition("intervals](")[2].partition(")")[0]
    assert (home / link).resolve() == (report / "report.md").resolve()
    sae = AutoModel.from_pretrained(home)
    assert sae.config.k == 6 and sae.config.activation_scale == 1.0


def test_health_is_in_per_cent_the_mean_over_seeds_and_the_range(trained):
    folder, _ = trained
    text = (folder / "report" / "report.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    head = next(row for row in rows if "gamma" in row)
    after = rows[rows.index(head) + 2 :]
    keys = ("relative_reconstruction_bias", "dead_share")
    keys += ("above_1_percent_share", "above_10_percent_share")
    homes = {"jumprelu": ["target_l0_3", "target_l0_6"], "topk": ["k_3", "k_6"]}
    every = [(arm, run) for arm, runs in homes.items() for run in runs]
    for (arm, run), row in zip(every, after, strict=False):
        seeds = [
            json.loads((folder / arm / f"seed_{seed}" / run / "evaluation.json").read_text())
            for seed in (0, 1)
        ]
        for key, cell, by in zip(keys, row[2:], (1, 100, 100, 100), strict=True):
            values = [by * seed["metrics"][key]["value"] for seed in seeds]
            assert float(cell.split(" ")[0]) == pytest.approx(sum(values) / 2, rel=6e-3), (arm, key)


@pytest.mark.parametrize(
    ("factor", "verdict"), [(0.5, "better by 50.0 %"), (1.5, "worse by 50.0 %")]
)
def test_an_arm_with_half_the_error_is_better_and_one_with_half_as_much_again_worse(
    copied, loads, factor, verdict
):
    """Kept results that are made up: both arms have the same errors, but for a factor."""
    report, arms = copied("c") / "report", {"jumprelu": "target_l0", "topk": "k"}
    for folder in arms:
        shutil.rmtree(report.parent / folder)
    results = json.loads((report / "results.json").read_text())
    tensors, _ = read_tensors(report / "results.safetensors")
    for sae in results["saes"]:
        sums = f"{sae['arm']}/{sae['seed']}/{sae['sae']}/sums/"
        l0, error = (
            float(sae["value"]),
            (1.0 if sae["arm"] == "jumprelu" else factor) / sae["value"],
        )
        sae["metrics"] |= {"l0": l0, "fvu": error}
        tokens = tensors[f"{sums}fidelity.tokens"]
        tensors |= {f"{sums}fidelity.active": tokens * l0, f"{sums}fidelity.error": tokens * error}
        tensors[f"{sums}fidelity.spread"] = tokens.clone()
    (report / "results.json").write_text(json.dumps(results))
    write_tensors(report / "results.safetensors", tensors)
    text = (compare(tiny_comparison(report.parent)) / "report.md").read_text()
    summary = text.partition("## Summary")[2].partition("## Differences")[0]
    assert f"**topk, FVU**: {verdict} at L0 4, 5; over all these L0s {verdict}." in summary
    assert not loads, "nothing was trained or measured"


def test_arms_that_another_process_works_on_are_left_alone(tmp_path, loads):
    is_in_use = pytest.raises(ValueError, match=r"topk/seed_0 is in use by process")
    with held_elsewhere(tmp_path / "c" / "topk" / "seed_0"), is_in_use:
        compare(tiny_comparison(tmp_path / "c"))
    assert not list(tmp_path.rglob("*.*")), "the first arm has not begun"


def test_what_is_there_is_not_done_again_and_an_arm_may_be_added(copied, loads, caplog):
    folder = copied("c")
    weights = folder / "topk" / "seed_0" / "k_3" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    again = tiny_comparison(folder)
    compare(again)
    assert not loads, "nothing was missing"
    again.arms = {**ARMS, "wide": {"sae": {"d_sae": 48}, "sweep": {"target_l0": [3, 6]}}}
    caplog.set_level("INFO")
    report = compare(again)
    assert "seed 0, arm wide (1 of 1)" in caplog.messages
    assert weights.stat().st_mtime_ns == before
    assert "| wide |" in (report / "report.md").read_text()


def test_a_report_outlives_the_weights_and_grows_by_a_seed_from_another_machine(
    tmp_path, copied, loads, monkeypatch
):
    fields = {"report": str(tmp_path / "report")}
    first = tiny_comparison(copied("here"), **fields)
    report = compare(first)
    before = {path.name: path.read_bytes() for path in report.iterdir() if path.is_file()}
    (tmp_path / "here").rename(tmp_path / "lost")
    compare(first)
    assert {name: (report / name).read_bytes() for name in before} == before
    assert not loads, "nothing was trained or measured again"
    text = (report / "report.md").read_text()
    assert re.search(r"All saw the same activations, to the bit \(hash [0-9a-f]{16}\)\.", text)
    (report / "results.json").write_text(
        re.sub(
            r'("digests": {\s*"[^"]+": )"\w+"',
            r'\1"changed"',
            numbers := (report / "results.json").read_text(),
            count=1,
        )
    )
    text = (compare(first) / "report.md").read_text()
    assert re.search(
        r"read with 2 different results.*: 7 SAEs: (\S+) [0-9a-f]{16}; 1 SAEs: \1 changed\)", text
    )
    (report / "results.json").write_text(numbers)

    other = tiny_comparison(tmp_path / "there", **fields)
    other.seeds = [2]
    (report / "results.json").write_text('{"saes": [{"arm": "topk"}]}')
    with pytest.raises(
        ValueError, match=r"results\.json is damaged .KeyError.*; restore an intact"
    ):
        compare(other)
    numbers = re.sub(r'"machine": "[^"]+"', '"machine": ""', numbers)
    limit = r'("norm_limits": {\s*"[^"]+": )[\d.]+'
    (report / "results.json").write_text(re.sub(limit, r"\g<1>1.5", numbers))
    monkeypatch.setattr(processor, "name_of", lambda device: "another machine")
    compare(other)
    other.seeds = [0, 1, 2]
    text = (compare(other) / "report.md").read_text()
    assert sorted(path.name for path in (tmp_path / "there/topk").iterdir()) == ["seed_2"]
    both = "(JumpReLU, topk)"
    assert f"machines: not recorded, 8 SAEs {both}; another machine, 4 SAEs {both}." in text
    assert re.search(
        r"read with 2 different results.*: 8 SAEs: 1.5 (\w+); 4 SAEs: \d+\.\d+ \1\)", text
    )
    assert "seeds: 0, 1, 2" in text and len(saes_in(report)) == 12
    rows = text.partition("## Do seeds agree")[2].partition("## Arms")[0].splitlines()
    assert [row.split("|")[3].strip() for row in rows if "| topk" in row] == ["1", "1"], "of three"


def test_what_was_kept_of_another_recipe_is_left_out(tmp_path, copied, loads):
    report = str(tmp_path / "report")
    compare(tiny_comparison(copied("a"), report=report))
    other = tiny_comparison(tmp_path / "b", report=report)
    other.arms = {**ARMS, "topk": {**ARMS["topk"], "training": {"learning_rate": 1e-3}}}
    compare(other)
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["topk"]
    assert len(saes_in(tmp_path / "report")) == 8


def test_a_report_of_one_arm_keeps_what_is_known_of_the_others(tmp_path, copied, loads):
    fields = {"report": str(tmp_path / "report")}
    compare(tiny_comparison(copied("a"), **fields))
    one = tiny_comparison(tmp_path / "b", only=["topk"], **fields)
    one.arms = {"topk": {**ARMS["topk"], "sweep": {"k": [5, 6]}}}
    compare(one)
    names = {(sae["arm"], sae["sae"]) for sae in saes_in(tmp_path / "report")}
    ours = {("jumprelu", "target_l0_3"), ("jumprelu", "target_l0_6"), ("topk", "k_3")}
    assert names == ours | {("topk", "k_5"), ("topk", "k_6")}
    assert len(saes_in(tmp_path / "report")) == 10, "two seeds of each, those of old sparsities too"
    (tmp_path / "b").rename(tmp_path / "lost")
    one.arms = {"topk": {**ARMS["topk"], "sweep": {"k": [5]}}}
    compare(one)
    assert len(saes_in(tmp_path / "report")) == 10, "a report of fewer sparsities forgets none"


def test_what_a_comparison_cannot_be_is_told_before_anything_is_trained(
    tmp_path, loads, monkeypatch
):
    elsewhere = tiny_comparison(tmp_path / "a")
    elsewhere.arms = {**ARMS, "late": {"sae": {"site": "layers.2"}, "sweep": {"target_l0": [3]}}}
    with pytest.raises(ValueError, match=r"arm jumprelu is at layers\.1, arm late at layers\.2"):
        compare(elsewhere)
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="a comparison runs in one process"):
        compare(tiny_comparison(tmp_path / "a"))
    assert not (tmp_path / "a").exists() and not loads


def saes_in(report) -> list:
    return json.loads((report / "results.json").read_text())["saes"]


def test_one_arm_alone_gives_the_same_numbers(trained, tmp_path, loads):
    """Which the report says, with this command."""
    whole, _ = trained
    command = "--only '[topk]' --seeds '[0]' --training.output_dir runs/again"
    assert command in (whole / "report" / "report.md").read_text()
    one = tiny_comparison(tmp_path / "again", only=["topk"])
    one.seeds = [0]
    compare(one)
    for name in ("k_3", "k_6"):
        here, there = (
            json.loads((folder / "topk/seed_0" / name / "evaluation.json").read_text())
            for folder in (tmp_path / "again", whole)
        )
        assert here["metrics"] == there["metrics"]


def test_saes_of_different_documents_are_not_compared(copied, loads):
    folder = copied("c")
    (folder / "report/results.json").unlink()
    path = folder / "topk/seed_1/k_6/documents.safetensors"
    write_tensors(path, {name: sums[1:] for name, sums in load_file(path).items()})
    with pytest.raises(ValueError, match="evaluated on different documents"):
        compare(tiny_comparison(folder))


def test_another_evaluation_is_measured_anew(tmp_path, copied, loads):
    comparison = tiny_comparison(copied("c"), only=["topk"])
    comparison.evaluation.n_tokens = 150
    compare(comparison)
    homes = [tmp_path / f"c/topk/seed_{seed}/k_{k}" for seed in (0, 1) for k in (3, 6)]
    evaluations = [home / "evaluation.json" for home in homes]
    counts = {json.loads(path.read_text())["n_tokens"] for path in evaluations}
    assert len(counts) == 1 and 150 <= counts.pop() < 200
    before = [path.read_text() for path in evaluations]
    evaluations[0].write_text("{}")  # as `hfsae evaluate` leaves it, with other sums beside
    hashed = json.loads(before[1])[KEY]
    evaluations[1].write_text(before[1].replace(hashed, "0" * 64))  # of weights from elsewhere
    (tmp_path / "c/report/results.json").unlink()
    compare(comparison)
    assert [path.read_text() for path in evaluations] == before


def test_settings_made_before_a_field_existed_count_as_its_default(tmp_path, copied, loads):
    comparison = tiny_comparison(copied("c"), only=["topk"])
    paths = sorted((tmp_path / "c/topk").rglob("documents.safetensors"))
    for path in paths:
        sums, made = read_tensors(path)
        older = json.loads(made["with"])
        assert older.pop("side") == "test"
        write_tensors(path, sums, {**made, "with": json.dumps(older)})
    (tmp_path / "c/report/results.json").unlink()
    before = [path.stat().st_mtime_ns for path in paths]
    compare(comparison)
    assert [path.stat().st_mtime_ns for path in paths] == before and not loads


def test_weights_may_be_deleted_and_a_killed_run_is_completed(tmp_path, copied, loads):
    comparison = tiny_comparison(copied("c"))
    report = compare(comparison)
    before = (report / "report.md").read_text()
    run = tmp_path / "c/topk/seed_0"
    (run / "k_3" / "fingerprint.safetensors").unlink()
    (run / "k_3" / "evaluation.json").unlink()
    (run / "checkpoints").mkdir()
    (report / "results.json").unlink()
    compare(comparison)
    assert (run / "k_3" / "fingerprint.safetensors").is_file() and not (
        run / "checkpoints"
    ).exists()
    for path in (tmp_path / "c").rglob("model.safetensors"):
        path.unlink()
    compare(comparison)
    assert (report / "report.md").read_text() == before


def test_a_comparison_without_evaluation_is_refused_before_anything_is_trained(tmp_path, loads):
    comparison = tiny_comparison(tmp_path / "c")
    comparison.evaluation.n_tokens = 0
    with pytest.raises(ValueError, match=r"evaluation.n_tokens is 0"):
        compare(comparison)
    assert not (tmp_path / "c").exists()


def test_a_foreign_text_that_is_too_short_is_told_before_anything_is_trained(tmp_path, loads):
    (tmp_path / "short.txt").write_text("short")
    comparison = tiny_comparison(tmp_path / "c")
    comparison.evaluation.texts = {"mail": str(tmp_path / "short.txt")}
    with pytest.raises(ValueError, match=r"evaluation\.texts\.mail: .* fills no row"):
        compare(comparison)
    assert not [*(tmp_path / "c").rglob("*.safetensors")]


def test_an_arm_of_another_library_is_evaluated_and_never_trained(copied, loads):
    comparison = tiny_comparison(copied("c"))
    comparison.arms = {**ARMS, "topk": {**ARMS["topk"], "made_by": "sparsify.TopK"}}
    folders = [*Path(comparison.training.output_dir, "topk").glob("*/*_*")]
    assert len(folders) == 4
    for folder in folders:
        (folder.parent / "recipe.yaml").unlink(missing_ok=True)
        weights = {"config.json", "model.safetensors", "training.json"}
        for path in [path for path in folder.iterdir() if path.name not in weights]:
            path.unlink() if path.is_file() else shutil.rmtree(path)
    shutil.rmtree(comparison.report_folder)
    text = (compare(comparison) / "report.md").read_text()
    assert "topk: sparsify.TopK. Of `training`" in text and "8 SAEs of" in text
    assert {path.name for path in folders[0].iterdir()} - weights == {
        "evaluation.json",
        "documents.safetensors",
    }
    shutil.rmtree(comparison.report_folder)
    (folders[0] / "evaluation.json").unlink()
    (folders[0] / "training.json").unlink()
    with pytest.raises(ValueError, match=r"made by sparsify\.TopK, and its SAE .* is not there"):
        compare(comparison)
