"""Which latents are of one of two language models, and which of both."""

import gradio as gr

from .. import address as at
from ..actions import Actions
from ..diff_actions import GROUPS, ORDERS, models_of
from ..parts import html, panel
from ..subject import Subject
from .page import App, Page, Updates, whole


class DiffPage(Page[at.Diff]):
    """A table of latents by the model that they are of."""

    title = "Two models"
    state = at.Diff

    @classmethod
    def fits(cls, subject: Subject) -> bool:
        """An SAE over two models, which `hfsae diff` compared."""
        return bool(subject.diff)

    def __init__(self, actions: Actions) -> None:
        super().__init__(actions)
        first, second = models_of(self.subject)
        words = (f"mostly {first}", f"mostly {second}", "of both", "in between")
        groups = [("all", ""), ("little of it in the other model", "little")]
        groups += list(zip(words, GROUPS, strict=True))
        with gr.Row(elem_classes="hf-buttons"):
            self.group = self.field(
                "group", gr.Dropdown, choices=groups, label="Latents", scale=2, min_width=180
            )
            self.by = self.field(
                "by",
                gr.Dropdown,
                choices=[(words, key) for key, words in ORDERS.items()],
                label="Sorted by",
                scale=2,
                min_width=180,
            )
            self.run = gr.Button("Show", variant="primary", min_width=100, scale=0)
        self.notice = panel()
        self.table = panel(elem_id="diff-table")
        self.outputs = (self.table,)

    def render(self, address: at.Diff) -> Updates:
        """The latents of the group, in the order."""
        view = self.actions.diff(address.group, address.by)
        return {self.table: html("diff", {**view, "unit": self.subject.unit})}

    def wire(self, app: App) -> None:
        """A latent leads to its page."""
        app.on([self.run.click, self.by.input], self.address, self, progress_on=[self.table])
        app.on([self.group.input], self.address, self, progress_on=[self.table])
        app.on_select(self.table, self._clicked, self, leads_to=("feature",))

    def _clicked(self, do: str, index: str, to: str, *values: object) -> at.Feature:
        return at.Feature(whole(index))
