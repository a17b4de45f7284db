"""Baseline and steered text side by side."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import gradio as gr
from gradio.events import Dependency

from ...machine.refused import Refused
from ...steering import MODES, SCOPES, UNITS
from .. import address as at
from .. import validate
from ..actions import Actions, in_queue, on_zero_gpu
from ..address import to_query
from ..inspect_actions import latent_of, weak_match
from ..parts import dial, html, panel
from ..presets import presets
from ..reading import Exchange, check_text
from ..rows import as_rows, check_latent
from ..runs import Run, Runs
from ..settings import NAMES
from ..snippet import of_texts
from ..steer_actions import LIMITS, check, sampling
from .found import PresetSearch
from .page import LATENT_BOX, App, TextPage, Updates, box, whole
from .share import Share
from .strength import StrengthSearch

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
_NO_TEXTS = "Generate writes the model's text as it is, and steered."
MESSAGE = "How was your day?"
"""what a conversation begins with, where nobody wrote anything"""
_CHOICES: dict[str, tuple[str, ...]] = {"mode": MODES, "scope": SCOPES, "unit": UNITS}


class Written(NamedTuple):
    """What a session's last run wrote: texts of an address, and of a conversation's turns."""

    address: at.Steer
    exchanges: tuple[Exchange, ...]
    view: dict[str, Any]

    def before(self, address: at.Steer) -> tuple[Exchange, ...]:
        """The turns before an address's message that are the same, with the same settings."""
        settings = replace(address, prompt=self.address.prompt, turns=self.address.turns)
        shared = self.exchanges[: len(address.turns)]
        messages = tuple(exchange.message for exchange in shared)
        same = settings == self.address and messages == address.turns[: len(shared)]
        return shared if same else ()


class SteerPage(TextPage[at.Steer]):
    """Long texts and sweeps: each session has one of each at a time."""

    title = "Steer"
    state = at.Steer

    def __init__(self, actions: Actions) -> None:
        super().__init__(actions)
        self.measured = self.subject.largest() is not None
        self.choices = presets(self.subject)
        self.latents, self.turns = self.field("latents", gr.State), self.field("turns", gr.State)
        self.texts, self.strength, self.written = Runs(), StrengthSearch(self), gr.State(None)
        with gr.Row():
            with gr.Column(scale=3, min_width=320):
                self.prompt = self.field("prompt", gr.Textbox, label="Prompt", **box(3))
                self.search = PresetSearch(self)
                self.presets = panel(self.search.drawn(), elem_id="steer-examples")
                with gr.Row(elem_classes="hf-buttons"):
                    self.run = gr.Button(
                        "Generate", variant="primary", min_width=120, scale=0, elem_id="steer-run"
                    )
                    self.stop = gr.Button(
                        "Stop", variant="stop", min_width=80, scale=0, elem_id="steer-stop"
                    )
                    self.suggest = gr.Button("Find a strength", min_width=140, scale=0)
                    panel(html("keys"))
                self.field("chat", gr.Checkbox, **self._chat())
                self.searching = panel(elem_id="steer-searching")
            with gr.Column(scale=3, min_width=320):
                self.chips = panel(self.draw_chips(self.opening), elem_id="steer-chips")
                with gr.Row(elem_classes="hf-buttons"):
                    self.new = gr.Textbox(**LATENT_BOX)
                    self.add = gr.Button("Add", min_width=80, scale=0)
                    self.random = gr.Button("Add random", min_width=130, scale=0)
                self.matched = panel(elem_id="steer-matched")
        self._settings()
        self.notice = panel()
        self.trying = panel(elem_id="steer-trying")
        self.output = panel(html("empty", _NO_TEXTS), elem_id="steer-output")
        self.share = Share(self)
        with gr.Row(elem_classes="hf-buttons hf-reply"):
            self.reply = gr.Textbox(label="Your next message", scale=1, min_width=200, max_lines=6)
            self.send = gr.Button("Send", variant="primary", min_width=90, scale=0)
            self.anew = gr.Button("Begin anew", min_width=120, scale=0)
        self.suggestion = panel(elem_id="steer-suggestion")
        self.outputs = (self.chips, self.matched, self.output, self.suggestion, self.presets)
        self.noted = (self.strength.added,)
        self.generated: list[Any] = []
        """what `generate` updates; known once the pages are wired"""

    def _chat(self) -> dict[str, Any]:
        """Options of the box that makes the prompt a message: why it is off, where it is."""
        label = "Chat: the prompt is a message, answers go on turn by turn"
        if self.subject.loaded and not self.subject.is_instruct:
            name = (self.subject.public_lm_name or "").rpartition("/")[2] or "this model"
            why = "its tokenizer has no chat template"
            if self.subject.has_chat:
                why = "by its name it was not trained for conversations"
            label = f"Chat: off for {name}, as {why}"
        there, usable = self.subject.loaded is not None, self.subject.has_chat
        return {"label": label, "visible": there, "interactive": usable, "container": False}

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
            with gr.Row():
                self.field("temperature", dial, 0.0, 2.0, step=0.05, label="Temperature")
                self.field("max_new_tokens", dial, 1.0, 256.0, step=1, label="New tokens")
            with gr.Row():
                penalty = "Repetition penalty"
                self.field("repetition_penalty", dial, 1.0, 2.0, step=0.05, label=penalty)
                self.field("seed", gr.Number, label="Seed")

    def to_component(self, name: str, value: Any) -> Any:
        """A valid choice, a usable unit, and no chat without a template."""
        if name in _CHOICES:
            validate.choice(value, name, _CHOICES[name])
        if name == "chat":  # without a template nobody could turn it off
            return value and self.subject.has_chat
        return self._unit(value) if name == "unit" else value

    def from_component(self, name: str, value: Any) -> Any:
        """None of the settings may be emptied."""
        if name == "latents":
            return _chosen(value)
        if name == "turns":
            return tuple(value or ())
        if name != "prompt" and value is None:
            raise Refused(f"{name} is empty; write a number")
        return super().from_component(name, value)

    def _unit(self, unit: str) -> str:
        """The unit, or a replacement if the largest activations are unknown."""
        return unit if unit != "max" or self.measured else "norm"

    def first(self) -> at.Steer:
        """The first preset, ready to run."""
        return self.preset(0)

    @property
    def _begins_with_message(self) -> bool:
        return self.subject.is_instruct and "steered" not in self.choices[0]

    def render(self, address: at.Steer) -> Updates:
        """The latents with their strengths; texts are generated on request."""
        for latent in address.latents:
            check_latent(self.subject, latent)
        updates: Updates = {self.chips: self.draw_chips(address)}
        updates |= {self.matched: "", self.suggestion: ""}
        if (offered := self.search.drawn()) != self.presets.value:  # they were found meanwhile
            updates[self.presets] = offered
        kept = self._kept(address)
        of = to_query(replace(address, run=False))
        return {**updates, self.output: html("kept", {**kept, "of": of})} if kept else updates

    def _kept(self, address: at.Steer) -> dict[str, Any] | None:
        """The texts that came with a preset which is shown and not running."""
        shown = replace(address, run=False)
        for i, preset in enumerate(self.choices):
            if "steered" in preset and not address.run and self.preset(i) == shown:
                return preset
        return None

    def draw_chips(self, address: at.Steer) -> str:
        """The chosen latents with their strengths, as HTML."""
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
                "unit_name": self.unit_name(a),
            },
        )

    def unit_name(self, address: at.Steer) -> str:
        """Of its strengths, after a number."""
        return "x" if address.mode == "scale" else UNIT_NAMES[self._unit(address.unit)]

    def wire(self, app: App) -> None:
        """A setting changes the link, a button changes a latent; runs are handled elsewhere."""
        self.app = app
        self.generated = [self.notice, self.output, self.share.panel, app.link, self.written]
        settings: list[Any] = [self.fields[name] for name in NAMES]
        sliders = [field for field in settings if isinstance(field, gr.Slider)]
        changes = [field.input for field in settings]
        changes += [slider.release for slider in sliders]  # the sliders correct typed values
        app.follow(changes, self)
        gr.on(
            [self.mode.input, self.unit.input],
            self._redraw_chips,
            self.inputs,
            self.chips,
            show_progress="hidden",
            api_visibility="private",
            trigger_mode="always_last",
        )
        app.on_select(self.chips, self._changed, self, leads_to=("feature",))
        self.then_run(app.on_select(self.presets, self._preset, self))
        quietly: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        outputs = [self.strength.added, *app.outputs("steer")]
        for trigger in (self.add.click, self.new.submit):
            trigger(self._add_typed, [self.new, *self.inputs], [self.new, *outputs], **quietly)
        self.random.click(self._add_random, self.inputs, outputs, **quietly)
        for trigger in (self.reply.submit, self.send.click):
            self.then_run(
                trigger(
                    self._go_on,
                    [self.reply, *self.inputs],
                    [self.reply, *app.outputs("steer")],
                    **quietly,
                )
            )
        app.on([self.anew.click], self._anew, self)
        self._wire_runs()

    def _wire_runs(self) -> None:
        """The long runs, which can be stopped: the texts, and the search for a strength."""
        shared: dict[str, Any] = {"api_visibility": "private", "trigger_mode": "multiple"}
        queued, inputs = {**in_queue("run"), **shared}, self.inputs
        asking = gr.on(
            [self.run.click, self.prompt.submit],
            self._generate_now,
            inputs,
            None,
            queue=False,
            **shared,
        )
        asking.then(
            self.generate,
            self.written,
            self.generated,
            show_progress="minimal",
            show_progress_on=[self.output],
            **queued,
        )
        self.strength.wire()
        self.search.wire()
        self.share.wire()
        self.stop.click(
            self._stop,
            None,
            None,
            queue=False,
            js="() => document.querySelectorAll('.hf-caret').forEach((node) => node.remove())",
            **shared,
        )

    def ask(self, request: gr.Request, *values: object) -> None:
        """Request texts for the inputs' values; those under way end."""
        self.texts.ask(_session(request), values)

    def _generate_now(self, request: gr.Request, *values: object) -> None:
        """Texts with the strengths as they are: a search for others is given up."""
        self.strength.runs.give_up(_session(request))
        self.ask(request, *values)

    def _stop(self, request: gr.Request) -> None:
        for runs in (self.texts, self.strength.runs, self.search.runs):
            runs.stop(_session(request))

    def _redraw_chips(self, *values: object) -> Any:
        try:
            return self.draw_chips(self.address(*values))
        except ValueError:  # shown in the page's notice, see `follow`
            return gr.skip()

    def _add(self, latent: object, *values: object) -> Updates:
        try:
            latent = latent_of(self.subject, latent)
            shown = self.app.show(self._with(latent, self._own(self.address(*values))))
            return shown | self.strength.note(latent)
        except ValueError as error:
            return {self.notice: html("error", str(error))}

    def _add_typed(self, typed: object, *values: object) -> Updates:
        """The box is emptied, unless what it holds is refused; of a word that the latent seldom
        fires on it is said."""
        updates = self._add(typed, *values)
        if self.chips not in updates:
            return updates
        weak = weak_match(self.subject, typed)
        return updates | {self.new: "", self.matched: html("said", weak) if weak else ""}

    def _add_random(self, *values: object) -> Updates:
        return self._add(self.actions.random_latent()["latent"], *values)

    def joined(self, other: at.Steer, *values: object) -> at.Steer:
        """This page's state plus the latent that another page asked for, and its text, if any."""
        now = self._own(self.address(*values))
        if other.prompt:
            now = replace(now, prompt=other.prompt, chat=other.chat, turns=())
        elif not now.prompt.strip():
            is_message = self._begins_with_message
            prompt = MESSAGE if is_message else str(self.choices[0]["prompt"])
            now = replace(now, prompt=prompt, chat=is_message, turns=())
        new = [latent for latent in other.latents if latent not in now.latents]
        return self._with(new[0], now) if new else now

    def added(self, latents: Mapping[int, float], *values: object) -> Updates:
        """The first of them that is not steered yet gets a strength that suits it."""
        steered = self._own(self.address(*values)).latents
        new = [latent for latent in latents if latent not in steered]
        return self.strength.note(new[0]) if new else {}

    def _own(self, now: at.Steer) -> at.Steer:
        """What somebody has chosen: a preset's latents give way to the first that is."""
        return replace(now, latents={}) if self._is_preset(now) else now

    def _is_preset(self, now: at.Steer) -> bool:
        """Whether nobody has changed a preset that is shown."""
        presets = (self.preset(i, now) for i in range(len(self.choices)))
        return any(p == replace(now, unit=p.unit, chat=p.chat, turns=()) for p in presets)

    def _with(self, latent: int, now: at.Steer) -> at.Steer:
        if len(now.latents) >= validate.MAX_LATENTS:
            raise Refused(f"{validate.MAX_LATENTS} latents are steered already; remove one")
        if latent in now.latents:
            strength = f"{now.latents[latent]:g}"
            raise Refused(f"latent {latent} is steered already, with strength {strength}")
        strength = 1.0 if now.mode == "scale" else _FIRST[now.unit]
        return replace(now, latents={**now.latents, latent: strength})

    def _changed(self, do: str, index: str, to: str, *values: object) -> at.Address:
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
        """A preset's prompt, which is no message, latents, mode and unit; the other settings are
        those of `now`."""
        preset, now = self.choices[number], now or at.Steer()
        strengths = {int(i): float(s) for i, s in preset["latents"].items()}
        mode, unit = str(preset.get("mode", "add")), "max"
        if not self.measured:
            strengths, unit = dict.fromkeys(strengths, _FIRST["norm"]), "norm"
        shown = replace(now, prompt=str(preset["prompt"]), chat=False, turns=())
        return replace(shown, latents=strengths, mode=mode, unit=unit)

    def striking(self) -> at.Steer:
        """The first preset, running."""
        return replace(self.preset(0), run=True)

    def _preset(self, do: str, index: str, to: str, *values: object) -> at.Steer:
        number = min(whole(index), len(self.choices) - 1)
        return replace(self.preset(number, self.address(*values)), run=True)

    def request_run(self, request: gr.Request, address: at.Address) -> None:
        """Request an address's texts, if it asks for them; `then_run` writes them."""
        if isinstance(address, at.Steer) and address.run:
            self.ask(request, *self.values(address))

    def then_run(self, shown: Dependency) -> None:
        """After an event that led to an address: generate the texts that it requested, while others
        that they take the place of may still be under way."""
        options: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        options["trigger_mode"] = "multiple"
        shown.then(self.generate, self.written, self.generated, **in_queue("run"), **options)

    def _go_on(self, reply: object, request: gr.Request, *values: object) -> Updates:
        """The next message of the conversation, which is then answered."""
        try:
            now, reply = self.address(*values), check_text(reply)
        except ValueError as error:
            return {self.notice: html("error", str(error))}
        turns = (*now.turns, now.prompt) if now.prompt.strip() else now.turns
        address = replace(now, turns=turns, prompt=reply, run=True)
        self.request_run(request, address)
        return {self.reply: "", **self.app.show(address)}

    def _anew(self, *values: object) -> at.Steer:
        return replace(self.address(*values), turns=(), prompt="")

    def generate(self, request: gr.Request, written: Written | None = None) -> Iterator[Updates]:
        """Both texts, token by token, for the last request, if it was not stopped.

        Args:
            written: by the session's last run; turns of the same conversation are not written
                again.
        """
        session = _session(request)
        run = self.texts.begin(session)
        if run is None:
            yield {self.notice: gr.skip()}
            return
        try:
            yield from self._write(self.address(*run.values), run, written)
        except ValueError as error:
            yield {self.notice: html("error", str(error))}
        finally:
            self.texts.end(session, run)

    def _write(self, address: at.Steer, run: Run, written: Written | None) -> Iterator[Updates]:
        if not address.latents:
            raise Refused("no latent is chosen to steer; add one, by a word or its number")
        asked = replace(address, run=True)
        yield {self.notice: "", self.share.panel: "", self.app.link: to_query(asked)}
        turns = address.turns if address.chat else ()
        exchanges = written.before(address) if written and turns else ()
        view: dict[str, Any] = {}
        own = {"of": to_query(address), "what": self._named(address)}
        for message in [*turns, address.prompt][len(exchanges) :]:
            for view in self._texts(replace(address, prompt=message), exchanges, run):
                view |= own
                yield {self.output: html("pair", view)}
            if run.over:
                break
            exchanges = (*exchanges, Exchange(message, view["plain"], view["steered"]))
        if not run.over:
            if not turns:
                code = of_texts(self.subject, address.prompt, address.latents, address)
                yield {self.output: html("pair", view | {"code": code})}
            yield {self.written: Written(address, exchanges if address.chat else (), view)}
        elif run.stopped and view:
            notice = html("said", f"Stopped after {view['n_steered']} tokens.")
            view |= {"done": True}
            yield {
                self.notice: notice,
                self.output: html("pair", view),
                self.written: Written(address, (), view),
            }
        else:  # Gradio sends what came last again at the end, where others' texts may stand by now
            yield {self.notice: gr.skip()}

    def _named(self, address: at.Steer) -> str:
        """The latents that a text is steered by, and how strongly."""
        names = {i: self.subject.label(i) or f"latent {i}" for i in address.latents}
        if address.mode == "ablate":
            return ", ".join(names.values())
        return ", ".join(f"{names[i]} at {s:g}" for i, s in address.latents.items())

    def _texts(
        self, address: at.Steer, earlier: Sequence[Exchange], run: Run
    ) -> Iterator[dict[str, Any]]:
        """Both texts of one prompt, as they grow."""
        job = check(self.subject, address.prompt, address.latents, address, earlier)
        apart = on_zero_gpu()  # the process with the GPU cannot ask, nor tell the KL once it ends
        options = {} if apart else {"stopped": lambda: run.over}
        shown = {"prompt": address.prompt, "chat": address.chat, "earlier": list(earlier)}
        for view in self.actions.write(job, sampling(address), **options):
            if run.over and (apart or not run.stopped):
                break
            yield {**view, **shown}


def _chosen(latents: object) -> dict[int, float]:
    """The page's latents and strengths: JSON has text for keys."""
    mapping = latents if isinstance(latents, dict) else {}
    return {int(latent): float(strength) for latent, strength in mapping.items()}


def _session(request: gr.Request) -> str:
    return str(request.session_hash)
