"""What a card tells of names for latents: how many there are, and how their scores came out."""

import logging
from pathlib import Path
from typing import Any

from ..machine.files import printable, read_json, read_table
from ..machine.labels import labels_in
from ..machine.names import EXPLANATIONS, EXPLANATIONS_RECORD, LABELS
from ..machine.weights import of_others

logger = logging.getLogger(__name__)
Json = dict[str, Any]
_LEXICAL = ("pearson", "auprc", "auc")
_CONTROLS = {"shuffled": "another latent's", "direction": "random directions"}


def names_section(folder: Path) -> Json:
    """The facts of a card's section on names; empty without names for the folder's weights.

    `n_names` latents have a name, `n_scored` of them scores: `scores` has a row for each, with its
    mean, that of its control, their difference with a 95 % interval, and whether it lies above 0.
    """
    path = folder / EXPLANATIONS_RECORD
    if not path.is_file() or any(of_others(folder, [EXPLANATIONS_RECORD, EXPLANATIONS])):
        return {}
    record = read_json(path)
    if not {"scores", "unscored"} & {*record}:
        return {}  # a plan alone
    n_scored = record.get("n_latents", 0)
    n_stored, n_untested = (record.get(f"n_{key}", 0) for key in ("stored_names", "named_untested"))
    return {
        "n_names": n_scored - record.get("n_unexplained", 0) + n_stored + n_untested,
        "n_scored": n_scored,
        "n_stored": n_stored + n_untested,
        "n_by_template": n_stored,
        "explainer": record["explainer"],
        "unscored": record.get("unscored"),
        "documents": record.get("n_documents", {}),
        "scores": _scores(record.get("scores", {}), n_scored),
        "are_drawn": record["arguments"]["latents"] is None
        and record["arguments"]["n_latents"] != "all",
        "judge": record.get("judge", {}).get("model", ""),
    }


def _scores(scores: Json, n_scored: int) -> list[Json]:
    lexical = scores.get("lexical", {}).get("uniform", {})
    rows = [_row(name, lexical[name], "shuffled") for name in _LEXICAL if name in lexical]
    for name, judged in scores.items():
        if name != "lexical" and judged["headline"]:
            means = judged["uniform"][judged["headline"]]
            title = f"{name}, {judged['headline'].replace('_', ' ')}"
            n = judged.get("n_latents", n_scored)
            title += f" ({n} of them)" if n < n_scored else ""
            rows.append(_row(title, means, judged["difference_from"]))
    return rows


def _row(title: str, means: Json, control: str) -> Json:
    low = means["difference"][1]
    return {
        "title": title,
        "own": interval_text(means["own"]),
        "control": f"{interval_text(means[control])} ({_CONTROLS.get(control, control)})",
        "difference": interval_text(means["difference"]),
        "is_told_apart": low is not None and low > 0,
    }


def interval_text(values: list[float | None]) -> str:
    """A mean with its interval; a dash where there is none."""
    value, low, high = values
    if value is None or low is None or high is None:
        return "-"
    return f"{value:.3f}, {low:.3f} to {high:.3f}"


def names_of(folder: Path, latents: list[int]) -> dict[int, str]:
    """Names of some latents: labels of people first, then "auto: ..." of explanations; those of
    other weights are left out, with a warning about labels."""
    names: dict[int, str] = {}
    if (folder / EXPLANATIONS).is_file() and names_section(folder):
        columns = ["latent", "explanation"]
        table = read_table(folder / EXPLANATIONS, columns, [("latent", "in", latents)])
        for row in table.to_pylist():
            if row["explanation"]:
                names[row["latent"]] = printable(f"auto: {row['explanation']}")
    if any(of_others(folder, [LABELS])):
        logger.warning("%s is of other weights: the card has no labels", folder / LABELS)
    elif (folder / LABELS).is_file():
        labels = labels_in(folder / LABELS).items()
        names |= {i: printable(label) for i, label in labels if label and i in latents}
    return names
