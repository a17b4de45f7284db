"""Why this token, as a graph: graphs that were made before, and one of a prompt."""

from dataclasses import replace

import gradio as gr

from ...circuits import GraphFile, drawing
from .. import address as at
from ..actions import Actions
from ..parts import html, panel
from ..rows import Json
from .page import App, Page, Updates, box

_REMEMBERED = 8  # graphs that visitors made


class GraphPage(Page[at.Graph]):
    """A graph, by its name or of a prompt; graph.js of `hfsae.circuits` draws it.

    A link with a prompt makes no graph: only its button does, in the queue of slow work.
    """

    title = "Why, as a graph"
    state = at.Graph

    def __init__(self, actions: Actions) -> None:
        super().__init__(actions)
        self.made: dict[at.Graph, Json] = {}  # graphs that visitors made, the last ones
        self.name = self.field("name", gr.Textbox, visible="hidden", elem_id="graph-name")
        self.kept = panel(html("graph_names", [*self.subject.graphs]), elem_id="graph-names")
        if self.subject.transcoders is not None:
            hint, narrow = "The next token is what is explained", {"min_width": 130, "scale": 1}
            self.prompt = self.field("prompt", gr.Textbox, label="Text", **box(2), placeholder=hint)
            with gr.Row(elem_classes="hf-buttons"):
                likely = {"label": "Next token", "placeholder": "the likeliest ones"}
                other = {"label": "Rather than", "placeholder": "nothing"}
                self.target = self.field("target", gr.Textbox, **likely, **narrow)
                self.contrast = self.field("contrast", gr.Textbox, **other, **narrow)
                self.run = gr.Button("Make the graph", variant="primary", min_width=140, scale=0)
        self.notice = panel()
        self.drawn = panel(elem_id="graph-drawn")
        self.outputs = (self.drawn,)

    def first(self) -> at.Graph:
        """The first kept graph."""
        return at.Graph(next(iter(self.subject.graphs), ""))

    def render(self, address: at.Graph) -> Updates:
        """A kept graph, or one of the prompt if it was made; else how to make it."""
        if address.prompt and address not in self.made:
            return {self.drawn: html("empty", "Press Make the graph; it takes up to a minute.")}
        if not (address.prompt or address.name):
            return {self.drawn: ""}
        view = self.made.get(address) or self.actions.attribution_graph(address.name)
        return {self.drawn: drawing(GraphFile(view["graph"], view["texts"]), view["opens"])}

    def wire(self, app: App) -> None:
        """A name shows its graph; the button makes one; a feature leads to its page."""
        app.on_select(self.kept, self._choose, self, progress_on=self.drawn)
        app.on_select(self.drawn, self.open_or_steer, self, leads_to=("feature",))
        if self.subject.transcoders is not None:
            typed = [self.prompt.submit, self.target.submit, self.contrast.submit]
            events = [self.run.click, *typed]
            app.on(events, self._make, self, progress_on=self.drawn, queue="slow")

    def _choose(self, do: str, number: str, name: str, *values: object) -> at.Graph:
        return at.Graph(name)

    def _make(self, *values: object) -> at.Graph:
        address = replace(self.address(*values), name="")
        if address not in self.made:
            fields = (address.prompt, address.target, address.contrast)
            self.made[address] = self.actions.attribution_graph("", *fields)
            for oldest in [*self.made][:-_REMEMBERED]:
                self.made.pop(oldest, None)
        return address
