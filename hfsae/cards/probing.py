"""The facts on probing in a card, the app and a comparison: how well a few latents tell two classes
of texts apart, and absorption and uniformity, beside untrained latents."""

from pathlib import Path
from typing import Any

from ..io.checksums import of_others
from ..io.file_names import EVALUATION, PROBING
from ..io.files import read_json, reading
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
    sae = record["sae"]
    rows = []
    for own in (entry for entry in record["means"] if entry["features"] == sae):
        _, low, high = gain = own["auc_above_untrained"]
        if own["n_tasks"] < _FEW:
            shown = "too few tasks to tell"
        elif low is not None and low > 0:
            shown = "above"
        else:
            shown = "below" if high is not None and high < 0 else "no difference shown"
        auc = {"own": interval_text(own["auc"]), "gain": interval_text(gain), "shown": shown}
        for name, kind in _CONTROLS.items():  # of the control for this SAE and its site, or of all
            entries = (e for e in record["means"] if (e["features"], e["k"]) == (kind, own["k"]))
            ours = (e["auc"] for e in entries if e["of"] in {"", sae, record["site"]})
            auc[name] = next(map(interval_text, ours), "-")
        rows.append({"k": own["k"], **auc})
    measures, notes = [], []
    absorption = record.get("absorption", {})
    by_kind = {(row["features"], row["of"]): row for row in absorption.get("rows", [])}
    own, control = by_kind.get((sae, ""), {}), by_kind.get(("untrained", sae), {})
    if "refused" in own:
        notes.append(f"First-letter absorption: no figures, since {own['refused']}.")
    elif own:
        n = len(own["letters"]) if "letters" in own else own["n_letters"]
        for key, title in _ABSORPTION.items():
            values = {"own": interval_text(own[key]), "untrained": interval_text(control[key])}
            measures.append({"title": title, **values, "over": f"{n} letters"})
        notes.append(
            f"First-letter absorption by both formulas of SAEBench. {absorption['caution']}."
        )
    if own := record.get("uniformity", {}).get("saes", {}).get(sae, {}):
        untrained = interval_text(own["untrained"]) if "untrained" in own else "-"
        values = {"own": interval_text(own["mean"]), "untrained": untrained}
        over = f"{own['n_tokens']} tokens"
        measures.append({"title": "uniformity of effects", **values, "over": over})
        notes.append(
            "Uniformity of effects (Gemma Scope D.5): 1 where all latents that fire "
            "on a token matter equally to its prediction, near 1 / L0 where only one "
            "does. A more even SAE is not better: effects of random directions are "
            "even, too."
        )
    return {
        "n_tasks": len(record["tasks"]),
        "n_texts": sum(record["tasks"].values()),
        "tasks_of": record["tasks_of"],
        "rows": rows,
        "measures": measures,
        "notes": notes,
    }
