"""All about one latent."""

import json
import math
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

from ...io.files import write_whole
from ...io.units import Unit
from .. import address as at
from ..actions import Actions
from ..inspect_actions import latent_of
from ..parts import bars_of, html, number, panel, percent
from ..picture_latents import add_crops, add_strongest
from ..presets import clearest
from ..rows import Json
from ..snippet import of_latent
from ..steer_actions import direction
from ..subject import Subject, how_to_make
from .page import LATENT_BOX, App, Page, Updates, whole

_EMPTY = html("empty", "Give a number, or take a random latent.")


class FeaturePage(Page[at.Feature]):
    """A latent by its number: measurements, examples, neighbours, its label, a text to try."""

    title = "Feature"
    state = at.Feature

    def __init__(self, actions: Actions) -> None:
        super().__init__(actions)
        with gr.Row(elem_classes="hf-buttons"):
            self.latent = self.field("latent", gr.Textbox, **LATENT_BOX)
            self.previous = gr.Button("Previous", min_width=90, scale=0)
            self.next = gr.Button("Next", min_width=90, scale=0)
            self.random = gr.Button("Random", min_width=90, scale=0)
            if self.subject.runs_text:
                self.steer = gr.Button("Steer it", variant="primary", min_width=110, scale=0)
        self.notice = panel()
        with gr.Row(elem_id="feature-columns"):
            with gr.Column(scale=3, min_width=480):
                if self.subject.runs_text:
                    with gr.Row(elem_classes="hf-buttons"):
                        hint = "What does it do on this?"
                        look = {"label": "Try your own text", "placeholder": hint, "scale": 1}
                        wide = {"min_width": 180, "max_lines": 4}
                        self.text = self.field("text", gr.Textbox, **look, **wide)
                        self.try_it = gr.Button("Try it", min_width=80, scale=0)
                self.tried = panel(elem_id="feature-tried")
                self.main = panel(_EMPTY, elem_id="feature-main")
            with gr.Column(scale=2, min_width=400):
                with gr.Row(elem_classes="hf-buttons"):
                    hint = "What does it stand for?"
                    self.label = gr.Textbox(label="Label", placeholder=hint, scale=1, min_width=160)
                    self.save = gr.Button("Save", min_width=70, scale=0)
                self.aside = panel(elem_id="feature-aside")
                with gr.Accordion("Use it in Python, or elsewhere", open=False):
                    self.code = gr.Code(
                        language="python", interactive=False, show_label=False, wrap_lines=True
                    )
                    self.vector = gr.DownloadButton("Its direction as .safetensors", size="sm")
                    self.as_json = gr.DownloadButton("This page as .json", size="sm")
                self.own = panel(elem_id="feature-list")
        self.shown = gr.State(None)  # the latent shown; somebody may be typing another into its box
        self.outputs = (self.main, self.tried, self.aside, self.own, self.code, self.vector)
        self.outputs += (self.as_json, self.shown)

    def to_component(self, name: str, value: object) -> object:
        """A latent is shown in a text box."""
        if name == "latent":
            return "" if value is None else str(value)
        return value

    def from_component(self, name: str, value: object) -> Any:
        """A valid latent index, also for a word; None for an empty box."""
        if name == "latent":
            return latent_of(self.subject, value) if value else None
        return super().from_component(name, value)

    def first(self) -> at.Feature:
        """A latent that people can make sense of: a labelled one, or one that fires on one word."""
        return at.Feature(clearest(self.subject))

    def render(self, address: at.Feature) -> Updates:
        """All of a latent's page; without a latent it is empty."""
        latent, subject = address.latent, self.subject
        if latent is None:
            values = (_EMPTY, *[""] * 3, *[None] * 4)
            return dict(zip(self.outputs, values, strict=True))
        view = self.actions.feature(latent)
        by_template = view["auto"] and view["auto"]["source"] == "template"
        view["better"] = how_to_make(subject, "explain") if by_template else None
        as_json = export(subject, view)
        view |= {"unit": subject.unit, "facts": _facts(view, subject.unit)}
        view["opens"] = subject.encoder is not None
        view["of_model"] = subject.sae.config.last_model
        if view["collected"]:
            view |= _histogram(view["histogram"], subject.unit)
            for group in view["groups"]:
                group["title"] = "Strongest"
                if group["kind"] != "top":
                    part, n = int(group["kind"].removeprefix("quantile_")), view["n_groups"]
                    low, high = (f"{round(100 * p / n)} %" for p in (part - 1, part))
                    group["title"] = f"From the {low} to the {high} strongest, of a random sample"
            add_crops(subject, view["groups"])
            add_strongest(subject, view["neighbours"])
        else:
            view |= {"missing": how_to_make(subject, "collect")}
            try:  # what its direction does to the next token
                view |= self.actions.promoted(latent) if subject.unit.is_text else {}
            except ValueError as error:  # no language model, or none that it writes to
                view["why_no_lens"] = str(error)
        tried, vector = "", None
        try:
            if address.text:
                tried = html("tried", self.actions.try_text(latent, address.text))
        except ValueError as error:  # the rest of the page needs no text
            tried = html("error", str(error))
        with suppress(ValueError):  # of an SAE whose latents have no one direction
            vector = str(direction(subject, latent))
        return {
            self.main: html("feature", view),
            self.aside: html("aside", view),
            self.tried: tried,
            self.own: html("own_list", subject.name, view),
            self.code: of_latent(subject, latent),
            self.as_json: str(as_json),
            self.vector: vector,
            self.shown: latent,
        }

    def wire(self, app: App) -> None:
        """Buttons lead to another latent, or to the steer page; a label is saved."""

        app.on([self.latent.submit], self.address, self)
        app.on([self._step(self.previous, -1), self._step(self.next, 1)], self.address, self)
        app.on([self.random.click], self._random, self)
        if self.subject.runs_text:
            app.on([self.try_it.click, self.text.submit], self.address, self)
            app.on([self.steer.click], self._to_steer, self, leads_to=("steer",))
        for part in (self.main, self.aside, self.tried, self.own):
            app.on_select(part, self._click, self, leads_to=("steer", "picture"))
        quietly: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        for trigger in (self.save.click, self.label.submit):
            trigger(self._save, [self.shown, self.label], [self.notice, self.main], **quietly)
        self.shown.change(self._show_label, self.shown, self.label, **quietly)

    def _step(self, button: gr.Button, by: int) -> Any:
        """The event after a button's, which counts on in the browser: many quick clicks go far."""
        n = self.subject.d_sae
        options: dict[str, Any] = {"trigger_mode": "multiple", "api_visibility": "private"}
        counted = f"(latent) => hfsae.count(latent, {by}, {n})"
        return button.click(None, self.latent, self.latent, js=counted, **options).then

    def _random(self, *values: Any) -> at.Feature:
        latent, *text = values
        here = int(latent) if str(latent).isdecimal() else None
        other = self.actions.random_latent(other_than=here)["latent"]
        return at.Feature(other, "".join(filter(None, text)))

    def _to_steer(self, *values: object) -> at.Steer:
        return at.Steer(latents={latent_of(self.subject, values[0]): 1.0})

    def _click(self, do: str, index: str, to: str, *values: object) -> at.Address:
        if do == "token":
            return self.address(*values)
        if do == "steer":
            return at.Steer(latents={whole(index): 1.0})
        if do == "picture":
            return at.Picture(index, whole(to))
        return replace(self.address(*values), latent=whole(index))

    def _show_label(self, latent: int | None) -> str:
        return "" if latent is None else self.subject.labels.get(latent, "")

    def _save(self, latent: int | None, label: str | None) -> Updates:
        try:
            saved = self.actions.save_label(latent, label or "")
        except ValueError as error:
            return {self.notice: html("error", str(error))}
        main = self.render(at.Feature(saved["latent"]))[self.main]
        notice = html("said", f"The label of latent {saved['latent']} is saved.")
        return {self.notice: notice, self.main: main}


def export(subject: Subject, view: Json) -> Path:
    """A file of a latent's page, as `inspect_actions.feature` gives it; it lies in a folder that is
    deleted when the app ends."""
    path = subject.directions / f"latent-{view['latent']}.json"
    write_whole(path, json.dumps(view, ensure_ascii=False, indent=1) + "\n")
    return path


def _histogram(bins: list[dict[str, Any]], unit: Unit) -> dict[str, Any]:
    """Its bars, and the words at its edges."""
    bars, most = bars_of(bins, unit.many, "{:.3g}".format)
    low, high = (bins[0]["low"], bins[-1]["high"]) if bins else (0.0, 0.0)
    return {
        "bars": bars,
        "most": f"{most:,} {unit.many}",
        "low": number(low) if bins else "",
        "high": number(high) if bins else "",
        "ticks": axis_ticks(low, high),
    }


def axis_ticks(low: float, high: float) -> list[dict[str, Any]]:
    """Round numbers between two edges and their places, 0 to 1, on a logarithmic scale; the edges
    where there are fewer than two."""
    if not 0 < low < high < math.inf:
        return []
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    round_ones = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
    values = [value for value in round_ones if low <= value <= high]
    return [
        {"at": math.log(value / low) / math.log(high / low), "text": number(value)}
        for value in (values if len(values) > 1 else (low, high))
    ]


def _facts(view: dict[str, Any], unit: Unit) -> list[tuple[str, str, str]]:
    facts: list[tuple[str, str, str]] = []
    if view["collected"]:
        n = view["n_tokens"]
        firings = f"{view['n_firings']:,} of {n:,} {unit.many}" if n else ""
        facts.append(("fires on", percent(view["density"]), firings))
        facts.append(("largest activation", number(view["max_activation"]), "raw units"))
        facts.append(("mean when it fires", number(view["mean_activation"]), "raw units"))
    if view["threshold"] is not None:
        facts.append(("threshold", number(view["threshold"]), "raw units"))
    if view["reads"]:
        facts.append(("reads", view["reads"], "and writes from there on"))
    for row in view["sites"]:
        facts.append((f"share at {row['site']}", percent(row["share"]), "of what it writes"))
    return facts
