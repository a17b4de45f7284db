"""Which latents tell the documents' labels apart."""

import gradio as gr

from .. import address as at
from ..actions import Actions
from ..crops import add_strongest
from ..parts import html, panel
from ..subject import Subject
from .page import App, Page, Updates, whole


class LabelsPage(Page[at.Labels]):
    """A table of labels, each with its best latent beside the best single number."""

    title = "Labels"
    state = at.Labels

    @classmethod
    def fits(cls, subject: Subject) -> bool:
        """An SAE whose run had labels."""
        return bool(subject.columns)

    def __init__(self, actions: Actions) -> None:
        super().__init__(actions)
        with gr.Row(elem_classes="hf-buttons"):
            self.query = self.field(
                "query",
                gr.Textbox,
                label="Only labels with",
                placeholder="all of them",
                scale=4,
                min_width=200,
                max_lines=1,
                elem_classes="hf-whole",
            )
            self.run = gr.Button("Show", variant="primary", min_width=100, scale=0)
        self.notice = panel()
        self.table = panel(elem_id="labels-table")
        self.outputs = (self.table,)

    def render(self, address: at.Labels) -> Updates:
        """The rows of the table that have the word."""
        view = self.actions.labels(address.query)
        add_strongest(self.subject, view["found"])
        return {self.table: html("labels", {**view, "unit": self.subject.unit})}

    def wire(self, app: App) -> None:
        """A latent leads to its page."""
        app.on([self.run.click, self.query.submit], self.address, self, progress_on=[self.table])
        app.on_select(self.table, self._clicked, self, leads_to=("feature",))

    def _clicked(self, do: str, index: str, to: str, *values: object) -> at.Feature:
        return at.Feature(whole(index))
