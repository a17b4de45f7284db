"""The search for a strength on the steer page: on request, and when a latent is added. Texts of the
strength that is found are then written."""

from collections.abc import Callable
from dataclasses import fields, replace
from itertools import count
from typing import Any

import gradio as gr

from .. import address as at
from ..actions import in_queue, on_zero_gpu
from ..address import to_query
from ..parts import html
from ..runs import Runs
from ..settings import Steering
from ..steer_actions import MAX_KL, MAX_REPETITION, N_TRIED, SWEPT_MODES, SWEPT_UNITS
from .page import Updates


class StrengthSearch:
    """Each session has one search at a time; it sets strengths that nobody changed meanwhile."""

    def __init__(self, page: Any) -> None:
        self.page, self.runs = page, Runs()
        self.found = gr.State(None)
        self.added = gr.State(None)  # the latent that was added last, with a number of its own
        self._numbers = count()

    def note(self, latent: int) -> Updates:
        """The update that begins a search, for a latent that is added by the same event."""
        return {self.added: (latent, next(self._numbers))}

    def wire(self) -> None:
        """A button and an added latent begin it."""
        quietly: dict[str, Any] = {"api_visibility": "private", "trigger_mode": "multiple"}
        page, inputs = self.page, self.page.inputs
        begun = [
            page.suggest.click(self._ask, inputs, None, queue=False, **quietly),
            self.added.change(self._ask_added, [self.added, *inputs], None, queue=False, **quietly),
        ]
        for event in begun:
            event.then(
                self._suggest,
                None,
                [page.notice, page.suggestion, self.found],
                show_progress_on=[page.trying],
                **in_queue("run"),
                **quietly,
            ).then(
                self._take,
                [self.found, *inputs],
                [self.found, page.latents, page.chips, page.app.link],
                show_progress="hidden",
                **quietly,
            ).then(
                page.generate,
                page.written,
                page.generated,
                show_progress="hidden",
                **in_queue("run"),
                **quietly,
            )

    def _ask(self, request: gr.Request, *values: object) -> None:
        self.runs.ask(str(request.session_hash), (None, *values))

    def _ask_added(self, request: gr.Request, added: Any, *values: object) -> None:
        """A search for the latent that was added, where one can be made."""
        try:
            now = self.page.address(*values)
        except ValueError:  # somebody is typing
            return
        fits = now.mode in SWEPT_MODES and now.unit in SWEPT_UNITS and now.prompt.strip()
        if added and added[0] in now.latents and fits and self.page.subject.loaded:
            self.runs.ask(str(request.session_hash), (added[0], *values))

    def _suggest(self, request: gr.Request, progress: gr.Progress = gr.Progress()) -> Updates:
        session, page = str(request.session_hash), self.page
        run = self.runs.begin(session)
        if run is None:
            return {page.notice: gr.skip()}

        def tell(done: int, n: int) -> None:
            if run.over:
                raise _StoppedError
            progress((done, n), desc=f"trial {min(done + 1, n)} of {n}", unit="trials")

        try:
            only, *values = run.values
            return self._sweep(page.address(*values), only, tell)
        except ValueError as error:
            return {page.notice: html("error", str(error)), self.found: None}
        except _StoppedError:
            said = {page.notice: html("said", "Stopped; the strengths are as they were.")}
            return {**(said if run.stopped else {}), self.found: None}
        finally:
            self.runs.end(session, run)

    def _sweep(self, now: at.Steer, only: int | None, tell: Callable[[int, int], None]) -> Updates:
        # the process with the GPU could not call back
        progress = {} if on_zero_gpu() else {"progress": tell}
        page = self.page
        result = page.actions.sweep(now.prompt, now.latents, now, only=only, **progress)
        shown = {"unit_name": page.unit_name(now), "prompt": now.prompt, "only": only}
        shown["others"] = only is not None and len(now.latents) > 1
        shown |= {"n_tokens": N_TRIED, "max_kl": MAX_KL, "max_repetition": MAX_REPETITION}
        suggested = {int(latent): strength for latent, strength in result["latents"].items()}
        return {
            page.notice: "",
            page.suggestion: html("suggestion", {**result, **shown}),
            self.found: (now, suggested) if result["strength"] else None,
        }

    def _take(self, request: gr.Request, suggestion: Any, *values: object) -> Updates:
        """The strengths found, whose texts are written, unless others were set meanwhile."""
        page = self.page
        try:
            now = page.address(*values)
        except ValueError:  # somebody is still typing
            return {page.chips: gr.skip()}
        address, suggested = suggestion or (None, None)
        if address is None or replace(now, **_question(address)) != now:
            return {page.chips: gr.skip()}
        new = replace(now, latents=suggested)
        page.ask(request, *page.values(new))
        return {
            self.found: None,
            page.latents: suggested,
            page.chips: page.draw_chips(new),
            page.app.link: to_query(new),
        }


def _question(address: at.Steer) -> dict[str, Any]:
    """The inputs of a search for a strength."""
    names = ("prompt", "latents", *(f.name for f in fields(Steering)))
    return {name: getattr(address, name) for name in names}


class _StoppedError(Exception):
    """Ends a sweep."""
