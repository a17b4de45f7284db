"""Long runs: each session has one at a time, and may stop it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(eq=False)
class Run:
    """One run of one session."""

    values: Sequence[Any] = ()
    """the page's inputs when it was requested"""
    over: bool = False
    """whether it must end: it was stopped, or another was requested"""
    stopped: bool = False


class Runs:
    """Each session's last request. A run is requested at once, and begins when its turn comes: one
    that is stopped while it waits never begins."""

    def __init__(self) -> None:
        self._last: dict[str, Run] = {}
        self._waiting: dict[str, Run] = {}

    def ask(self, session: str, values: Sequence[Any] = ()) -> None:
        """Ends the run under way."""
        if before := self._last.get(session):
            before.over = True
        self._last[session] = self._waiting[session] = Run(values)

    def begin(self, session: str) -> Run | None:
        """The last requested run, once, whoever's turn it is; None if there is none."""
        return self._waiting.pop(session, None)

    def stop(self, session: str) -> None:
        """Ends the run under way; one that waits never begins."""
        if run := self.give_up(session):
            run.stopped = True

    def give_up(self, session: str) -> Run | None:
        """As `stop`, for something else's sake: the run that ends, which says nothing of it."""
        self._waiting.pop(session, None)
        if run := self._last.pop(session, None):
            run.over = True
        return run

    def end(self, session: str, run: Run) -> None:
        """The run is over, whether or not another was requested meanwhile."""
        if self._last.get(session) is run:
            del self._last[session]
