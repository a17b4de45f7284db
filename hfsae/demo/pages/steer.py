"""Baseline and steered text side by side."""

from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import gradio as gr

from ...steering import MODES, SCOPES
from ...steering.strength import Trial
from .. import address as at
from .. import validate
from ..act import LIMITS
from ..actions import on_zero_gpu
from ..address import to_query
from ..parts import html, panel
from ..presets import presets
from .page import App, Page, Updates, one_of, whole

UNIT_NAMES = {"max": "x largest activation", "norm": "% of the norm", "raw": "raw"}
_UNITS = [
    ("multiples of its largest activation", "max"),
    ("per cent of the activation's norm", "norm"),
    ("raw", "raw"),
]
_REACH = {"max": (4, 0.1), "norm": (100, 1), "raw": (200, 1)}  # of sliders, and their steps
_FIRST = {"max": 1.0, "norm": 20.0, "raw": 20.0}  # strength of a latent that is added
_MODES = {
    "add": "add its direction",
    "clamp": "clamp it to a value",
    "scale": "scale it",
    "ablate": "ablate it",
    "orthogonal": "set the component along it",
    "cap": "cap it",
}
_SCOPES = {"all": "all tokens", "prompt": "the prompt", "generated": "generated tokens"}


class SteerPage(Page):
    title = "Steer"

    def __init__(self, actions: Any) -> None:
        super().__init__(actions)
        self.measured = actions.largest is not None
        self.latents = gr.State({})
        with gr.Row():
            with gr.Column(scale=3, min_width=320):
                self.prompt = gr.Textbox(label="Prompt", lines=3, max_lines=8)
                self.choices = presets(actions.subject)
                names = [choice["name"] for choice in self.choices]
                self.presets = panel(html("examples", names), elem_id="steer-examples")
                with gr.Row(elem_classes="hf-buttons"):
                    self.run = gr.Button("Generate", variant="primary", min_width=120, scale=0)
                    self.stop = gr.Button("Stop", variant="stop", min_width=80, scale=0)
                    self.suggest = gr.Button("Find a strength", min_width=140, scale=0)
            with gr.Column(scale=3, min_width=320):
                self.chips = panel(elem_id="steer-chips")
                with gr.Row(elem_classes="hf-buttons"):
                    self.new = gr.Textbox(
                        label="Latent", max_length=9, min_width=110, scale=0, max_lines=1
                    )
                    self.add = gr.Button("Add", min_width=80, scale=0)
                    self.random = gr.Button("Add random", min_width=130, scale=0)
        self._settings()
        self.notice = panel()
        self.output = panel(elem_id="steer-output")
        self.suggestion = panel(elem_id="steer-suggestion")
        self.inputs = (
            self.prompt,
            self.latents,
            self.mode,
            self.unit,
            self.scope,
            self.error_term,
            self.chat,
            self.temperature,
            self.length,
            self.penalty,
            self.seed,
        )
        self.outputs = (self.chips, self.output, self.suggestion)
        self.generated: list[Any] = []
        """what `generate` updates; known once the pages are wired"""

    def _settings(self) -> None:
        with gr.Accordion("How to steer, and how to draw tokens", open=False):
            with gr.Row():
                modes = [(_MODES[mode], mode) for mode in MODES]
                self.mode = gr.Dropdown(modes, value="add", label="Mode", min_width=200)
                units = _UNITS if self.measured else _UNITS[1:]
                unit = "max" if self.measured else "norm"
                self.unit = gr.Dropdown(units, value=unit, label="Unit of strength", min_width=200)
                scopes = [(_SCOPES[scope], scope) for scope in SCOPES]
                self.scope = gr.Dropdown(scopes, value="all", label="Where", min_width=160)
            with gr.Row():
                self.error_term = gr.Checkbox(
                    True, label="Keep what the SAE does not explain", min_width=240
                )
                self.chat = gr.Checkbox(False, label="Chat template", min_width=160)
            with gr.Row():
                self.temperature = gr.Slider(0, 2, 0.7, step=0.05, label="Temperature")
                self.length = gr.Slider(1, 256, 40, step=1, label="New tokens")
            with gr.Row():
                self.penalty = gr.Slider(1, 2, 1.1, step=0.05, label="Repetition penalty")
                self.seed = gr.Number(16, label="Seed", precision=0, minimum=0)

    def address(self, *values: Any) -> at.Steer:
        prompt, latents, *rest = values
        names = ("mode", "unit", "scope", "error_term", "chat", "temperature")
        names += ("max_new_tokens", "repetition_penalty", "seed")
        chosen = latents if isinstance(latents, dict) else {}
        known = {int(i): float(strength) for i, strength in chosen.items()}
        return at.Steer(prompt or "", known, **dict(zip(names, rest, strict=True)))

    def fill(self, address: at.Steer) -> Updates:
        a = address
        mode = validate.choice(a.mode, "mode", tuple(MODES))
        scope = validate.choice(a.scope, "scope", tuple(SCOPES))
        unit = validate.choice(a.unit, "unit", tuple(LIMITS))
        if unit == "max" and not self.measured:
            unit = "norm"
        values = (
            a.prompt,
            a.latents,
            mode,
            unit,
            scope,
            a.error_term,
            a.chat,
            a.temperature,
            a.max_new_tokens,
            a.repetition_penalty,
            a.seed,
        )
        return dict(zip(self.inputs, values, strict=True))

    def render(self, address: at.Steer) -> Updates:
        for latent in address.latents:
            self.actions.latent(latent)
        return {self.chips: self._chips(address), self.suggestion: ""}

    def _chips(self, address: at.Steer) -> str:
        a = address
        unit = a.unit if a.unit != "max" or self.measured else "norm"
        reach, step = (4, 0.1) if a.mode == "scale" else _REACH[unit]
        chips = [
            {**row, "strength": f"{row['value']:g}"}
            for row in self.actions.rows(
                {"latent": latent, "value": strength} for latent, strength in a.latents.items()
            )
        ]
        return html(
            "chips",
            {
                "chips": chips,
                "reach": reach,
                "step": step,
                "limit": LIMITS[unit],
                "measured": a.mode != "ablate",
                "unit_name": "x" if a.mode == "scale" else UNIT_NAMES[unit],
            },
        )

    def wire(self, app: App) -> None:
        self.app = app
        self.generated = [self.notice, self.output, app.link]
        app.on([self.mode.input, self.unit.input], self.address, self)
        app.on([self.random.click], self._add_random, self)
        app.on_select(self.chips, self._changed, self, leads_to=("feature",))
        app.on_select(self.presets, self._preset, self)
        for trigger in (self.add.click, self.new.submit):
            trigger(
                self._add,
                [self.new, *self.inputs],
                app.outputs("steer"),
                api_visibility="private",
                show_progress="hidden",
            )
        generation = {
            "fn": self.generate,
            "inputs": list(self.inputs),
            "outputs": self.generated,
            "api_visibility": "private",
            "concurrency_id": "run",
            "concurrency_limit": 2,
            "show_progress": "minimal",
            "show_progress_on": [self.output],
        }
        running = gr.on([self.run.click, self.prompt.submit], **generation)
        sweeping = self.suggest.click(
            self._suggest,
            list(self.inputs),
            [self.notice, self.suggestion, self.latents, self.chips],
            api_visibility="private",
            concurrency_id="run",
            concurrency_limit=2,
            show_progress_on=[self.suggestion],
        )
        self.stop.click(
            None,
            js="() => document.querySelectorAll('.hf-caret').forEach((node) => node.remove())",
            cancels=[running, sweeping],
            api_visibility="private",
        )

    def _add(self, latent: Any, *values: Any) -> Updates:
        try:
            return self.app.show(self._with(self.actions.latent(latent), self.address(*values)))
        except ValueError as error:
            return {self.notice: html("error", str(error))}

    def _add_random(self, *values: Any) -> at.Steer:
        return self._with(self.actions.random_latent()["latent"], self.address(*values))

    def _with(self, latent: int, now: at.Steer) -> at.Steer:
        if len(now.latents) >= validate.MAX_LATENTS:
            raise ValueError(f"{validate.MAX_LATENTS} latents are steered already; remove one")
        return replace(now, latents={**now.latents, latent: _FIRST[now.unit]})

    def _changed(self, do: str, index: str, to: str, *values: Any) -> at.Address:
        now, latent = self.address(*values), whole(index)
        if do == "remove":
            left = {i: s for i, s in now.latents.items() if i != latent}
            return replace(now, latents=left)
        if do == "strength":
            changed = f"{latent}:{to}"
            checked = validate.strengths(changed, self.actions.subject.d_sae, LIMITS[now.unit])
            return replace(now, latents={**now.latents, **checked})
        return at.Feature(latent)

    def _preset(self, do: str, index: str, to: str, *values: Any) -> at.Steer:
        preset = one_of(self.choices, index)
        strengths = {int(i): float(s) for i, s in preset["latents"].items()}
        mode = str(preset.get("mode", "add"))
        now = self.address(*values)
        unit = "max"
        if not self.measured:
            strengths, unit = dict.fromkeys(strengths, _FIRST["norm"]), "norm"
        return replace(now, prompt=str(preset["prompt"]), latents=strengths, mode=mode, unit=unit)

    def generate(self, *values: Any) -> Iterator[Updates]:
        """Both texts, token by token, for the values of the inputs."""
        try:
            wanted = self.address(*values)
            yield {self.notice: "", self.app.link: to_query(replace(wanted, run=True))}
            for view in self.stream(wanted):
                yield {self.output: html("pair", {**view, "prompt": wanted.prompt})}
        except ValueError as error:
            yield {self.notice: html("error", str(error))}

    def stream(self, wanted: at.Steer) -> Iterator[dict[str, Any]]:
        arguments = asdict(wanted)
        arguments.pop("run")
        latents = ", ".join(f"{i}:{s}" for i, s in arguments.pop("latents").items())
        return self.actions.steer(latents=latents, **arguments)

    def _suggest(self, *values: Any, progress: gr.Progress = gr.Progress()) -> Updates:
        def tell(trial: Trial) -> None:
            progress(None, desc=f"tried {trial.strength:.2g} times the strengths")

        now = self.address(*values)
        try:
            settings = (now.prompt, now.latents, now.mode, now.unit)
            # the process with the GPU could not call back
            heard = {} if on_zero_gpu() else {"progress": tell}
            found = self.actions.sweep(*settings, **heard)
        except ValueError as error:
            return {self.notice: html("error", str(error))}
        suggested = {int(latent): strength for latent, strength in found["latents"].items()}
        new = replace(now, latents=suggested if found["strength"] else now.latents)
        view = {**found, "unit_name": UNIT_NAMES[now.unit]}
        return {
            self.notice: "",
            self.suggestion: html("suggestion", view),
            self.latents: new.latents,
            self.chips: self._chips(new),
        }
