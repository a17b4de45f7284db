"""The script that compares names of several architectures: what it shows, and could have shown."""

import gzip
import json
import runpy
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from hfsae.explanations import json_string

SCRIPT = Path(__file__).parents[2] / "scripts" / "comparisons" / "judged.py"
KEPT = SCRIPT.parent / "interpretability" / "judged"
ABOUT = {"n_latents": 20, "seed": 0, "n_tokens": 100}
HEAD = {"judge": "m", "controls": {"random directions": [0.5, 0.4, 0.6]}}
N_BLOCKS, N_INSIDE, LEVEL = 10, 6, 0.05 / 3


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(SCRIPT))


def drawn(rng: np.random.Generator, above: float = 0.0) -> dict[str, np.ndarray]:
    """AUCs of sixty latents that depend on the block of density, and vary within it."""
    block = np.repeat(np.arange(N_BLOCKS), N_INSIDE)
    own = 0.7 + 0.02 * block + above + rng.normal(0, 0.1, len(block))
    other = rng.normal(0.5, 0.05, len(block))
    facts = {name: rng.random(len(block)) for name in ("auprc", "auc", "auc_random", "sure")}
    columns = {"detection_auc": own, "shuffled_detection_auc": other, "block": block}
    columns["detection_balanced_accuracy"] = own - 0.1
    return {**columns, **facts, "pearson": own + rng.normal(0, 0.02, len(own)), "density": own**2}


def test_a_planted_difference_is_shown_and_none_is_not(script):
    rng = np.random.default_rng(0)
    runs = {"plain": drawn(rng), "same": drawn(rng), "better": drawn(rng, 0.15)}
    results = script["compared"](runs, 0)
    pairs = {(pair["first"], pair["second"]): pair for pair in results["pairs"]}
    none, better = pairs["plain", "same"], pairs["plain", "better"]
    assert none["holm"] > 0.05 and none["low"] < 0 < none["high"]
    assert better["holm"] < 0.05 and better["high"] < 0 and better["holm"] >= better["p"]
    assert better["value"] == pytest.approx(
        runs["plain"]["detection_auc"].mean() - runs["better"]["detection_auc"].mean()
    )
    assert results["beside"]["pearson"][1] > 0.8 > abs(results["beside"]["sure"][0])
    own, low, high = results["runs"]["plain"]["own_minus_other"]
    assert 0.1 < low < own < high


def test_the_smallest_difference_is_shown_in_four_of_five_simulated_studies(script):
    """A study's test is Student's, on residuals from the means of blocks over both runs."""
    rng = np.random.default_rng(1)
    least = np.mean([script["smallest_shown"](drawn(rng), drawn(rng), LEVEL) for _ in range(50)])
    n_shown = 0
    for _ in range(600):
        one, other = drawn(rng, least), drawn(rng)
        values = np.stack(
            [run["detection_auc"].reshape(N_BLOCKS, N_INSIDE) for run in (one, other)]
        )
        within = values - values.mean(axis=2, keepdims=True)
        df = values.size - 2 * N_BLOCKS
        error = np.sqrt((within**2).sum() / df * 2 / (N_BLOCKS * N_INSIDE))
        p = 2 * stats.t.sf(abs(values[0].mean() - values[1].mean()) / error, df)
        n_shown += p < LEVEL
    assert n_shown / 600 == pytest.approx(0.8, abs=0.05)


def test_results_are_computed_again_from_the_kept_answers_alone(script, tmp_path, monkeypatch):
    """AUC of grades with ties as scikit-learn's; two runs of twenty latents, two in each block."""
    rng, plan, lines = np.random.default_rng(2), {"about": ABOUT}, [HEAD]
    for name in ("one", "two"):
        plan[name] = {str(latent): latent // 2 for latent in range(20)}
        folder = tmp_path / name
        (folder / "features").mkdir(parents=True)
        windows = [
            {"latent": i, "kind": kind, "tokens": [f"{name} {i}", f" <{n}>"]}
            for i in range(20)
            for n, kind in enumerate(("quantile_1", "quantile_5", "hard", "random"))
        ]
        pq.write_table(pa.Table.from_pylist(windows), folder / "features/evidence.parquet")
        rows = [{"latent": i, "explanation": f"name <{i}>"} for i in range(20)]
        rows = [row | {fact: rng.random() for fact in script["BESIDE"]} for row in rows]
        pq.write_table(pa.Table.from_pylist(rows), folder / "features/explanations.parquet")
        grades, calls = rng.integers(0, 11, (20, 2, 4)), []
        for i, which in np.ndindex(20, 2):
            order = rng.permutation(4)
            texts = [
                f"Text {k}: {json_string(f'{name} {i} <{n}>')}" for k, n in enumerate(order, 1)
            ]
            named = f"Description: {json_string(f'name <{(i + which) % 20}>')}"
            answer = {"text": json.dumps({"grades": grades[i, which][order].tolist()})}
            messages = [["user", "\n".join([named, *texts])]]
            calls.append({"call": f"{name}{i}{which}", "messages": messages, "answer": answer})
        kept = [{**row, "run": name} for row in script["answered"](folder, calls)]
        assert len(kept) == 20
        lines += [*kept, *calls]
        truth = [True, True, False, False]
        aucs = [[roc_auc_score(truth, g) for g in both] for both in grades]
        of = script["rows_of"](kept, plan[name])
        assert of["detection_auc"] == pytest.approx([own for own, _ in aucs])
        assert of["shuffled_detection_auc"] == pytest.approx([other for _, other in aucs])
        balanced = [balanced_accuracy_score(truth, g[0] > 5) for g in grades]
        assert of["detection_balanced_accuracy"] == pytest.approx(balanced)
    plan["sha256"] = script["hash_of"](plan)
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    with gzip.open(tmp_path / "answers.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    monkeypatch.setattr("sys.argv", ["judged.py", str(tmp_path)])
    script["main"]()
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["runs"]["two"]["own"][0] == pytest.approx(np.mean([own for own, _ in aucs]))
    assert results["plan"] == plan["sha256"] and results["judge"] == "m"
    assert "balanced accuracy" in (tmp_path / "names.md").read_text()


def test_the_kept_answers_give_the_results_that_are_told(script):
    """Without the resampling, which takes seconds."""
    results, plan = (json.loads((KEPT / f"{x}.json").read_text()) for x in ("results", "plan"))
    with gzip.open(KEPT / "answers.jsonl.gz", "rt", encoding="utf-8") as file:
        head, *lines = map(json.loads, file)
    texts = {line["call"]: line["answer"]["text"] for line in lines if "call" in line}
    latents = [line for line in lines if "run" in line]
    judgements = [latent[which] for latent in latents for which in ("own", "other")]
    assert all(texts[judgement["call"]] == judgement["answer"] for judgement in judgements)
    assert results["plan"] == plan["sha256"] == script["hash_of"](plan)
    assert {key: results[key] for key in head} == head
    keys = {"own": "detection_auc", "other": "shuffled_detection_auc"}
    keys["balanced_accuracy"] = "detection_balanced_accuracy"
    runs = {
        name: script["rows_of"]([x for x in latents if x["run"] == name], plan[name])
        for name in results["runs"]
    }
    for name, of in results["runs"].items():
        assert of["n_latents"] == len(runs[name]["block"]) == plan["about"]["n_latents"]
        for key, column in keys.items():
            assert of[key][0] == pytest.approx(runs[name][column].mean()), (name, key)
    for pair in results["pairs"]:
        one, other = runs[pair["first"]], runs[pair["second"]]
        value = one["detection_auc"].mean() - other["detection_auc"].mean()
        assert pair["value"] == pytest.approx(value)
        assert pair["least"] == pytest.approx(script["smallest_shown"](one, other, 0.05 / 6))
    first = next(iter(results["runs"].values()))["own"][0]
    assert f"| {first:.3f} [" in script["page"](results, plan)
