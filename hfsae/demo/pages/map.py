"""A map of all latents."""

from typing import Any

import gradio as gr

from ...machine.units import Unit
from .. import address as at
from ..actions import Actions
from ..crops import add_strongest
from ..latent_map import latent_map
from ..missing import missing
from ..parts import html, panel
from ..presets import searches
from .page import App, Page, Updates, whole


class MapPage(Page[at.Map]):
    """Every latent a point, near those with similar directions; a search highlights some."""

    title = "Map"
    state = at.Map

    def __init__(self, actions: Actions) -> None:
        super().__init__(actions)
        with gr.Row(elem_classes="hf-buttons"):
            self.query = self.field(
                "query",
                gr.Textbox,
                label="Highlight",
                placeholder=_placeholder(self.subject.unit),
                scale=4,
                min_width=200,
                max_lines=1,
                elem_classes="hf-whole",
            )
            self.run = gr.Button("Highlight", variant="primary", min_width=110, scale=0)
        self.notice = panel()
        self.map = panel(elem_id="map-all")
        self.found = panel(elem_id="map-found")
        self.outputs = (self.map, self.found)

    def first(self) -> at.Map:
        """With a word highlighted that some latent fires on, or that is in a name."""
        words = [query for query, by in searches(self.subject) if by in ("word", "label")]
        return at.Map((*words, "")[0])

    def render(self, address: at.Map) -> Updates:
        """The map, and the latents that are highlighted in it."""
        lacking = missing(self.subject, "collect")
        view = {**latent_map(self.subject), "missing": lacking, "unit": self.subject.unit}
        drawn = html("latent_map", view)
        return {self.map: drawn, self.found: self._found(address.query)}

    def _found(self, query: str) -> str:
        view = self.actions.find_on_map(query) if query.strip() else {"hits": [], "rows": []}
        add_strongest(self.subject, view["rows"])
        return html("on_map", {**view, "query": query, "unit": self.subject.unit})

    def wire(self, app: App) -> None:
        """A point leads to its latent's page; a search changes the highlights alone."""
        self.link = app.link
        for trigger in (self.run.click, self.query.submit):
            trigger(
                self._highlight,
                self.inputs,
                [self.notice, self.found, app.link],
                show_progress="hidden",
                api_visibility="private",
                trigger_mode="always_last",
            )
        for part in (self.map, self.found):
            app.on_select(part, self._clicked, self, leads_to=("feature", "steer"))

    def _highlight(self, *values: object) -> dict[Any, Any]:
        try:
            address = self.address(*values)
            found = self._found(address.query)
        except ValueError as error:
            return {self.notice: html("error", str(error))}
        return {self.notice: "", self.found: found, self.link: at.to_query(address)}

    def _clicked(self, do: str, index: str, to: str, *values: object) -> at.Address:
        if do == "steer":
            return at.Steer(latents={whole(index): 1.0})
        return at.Feature(whole(index))


def _placeholder(unit: Unit) -> str:
    if unit.is_text:
        return "a word that latents fire on, or of their names"
    return f"a {unit.whole} that latents fire in, or a word of their names"
