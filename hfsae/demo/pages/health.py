"""How good the SAE is."""

from collections.abc import Callable
from typing import Any

import gradio as gr

from ...machine.units import TOKEN, Unit
from .. import address as at
from ..actions import Actions
from ..missing import missing
from ..others import check_name
from ..parts import html, number, panel, percent
from ..reading import check_text
from .page import App, Page, Updates, box

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
        lacking = missing(actions.subject, "evaluate")
        view = {**actions.health(), "missing": lacking, "unit": self.subject.unit}
        panel(overview_panel(view), elem_id="health-main")
        self.notice = panel()
        with gr.Row():
            if self.subject.unit.is_text:
                self._own_text()
            else:
                self.measured = panel()
            with gr.Column(min_width=320):
                self.versus = self.field(
                    "versus",
                    gr.Textbox,
                    label="Compare with another SAE",
                    placeholder="name/repository" + (", or a folder" if _is_local(actions) else ""),
                )
                self.compare = gr.Button("Compare")
                self.comparison = panel(elem_id="health-comparison")
        self.outputs = (self.measured, self.comparison)

    def _own_text(self) -> None:
        with gr.Column(min_width=320):
            self.text = self.field(
                "text", gr.Textbox, label="Measure it on your own text", **box(3)
            )
            self.run = gr.Button("Measure")
            self.measured = panel(elem_id="health-measured")

    def render(self, address: at.Health) -> Updates:
        """The metrics on a text, and the other SAE's numbers."""
        return {
            self.measured: _shown(self._measured, address.text),
            self.comparison: _shown(self._compared, address.versus),
        }

    def _measured(self, text: str) -> str:
        metrics = self.actions.measure(text)
        facts = [
            {"name": name, "value": _value(metrics[key]), "note": note}
            for key, (name, note) in _TEXT_TILES.items()
        ]
        return html("measured", {"facts": facts})

    def _compared(self, versus: str) -> str:
        view = self.actions.compare_saes(versus)
        return html("versus", {**view, "unit": self.subject.unit})

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
        check_text(address.text)  # there has to be one
        return address

    def _compare(self, *values: object) -> at.Health:
        address = self.address(*values)
        check_name(address.versus)
        return address


def _shown(part: Callable[[str], str], text: str) -> str:
    """A part of the page, or the reason why it failed; the other part is shown anyway."""
    try:
        return part(text) if text else ""
    except ValueError as error:
        return html("error", str(error))


def _is_local(actions: Actions) -> bool:
    return actions.subject.label_home is not None


def _value(value: int | float | None) -> str:
    return "-" if value is None else number(value)


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
        _chart("How often latents fire", view["density"], "latents", _share),
        _chart("Thresholds, raw units", view["thresholds"], "latents", number),
    ]
    return html("health", {**view, "facts": facts, "charts": [c for c in charts if c["bars"]]})


def _share(exponent: float) -> str:
    return percent(min(1.0, 10**exponent))


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
    return {
        "title": title,
        "bars": bars,
        "low": low,
        "high": high,
        "note": f"tallest: {most:,} {what}",
    }
