"""Baseline and steered text side by side; the search for a strength."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any

import gradio as gr
from gradio.events import Dependency

from ...io.errors import Refused
from ...steering import MODES, SCOPES, UNITS
from .. import address as at
from .. import validate
from ..actions import QUEUES, Actions
from ..address import to_query
from ..inspect_actions import latent_of, weak_match
from ..parts import dial, html, panel
from ..presets import lacking, presets, why_random
from ..rows import as_rows
from ..share import share_panel
from ..snippet import of_texts
from ..steer_actions import (
    LIMITS,
    MAX_KL,
    MAX_REPETITION,
    N_TRIED,
    SWEPT_MODES,
    SWEPT_UNITS,
    check,
)
from ..subject import Exchange
from .page import LATENT_BOX, App, Page, Updates, Visit, box, clicked, whole

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
_NO_CARET = """(visit) => {
    document.querySelectorAll('.hf-caret').forEach((node) => node.remove());
    return [visit];
}"""
_CHOICES: dict[str, tuple[str, ...]] = {"mode": MODES, "scope": SCOPES, "unit": UNITS}


def same_turns(
    written: at.Steer, exchanges: tuple[Exchange, ...], address: at.Steer
) -> tuple[Exchange, ...]:
    """Of the exchanges that were written, those that an address with the same settings begins with:
    they are not written again."""
    shared = exchanges[: len(address.turns)]
    is_same = tuple(message for message, *_ in shared) == address.turns[: len(shared)]
    settings = replace(address, prompt=written.prompt, turns=written.turns)
    return shared if is_same and settings == written else ()


class SteerPage(Page[at.Steer]):
    """Long texts, and searches for strengths: a visit has one of each at a time."""

    title = "Steer"
    state = at.Steer

    def __init__(self, actions: Actions) -> None:
        super().__init__(actions)
        self.measured = self.subject.largest() is not None
        self.choices = presets(self.subject)
        self.latents, self.turns = self.field("latents", gr.State), self.field("turns", gr.State)
        # the latent that was added last, with a number: the same one again is a change, too
        self.added = gr.State(None)
        self._numbers = count()
        chat = "Chat: the prompt is a message, answers go on turn by turn"
        if self.subject.loaded and not self.subject.is_instruct:
            name = (self.subject.public_lm_name or "").rpartition("/")[2] or "this model"
            why = "its tokenizer has no chat template"
            if self.subject.has_chat:
                why = "by its name it was not trained for conversations"
            chat = f"Chat: off for {name}, as {why}"
        there, usable = self.subject.loaded is not None, self.subject.has_chat
        shown = {"visible": there, "interactive": usable, "container": False}
        main, stop = {"variant": "primary", "scale": 0}, {"variant": "stop", "scale": 0}
        with gr.Row():
            with gr.Column(scale=3, min_width=320):
                self.prompt = self.field("prompt", gr.Textbox, label="Prompt", **box(3))
                self.presets = panel(self.presets_html(), elem_id="steer-examples")
                with gr.Row(elem_classes="hf-buttons"):
                    self.start = gr.Button("Generate", min_width=120, elem_id="steer-run", **main)
                    self.stop = gr.Button("Stop", min_width=80, elem_id="steer-stop", **stop)
                    self.suggest = gr.Button("Find a strength", min_width=140, scale=0)
                    panel(html("keys"))
                self.field("chat", gr.Checkbox, label=chat, **shown)
            with gr.Column(scale=3, min_width=320):
                self.chips = panel(self.draw_chips(self.opening), elem_id="steer-chips")
                with gr.Row(elem_classes="hf-buttons"):
                    self.new = gr.Textbox(**LATENT_BOX)
                    self.add = gr.Button("Add", min_width=80, scale=0)
                    self.random = gr.Button("Add random", min_width=130, scale=0)
                self.matched = panel(elem_id="steer-matched")
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
        self.notice = panel()
        self.trying = panel(elem_id="steer-trying")
        self.output = panel(html("empty", _NO_TEXTS), elem_id="steer-output")
        self.share = panel(elem_id="steer-share")
        with gr.Row(elem_classes="hf-buttons hf-reply"):
            self.reply = gr.Textbox(label="Your next message", scale=1, min_width=200, max_lines=6)
            self.send = gr.Button("Send", min_width=90, **main)
            self.anew = gr.Button("Begin anew", min_width=120, scale=0)
        self.suggestion = panel(elem_id="steer-suggestion")
        self.outputs = (self.chips, self.matched, self.output, self.suggestion)

    def to_component(self, name: str, value: Any) -> Any:
        """A valid choice, a usable unit, and no chat without a template."""
        if name in _CHOICES:
            validate.choice(value, name, _CHOICES[name])
        if name == "chat":  # without a template nobody could turn it off
            return value and self.subject.has_chat
        return self._unit(value) if name == "unit" else value

    def from_component(self, name: str, value: Any) -> Any:
        """None of the settings may be emptied."""
        if name == "latents":  # JSON has text for keys
            latents = value if isinstance(value, dict) else {}
            return {int(latent): float(strength) for latent, strength in latents.items()}
        if name == "turns":
            return tuple(value or ())
        if name == "prompt":
            return value or ""
        if value is None:
            raise Refused(f"{name} is empty; write a number")
        return value

    def _unit(self, unit: str) -> str:
        """The unit, or a replacement if the largest activations are unknown."""
        return unit if unit != "max" or self.measured else "norm"

    def first(self) -> at.Steer:
        """The first preset, ready to run."""
        return self.preset(0)

    def render(self, address: at.Steer) -> Updates:
        """The latents with their strengths; texts are generated on request, but for those that came
        with a preset which is shown."""
        for latent in address.latents:
            validate.latent(latent, self.subject.d_sae)
        updates: Updates = {self.chips: self.draw_chips(address)}
        updates |= {self.matched: "", self.suggestion: ""}
        shown = replace(address, run=False)
        for i, preset in enumerate(self.choices):
            if "steered" in preset and not address.run and self.preset(i) == shown:
                updates[self.output] = html("kept", {**preset, "of": to_query(shown)})
                break
        return updates

    def presets_html(self) -> str:
        """HTML of the presets to click, and how to get better ones."""
        names = [choice["name"] for choice in self.choices]
        return html("presets", names, lacking(self.subject), why_random(self.subject))

    def draw_chips(self, address: at.Steer) -> str:
        """The chosen latents with their strengths, as HTML."""
        unit, latents = self._unit(address.unit), address.latents.items()
        reach, step = (4, 0.1) if address.mode == "scale" else _REACH[unit]
        rows = as_rows(self.subject, [{"latent": i, "value": s} for i, s in latents])
        view = {
            "chips": [{**row, "strength": f"{row['value']:g}"} for row in rows],
            "reach": reach,
            "step": step,
            "limit": LIMITS[unit],
            "measured": address.mode != "ablate",
            "unit_name": self.unit_name(address),
        }
        return html("chips", view)

    def unit_name(self, address: at.Steer) -> str:
        """Of its strengths, after a number."""
        return "x" if address.mode == "scale" else UNIT_NAMES[self._unit(address.unit)]

    def wire(self, app: App) -> None:
        """A setting changes the link, a button changes a latent; texts and searches are jobs.

        A click on Generate: `Visit.ask` keeps the fields as a job at once, and ends the one before.
        `generate` takes the job up when its turn comes: `steer_actions.check` makes tokens of it,
        `steer_actions.write` yields both texts as they grow, and the macro `pair` of parts.html
        shows them.
        """
        self.app, visit, fields = app, app.visit, [app.visit, *self.inputs]
        self.written = [self.notice, self.output, self.share, app.link]  # what `generate` updates
        quietly: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        last: dict[str, Any] = {"trigger_mode": "always_last", **quietly}
        every: dict[str, Any] = {"trigger_mode": "multiple", "api_visibility": "private"}
        at_once, slow = {"queue": False, **every}, {**QUEUES["slow"], **every}

        # texts with the strengths as they are: a search for others is given up
        ask_texts = partial(Visit.ask, kind="texts", instead_of="strength")
        begun = [self.start.click, self.prompt.submit]
        self.then_generate(gr.on(begun, ask_texts, fields, None, **at_once), seen=True)
        self.then_generate(app.on_select(self.presets, self._preset, self))
        inputs = [visit, self.reply, *self.inputs]
        outputs = [self.reply, *app.outputs("steer")]
        for trigger in (self.reply.submit, self.send.click):
            self.then_generate(trigger(self._go_on, inputs, outputs, **quietly))
        app.on([self.anew.click], self._begin_anew, self)
        self.stop.click(Visit.stop, visit, None, js=_NO_CARET, **at_once)
        drawn: dict[str, Any] = {"show_progress": "minimal", "show_progress_on": [self.share]}
        self.output.select(self._share, visit, self.share, api_visibility="private", **drawn)

        settings: list[Any] = [self.fields[name] for name in at.SETTINGS]
        changes = [field.input for field in settings]
        # the sliders correct typed values
        changes += [field.release for field in settings if isinstance(field, gr.Slider)]
        gr.on(changes, self._follow, self.inputs, [self.notice, app.link], **last)
        redrawn = [self.mode.input, self.unit.input]
        gr.on(redrawn, self._redraw_chips, self.inputs, self.chips, **last)
        app.on_select(self.chips, self._click, self, leads_to=("feature",))
        outputs = [self.added, *app.outputs("steer")]
        for trigger in (self.add.click, self.new.submit):
            trigger(self._add_typed, [self.new, *self.inputs], [self.new, *outputs], **quietly)
        self.random.click(self._add_random, self.inputs, outputs, **quietly)

        taken = [self.latents, self.chips, app.link]
        for event in (
            self.suggest.click(partial(Visit.ask, kind="strength"), fields, None, **at_once),
            self.added.change(self._ask_added, [self.added, *fields], None, **at_once),
        ):
            shown = [self.notice, self.suggestion]
            event = event.then(self._suggest, visit, shown, show_progress_on=[self.trying], **slow)
            self.then_generate(
                event.then(self._take, fields, taken, trigger_mode="multiple", **quietly)
            )

    def then_generate(self, event: Dependency, *, seen: bool = False) -> None:
        """After an event: generate the texts that it requested, while others that they take the
        place of may still be under way."""
        event.then(
            self.generate,
            self.app.visit,
            self.written,
            api_visibility="private",
            trigger_mode="multiple",
            show_progress="minimal" if seen else "hidden",
            show_progress_on=[self.output] if seen else None,
            **QUEUES["slow"],
        )

    def _follow(self, *values: object) -> Updates:
        """The link follows a changed setting."""
        try:
            return {self.app.link: to_query(self.address(*values))}
        except ValueError as error:
            return {self.notice: html("error", str(error))}

    def _redraw_chips(self, *values: object) -> Any:
        try:
            return self.draw_chips(self.address(*values))
        except ValueError:  # shown in the page's notice by `_follow`
            return gr.skip()

    def _add(self, latent: object, *values: object) -> Updates:
        try:
            latent = latent_of(self.subject, latent)
            shown = self.app.show(self._with(latent, self._own(self.address(*values))))
            return {**shown, self.added: (latent, next(self._numbers))}
        except ValueError as error:
            return {self.notice: html("error", str(error))}

    def _add_typed(self, typed: object, *values: object) -> Updates:
        """The box is emptied, unless what it holds is refused; of a word that the latent seldom
        fires on it is said."""
        updates = self._add(typed, *values)
        if self.chips in updates:
            weak = weak_match(self.subject, typed)
            updates |= {self.new: "", self.matched: html("said", weak) if weak else ""}
        return updates

    def _add_random(self, *values: object) -> Updates:
        return self._add(self.actions.random_latent()["latent"], *values)

    def join(self, other: at.Steer, *values: object) -> tuple[at.Steer, Updates]:
        """This page's state plus the latent that another page asked for, which then gets a strength
        that suits it, and its text, if any."""
        now = self._own(self.address(*values))
        new = [latent for latent in other.latents if latent not in now.latents]
        if other.prompt:
            now = replace(now, prompt=other.prompt, chat=other.chat, turns=())
        elif not now.prompt.strip():
            is_message = self.subject.is_instruct and "steered" not in self.choices[0]
            prompt = MESSAGE if is_message else str(self.choices[0]["prompt"])
            now = replace(now, prompt=prompt, chat=is_message, turns=())
        if not new:
            return now, {}
        return self._with(new[0], now), {self.added: (new[0], next(self._numbers))}

    def _own(self, now: at.Steer) -> at.Steer:
        """What somebody has chosen: the latents of a preset that nobody changed give way to the
        first that is."""
        shown = (self.preset(i, now) for i in range(len(self.choices)))
        is_preset = any(p == replace(now, unit=p.unit, chat=p.chat, turns=()) for p in shown)
        return replace(now, latents={}) if is_preset else now

    def _with(self, latent: int, now: at.Steer) -> at.Steer:
        if len(now.latents) >= validate.MAX_LATENTS:
            raise Refused(f"{validate.MAX_LATENTS} latents are steered already; remove one")
        if latent in now.latents:
            strength = f"{now.latents[latent]:g}"
            raise Refused(f"latent {latent} is steered already, with strength {strength}")
        strength = 1.0 if now.mode == "scale" else _FIRST[now.unit]
        return replace(now, latents={**now.latents, latent: strength})

    def _begin_anew(self, *values: object) -> at.Steer:
        return replace(self.address(*values), turns=(), prompt="")

    def _click(self, do: str, index: str, to: str, *values: object) -> at.Address:
        now, latent = self.address(*values), whole(index)
        if do == "remove":
            return replace(now, latents={i: s for i, s in now.latents.items() if i != latent})
        if do == "strength":
            limit, changed = LIMITS[now.unit], f"{latent}:{to}"
            strengths = validate.strengths(changed, self.subject.d_sae, limit, unit=now.unit)
            return replace(now, latents={**now.latents, **strengths})
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

    def _preset(self, do: str, index: str, to: str, *values: object) -> at.Steer:
        number = min(whole(index), len(self.choices) - 1)
        return replace(self.preset(number, self.address(*values)), run=True)

    def _go_on(self, visit: Visit, reply: object, *values: object) -> Updates:
        """The next message of the conversation, which is then answered."""
        try:
            now, reply = self.address(*values), validate.text(reply)
        except ValueError as error:
            return {self.notice: html("error", str(error))}
        turns = (*now.turns, now.prompt) if now.prompt.strip() else now.turns
        address = replace(now, turns=turns, prompt=reply, run=True)
        visit.ask(*self.values(address), kind="texts")
        return {self.reply: "", **self.app.show(address)}

    def generate(self, visit: Visit) -> Iterator[Updates]:
        """Both texts, token by token, for the visit's last request, if it was not stopped; turns of
        the same conversation are not written again."""
        job, subject = visit.begin("texts"), self.subject
        if job is None:
            yield {self.notice: gr.skip()}
            return
        try:
            address = self.address(*job.values)
            if not address.latents:
                raise Refused("no latent is chosen to steer; add one, by a word or its number")
            of = to_query(address)
            yield {self.notice: "", self.share: "", self.app.link: f"{of}&run=1"}

            # what the texts are called, and the turns that are written already
            names = {i: subject.labels.get(i) or f"latent {i}" for i in address.latents}
            if address.mode != "ablate":
                names = {i: f"{names[i]} at {s:g}" for i, s in address.latents.items()}
            own = {"of": of, "what": ", ".join(names.values()), "chat": address.chat}
            turns = address.turns if address.chat else ()
            exchanges: tuple[Exchange, ...] = ()
            if visit.written and turns:
                exchanges = same_turns(visit.written[0], visit.written[1], address)

            # the answer to each message, as far as it is written; the process with the GPU cannot
            # ask whether it is stopped, nor tell the KL once it ends
            view: dict[str, Any] = {}
            apart = self.actions.apart
            options = {} if apart else {"stopped": lambda: job.over}
            for message in [*turns, address.prompt][len(exchanges) :]:
                texts_of = check(subject, message, address.latents, address, exchanges)
                own |= {"prompt": message, "earlier": list(exchanges)}
                for texts in self.actions.write(*texts_of, **options):
                    if job.over and (apart or not job.stopped):
                        break
                    view = {**texts, **own}
                    yield {self.output: html("pair", view)}
                if job.over:
                    break
                exchanges = (*exchanges, (message, view["plain"], view["steered"]))

            if not job.over:
                if not turns:
                    code = of_texts(subject, address)
                    yield {self.output: html("pair", view | {"code": code})}
                visit.written = address, exchanges if address.chat else (), view
            elif job.stopped and view:
                view["done"] = True
                notice = html("said", f"Stopped after {view['n_steered']} tokens.")
                yield {self.notice: notice, self.output: html("pair", view)}
                visit.written = address, (), view
            else:  # Gradio sends what came last again at the end, where others' texts may be by now
                yield {self.notice: gr.skip()}
        except ValueError as error:
            yield {self.notice: html("error", str(error))}
        finally:
            job.over = True

    def _share(self, event: gr.EventData, request: gr.Request, visit: Visit) -> Any:
        """The last texts as a picture, by a button under them."""
        if visit.written is None or clicked(event)[0] != "share":
            return gr.skip()
        address, _, view = visit.written
        origin = str(request.headers.get("origin") or "")
        return share_panel(self.subject, address, view, origin)

    def _ask_added(self, added: Any, visit: Visit, *values: object) -> None:
        """A search for the latent that was added, where one can be made."""
        try:
            now = self.address(*values)
        except ValueError:  # somebody is typing
            return
        fits = now.mode in SWEPT_MODES and now.unit in SWEPT_UNITS and now.prompt.strip()
        if added and added[0] in now.latents and fits and self.subject.loaded:
            visit.ask(*values, kind="strength", latent=added[0])

    def _suggest(self, visit: Visit, progress: gr.Progress = gr.Progress()) -> Updates:
        job = visit.begin("strength")
        if job is None:
            return {self.notice: gr.skip()}
        visit.strength = None

        def tell(done: int, n: int) -> None:
            if job.over:
                raise _StoppedError
            progress((done, n), desc=f"trial {min(done + 1, n)} of {n}", unit="trials")

        try:
            only, now = job.latent, self.address(*job.values)
            # the process with the GPU could not call back
            options = {} if self.actions.apart else {"progress": tell}
            result = self.actions.sweep(now.prompt, now.latents, now, only=only, **options)
        except ValueError as error:
            return {self.notice: html("error", str(error))}
        except _StoppedError:
            said = html("said", "Stopped; the strengths are as they were.")
            return {self.notice: said if job.stopped else gr.skip()}
        finally:
            job.over = True
        if result["strength"]:
            visit.strength = now, {int(i): strength for i, strength in result["latents"].items()}
        shown = {"unit_name": self.unit_name(now), "prompt": now.prompt, "only": only}
        shown |= {"n_tokens": N_TRIED, "max_kl": MAX_KL, "max_repetition": MAX_REPETITION}
        shown["others"] = only is not None and len(now.latents) > 1
        return {self.notice: "", self.suggestion: html("suggestion", {**result, **shown})}

    def _take(self, visit: Visit, *values: object) -> Updates:
        """The strengths found, whose texts are written, unless others were set meanwhile."""
        (asked, strengths), visit.strength = visit.strength or (None, None), None
        try:
            now = self.address(*values)
        except ValueError:  # somebody is still typing
            return {self.chips: gr.skip()}
        names = ("prompt", "latents", *at.STEERING)
        if asked is None or any(getattr(asked, name) != getattr(now, name) for name in names):
            return {self.chips: gr.skip()}
        new = replace(now, latents=strengths)
        visit.ask(*self.values(new), kind="texts")
        return {
            self.latents: strengths,
            self.chips: self.draw_chips(new),
            self.app.link: to_query(new),
        }


class _StoppedError(Exception):
    """Ends a search."""
