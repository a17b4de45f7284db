"""The facts on foreign texts in a card, the app and the command, beside the held-out text."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..activations import held_out_sentence
from ..io.file_names import EVALUATION
from ..io.files import reading
from ..models.config import l0_goal

Json = dict[str, Any]
COLUMNS = {"l0": "L0", "fvu": "FVU", "delta_loss": "delta loss", "kl": "KL"}
"""The metrics of each text, by name; the last two in nats/token."""
FAR = 1.5
"""FVU or delta loss is far above the held-out one if its interval's lower end is above this many
times the other's upper end."""
_COMPARED = {"fvu": "FVU", "delta_loss": "Delta loss"}
_FAR_L0 = 0.12  # relative distance from the target; held-out texts stay within a few per cent


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
        return {
            "rows": [_row(name, evaluation), *(_row(*text) for text in texts.items())],
            "sources": "; ".join(_source(*text) for text in texts.items()),
            "warnings": list(_warnings(name, config, evaluation, texts)),
        }


def _row(name: str, text: Json) -> Json:
    cells = {}
    for key in COLUMNS:
        value, low, high = (text["metrics"][key][part] for part in ("value", "low", "high"))
        interval = f", {low:.3g} to {high:.3g}" if low is not None else ""
        cells[key] = "-" if value is None else f"{value:.3g}{interval}"
    return {"name": str(name), "n_tokens": int(text["n_tokens"]), **cells}


def _source(name: str, text: Json) -> str:
    licence = f", licence {text['licence']}" if text.get("licence") else ""
    why = held_out_sentence(text)
    about = f"{name}: {text['dataset']}, {int(text['n_documents']):,} documents{licence}"
    return f"{about} ({why[0].lower()}{why[1:]})" if why else about


def _warnings(own_name: str, config: Json, evaluation: Json, texts: Json) -> Iterator[str]:
    for key, title in _COMPARED.items():
        own = evaluation["metrics"][key]
        limit, value = _end(own, "high"), own["value"]
        if not limit or not value or min(limit, value) < 0:  # a multiple of it says nothing
            continue
        others = {name: text["metrics"][key] for name, text in texts.items()}
        far = [
            f"{name} ({m['value']:.3g}, {m['value'] / value:.1f} times)"
            for name, m in others.items()
            if (_end(m, "low") or 0) > FAR * limit
        ]
        if far:
            place = f"{value:.3g} of {own_name} text"
            yield f"{title} is far above the {place} on {_listed(far)}"
    target = l0_goal(config)
    far = [
        f"{name} ({l0:.1f}, {l0 / target - 1:+.0%})"
        for name, l0 in ((name, text["metrics"]["l0"]["value"]) for name, text in texts.items())
        if target and abs(l0 / target - 1) > _FAR_L0
    ]
    if far:
        yield f"L0 is off its target of {target} on {_listed(far)}"


def _end(metric: Json, side: str) -> float | None:
    """An end of the interval, or the value where there is one document and so no interval."""
    return metric["value"] if metric[side] is None else metric[side]


def _listed(parts: list[str]) -> str:
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last
