"""What the app remembers of its callers: of each some 0.5 MB, the state of all components.

Gradio remembers 10,000 callers, and a program may come as a new one with every call. A page that is
forgotten while it is open goes on, as if its other tabs had not been opened before.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gradio.routes import App
from gradio.state_holder import StateHolder

PAGES, PROGRAMS = 64, 16


class Sessions(StateHolder):
    """Gradio's sessions, but for the oldest. A program's holds nothing, and its next call makes it
    anew; of pages, those that were closed go first.

    Args:
        pages, programs: how many callers of either kind are remembered, the one that calls apart.
    """

    def __init__(self, pages: int = PAGES, programs: int = PROGRAMS) -> None:
        super().__init__()
        self._pages, self._programs = pages, programs

    def update(self, session_id: str) -> None:
        """Note that a caller is here."""
        with self.lock:
            if session_id in self.session_data:
                self.session_data.move_to_end(session_id)
            others = {name: s for name, s in list(self.session_data.items()) if name != session_id}
            programs = [name for name, session in others.items() if not session.state_data]
            pages = [name for name, session in others.items() if session.state_data]
            pages.sort(key=lambda name: not others[name].is_closed)  # stable: the oldest first
            for kind, most in ((programs, self._programs), (pages, self._pages)):
                for name in kind[: max(0, len(kind) - most)]:
                    self.session_data.pop(name, None)
                    self.time_last_used.pop(name, None)


@asynccontextmanager
async def few_sessions(app: App) -> AsyncIterator[None]:
    """While Gradio's app runs, its sessions are `Sessions`."""
    app.state_holder = Sessions()
    app.state_holder.set_blocks(app.get_blocks())
    yield
