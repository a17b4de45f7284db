"""Measure again what pages tell of an SAE: a command of hfsae, whose result is kept.

    python scripts/pages/make.py judge                  of runs/quickstart: MADE has all names
    python scripts/pages/make.py probing runs/mine      of another SAE
    python scripts/pages/make.py probing_arms           of the twelve of interpretability.yaml
    python scripts/pages/write.py                       then: the pages, from all that is kept

SAEs are copied first, so that their folders stay as they are and everything is measured anew. Kept
are means with their intervals, in scripts/pages/results/NAME.json, with the command, the machine,
CPU seconds and peak memory. `redrawn` needs an SAE of a model with re-drawn weights: the first two
commands in `redrawn_lm.py`.
"""

import glob
import json
import re
import resource
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

sys.path.append(str(Path(__file__).parents[1] / "bench"))
from kept import machine

from hfsae.evaluation import around, resampled_means
from hfsae.io import without_local_paths

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).with_name("results")
QUICKSTART, REDRAWN, PACKAGED = "runs/quickstart", "runs/redrawn", "hfsae/shipped_sae"
ARMS = "runs/compare/interpretability/*/seed_*/*_50"
LEFT_OUT = ("README.md", "checkpoints", "evaluation.json", "probing.*", "explanations.*")
LEFT_OUT += ("calls.jsonl", "evidence.parquet")
TEXTS = "{news: packaged:news, medicine: packaged:medicine, code: packaged:python}"
Json = dict[str, Any]


def explained(record: Mapping[str, Any]) -> Json:
    """Scores of names, each latent counting the same, and what the judge was asked."""
    scores = {}
    for name, score in record["scores"].items():
        metric = "pearson" if name == "lexical" else score["headline"]
        about = {key: score[key] for key in ("chance", "n_items", "n_failed") if key in score}
        of_lexical = ("pearson", "auprc", "auc") if name == "lexical" else (metric,)
        scores[name] = {m: score["uniform"][m] for m in of_lexical if m} | about
    usage = record.get("usage", {})
    asked = {key: usage[key] for key in ("n_calls", "n_failed", "n_tokens_in") if key in usage}
    untrained = record.get("untrained", {}).get("lexical", {})
    return {
        "seed": record["arguments"]["seed"],
        **{key: record[key] for key in ("n_latents", "n_directions", "n_tokens")},
        **({"usage": asked} if asked else {}),
        "scores": scores,
        **({"untrained": {m: untrained[m]["untrained"] for m in untrained}} if untrained else {}),
    }


KINDS = {"untrained": "untrained", "model's dimensions": "dimensions", "bag of tokens": "tokens"}


def probed(record: Mapping[str, Any]) -> Json:
    """AUC by features and k, absorption and uniformity, of the latents and beside controls."""

    def is_own(entry: Mapping[str, Any]) -> bool:
        """Whether an entry is of the record's SAE, or of a control for it."""
        if entry["features"] in record["saes"]:
            return entry["features"] == record["sae"]
        return entry["of"] in ("", record["sae"], record["site"])

    auc: dict[str, Json] = {}
    for entry in filter(is_own, record["means"]):
        k, kind = str(entry["k"]), KINDS.get(entry["features"], "own")
        auc.setdefault(kind, {})[k] = entry["auc"]
        if kind == "own":
            auc.setdefault("gain", {})[k] = entry["auc_above_untrained"]
    made: Json = {"seed": record["arguments"]["seed"], "n_tasks": len(record["tasks"]), "auc": auc}
    rows = [*filter(is_own, record.get("absorption", {}).get("rows", []))]
    if rows and "refused" not in rows[0]:
        for row in rows:
            means = {key: value for key, value in row.items() if key != "letters"}
            means |= {"n_letters": len(row["letters"])} if "letters" in row else {}
            made.setdefault("absorption", {})[KINDS.get(row["features"], "own")] = means
        f1 = [*next(iter(record["absorption"]["probe_f1"].values())).values()]
        made["absorption"]["probe_mean_f1"] = sum(f1) / len(f1)
    of_saes = record.get("uniformity", {}).get("saes", {})
    if uniformity := of_saes.get(record["sae"]):
        parts = {"own": "mean", "untrained": "untrained", "n_tokens": "n_tokens"}
        made["uniformity"] = {name: uniformity[key] for name, key in parts.items()}
    return made


def probed_arms(record: Mapping[str, Any]) -> Json:
    """AUC by arm and k: means over seeds and tasks, what is above the first arm's, and of untrained
    latents, with the number of seeds whose own are above them."""
    arms: dict[str, Json] = {}
    for (arm, k), entry in over_seeds(record).items():
        for key, value in entry.items():
            arms.setdefault(arm.split("/")[0], {}).setdefault(key, {})[str(k)] = value
    controls: Json = {}
    for entry in record["means"]:
        k, of_sae = str(entry["k"]), (entry["of"] or entry["features"]).split("/")[0]
        if entry["features"] == "untrained":
            arms[of_sae].setdefault("untrained", {}).setdefault(k, []).append(entry["auc"][0])
        elif "auc_above_untrained" in entry:
            n_above = arms[of_sae].setdefault("n_above_untrained", {})
            n_above[k] = n_above.get(k, 0) + (entry["auc_above_untrained"][1] > 0)
        else:
            controls.setdefault(KINDS[entry["features"]], {})[k] = entry["auc"]
    for arm in arms.values():
        arm["untrained"] = {k: sum(v) / len(v) for k, v in arm["untrained"].items()}
    made = {"seed": record["arguments"]["seed"], "n_tasks": len(record["tasks"])}
    return {**made, "n_texts": record["arguments"]["n_texts"], "arms": arms, "controls": controls}


def over_seeds(record: Mapping[str, Any]) -> dict[tuple[str, Any], Json]:
    """Of each arm (SAEs whose names differ in seed_N alone) and k the AUC, mean over seeds and
    tasks, and what is above the first arm's, paired over tasks."""
    aucs = {(row["features"], row["k"], row["task"]): row["auc"] for row in record["rows"]}
    tasks = list(dict.fromkeys(row["task"] for row in record["rows"]))
    arms: dict[str, list[str]] = {}
    for name in record["saes"]:
        arms.setdefault(re.sub(r"/seed_\d+(?=/)", "", name), []).append(name)

    def mean(values: list[float]) -> list[float]:
        how = {"n_resamples": record["arguments"]["bootstrap_samples"]}
        how |= {"seed": record["arguments"]["seed"]}
        draws = resampled_means(values, [1.0] * len(values), **how)
        return [*around(sum(values) / len(values), draws)]

    entries = {}
    for k in dict.fromkeys(k for name, k, _ in aucs if name in record["saes"]):
        means = {
            arm: [sum(aucs[name, k, task] for name in names) / len(names) for task in tasks]
            for arm, names in arms.items()
        }
        first = next(iter(means.values()))
        for arm, own in means.items():
            gaps = [a - b for a, b in zip(own, first, strict=True)]
            entries[arm, k] = {"auc": mean(own), "above_first": mean(gaps)}
    return entries


def on_texts(record: Mapping[str, Any]) -> Json:
    """L0, FVU and delta loss on held-out text and on each foreign one."""
    texts = {"held-out": record, **record["texts"]}
    return {
        "seed": record["seed"],
        "texts": {
            name: {key: _interval(of["metrics"][key]) for key in ("l0", "fvu", "delta_loss")}
            | {"n_tokens": of["n_tokens"]}
            for name, of in texts.items()
        },
    }


def _interval(metric: Mapping[str, Any]) -> list[float]:
    return [metric[key] for key in ("value", "low", "high")]


class Made(NamedTuple):
    """A file of results."""

    saes: str
    """a folder, or a pattern of several: JumpReLU's, with which others are compared, first"""
    verb: str
    options: str
    record: str
    """what the command writes below the folder of each"""
    extract: Callable[[Mapping[str, Any]], Json]


def _explain(sae: str, options: str) -> Made:
    return Made(sae, "explain", options, "features/explanations.json", explained)


def _probe(sae: str, options: str) -> Made:
    return Made(sae, "probe", options, "probing.json", probed)


_FEW_TOKENS = "--evaluation.n_tokens 10000 --evaluation.n_foreign_tokens 5000"
_ON_TEXTS = f"{_FEW_TOKENS} --evaluation.texts '{TEXTS}'"
MADE = {
    "judge": _explain(QUICKSTART, "--scores detection intruder"),
    "names": _explain(QUICKSTART, "--n_tokens 50000 --controls untrained"),
    "redrawn": _explain(REDRAWN, "--n_tokens 50000"),
    "probing": _probe(QUICKSTART, "--n_tasks all --n_words 0 --uniformity_tokens 0"),
    "probing_drawn": _probe(QUICKSTART, ""),
    "probing_packaged": _probe(PACKAGED, "--n_words 0 --uniformity_tokens 48"),
    "probing_arms": _probe(ARMS, "--n_words 0 --uniformity_tokens 0")._replace(extract=probed_arms),
    "texts": Made(QUICKSTART, "evaluate", _ON_TEXTS, "evaluation.json", on_texts),
}


def main(argv: list[str]) -> None:
    if not argv or argv[0] not in MADE:
        sys.exit(f"{__doc__}\nNAME can be {', '.join(MADE)}")
    made = MADE[argv[0]]
    saes = [Path(folder) for folder in argv[1:]] or found(made.saes)
    if missing := [sae for sae in saes if not (sae / "config.json").is_file()]:
        sys.exit(f"no SAE in {missing[0]}; train one there, or give the folder of another")
    with tempfile.TemporaryDirectory() as temporary:
        folders = [Path(temporary, "of", *sae.resolve().parts[1:]) for sae in saes]
        for sae, folder in zip(saes, folders, strict=True):
            shutil.copytree(sae, folder, ignore=shutil.ignore_patterns(*LEFT_OUT))
        used = run(made, folders)
        result = made.extract(json.loads((folders[0] / made.record).read_text("utf-8")))
        command = " ".join(["hfsae", made.verb, *map(str, saes), made.options]).strip()
        kept = {"command": command, "machine": machine(), **used, **result}
        kept = without_local_paths(kept, folders[0])
    path = RESULTS / f"{argv[0]}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    print(path)


def found(pattern: str) -> list[Path]:
    """Folders of SAEs, JumpReLU's first."""
    paths = [Path(path) for path in glob.glob(pattern)] or [Path(pattern)]
    return sorted(paths, key=lambda path: ("jumprelu" not in path.parts, path))


def run(made: Made, folders: list[Path]) -> Json:
    """Run the command on folders; what it took.

    Raises:
        CalledProcessError: it failed.
    """
    saes = [str(folder) for folder in folders]
    command = [sys.executable, "-m", "hfsae", made.verb, *saes, *shlex.split(made.options)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, bytes
    return {"cpu_seconds": round(seconds, 1), "peak_memory_bytes": after.ru_maxrss * unit}


if __name__ == "__main__":
    main(sys.argv[1:])
