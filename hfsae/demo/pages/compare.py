"""Two SAEs side by side."""

from dataclasses import replace

import gradio as gr

from .. import address as at
from .. import validate
from ..actions import Actions
from ..compare_saes import check_name, sae_choices
from ..parts import html, panel
from ..presets import TEXTS
from .page import App, TextPage, Updates, box, whole


class ComparePage(TextPage[at.Compare]):
    """Another SAE, a text, and what fires where in each of the two."""

    title = "Compare SAEs"
    state = at.Compare

    def __init__(self, actions: Actions) -> None:
        super().__init__(actions)
        is_local = self.subject.label_home is not None
        below = "" if self.subject.only_here else " below the one that the app was started in"
        local = f", or the folder of an SAE{below}" if is_local else ""
        self.other = self.field(
            "other",
            gr.Textbox,
            label="The other SAE",
            placeholder=f"name/repository{local}",
            max_lines=1,
            elem_classes="hf-whole",
        )
        near = sae_choices(self.subject)
        self.choices = panel(html("others", near), elem_id="compare-choices")
        self.text = self.field("text", gr.Textbox, label="Text", **box(2))
        with gr.Row(elem_classes="hf-buttons"):
            self.run = gr.Button("Compare", variant="primary", min_width=120, scale=0)
            panel(html("keys"))
        self.notice = panel()
        self.metrics = panel(elem_id="compare-metrics")
        self.result = panel(_no_other(near), elem_id="compare-result")
        self.outputs = (self.result, self.metrics, self.choices)

    def first(self) -> at.Compare:
        """A text to begin with."""
        return at.Compare(text=TEXTS[0])

    def render(self, address: at.Compare) -> Updates:
        """The SAEs to choose from; held-out metrics with their winners, and both on the text."""
        names = sae_choices(self.subject)
        near = {self.choices: html("others", names)}
        if not address.other:
            return near | {self.metrics: "", self.result: _no_other(names)}
        try:
            metrics = html("versus", self.actions.compare_saes(address.other))
        except ValueError as error:  # the text can be read without
            metrics = html("said", f"{error}.")
        if not address.text.strip():
            return near | {self.metrics: metrics, self.result: ""}
        view = self.actions.side_by_side(address.other, address.text)
        return near | {self.metrics: metrics, self.result: html("beside", view)}

    def wire(self, app: App) -> None:
        """A latent of the SAE that the app shows leads to its page."""
        triggers = [self.run.click, self.other.submit, self.text.submit]
        app.on(triggers, self._compare, self, progress_on=[self.result])
        app.on_select(self.choices, self._choose, self, progress_on=[self.result])
        app.on_select(self.result, self._click, self, leads_to=("feature",))

    def _compare(self, *values: object) -> at.Compare:
        address = self.address(*values)
        check_name(address.other)
        validate.text(address.text)
        return address

    def _choose(self, do: str, index: str, name: str, *values: object) -> at.Compare:
        address = replace(self.address(*values), other=check_name(name))
        validate.text(address.text)
        return address

    def _click(self, do: str, index: str, to: str, *values: object) -> at.Address:
        return at.Feature(whole(index))


def _no_other(names: list[str]) -> str:
    return html("empty", f"Name another SAE{', or choose one' if names else ''}.")
