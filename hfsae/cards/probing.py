"""The facts on probing in a card, the app and a comparison: how well a few latents tell two classes
of texts apart, and absorption and uniformity, beside untrained latents."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..machine.checksums import of_others
from ..machine.files import read_json, reading
from ..machine.names import EVALUATION, PROBING
from .names import interval_text

Json = dict[str, Any]
_FEW = 10  # tasks
_CONTROLS = {"untrained": "untrained", "dimensions": "model's dimensions"}
_ABSORPTION = {
    "full": "first-letter absorption, full",
    "fraction": "first-letter absorption, fraction",
    "f1_of_main": "F1 of a letter's main latents",
}


def probing_section(folder: Path, evaluation: Json | None = None) -> Json:
    """The facts of a section on probing; empty without a probing of the folder's weights.

    `rows` has one for each k: mean AUC over tasks of the latents, of untrained latents and of the
    model's own dimensions, the paired gain over untrained latents with a 95 % interval, and in
    words what it shows: nothing where it holds 0, nor from few tasks, as their bootstrap is too
    narrow. `measures` has a row for each formula of absorption and for uniformity, where they were
    measured: of the latents, of untrained ones, and over how many letters or tokens. `notes` has
    sentences on them: the limits of these measures, or why there are none.

    Args:
        evaluation: the content of evaluation.json; it stands in for a missing probing.json.

    Raises:
        ValueError: a file is damaged, or of an older version; the sentence names it.
    """
    path = folder / PROBING
    if path.is_file():
        record = {} if any(of_others(folder, [PROBING])) else read_json(path)
    else:
        path, record = folder / EVALUATION, (evaluation or {}).get("probing") or {}
    if not record:
        return {}
    with reading(path):
        return probing_facts(record)


def probing_facts(record: Json) -> Json:
    """The same from a record of probing."""
    own = [entry for entry in record["means"] if entry["features"] == record["sae"]]
    return {
        "n_tasks": len(record["tasks"]),
        "n_texts": sum(record["tasks"].values()),
        "tasks_of": record["tasks_of"],
        "rows": [_row(record, entry) for entry in own],
        "measures": [*_absorption(record), *_uniformity(record)],
        "notes": [*_about_absorption(record), *_about_uniformity(record)],
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


def _auc(record: Json, kind: str, k: int | None) -> str:
    """Of the control for this SAE and its site, or of all."""
    of = {"", record["sae"], record["site"]}
    entries = (e for e in record["means"] if (e["features"], e["k"]) == (kind, k))
    return next((interval_text(e["auc"]) for e in entries if e["of"] in of), "-")


def _own_absorption(record: Json) -> tuple[Json, Json]:
    """The rows of the SAE and of its untrained latents; empty where there are none."""
    rows = record.get("absorption", {}).get("rows", [])
    by_kind = {(row["features"], row["of"]): row for row in rows}
    own = by_kind.get((record["sae"], ""), {})
    return own, by_kind.get(("untrained", record["sae"]), {})


def _absorption(record: Json) -> Iterator[Json]:
    own, control = _own_absorption(record)
    if not own or "refused" in own:
        return
    n = len(own["letters"]) if "letters" in own else own["n_letters"]
    for key, title in _ABSORPTION.items():
        values = {"own": interval_text(own[key]), "untrained": interval_text(control[key])}
        yield {"title": title, **values, "over": f"{n} letters"}


def _about_absorption(record: Json) -> Iterator[str]:
    own, _ = _own_absorption(record)
    if "refused" in own:
        yield f"First-letter absorption: no figures, since {own['refused']}."
    elif own:
        caution = record["absorption"]["caution"]
        yield f"First-letter absorption by both formulas of SAEBench. {caution}."


def _own_uniformity(record: Json) -> Json:
    return record.get("uniformity", {}).get("saes", {}).get(record["sae"], {})


def _uniformity(record: Json) -> Iterator[Json]:
    if own := _own_uniformity(record):
        control = interval_text(own["untrained"]) if "untrained" in own else "-"
        values = {"own": interval_text(own["mean"]), "untrained": control}
        yield {"title": "uniformity of effects", **values, "over": f"{own['n_tokens']} tokens"}


def _about_uniformity(record: Json) -> Iterator[str]:
    if _own_uniformity(record):
        yield (
            "Uniformity of effects (Gemma Scope D.5): 1 where all latents that fire "
            "on a token matter equally to its prediction, near 1 / L0 where only one "
            "does. A more even SAE is not better: effects of random directions are "
            "even, too."
        )
