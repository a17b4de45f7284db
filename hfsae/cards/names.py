"""A card's facts on names for latents: how many there are, and their scores."""

import logging
from pathlib import Path
from typing import Any

from ..activations import held_out_sentence, is_held_out
from ..io.checksums import of_others
from ..io.file_names import EXPLANATIONS, EXPLANATIONS_RECORD, LABELS
from ..io.files import printable, read_json, read_table
from ..io.labels import labels_in
from ..io.local_paths import public

logger = logging.getLogger(__name__)
Json = dict[str, Any]
_LEXICAL = ("pearson", "auprc", "auc")
_CONTROLS = {"shuffled": "another latent's", "direction": "random directions"}
_UNTRAINED = "untrained"
_NONE: list[float | None] = [None, None, None]


def names_section(folder: Path) -> Json:
    """The facts of a card's section on names; empty without names for the folder's weights.

    `n_names` latents have a name, `n_scored` of them scores: `scores` has a row for each, with its
    mean, the mean weighted by how often latents fire, that of its control, their difference with a
    95 % interval, and whether it lies above 0; and the means of random directions and of latents of
    re-drawn weights, where they were scored. `headline` is a sentence on detection, where a judge
    was asked. `are_held_out` is whether the `documents` are known not to have been trained on,
    `why` a sentence on that, where it is not said by the SAE's own split.
    """
    path = folder / EXPLANATIONS_RECORD
    if not path.is_file() or any(of_others(folder, [EXPLANATIONS_RECORD, EXPLANATIONS])):
        return {}
    record = read_json(path)
    if not {"scores", "unscored"} & {*record}:
        return {}  # a plan alone
    n_scored, text = record.get("n_latents", 0), record.get("text") or {}
    n_stored, n_untested = (record.get(f"n_{key}", 0) for key in ("stored_names", "named_untested"))
    return {
        "n_names": n_scored - record.get("n_unexplained", 0) + n_stored + n_untested,
        "n_scored": n_scored,
        "n_stored": n_stored + n_untested,
        "n_by_template": n_stored,
        "explainer": record["explainer"],
        "unscored": record.get("unscored"),
        "documents": record.get("n_documents", {}),
        "text": public(text.get("dataset", ""), "dataset"),
        "are_held_out": is_held_out(text),
        "why": held_out_sentence(text),
        "scores": _scores(record.get("scores", {}), record.get(_UNTRAINED, {}), n_scored),
        "are_drawn": record["arguments"]["latents"] is None
        and record["arguments"]["n_latents"] != "all",
        "judge": record.get("judge", {}).get("model", ""),
        "headline": _headline(record),
    }


def _headline(record: Json) -> str:
    """A sentence on how well a judge who reads only a name recognises its latent's texts; ""
    without a judge."""
    judged = record.get("scores", {}).get("detection", {})
    if not judged.get("headline") or judged["difference_from"] != "shuffled":
        return ""
    means = judged["uniform"][judged["headline"]]
    own, other, difference = (means[key] for key in ("own", "shuffled", "difference"))
    weighted = judged["by_frequency"][judged["headline"]]
    if own[0] is None or difference[1] is None:
        return ""
    drawn = record.get(_UNTRAINED, {}).get("detection", {}).get(judged["headline"], {})
    control = f" (latents of re-drawn weights: {drawn['untrained'][0]:.3f})" if drawn else ""
    return (
        f"Given a latent's own name, {record['judge']['model']} tells texts in which it fires from "
        f"others with an AUC of {own[0]:.3f} ({weighted['own'][0]:.3f} with latents weighted by "
        f"how often they fire); given another latent's name, of {other[0]:.3f} "
        f"({weighted['shuffled'][0]:.3f}): {difference[0]:.3f} [{difference[1]:.3f}, "
        f"{difference[2]:.3f}] more{control}, over "
        f"{judged.get('n_latents', record['n_latents'])} latents"
        f"{'' if difference[1] > 0 else ': this judge cannot tell them apart'}"
    )


def _scores(scores: Json, untrained: Json, n_scored: int) -> list[Json]:
    """A row for each metric: of a judge's score its headline, where few enough answers failed for
    one, and balanced accuracy."""
    rows = []
    for name, of in sorted(scores.items(), key=lambda item: item[0] == "lexical"):
        is_lexical, means = name == "lexical", of["uniform"]
        judged = (of["headline"], "balanced_accuracy") if of.get("headline") else ()
        metrics = _LEXICAL if is_lexical else [metric for metric in judged if metric in means]
        control = "shuffled" if is_lexical else of["difference_from"]
        n = of.get("n_latents", n_scored)
        for metric in metrics:
            title = metric if is_lexical else f"{name}, {metric.replace('_', ' ')}"
            mean, low = means[metric], means[metric]["difference"][1]
            redrawn = untrained.get(name, {}).get(metric, {}).get(_UNTRAINED)
            directions = None if control == "direction" else mean.get("direction")
            other = f"{interval_text(mean[control])} ({_CONTROLS.get(control, control)})"
            rows.append(
                {
                    "title": title + (f" ({n} of them)" if n < n_scored else ""),
                    "own": interval_text(mean["own"]),
                    "control": other,
                    "difference": interval_text(mean["difference"]),
                    "is_told_apart": low is not None and low > 0,
                    "directions": interval_text(directions or _NONE),
                    "untrained": interval_text(redrawn or _NONE),
                    "weighted": interval_text(of["by_frequency"][metric]["own"]),
                }
            )
    return rows


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
