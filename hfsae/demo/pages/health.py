"""How good the SAE is, alone and beside another; and its card."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gradio as gr

from ...io.units import ROW, TOKEN, Unit
from .. import address as at
from .. import validate
from ..actions import Actions
from ..health_actions import check_name, sae_choices
from ..parts import bars_of, html, markdown, number, panel, percent
from ..presets import TEXTS
from ..subject import how_to_make
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
    """Metrics and histograms, and a text to measure."""

    title = "Health"
    state = at.Health

    def __init__(self, actions: Actions) -> None:
        super().__init__(actions)
        subject, lacking = self.subject, how_to_make(actions.subject, "evaluate")
        view = {**actions.health(), "missing": lacking, "unit": subject.unit}
        panel(overview_panel(view), elem_id="health-main")
        if subject.unit.is_text:
            label = "Measure it on your own text"
            self.text = self.field("text", gr.Textbox, label=label, **box(3))
            self.run = gr.Button("Measure")
        self.notice = panel()
        self.measured = panel(elem_id="health-measured")
        self.outputs = (self.measured,)

    def render(self, address: at.Health) -> Updates:
        """The metrics on a text."""
        if not address.text:
            return {self.measured: ""}
        metrics, facts = self.actions.measure(address.text), []
        for key, (name, note) in _TEXT_TILES.items():
            value = "-" if metrics[key] is None else number(metrics[key])
            facts.append((name, value, note))
        return {self.measured: html("measured", {"facts": facts})}

    def wire(self, app: App) -> None:
        """The button measures the text."""
        if self.subject.unit.is_text:
            measure = [self.run.click, self.text.submit]
            app.on(measure, self._measure, self, progress_on=self.measured)

    def _measure(self, *values: object) -> at.Health:
        address = self.address(*values)
        validate.text(address.text)  # there has to be one
        return address


def overview_panel(view: dict[str, Any]) -> str:
    """HTML of a view of `health`: metrics, histograms, and what probing showed."""
    unit: Unit = view.setdefault("unit", TOKEN)
    metrics = {m["name"]: m for m in view["metrics"]}
    facts = [
        (name, number(metrics[key]["value"]), metrics[key]["unit"])
        for key, name in _TILES.items()
        if key in metrics
    ]
    if view["dead"] is not None and view["counted_on"]:
        note = f"of {view['d_sae']:,}, on {view['counted_on']:,} {unit.many}"
        facts.append(("never fired", f"{view['dead']:,}", note))
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
    bars, most = bars_of(bins, what, name)
    low, high = (name(bins[0]["low"]), name(bins[-1]["high"])) if bins else ("", "")
    note = f"tallest: {most:,} {what}"
    return {"title": title, "bars": bars, "low": low, "high": high, "note": note}


class ComparePage(Page[at.Compare]):
    """Another SAE: its metrics, and what fires where in a text, if the app reads text."""

    title = "Compare SAEs"
    state = at.Compare

    def __init__(self, actions: Actions) -> None:
        super().__init__(actions)
        is_local = self.subject.label_home is not None
        below = "" if self.subject.only_here else " below the one that the app was started in"
        local = f", or the folder of an SAE{below}" if is_local else ""
        look = {"placeholder": f"name/repository{local}", "elem_classes": "hf-whole"}
        self.other = self.field("other", gr.Textbox, label="The other SAE", max_lines=1, **look)
        near = sae_choices(self.subject)
        self.choices = panel(html("others", near), elem_id="compare-choices")
        if self.subject.runs_text:
            self.text = self.field("text", gr.Textbox, label="Text", **box(2))
        with gr.Row(elem_classes="hf-buttons"):
            self.run = gr.Button("Compare", variant="primary", min_width=120, scale=0)
            panel(html("keys"))
        self.notice = panel()
        self.metrics = panel(elem_id="compare-metrics")
        self.result = panel(_no_other(near), elem_id="compare-result")
        self.outputs = (self.result, self.metrics, self.choices)

    def first(self) -> at.Compare:
        """A text to begin with."""
        return at.Compare(text=TEXTS[0] if self.subject.runs_text else "")

    def render(self, address: at.Compare) -> Updates:
        """The SAEs to choose from; held-out metrics of both, and both on the text."""
        names = sae_choices(self.subject)
        near = {self.choices: html("others", names)}
        if not address.other:
            return near | {self.metrics: "", self.result: _no_other(names)}
        try:
            view = self.actions.compare_saes(address.other)
            metrics = html("versus", {**view, "unit": self.subject.unit})
        except ValueError as error:
            if not self.subject.runs_text:
                raise
            metrics = html("said", f"{error}.")  # the text can be read without
        if not address.text.strip():
            return near | {self.metrics: metrics, self.result: ""}
        view = self.actions.side_by_side(address.other, address.text)
        return near | {self.metrics: metrics, self.result: html("beside", view)}

    def wire(self, app: App) -> None:
        """A latent of the SAE that the app shows leads to its page."""
        triggers = [self.run.click, self.other.submit]
        triggers += [self.text.submit] if self.subject.runs_text else []
        app.on(triggers, self._compare, self, progress_on=self.result)
        app.on_select(self.choices, self._choose, self, progress_on=self.result)
        app.on_select(self.result, self.open_or_steer, self, leads_to=("feature",))

    def _compare(self, *values: object) -> at.Compare:
        address = self.address(*values)
        check_name(address.other)
        if self.subject.runs_text:
            validate.text(address.text)
        return address

    def _choose(self, do: str, index: str, name: str, *values: object) -> at.Compare:
        chosen = replace(self.address(*values), other=name)
        return self._compare(*self.values(chosen))


def _no_other(names: list[str]) -> str:
    return html("empty", f"Name another SAE{', or choose one' if names else ''}.")


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
        panel(html("notes", view | {"facts": facts, "unit": unit}))
        card = f'<div class="hf-card prose">{card_html(self.subject.card)}</div>'
        panel(card, elem_id="about-card")


def card_html(card: str) -> str:
    """The card as the page shows it: without front matter and pictures (Health has the charts)."""
    card = card or "This SAE comes without a card."
    return markdown(_FIGURES.sub("", _FRONT.sub("", card.replace("\r\n", "\n"))))
