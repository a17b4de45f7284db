"""The facts of a card's sections, from the records in an SAE's folder, for a card, the app and the
commands: names for latents, labels of documents, probing, and texts unlike the training text.
"""

import logging
from pathlib import Path
from typing import Any

from ..activations import held_out_sentence, is_held_out
from ..io import file_names
from ..io.checksums import of_others
from ..io.file_names import EVALUATION, EXPLANATIONS, EXPLANATIONS_RECORD, LABELS, PROBING
from ..io.files import printable, read_json, read_table, reading
from ..io.labels import association_cells, labels_in, too_few_to_tell
from ..io.local_paths import public
from ..models.config import l0_goal

logger = logging.getLogger(__name__)
Json = dict[str, Any]
COLUMNS = {"l0": "L0", "fvu": "FVU", "delta_loss": "delta loss", "kl": "KL"}
"""The metrics of each text, by name; the last two in nats/token."""
FAR = 1.5
"""FVU or delta loss is far above the held-out one if its interval's lower end is above this many
times the other's upper end."""
_COMPARED = {"fvu": "FVU", "delta_loss": "Delta loss"}
_FAR_L0 = 0.12  # relative distance from the target; held-out texts stay within a few per cent
_LEXICAL = ("pearson", "auprc", "auc")
_CONTROLS_OF_NAMES = {"shuffled": "another latent's", "direction": "random directions"}
_UNTRAINED = "untrained"
_NONE: list[float | None] = [None, None, None]
_MOST_LABELS = 12
_FEW = 10  # tasks
_CONTROLS = {"untrained": "untrained", "dimensions": "model's dimensions"}
_ABSORPTION = {
    "full": "first-letter absorption, full",
    "fraction": "first-letter absorption, fraction",
    "f1_of_main": "F1 of a letter's main latents",
}


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
    rows, untrained = [], record.get(_UNTRAINED, {})
    scores = record.get("scores", {})
    for name, of in sorted(scores.items(), key=lambda item: item[0] == "lexical"):
        # of a judge's score its headline, where few enough answers failed for one
        is_lexical, means = name == "lexical", of["uniform"]
        judged = (of["headline"], "balanced_accuracy") if of.get("headline") else ()
        control = "shuffled" if is_lexical else of["difference_from"]
        n = of.get("n_latents", n_scored)
        for metric in _LEXICAL if is_lexical else [one for one in judged if one in means]:
            title = metric if is_lexical else f"{name}, {metric.replace('_', ' ')}"
            mean, low = means[metric], means[metric]["difference"][1]
            redrawn = untrained.get(name, {}).get(metric, {}).get(_UNTRAINED)
            directions = None if control == "direction" else mean.get("direction")
            other = f"{interval_text(mean[control])} ({_CONTROLS_OF_NAMES.get(control, control)})"
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
        "scores": rows,
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


def labels_section(folder: Path) -> Json:
    """The facts of a card's section on labels; empty without a table for the folder's weights.

    `rows`: of each label (the first 12) its name, the measure, the best latent and the best raw
    dimension, each with its value on held-out documents; `n`: how many there are; `by`: what a
    label is of, a document or a row; `n_units`, `n_documents`: how many of them were read; `few`:
    a sentence where they are too few.

    Raises:
        ValueError: features/columns.json is damaged; the sentence names it.
    """
    path = folder / file_names.COLUMNS
    if not path.is_file() or any(of_others(folder, [file_names.COLUMNS])):
        return {}
    record = read_json(path)
    with reading(path):
        if not (found := record["associations"]):
            return {}
        return {
            "rows": [association_cells(each)[:-1] for each in found[:_MOST_LABELS]],
            "n": len(found),
            "by": str(record["by"]),
            "n_units": int(record["n_units"]),
            "n_documents": int(record["n_documents"]),
            "few": too_few_to_tell(int(record["n_documents"])),
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


def texts_section(folder: Path, config: Json, evaluation: Json) -> Json:
    """The facts of a section on foreign texts; empty if the evaluation has none.

    `rows`: the held-out text, then each foreign one, with its name, tokens and documents, and a
    value with its 95 % interval for each of `COLUMNS`; `sources`: where each comes from, in words;
    `warnings`: sentences on texts where FVU or delta loss is far above the held-out one, or L0 off
    its target.

    Raises:
        ValueError: evaluation.json is damaged; the sentence names it.
    """
    texts = evaluation.get("texts")
    if not texts:
        return {}
    name = "validation" if evaluation.get("side") == "validation" else "held-out"
    with reading(folder / EVALUATION):
        if measured := evaluation.get("measured_with"):
            name = str(measured["text"]["dataset"])  # that the other metrics are of
        sources, warnings = [], []
        for other, text in texts.items():
            licence = f", licence {text['licence']}" if text.get("licence") else ""
            about = f"{other}: {text['dataset']}, {int(text['n_documents']):,} documents{licence}"
            why = held_out_sentence(text)
            sources.append(f"{about} ({why[0].lower()}{why[1:]})" if why else about)
        for key, title in _COMPARED.items():
            own = evaluation["metrics"][key]
            limit, value = _end(own, "high"), own["value"]
            if not limit or not value or min(limit, value) < 0:  # a multiple of it says nothing
                continue
            others = {other: text["metrics"][key] for other, text in texts.items()}
            far = [
                f"{other} ({m['value']:.3g}, {m['value'] / value:.1f} times)"
                for other, m in others.items()
                if (_end(m, "low") or 0) > FAR * limit
            ]
            if far:
                place = f"{value:.3g} of {name} text"
                warnings.append(f"{title} is far above the {place} on {_listed(far)}")
        target = l0_goal(config)
        l0s = {other: text["metrics"]["l0"]["value"] for other, text in texts.items()}
        far = [
            f"{other} ({l0:.1f}, {l0 / target - 1:+.0%})"
            for other, l0 in l0s.items()
            if target and abs(l0 / target - 1) > _FAR_L0
        ]
        if far:
            warnings.append(f"L0 is off its target of {target} on {_listed(far)}")
        return {
            "rows": [_row(name, evaluation), *(_row(*text) for text in texts.items())],
            "sources": "; ".join(sources),
            "warnings": warnings,
        }


def _row(name: str, text: Json) -> Json:
    cells = {}
    for key in COLUMNS:
        value, low, high = (text["metrics"][key][part] for part in ("value", "low", "high"))
        interval = f", {low:.3g} to {high:.3g}" if low is not None else ""
        cells[key] = "-" if value is None else f"{value:.3g}{interval}"
    return {"name": str(name), "n_tokens": int(text["n_tokens"]), **cells}


def _end(metric: Json, side: str) -> float | None:
    """An end of the interval, or the value where there is one document and so no interval."""
    return metric["value"] if metric[side] is None else metric[side]


def _listed(parts: list[str]) -> str:
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last
