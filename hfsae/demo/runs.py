"""Runs that take their time: each session has one under way, and may stop it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(eq=False)
class Run:
    """One run of one session."""

    values: Sequence[Any] = ()
    """of the page's inputs, when it was asked for"""
    over: bool = False
    """it has to end: it was stopped, or another was asked for"""
    stopped: bool = False


class Runs:
    """What each session asked for last. A run is asked for at once, and begins when its turn comes:
    what was stopped while it waited never begins."""

    def __init__(self) -> None:
        self._last: dict[str, Run] = {}
        self._waiting: dict[str, Run] = {}

    def ask(self, session: str, values: Sequence[Any] = ()) -> None:
        """Ends the run under way."""
        if before := self._last.get(session):
            before.over = True
        self._last[session] = self._waiting[session] = Run(values)

    def begin(self, session: str) -> Run | None:
        """The run that was asked for last, once, whoever's turn it is; None if none is."""
        return self._waiting.pop(session, None)

    def stop(self, session: str) -> None:
        """Ends the run under way; one that waits never begins."""
        self._waiting.pop(session, None)
        if run := self._last.pop(session, None):
            run.over = run.stopped = True

    def end(self, session: str, run: Run) -> None:
        """The run is over, whether or not another was asked for meanwhile."""
        if self._last.get(session) is run:
            del self._last[session]
