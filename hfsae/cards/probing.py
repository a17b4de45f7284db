"""What a card and the app tell of probing: how well a few latents tell two classes apart."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..machine.files import read_json, reading
from ..machine.names import PROBING
from ..machine.weights import of_others
from .names import interval_text

Json = dict[str, Any]
_FEW = 10  # tasks
_CONTROLS = {"untrained": "untrained", "dimensions": "model's dimensions"}


def probing_section(folder: Path) -> Json:
    """The facts of a section on probing; empty without a probing of the folder's weights.

    `rows` has one for each k: mean AUC over tasks of the latents, of untrained latents and of the
    model's own dimensions, the paired gain over untrained latents with a 95 % interval, and in
    words what it shows: nothing where it holds 0, nor from few tasks, as their bootstrap is too
    narrow. `notes` has a line for absorption and one for uniformity, where they were measured.

    Raises:
        ValueError: the file is damaged, or of an older version; the sentence names it.
    """
    path = folder / PROBING
    if not path.is_file() or any(of_others(folder, [PROBING])):
        return {}
    record = read_json(path)
    with reading(path):
        own = [entry for entry in record["means"] if entry["features"] == record["sae"]]
        return {
            "n_tasks": len(record["tasks"]),
            "n_texts": sum(record["tasks"].values()),
            "tasks_of": record["tasks_of"],
            "rows": [_row(record, entry) for entry in own],
            "notes": [*_absorption(record), *_uniformity(record)],
        }


def _row(record: Json, own: Json) -> Json:
    auc = {name: _auc(record, kind, own["k"]) for name, kind in _CONTROLS.items()}
    gain = own["auc_above_untrained"]
    return {
        "k": own["k"],
        "own": interval_text(own["auc"]),
        "gain": interval_text(gain),
        "shown": _shown(gain, own["n_tasks"]),
        **auc,
    }


def _shown(gain: list[float | None], n_tasks: int) -> str:
    _, low, high = gain
    if n_tasks < _FEW:
        return "too few tasks to tell"
    if low is not None and low > 0:
        return "above"
    return "below" if high is not None and high < 0 else "no difference shown"


def _auc(record: Json, kind: str, k: Any) -> str:
    """Of the control for this SAE and its site, or of all."""
    of = {"", record["sae"], record["site"]}
    entries = (e for e in record["means"] if (e["features"], e["k"]) == (kind, k))
    return next((interval_text(e["auc"]) for e in entries if e["of"] in of), "-")


def _absorption(record: Json) -> Iterator[str]:
    absorption = record.get("absorption")
    if not absorption:
        return
    rows = {(row["features"], row["of"]): row for row in absorption["rows"]}
    own = rows[record["sae"], ""]
    if "refused" in own:
        yield f"First-letter absorption: no figures, since {own['refused']}."
        return
    control = rows["untrained", record["sae"]]
    parts = (
        f"{name} {interval_text(own[key])}, of untrained latents {interval_text(control[key])}"
        for name, key in (("full", "full"), ("fraction", "fraction"), ("F1", "f1_of_main"))
    )
    yield (
        f"First-letter absorption over {len(own['letters'])} letters: {'; '.join(parts)}. "
        f"{absorption['caution']}."
    )


def _uniformity(record: Json) -> Iterator[str]:
    if own := record.get("uniformity", {}).get("saes", {}).get(record["sae"]):
        yield (
            f"Uniformity of effects (Gemma Scope D.5): {interval_text(own['mean'])} over "
            f"{own['n_tokens']} tokens; 1 where all firing latents matter equally."
        )
