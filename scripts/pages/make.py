"""Measure again what the page of recipes tells: a command of hfsae, whose result is kept.

    python scripts/pages/make.py judge                  of runs/quickstart: MADE has all names
    python scripts/pages/make.py probing runs/mine      of another SAE
    python scripts/pages/write.py                       then: the pages, from all that is kept

The SAE is copied first, so that its folder stays as it is and everything is measured anew. Kept are
means with their intervals, in scripts/recipes/results/NAME.json, with the command, the machine, CPU
seconds and peak memory. `redrawn` needs an SAE of a model with re-drawn weights: the first two
commands in `redrawn_lm.py`.
"""

import json
import resource
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from hfsae.evaluation.probing.extract import extract as extract_probing
from hfsae.machine import names
from hfsae.machine.files import read_json, write_whole
from hfsae.machine.processor import name_of
from hfsae.machine.visible import public_record

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "scripts" / "recipes" / "results"
QUICKSTART, REDRAWN, PACKAGED = "runs/quickstart", "runs/redrawn", "hfsae/shipped_sae"
LEFT_OUT = (names.CARD, names.CHECKPOINTS, names.EVALUATION, "probing.*", "explanations.*")
LEFT_OUT += (Path(names.CALLS).name, Path(names.EVIDENCE).name)
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
    own = extract_probing(record)
    auc: dict[str, Json] = {}
    for entry in own["means"]:
        k, kind = str(entry["k"]), KINDS.get(entry["features"], "own")
        auc.setdefault(kind, {})[k] = entry["auc"]
        if kind == "own":
            auc.setdefault("gain", {})[k] = entry["auc_above_untrained"]
    made: Json = {"seed": record["arguments"]["seed"], "n_tasks": len(record["tasks"]), "auc": auc}
    rows = own.get("absorption", {}).get("rows", [])
    if rows and "refused" not in rows[0]:
        made["absorption"] = {KINDS.get(row["features"], "own"): row for row in rows}
        f1 = [*next(iter(own["absorption"]["probe_f1"].values())).values()]
        made["absorption"]["probe_mean_f1"] = sum(f1) / len(f1)
    for uniformity in own.get("uniformity", {}).get("saes", {}).values():
        parts = {"own": "mean", "untrained": "untrained", "n_tokens": "n_tokens"}
        made["uniformity"] = {name: uniformity[key] for name, key in parts.items()}
    return made


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

    sae: str
    verb: str
    options: str
    record: str
    """what the command writes below the SAE's folder"""
    extract: Callable[[Mapping[str, Any]], Json]


def _explain(sae: str, options: str) -> Made:
    return Made(sae, "explain", options, names.EXPLANATIONS_RECORD, explained)


def _probe(sae: str, options: str) -> Made:
    return Made(sae, "probe", options, names.PROBING, probed)


_FEW_TOKENS = "--evaluation.n_tokens 10000 --evaluation.n_foreign_tokens 5000"
_ON_TEXTS = f"{_FEW_TOKENS} --evaluation.texts '{TEXTS}'"
MADE = {
    "judge": _explain(QUICKSTART, "--scores detection likelihood intruder"),
    "names": _explain(QUICKSTART, "--n_tokens 50000 --controls untrained"),
    "redrawn": _explain(REDRAWN, "--n_tokens 50000"),
    "probing": _probe(QUICKSTART, "--n_tasks all --n_words 0 --uniformity_tokens 0"),
    "probing_drawn": _probe(QUICKSTART, ""),
    "probing_packaged": _probe(PACKAGED, "--n_words 0 --uniformity_tokens 48"),
    "texts": Made(PACKAGED, "evaluate", _ON_TEXTS, names.EVALUATION, on_texts),
}


def main(argv: list[str]) -> None:
    if len(argv) not in (1, 2) or argv[0] not in MADE:
        sys.exit(f"{__doc__}\nNAME can be {', '.join(MADE)}")
    made = MADE[argv[0]]
    sae = Path(argv[1] if len(argv) == 2 else made.sae)
    if not (sae / names.CONFIG).is_file():
        sys.exit(f"no SAE in {sae}; train one there, or give the folder of another")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, sae.resolve().name)
        shutil.copytree(sae, folder, ignore=shutil.ignore_patterns(*LEFT_OUT))
        used = run(made, folder)
        result = made.extract(read_json(folder / made.record))
        command = f"hfsae {made.verb} {sae} {made.options}".strip()
        kept = public_record({"command": command, "machine": _machine(), **used, **result}, folder)
    path = RESULTS / f"{argv[0]}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(kept, indent=1) + "\n")
    print(path)


def run(made: Made, folder: Path) -> Json:
    """Run the command on a folder; what it took.

    Raises:
        CalledProcessError: it failed.
    """
    command = [sys.executable, "-m", "hfsae", made.verb, str(folder), *shlex.split(made.options)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, bytes
    return {"cpu_seconds": round(seconds, 1), "peak_memory_bytes": after.ru_maxrss * unit}


def _machine() -> str:
    return name_of(torch.device("cpu"))


if __name__ == "__main__":
    main(sys.argv[1:])
