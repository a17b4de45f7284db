"""What a card and the app tell of probing: how well a few latents tell two classes apart."""

from pathlib import Path
from typing import Any

from ..machine.files import read_json
from ..machine.names import PROBING
from ..machine.weights import of_others
from .names import interval_text

Json = dict[str, Any]
_CONTROLS = {"untrained": "untrained", "dimensions": "model's dimensions"}


def probing_section(folder: Path) -> Json:
    """The facts of a section on probing; empty without a probing of the folder's weights.

    `rows` has one for each k: mean AUC over tasks of the latents, of untrained latents and of the
    model's own dimensions, the paired gain over untrained latents with a 95 % interval, and whether
    it lies above 0.
    """
    path = folder / PROBING
    if not path.is_file() or any(of_others(folder, [PROBING])):
        return {}
    record = read_json(path)
    own = [entry for entry in record["means"] if entry["features"] == record["sae"]]
    return {
        "n_tasks": len(record["tasks"]),
        "n_texts": sum(record["tasks"].values()),
        "tasks_of": record["tasks_of"],
        "rows": [_row(record, entry) for entry in own],
    }


def _row(record: Json, own: Json) -> Json:
    auc = {name: _auc(record, kind, own["k"]) for name, kind in _CONTROLS.items()}
    gain = own["auc_above_untrained"]
    return {
        "k": own["k"],
        "own": interval_text(own["auc"]),
        "gain": interval_text(gain),
        "is_above": gain[1] is not None and gain[1] > 0,
        **auc,
    }


def _auc(record: Json, kind: str, k: Any) -> str:
    """Of the control for this SAE and its site, or of all."""
    of = {"", record["sae"], record["site"]}
    entries = (e for e in record["means"] if (e["features"], e["k"]) == (kind, k))
    return next((interval_text(e["auc"]) for e in entries if e["of"] in of), "-")
