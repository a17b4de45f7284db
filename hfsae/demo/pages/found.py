"""The search for presets on the steer page, for a user's own SAE that comes without any."""

from typing import Any

import gradio as gr

from ..actions import in_queue
from ..missing import missing
from ..parts import html
from ..presets import can_search, presets, search_presets, why_random
from ..runs import Runs
from .page import Updates

_NONE = (
    "No latent that was tried steers visibly with all three seeds; nothing is written. "
    "“hfsae presets FOLDER --n_candidates 100” tries more."
)
_UNDER_WAY = (
    "Another window has begun a search already; it goes on, "
    "and its presets are offered here when it ends."
)


class PresetSearch:
    """One search at a time; a session ends its own with Stop. What it finds is offered to all."""

    def __init__(self, page: Any) -> None:
        self.page, self.runs = page, Runs()
        self.searcher = ""  # the session whose search is under way; a reloaded page is another

    def drawn(self) -> str:
        """The presets to click, and the search, where there can be one."""
        names = [choice["name"] for choice in self.page.choices]
        subject = self.page.subject
        lacking = None if subject.presets else missing(subject, "collect")
        return html("presets", names, can_search(subject), lacking, why_random(subject))

    def wire(self) -> None:
        """A button begins it."""
        options: dict[str, Any] = {"api_visibility": "private", "trigger_mode": "multiple"}
        page = self.page
        page.presets.find(self._ask, None, page.notice, queue=False, **options).then(
            self._search,
            None,
            [page.notice, page.presets, page.searching],
            show_progress_on=[page.searching],
            **in_queue("search"),
            **options,
        )

    def _ask(self, request: gr.Request) -> Any:
        """A second click begins nothing: the search would start from the beginning."""
        session = str(request.session_hash)
        if session == self.searcher:
            return gr.skip()
        if can_search(self.page.subject):
            self.runs.ask(session)
        return html("said", _UNDER_WAY) if self.searcher else ""

    def _search(self, request: gr.Request, progress: gr.Progress = gr.Progress()) -> Updates:
        session, page = str(request.session_hash), self.page
        run = self.runs.begin(session)
        if run is None:
            return {page.presets: self.drawn()}
        if not can_search(page.subject):
            return {page.notice: "", page.presets: self.drawn()}

        def tell(what: str, done: int, n: int) -> None:
            if run.over:
                raise _StoppedError
            progress(done / max(1, n), desc=f"{done} of {n} {what}")

        self.searcher = session
        try:
            notice = _notice(search_presets(page.subject, tell))
            page.choices = presets(page.subject)
        except ValueError as error:
            notice = html("error", str(error))
        except _StoppedError:
            notice = html("said", "The search for presets was stopped; nothing is written.")
        finally:
            self.searcher = ""
            self.runs.end(session, run)
        return {page.notice: notice, page.presets: self.drawn()}


def _notice(n_found: int) -> str:
    if not n_found:
        return html("said", _NONE)
    return html("said", f"{n_found} presets that work are offered, and written to presets.json.")


class _StoppedError(Exception):
    """Ends a search."""
