"""Baseline and steered text side by side."""

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any
from urllib.parse import parse_qsl

import gradio as gr

from ...machine.refused import Refused
from ...steering import MODES, SCOPES, UNITS
from .. import address as at
from .. import validate
from ..act import LIMITS, check, sampling
from ..actions import in_queue, on_zero_gpu
from ..address import from_query, to_query
from ..parts import dial, html, panel
from ..presets import presets
from ..rows import as_rows, check_latent
from ..runs import Run, Runs
from ..settings import NAMES, Steering
from .page import App, Page, Updates, box, whole

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
_CHOICES: dict[str, tuple[str, ...]] = {"mode": MODES, "scope": SCOPES, "unit": UNITS}


class SteerPage(Page):
    """Long texts and sweeps: each session has one of each at a time."""

    title = "Steer"
    state = at.Steer

    def __init__(self, actions: Any) -> None:
        super().__init__(actions)
        self.measured = self.subject.largest() is not None
        self.latents, self.found = self.field("latents", gr.State), gr.State(None)
        self.texts, self.sweeps = Runs(), Runs()
        with gr.Row():
            with gr.Column(scale=3, min_width=320):
                self.prompt = self.field("prompt", gr.Textbox, label="Prompt", **box(3))
                self.choices = presets(actions.subject)
                names = [choice["name"] for choice in self.choices]
                self.presets = panel(html("examples", names), elem_id="steer-examples")
                with gr.Row(elem_classes="hf-buttons"):
                    self.run = gr.Button("Generate", variant="primary", min_width=120, scale=0)
                    self.stop = gr.Button("Stop", variant="stop", min_width=80, scale=0)
                    self.suggest = gr.Button("Find a strength", min_width=140, scale=0)
                    panel(html("keys"))
            with gr.Column(scale=3, min_width=320):
                self.chips = panel(self._chips(at.Steer()), elem_id="steer-chips")
                with gr.Row(elem_classes="hf-buttons"):
                    self.new = gr.Textbox(
                        label="Latent", max_length=40, min_width=110, scale=0, max_lines=1
                    )
                    self.add = gr.Button("Add", min_width=80, scale=0)
                    self.random = gr.Button("Add random", min_width=130, scale=0)
        self._settings()
        self.notice = panel()
        self.output = panel(elem_id="steer-output")
        self.suggestion = panel(elem_id="steer-suggestion")
        self.outputs = (self.chips, self.output, self.suggestion)
        self.generated: list[Any] = []
        """what `generate` updates; known once the pages are wired"""

    def _settings(self) -> None:
        modes = [(_MODES[mode], mode) for mode in MODES]
        units = _UNITS if self.measured else _UNITS[1:]
        scopes = [(_SCOPES[scope], scope) for scope in SCOPES]
        kept = "Keep what the SAE does not explain"
        with gr.Accordion("How to steer, and how to draw tokens", open=False):
            with gr.Row():
                wide = {"min_width": 200}
                self.mode = self.field("mode", gr.Dropdown, modes, label="Mode", **wide)
                self.unit = self.field("unit", gr.Dropdown, units, label="Unit of strength", **wide)
                self.field("scope", gr.Dropdown, scopes, label="Where", min_width=160)
            with gr.Row():
                self.field("error_term", gr.Checkbox, label=kept, min_width=240)
                self.field("chat", gr.Checkbox, label="Chat template", min_width=160)
            with gr.Row():
                self.field("temperature", dial, 0.0, 2.0, step=0.05, label="Temperature")
                self.field("max_new_tokens", dial, 1.0, 256.0, step=1, label="New tokens")
            with gr.Row():
                penalty = "Repetition penalty"
                self.field("repetition_penalty", dial, 1.0, 2.0, step=0.05, label=penalty)
                self.field("seed", gr.Number, label="Seed")

    def to_component(self, name: str, value: Any) -> Any:
        """A valid choice, and a usable unit."""
        if name in _CHOICES:
            validate.choice(value, name, _CHOICES[name])
        return self._unit(value) if name == "unit" else value

    def from_component(self, name: str, value: Any) -> Any:
        """None of the settings may be emptied."""
        if name == "latents":
            return _chosen(value)
        if name != "prompt" and value is None:
            raise Refused(f"{name} is empty; write a number")
        return super().from_component(name, value)

    def _unit(self, unit: str) -> str:
        """The unit, or a replacement if the largest activations are unknown."""
        return unit if unit != "max" or self.measured else "norm"

    def first(self) -> at.Steer:
        """The first preset, ready to run."""
        return self.preset(0)

    def render(self, address: at.Steer) -> Updates:
        """The latents with their strengths; texts are generated on request."""
        for latent in address.latents:
            check_latent(self.subject, latent)
        updates = {self.chips: self._chips(address), self.suggestion: ""}
        kept = self._kept(address)
        return {**updates, self.output: html("kept", kept)} if kept else updates

    def _kept(self, address: at.Steer) -> dict[str, Any] | None:
        """The texts that came with a preset which is shown and not running."""
        shown = replace(address, run=False)
        for i, preset in enumerate(self.choices):
            if "steered" in preset and not address.run and self.preset(i) == shown:
                return preset
        return None

    def _chips(self, address: at.Steer) -> str:
        a = address
        unit = self._unit(a.unit)
        reach, step = (4, 0.1) if a.mode == "scale" else _REACH[unit]
        chips = [
            {**row, "strength": f"{row['value']:g}"}
            for row in as_rows(
                self.subject,
                [{"latent": latent, "value": strength} for latent, strength in a.latents.items()],
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
        """A setting changes the link, a button changes a latent; runs are handled elsewhere."""
        self.app = app
        self.generated = [self.notice, self.output, app.link]
        settings: list[Any] = [self.fields[name] for name in NAMES]
        sliders = [field for field in settings if isinstance(field, gr.Slider)]
        changes = [field.input for field in settings]
        changes += [slider.release for slider in sliders]  # the sliders correct typed values
        app.follow(changes, self)
        gr.on(
            [self.mode.input, self.unit.input],
            self._draw_chips,
            self.inputs,
            self.chips,
            show_progress="hidden",
            api_visibility="private",
            trigger_mode="always_last",
        )
        app.on([self.random.click], self._add_random, self)
        app.on_select(self.chips, self._changed, self, leads_to=("feature",))
        self.then_run(app.on_select(self.presets, self._preset, self))
        for trigger in (self.add.click, self.new.submit):
            trigger(
                self._add,
                [self.new, *self.inputs],
                app.outputs("steer"),
                api_visibility="private",
                show_progress="hidden",
            )
        self._wire_runs(app)

    def _wire_runs(self, app: App) -> None:
        """The long runs, which can be stopped: the texts, and the search for a strength."""
        shared: dict[str, Any] = {"api_visibility": "private", "trigger_mode": "multiple"}
        queued, inputs = {**in_queue("run"), **shared}, self.inputs
        asking = gr.on(
            [self.run.click, self.prompt.submit], self.ask, inputs, None, queue=False, **shared
        )
        asking.then(
            self.generate,
            None,
            self.generated,
            show_progress="minimal",
            show_progress_on=[self.output],
            **queued,
        )
        self.suggest.click(self._ask_sweep, inputs, None, queue=False, **shared).then(
            self._suggest,
            None,
            [self.notice, self.suggestion, self.found],
            show_progress_on=[self.suggestion],
            **queued,
        ).then(
            self._take,
            [self.found, *inputs],
            [self.latents, self.chips, app.link],
            show_progress="hidden",
            **shared,
        )
        self.stop.click(
            self._stop,
            None,
            None,
            queue=False,
            js="() => document.querySelectorAll('.hf-caret').forEach((node) => node.remove())",
            **shared,
        )

    def ask(self, request: gr.Request, *values: Any) -> None:
        """Request texts for the inputs' values; those under way end."""
        self.texts.ask(_session(request), values)

    def _ask_sweep(self, request: gr.Request, *values: Any) -> None:
        self.sweeps.ask(_session(request), values)

    def _stop(self, request: gr.Request) -> None:
        for runs in (self.texts, self.sweeps):
            runs.stop(_session(request))

    def _draw_chips(self, *values: Any) -> Any:
        try:
            return self._chips(self.address(*values))
        except ValueError:  # shown in the page's notice, see `follow`
            return gr.skip()

    def _add(self, latent: Any, *values: Any) -> Updates:
        try:
            return self.app.show(
                self._with(check_latent(self.subject, latent), self.address(*values))
            )
        except ValueError as error:
            return {self.notice: html("error", str(error))}

    def _add_random(self, *values: Any) -> at.Steer:
        return self._with(self.actions.random_latent()["latent"], self.address(*values))

    def joined(self, other: at.Steer, *values: Any) -> at.Steer:
        """This page's state plus the latent that another page asked for, and its text, if any."""
        now = self.address(*values)
        if other.prompt:
            now = replace(now, prompt=other.prompt, chat=other.chat)
        new = [latent for latent in other.latents if latent not in now.latents]
        return self._with(new[0], now) if new else now

    def _with(self, latent: int, now: at.Steer) -> at.Steer:
        if len(now.latents) >= validate.MAX_LATENTS:
            raise Refused(f"{validate.MAX_LATENTS} latents are steered already; remove one")
        if latent in now.latents:
            strength = f"{now.latents[latent]:g}"
            raise Refused(f"latent {latent} is steered already, with strength {strength}")
        strength = 1.0 if now.mode == "scale" else _FIRST[now.unit]
        return replace(now, latents={**now.latents, latent: strength})

    def _changed(self, do: str, index: str, to: str, *values: Any) -> at.Address:
        now, latent = self.address(*values), whole(index)
        if do == "remove":
            left = {i: s for i, s in now.latents.items() if i != latent}
            return replace(now, latents=left)
        if do == "strength":
            changed = f"{latent}:{to}"
            checked = validate.strengths(changed, self.subject.d_sae, LIMITS[now.unit])
            return replace(now, latents={**now.latents, **checked})
        return at.Feature(latent)

    def preset(self, number: int, now: at.Steer | None = None) -> at.Steer:
        """A preset's prompt, latents, mode and unit; the other settings are those of `now`."""
        preset, now = self.choices[number], now or at.Steer()
        strengths = {int(i): float(s) for i, s in preset["latents"].items()}
        mode, unit = str(preset.get("mode", "add")), "max"
        if not self.measured:
            strengths, unit = dict.fromkeys(strengths, _FIRST["norm"]), "norm"
        return replace(now, prompt=str(preset["prompt"]), latents=strengths, mode=mode, unit=unit)

    def striking(self) -> at.Steer:
        """The first preset, running."""
        return replace(self.preset(0), run=True)

    def _preset(self, do: str, index: str, to: str, *values: Any) -> at.Steer:
        number = min(whole(index), len(self.choices) - 1)
        return replace(self.preset(number, self.address(*values)), run=True)

    def then_run(self, shown: Any) -> None:
        """After an event that led to an address: generate its texts, if it requests them."""
        options: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        asked = shown.then(
            self._ask_linked, [self.app.link, *self.inputs], None, queue=False, **options
        )
        asked.then(self.generate, None, self.generated, **in_queue("run"), **options)

    def _ask_linked(self, request: gr.Request, link: str, *values: Any) -> None:
        address = from_query(dict(parse_qsl(link)))
        if isinstance(address, at.Steer) and address.run:
            self.ask(request, *values)

    def generate(self, request: gr.Request) -> Iterator[Updates]:
        """Both texts, token by token, for the last request, if it was not stopped."""
        session = _session(request)
        run = self.texts.begin(session)
        if run is None:
            yield {self.notice: gr.skip()}
            return
        try:
            yield from self._written(self.address(*run.values), run)
        except ValueError as error:
            yield {self.notice: html("error", str(error))}
        finally:
            self.texts.end(session, run)

    def _written(self, address: at.Steer, run: Run) -> Iterator[Updates]:
        yield {self.notice: "", self.app.link: to_query(replace(address, run=True))}
        job = check(self.subject, address.prompt, address.latents, address)
        apart = on_zero_gpu()  # the process with the GPU cannot ask, nor tell the KL once it ends
        options = {} if apart else {"stopped": lambda: run.over}
        view: dict[str, Any] = {}
        for view in self.actions.write(job, sampling(address), **options):
            if run.over and (apart or not run.stopped):
                break
            yield {self.output: html("pair", {**view, "prompt": address.prompt})}
        if run.stopped:
            notice = html("said", f"Stopped after {view['n_steered']} tokens.")
            ended = {**view, "done": True, "prompt": address.prompt}
            yield {self.notice: notice, self.output: html("pair", ended)}

    def _suggest(self, request: gr.Request, progress: gr.Progress = gr.Progress()) -> Updates:
        session = _session(request)
        run = self.sweeps.begin(session)
        if run is None:
            return {self.notice: gr.skip()}

        def tell(done: int, n: int) -> None:
            if run.over:
                raise _StoppedError
            progress((done, n), desc=f"trial {min(done + 1, n)} of {n}", unit="trials")

        try:
            return self._sweep(self.address(*run.values), tell)
        except ValueError as error:
            return {self.notice: html("error", str(error)), self.found: None}
        except _StoppedError:
            notice = html("said", "Stopped; the strengths are as they were.")
            return {self.notice: notice, self.found: None}
        finally:
            self.sweeps.end(session, run)

    def _sweep(self, now: at.Steer, tell: Callable[[int, int], None]) -> Updates:
        # the process with the GPU could not call back
        progress = {} if on_zero_gpu() else {"progress": tell}
        result = self.actions.sweep(now.prompt, now.latents, now, **progress)
        shown = {"unit_name": UNIT_NAMES[now.unit], "prompt": now.prompt}
        suggested = {int(latent): strength for latent, strength in result["latents"].items()}
        return {
            self.notice: "",
            self.suggestion: html("suggestion", {**result, **shown}),
            self.found: (now, suggested) if result["strength"] else None,
        }

    def _take(self, suggestion: Any, *values: Any) -> Updates:
        """The strengths found, unless others were set meanwhile."""
        try:
            now = self.address(*values)
        except ValueError:  # somebody is still typing
            return {self.chips: gr.skip()}
        address, suggested = suggestion or (None, None)
        if address is None or replace(now, **_question(address)) != now:
            return {self.chips: gr.skip()}
        new = replace(now, latents=suggested)
        return {
            self.latents: suggested,
            self.chips: self._chips(new),
            self.app.link: to_query(new),
        }


def _question(address: at.Steer) -> dict[str, Any]:
    """The inputs of a search for a strength."""
    names = ("prompt", "latents", *(f.name for f in fields(Steering)))
    return {name: getattr(address, name) for name in names}


def _chosen(latents: Any) -> dict[int, float]:
    """The page's latents and strengths: JSON has text for keys."""
    mapping = latents if isinstance(latents, dict) else {}
    return {int(latent): float(strength) for latent, strength in mapping.items()}


class _StoppedError(Exception):
    """Ends a sweep."""


def _session(request: gr.Request) -> str:
    return str(request.session_hash)
