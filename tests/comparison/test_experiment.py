"""What the scripts measure of a comparison's SAEs, and where it is kept."""

import json
import shutil

import pytest
from comparisons.experiment import CausalArguments, Experiment, compare

from hfsae.comparison import compare as plain_compare
from hfsae.runs.stage_probe import with_probing

from ..probed import probing_record
from .conftest import tiny_comparison


def tiny_experiment(folder, **fields) -> Experiment:
    return tiny_comparison(folder, Experiment, **fields)


def test_what_was_probed_stands_in_the_report_and_outlives_the_weights(copied, loads):
    """And an evaluation with it is the same evaluation: nothing is measured again."""
    folder = copied("c")
    report = compare(tiny_experiment(folder))
    assert "## Sparse probing" not in (report / "report.md").read_text()
    homes = sorted(path.parent for path in folder.glob("*/seed_*/*/config.json"))
    (report / "results.json").unlink()
    for home in homes:
        evaluation = json.loads((home / "evaluation.json").read_text())
        (home / "probing.json").write_text(json.dumps(probing_record(home.name)))
        (home / "evaluation.json").write_text(json.dumps(with_probing(evaluation, home)))
    compare(tiny_experiment(folder))
    text = (report / "report.md").read_text()
    section = text.partition("## Sparse probing")[2].partition("\n## ")[0]
    assert "8 of 8 SAEs were probed" in section and section.count("| topk | k_3 |") == 2
    assert not loads
    for home in homes:
        shutil.rmtree(home)
    compare(tiny_experiment(folder))
    assert (report / "report.md").read_text() == text


def test_causes_are_read_where_weights_were_evaluated_otherwise(tmp_path, copied, loads):
    """As those from the Hub are: their report keeps the evaluation that counts."""
    fields = {"report": str(tmp_path / "report")}
    compare(tiny_experiment(copied("a"), **fields))
    for path in (tmp_path / "a").rglob("documents.safetensors"):
        path.unlink()
    report = compare(
        tiny_experiment(tmp_path / "a", causal=CausalArguments(n_tokens=6, l0=3.0), **fields)
    )
    assert "causes" in (report / "report.md").read_text()


def test_causes_want_weights(tmp_path, copied, loads):
    comparison = tiny_experiment(copied("c"), report=str(tmp_path / "report"))
    compare(comparison)
    (tmp_path / "c").rename(tmp_path / "lost")
    comparison.causal = CausalArguments(n_tokens=6, l0=3.0)
    with pytest.raises(ValueError, match=r"no weights to measure; set causal\.n_tokens to 0"):
        compare(comparison)


@pytest.mark.renders
def test_causes_are_measured_once_of_the_saes_nearest_in_l0(tmp_path, copied, loads):
    comparison = tiny_experiment(copied("c"), causal=CausalArguments(n_tokens=6, l0=3.0))
    report = compare(comparison)
    assert "## Are latents causes? At an L0 of 3" in (report / "report.md").read_text()
    assert (report / "report.html").read_text().count("data:image/png;base64,") == 4
    assert causal(report) == {"k_3": 6, "target_l0_3": 6}
    assert len(loads) == 1, "once, in float32"
    before = (report / "results.safetensors").read_bytes()
    compare(comparison)
    assert (report / "results.safetensors").read_bytes() == before and len(loads) == 1
    comparison.causal.n_tokens = 5
    compare(comparison)
    assert causal(report) == {"k_3": 5, "target_l0_3": 5}
    (report / "results.safetensors").write_bytes(b"half of it")
    with pytest.raises(ValueError, match=r"results\.safetensors.*damaged"):
        compare(comparison)


def causal(report) -> dict[str, int]:
    """Tokens of the interventions, by SAE that has any."""
    saes = json.loads((report / "results.json").read_text())["saes"]
    return {s["sae"]: json.loads(s["causal"])["n_tokens"] for s in saes if s.get("causal")}


def test_what_scripts_measured_stays_where_hfsae_compare_writes_the_report_again(
    tmp_path, copied, loads
):
    comparison = tiny_experiment(copied("c"), causal=CausalArguments(n_tokens=6, l0=3.0))
    report = compare(comparison)
    text, tensors = (report / name for name in ("report.md", "results.safetensors"))
    before = text.read_text(), tensors.read_bytes()
    plain_compare(tiny_comparison(tmp_path / "c"))
    assert "causes" not in text.read_text() and tensors.read_bytes() == before[1]
    shutil.rmtree(tmp_path / "c/topk")
    compare(comparison)
    assert text.read_text() == before[0] and len(loads) == 1
