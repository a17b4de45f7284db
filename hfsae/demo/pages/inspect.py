"""Which latents fire in a text, and where."""

from dataclasses import replace
from typing import Any

import gradio as gr

from .. import address as at
from ..actions import Actions
from ..parts import html, panel
from ..presets import first_texts
from .page import App, TextPage, Updates, box, one_of, whole

_DENSITIES = [
    ("show all latents", 1.0),
    ("hide those on over 10 % of tokens", 0.1),
    ("hide those on over 1 % of tokens", 0.01),
    ("hide those on over 0.1 % of tokens", 0.001),
]


def _nearest(density: float) -> float:
    """The choice nearest to the link's."""
    return min((choice for _, choice in _DENSITIES), key=lambda choice: abs(choice - density))


class InspectPage(TextPage[at.Inspect]):
    """A text, the latents that fire in it, and another text to compare it with."""

    title = "Inspect"
    state = at.Inspect

    def __init__(self, actions: Actions) -> None:
        super().__init__(actions)
        self.texts = first_texts(self.subject)
        self.prompt = self.field(
            "prompt",
            gr.Textbox,
            label="Text",
            **box(2),
            placeholder="A sentence or a paragraph",
        )
        with gr.Row(elem_classes="hf-buttons"):
            self.run = gr.Button("Inspect", variant="primary", min_width=120, scale=0)
            panel(html("keys"))
        self.examples = panel(html("examples", self.texts))
        with gr.Accordion("Compare with another text, or set options", open=False):
            self.versus = self.field("versus", gr.Textbox, label="Compare with", **box(2))
            self.density = self.field(
                "max_density", gr.Dropdown, _DENSITIES, label="Density filter"
            )
            message = "Read it as a user's message (chat template)"
            self.chat = self.field("chat", gr.Checkbox, label=message)
        self.notice = panel()
        self.comparison = panel(elem_id="inspect-comparison")
        with gr.Row():
            with gr.Column(scale=1, min_width=320):
                self.text = panel(elem_id="inspect-text")
            with gr.Column(scale=1, min_width=320):
                self.latents = panel(elem_id="inspect-latents")
        # clicks keep what was chosen: the latent and the token are part of the state
        self.field("latent", gr.State)
        self.field("token", gr.State)
        self.outputs = (self.text, self.latents, self.comparison)

    def to_component(self, name: str, value: Any) -> Any:
        """A link may name any density; the nearest choice is shown."""
        return _nearest(value) if name == "max_density" else value

    def first(self) -> at.Inspect:
        """The first example."""
        return at.Inspect(prompt=first_texts(self.subject)[0])

    def render(self, address: at.Inspect) -> Updates:
        """The coloured text, its latents, and what differs from the other text."""
        a = replace(address, max_density=_nearest(address.max_density))
        view = self.actions.inspect(a.prompt, a.latent, a.token, a.chat, a.max_density)
        compared = ""
        if a.versus:
            differences = self.actions.compare_prompts(a.prompt, a.versus, a.chat, a.max_density)
            compared = html("compared", differences)
        return {
            self.text: html("inspected", view),
            self.latents: html("firing", view),
            self.comparison: compared,
        }

    def wire(self, app: App) -> None:
        """Another text starts afresh; clicks on tokens and latents keep the text."""

        def afresh(*values: object) -> at.Inspect:
            return replace(self.address(*values), latent=None, token=None)

        app.on(
            [self.run.click, self.prompt.submit, self.density.input, self.chat.input],
            afresh,
            self,
            progress_on=[self.text],
        )
        app.on([self.versus.submit], afresh, self, progress_on=[self.comparison])
        app.on_select(self.examples, self._example, self, progress_on=[self.text])
        for part in (self.text, self.latents, self.comparison):
            app.on_select(part, self._click, self, leads_to=("feature", "steer"))

    def _example(self, do: str, number: str, to: str, *values: object) -> at.Inspect:
        text = one_of(self.texts, number)
        return replace(self.address(*values), prompt=text, versus="", latent=None, token=None)

    def _click(self, do: str, number: str, to: str, *values: object) -> at.Address:
        now = self.address(*values)
        if do == "token":
            return replace(now, token=whole(number))
        if do == "colour":
            return replace(now, latent=whole(number))
        if do == "whole":
            return replace(now, token=None)
        if do == "steer":
            strengths = {whole(number): 1.0}
            return at.Steer(prompt=now.prompt, latents=strengths, chat=now.chat)
        return at.Feature(latent=whole(number))
