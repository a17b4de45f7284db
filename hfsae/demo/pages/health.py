"""How good the SAE is, and its card."""

import re
from collections.abc import Callable
from typing import Any

import gradio as gr

from ...io.units import ROW, TOKEN, Unit
from .. import address as at
from .. import validate
from ..actions import Actions
from ..compare_saes import check_name
from ..how_to_make import how_to_make
from ..parts import html, markdown, number, panel, percent
from .page import App, Page, Updates, box

_FRONT = re.compile(r"\A---\n.*?^---\n", re.DOTALL | re.MULTILINE)
_FIGURES = re.compile(r"^## Figures$.*?(?=^## |\Z)", re.DOTALL | re.MULTILINE)
_TILES = {
    "l0": "L0",
    "fvu": "variance unexplained",
    "delta_loss": "loss added",
    "loss_recovered_zero": "loss recovered",
}
_TEXT_TILES = {
    "n_tokens": ("tokens", ""),
    "l0": ("L0", "latents a token"),
    "fvu": ("variance unexplained", "FVU"),
    "ce_clean": ("loss as it is", "nats a token"),
    "ce_spliced": ("loss on reconstructions", "nats a token"),
    "kl": ("KL", "nats a token"),
}


class HealthPage(Page[at.Health]):
    """Metrics and histograms, a text to measure, and another SAE to compare with."""

    title = "Health"
    state = at.Health

    def __init__(self, actions: Actions) -> None:
        super().__init__(actions)
        subject, lacking = self.subject, how_to_make(actions.subject, "evaluate")
        view = {**actions.health(), "missing": lacking, "unit": subject.unit}
        panel(overview_panel(view), elem_id="health-main")
        self.notice = panel()
        with gr.Row():
            if subject.unit.is_text:
                with gr.Column(min_width=320):
                    label = "Measure it on your own text"
                    self.text = self.field("text", gr.Textbox, label=label, **box(3))
                    self.run = gr.Button("Measure")
                    self.measured = panel(elem_id="health-measured")
            else:
                self.measured = panel()
            with gr.Column(min_width=320):
                folder = "" if subject.label_home is None else ", or a folder"
                self.versus = self.field(
                    "versus",
                    gr.Textbox,
                    label="Compare with another SAE",
                    placeholder=f"name/repository{folder}",
                )
                self.compare = gr.Button("Compare")
                self.comparison = panel(elem_id="health-comparison")
        self.outputs = (self.measured, self.comparison)

    def render(self, address: at.Health) -> Updates:
        """The metrics on a text, and the other SAE's numbers; or why there are none."""
        measured = compared = ""
        try:
            if address.text:
                metrics, facts = self.actions.measure(address.text), []
                for key, (name, note) in _TEXT_TILES.items():
                    value = "-" if metrics[key] is None else number(metrics[key])
                    facts.append({"name": name, "value": value, "note": note})
                measured = html("measured", {"facts": facts})
        except ValueError as error:
            measured = html("error", str(error))
        try:
            if address.versus:
                view = self.actions.compare_saes(address.versus)
                compared = html("versus", {**view, "unit": self.subject.unit})
        except ValueError as error:
            compared = html("error", str(error))
        return {self.measured: measured, self.comparison: compared}

    def wire(self, app: App) -> None:
        """Each button fills its own panel."""
        if self.subject.unit.is_text:
            measure = [self.run.click, self.text.submit]
            app.on(measure, self._measure, self, progress_on=[self.measured])
        app.on(
            [self.compare.click, self.versus.submit],
            self._compare,
            self,
            progress_on=[self.comparison],
        )

    def _measure(self, *values: object) -> at.Health:
        address = self.address(*values)
        validate.text(address.text)  # there has to be one
        return address

    def _compare(self, *values: object) -> at.Health:
        address = self.address(*values)
        check_name(address.versus)
        return address


def overview_panel(view: dict[str, Any]) -> str:
    """HTML of a view of `health`: metrics, histograms, and what probing showed."""
    unit: Unit = view.setdefault("unit", TOKEN)
    metrics = {m["name"]: m for m in view["metrics"]}
    facts = [
        {"name": name, "value": number(metrics[key]["value"]), "note": metrics[key]["unit"]}
        for key, name in _TILES.items()
        if key in metrics
    ]
    if view["dead"] is not None and view["counted_on"]:
        note = f"of {view['d_sae']:,}, on {view['counted_on']:,} {unit.many}"
        facts.append({"name": "never fired", "value": f"{view['dead']:,}", "note": note})
    charts = [
        _chart(f"Latents on a {unit.one}", view["l0"], unit.many, lambda x: f"{x:g}"),
        _chart(
            "How often latents fire",
            view["density"],
            "latents",
            lambda exponent: percent(min(1.0, 10**exponent)),
        ),
        _chart("Thresholds, raw units", view["thresholds"], "latents", number),
    ]
    return html("health", {**view, "facts": facts, "charts": [c for c in charts if c["bars"]]})


def _chart(
    title: str, bins: list[dict[str, Any]], what: str, name: Callable[[float], str]
) -> dict[str, Any]:
    most = max((b["count"] for b in bins), default=1) or 1
    bars = [
        {
            "share": b["count"] / most,
            "title": f"{name(b['low'])} to {name(b['high'])}: {b['count']:,} {what}",
        }
        for b in bins
    ]
    low, high = (name(bins[0]["low"]), name(bins[-1]["high"])) if bins else ("", "")
    note = f"tallest: {most:,} {what}"
    return {"title": title, "bars": bars, "low": low, "high": high, "note": note}


class AboutPage(Page[at.About]):
    """The card, under the names of the SAE and its language model; it has no fields."""

    title = "About"
    state = at.About

    def __init__(self, actions: Actions) -> None:
        super().__init__(actions)
        self.notice = panel()
        view, unit = actions.about(), self.subject.unit
        model = ("language model" if unit.is_text else "model", view["model"] or "unknown", "")
        facts = [
            ("SAE", view["name"], view["kind"]),
            ("latents", f"{view['d_sae']:,}", f"on {view['d_in']:,} numbers"),
            ("reads", "files of activations", "no model") if unit == ROW else model,
            ("site", view["site"] or "unknown", view["model_origin"] or ""),
        ]
        tiles = [{"name": name, "value": value, "note": note} for name, value, note in facts]
        panel(html("notes", view | {"facts": tiles, "unit": unit}))
        card = f'<div class="hf-card prose">{card_html(self.subject.card)}</div>'
        panel(card, elem_id="about-card")


def card_html(card: str) -> str:
    """The card as the page shows it: without front matter and pictures (Health has the charts)."""
    card = card or "This SAE comes without a card."
    return markdown(_FIGURES.sub("", _FRONT.sub("", card.replace("\r\n", "\n"))))
