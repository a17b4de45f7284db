"""The first minute: what a latent is, and three steps to a steered text."""

from typing import Any, cast

from .. import address as at
from ..actions import Actions
from ..parts import html, panel
from ..presets import first_texts, presets
from ..subject import Subject
from .page import App, whole
from .steer import SteerPage


class Tour:
    """A panel above the pages. A click on a step shows it; the visitor hides the panel, or goes the
    steps on the pages themselves: page.js marks those done, and remembers a hidden tour."""

    def __init__(self, actions: Actions) -> None:
        self.actions, self.subject = actions, actions.subject
        preset = presets(self.subject)[0]["name"]
        self.panel = panel(html("tour", {**_view(self.subject), "preset": preset}), elem_id="tour")

    def wire(self, app: App) -> None:
        """The last step generates its texts."""
        steer = cast(SteerPage, app.pages["steer"])

        def step(do: str, number: str, to: str, *values: object) -> at.Address:
            if number == "1":
                return self._latent(to)
            return self._word() if number == "0" else steer.striking()

        shown = app.on_select(self.panel, step, steer, leads_to=("inspect", "feature"))
        steer.then_run(shown)

    def _word(self) -> at.Inspect:
        """The first example, with the word that its most telling latent fires on."""
        text = first_texts(self.subject)[0]
        return at.Inspect(text, token=self.actions.inspect(text)["ranking"][0]["peak"])

    def _latent(self, shown: str) -> at.Feature:
        """The page of the first latent on the page Inspect, which page.js tells; or of that one."""
        if shown:
            return at.Feature(whole(shown))
        seen = self.actions.inspect(first_texts(self.subject)[0])
        return at.Feature(seen["ranking"][0]["latent"])


def _view(subject: Subject) -> dict[str, Any]:
    name = subject.public_lm_name
    return {
        "n": f"{subject.d_sae:,}",
        "model": name.rpartition("/")[2] if name else "a language model",
        "site": subject.sae.config.where_in_short,
    }
