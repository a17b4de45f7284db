"""The facts on foreign texts in a card, the app and the command, beside the held-out text."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..activations import held_out_sentence
from ..machine.files import reading
from ..machine.names import EVALUATION
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
    with reading(folder / EVALUATION):
        return {
            "rows": [_row(_own_name(evaluation), evaluation), *(_row(*t) for t in texts.items())],
            "sources": "; ".join(_source(name, text) for name, text in texts.items()),
            "warnings": [
                *(s for key in _COMPARED for s in _far_above(key, evaluation, texts)),
                *_far_l0(l0_goal(config), texts),
            ],
        }


def _own_name(evaluation: Json) -> str:
    """Of the text that the other metrics are of."""
    if measured := evaluation.get("measured_with"):
        return str(measured["text"]["dataset"])
    return "validation" if evaluation.get("side") == "validation" else "held-out"


def _row(name: str, text: Json) -> Json:
    cells = {key: _cell(text["metrics"][key]) for key in COLUMNS}
    return {"name": str(name), "n_tokens": int(text["n_tokens"]), **cells}


def _cell(metric: Json) -> str:
    value, low, high = (metric[key] for key in ("value", "low", "high"))
    if value is None:
        return "-"
    return f"{value:.3g}" + (f", {low:.3g} to {high:.3g}" if low is not None else "")


def _source(name: str, text: Json) -> str:
    licence = f", licence {text['licence']}" if text.get("licence") else ""
    why = held_out_sentence(text)
    about = f"{name}: {text['dataset']}, {int(text['n_documents']):,} documents{licence}"
    return f"{about} ({why[0].lower()}{why[1:]})" if why else about


def _far_above(key: str, evaluation: Json, texts: Json) -> Iterator[str]:
    own = evaluation["metrics"][key]
    limit, value = _end(own, "high"), own["value"]
    if not limit or not value or min(limit, value) < 0:  # a multiple of it says nothing
        return
    others = ((name, text["metrics"][key]) for name, text in texts.items())
    far = [
        f"{name} ({m['value']:.3g}, {m['value'] / value:.1f} times)"
        for name, m in others
        if (_end(m, "low") or 0) > FAR * limit
    ]
    if far:
        place = f"{value:.3g} of {_own_name(evaluation)} text"
        yield f"{_COMPARED[key]} is far above the {place} on {_listed(far)}"


def _end(metric: Json, side: str) -> float | None:
    """An end of the interval, or the value where there is one document and so no interval."""
    return metric["value"] if metric[side] is None else metric[side]


def _far_l0(target: int | float | None, texts: Json) -> Iterator[str]:
    values = {name: text["metrics"]["l0"]["value"] for name, text in texts.items()}
    far = [
        f"{name} ({l0:.1f}, {l0 / target - 1:+.0%})"
        for name, l0 in values.items()
        if target and abs(l0 / target - 1) > _FAR_L0
    ]
    if far:
        yield f"L0 is off its target of {target} on {_listed(far)}"


def _listed(parts: list[str]) -> str:
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last
