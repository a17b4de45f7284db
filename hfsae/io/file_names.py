"""Names of the files that hfsae writes: of a trained SAE, its run, and a comparison.

    runs/mine/  recipe.yaml  checkpoints/step-00001234.pt          of a run
                config.json  model.safetensors  training.json      of each of its SAEs, which lies
                log.jsonl  fingerprint.safetensors                 there or, of several, in a folder
                evaluation.json  probing.{json, md}  diff.json     of its own
                features/{meta.json, latents.parquet,
                examples.parquet, labels.json,
                explanations.{parquet, json, md},
                columns.{json, md}, calls.jsonl,
                pictures.parquet}
                figures/*.png
                README.md  presets.json  presets_search.json

Those of an SAE are paths below its folder. One from elsewhere that was measured has a recipe.yaml
of what its measures took.
"""

from pathlib import Path
from typing import NamedTuple

CONFIG = "config.json"
WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
SHARDS = "model-*.safetensors"
TRAINING, LOG = "training.json", "log.jsonl"
EVALUATION = "evaluation.json"
PROBING, PROBING_REPORT = "probing.json", "probing.md"
DIFF = "diff.json"
FINGERPRINT = "fingerprint.safetensors"
CARD = "README.md"
PRESETS, PRESETS_SEARCH = "presets.json", "presets_search.json"
FEATURES, FIGURES = "features", "figures"
META = f"{FEATURES}/meta.json"
LATENTS, EXAMPLES = f"{FEATURES}/latents.parquet", f"{FEATURES}/examples.parquet"
LABELS = f"{FEATURES}/labels.json"
COLUMNS, COLUMNS_REPORT = f"{FEATURES}/columns.json", f"{FEATURES}/columns.md"
COLLECTING = f"{FEATURES}/.collecting.safetensors"
EXPLANATIONS = f"{FEATURES}/explanations.parquet"
EXPLANATIONS_RECORD = f"{FEATURES}/explanations.json"
EXPLANATIONS_REPORT = f"{FEATURES}/explanations.md"
EVIDENCE = f"{FEATURES}/evidence.parquet"
PICTURES = f"{FEATURES}/pictures.parquet"
CALLS = f"{FEATURES}/calls.jsonl"

RECIPE = "recipe.yaml"
HARVEST, LABELS_TABLE = "harvest.json", "labels.csv"
CHECKPOINTS, STEPS = "checkpoints", "step-*.pt"
IN_USE, IN_USE_LOCK = ".in-use", ".in-use.lock"
"""While a process works in a folder: who it is, and its lock."""

DOCUMENTS = "documents.safetensors"
RESULTS, RESULT_TENSORS = "results.json", "results.safetensors"
REPORT, REPORT_PAGE = "report.md", "report.html"

STUDY_PLAN = "plan.json"
"""Beside requests to a judge: which latents are named, settled before the first answer."""
FOUND = "found*.safetensors"
"""Beside requests, what the pass over the text found: see `explanations.kept`."""


class Record(NamedTuple):
    """A file about an SAE's weights, which lies beside them."""

    file: str
    is_stamped: bool = True
    """it has the hash of the weights that it is about (`io.checksums`)"""
    is_sealed: bool = True
    """it has a hash of its own content (`io.checksums`)"""
    is_pushed: bool = True
    """it goes to the Hub with the SAE"""


RECORDS = (
    Record(TRAINING, is_sealed=False),
    Record(EVALUATION),
    Record(META),
    Record(FINGERPRINT, is_sealed=False),
    Record(PROBING),
    Record(DIFF),
    Record(COLUMNS),
    Record(EXPLANATIONS_RECORD, is_stamped=False),
    Record(CALLS, is_stamped=False, is_pushed=False),
)
"""What checks, pushes or copies records reads this list."""

MADE_BY = {EVALUATION: "evaluate", META: "collect", LATENTS: "collect", EXAMPLES: "collect"}
MADE_BY[PICTURES] = "collect"
MADE_BY |= dict.fromkeys((EXPLANATIONS, EXPLANATIONS_RECORD, EVIDENCE), "explain")
MADE_BY[PROBING] = "probe"
MADE_BY[DIFF] = "diff"
"""The verb that makes a file again."""


def shard_name(side: str, number: int) -> str:
    """The name of a file of harvested activations."""
    return f"{side}-{number:05}.safetensors"


def in_folder(path: Path) -> tuple[Path, str]:
    """The folder of the SAE that a file belongs to, and the file's name there."""
    home = path.parent.parent if path.parent.name == FEATURES else path.parent
    return home, path.relative_to(home).as_posix()
