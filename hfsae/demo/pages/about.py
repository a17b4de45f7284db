"""The model card, and what was loaded."""

import re
from typing import Any

from ...machine.units import ROW, Unit
from .. import address as at
from ..actions import Actions
from ..parts import html, markdown, panel
from .page import Page

_FRONT = re.compile(r"\A---\n.*?^---\n", re.DOTALL | re.MULTILINE)
_FIGURES = re.compile(r"^## Figures$.*?(?=^## |\Z)", re.DOTALL | re.MULTILINE)


class AboutPage(Page[at.About]):
    """The card, under the names of the SAE and its language model; it has no fields."""

    title = "About"
    state = at.About

    def __init__(self, actions: Actions) -> None:
        super().__init__(actions)
        self.notice = panel()
        view = actions.about()
        unit = self.subject.unit
        panel(html("notes", view | {"facts": _facts(view, unit), "unit": unit}))
        card = f'<div class="hf-card prose">{shown_card(self.subject.card)}</div>'
        panel(card, elem_id="about-card")


def shown_card(card: str) -> str:
    """The card as the page shows it: without front matter and pictures (Health has the charts)."""
    card = card or "This SAE comes without a card."
    return markdown(_FIGURES.sub("", _FRONT.sub("", card.replace("\r\n", "\n"))))


def _facts(view: dict[str, Any], unit: Unit) -> list[dict[str, str]]:
    model = {"name": "language model", "value": view["model"] or "unknown", "note": ""}
    if unit == ROW:
        model = {"name": "reads", "value": "files of activations", "note": "no model"}
    elif not unit.is_text:
        model["name"] = "model"
    return [
        {"name": "SAE", "value": view["name"], "note": view["kind"]},
        {"name": "latents", "value": f"{view['d_sae']:,}", "note": f"on {view['d_in']:,} numbers"},
        model,
        {"name": "site", "value": view["site"] or "unknown", "note": view["model_origin"] or ""},
    ]
