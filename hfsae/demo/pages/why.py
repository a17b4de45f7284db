"""Which latents speak for the next token, as a table and as a graph."""

from dataclasses import replace
from typing import Any

import gradio as gr

from ...circuits import GraphFile, drawing
from .. import address as at
from .. import validate
from ..actions import Actions
from ..parts import html, panel
from ..rows import Json
from ..why import ALONE, is_token, spelling, summary
from .page import A, App, Page, Updates, box, clicked, one_of, whole

_REMEMBERED = 8  # graphs that visitors made
EXAMPLES = (
    "The people voted in the presidential",
    "The king was succeeded by his",
    "The capital of Japan is",
)


class QuestionPage(Page[A]):
    """A page that asks about the next token of a text."""

    def ask(self, *, next: str, other: str, button: str) -> None:
        """The boxes of the question, with hints, and the button."""
        hint, narrow = "The next token is what is explained", {"min_width": 130, "scale": 1}
        self.prompt = self.field("prompt", gr.Textbox, label="Text", **box(2), placeholder=hint)
        with gr.Row(elem_classes="hf-buttons"):
            looks = {"label": "Next token", "placeholder": next, **narrow}
            self.target = self.field("target", gr.Textbox, **looks)
            looks = {"label": "Rather than", "placeholder": other, **narrow}
            self.contrast = self.field("contrast", gr.Textbox, **looks)
            self.run = gr.Button(button, variant="primary", min_width=110, scale=0)
            panel(html("keys"))
        submits = [box.submit for box in (self.prompt, self.target, self.contrast)]
        self.asked = [self.run.click, *submits]


class WhyPage(QuestionPage[at.Why]):
    """A text, its likeliest next tokens, and the latents that speak for one of them."""

    title = "Why this token"
    state = at.Why

    def __init__(self, actions: Actions) -> None:
        super().__init__(actions)
        other = f"the likeliest other; {ALONE} for nothing"
        self.ask(next="the likeliest", other=other, button="Explain")
        self.examples = panel(html("examples", EXAMPLES), elem_id="why-examples")
        self.notice = panel()
        with gr.Row():
            with gr.Column(scale=2, min_width=380):
                self.next = panel(elem_id="why-next")
            with gr.Column(scale=4, min_width=600):
                self.effects = panel(elem_id="why-effects")
        self.checked = gr.State({})  # the rows shown, and their question
        self.ablated = gr.State(None)  # the last check, its question and latent
        self.outputs = (self.next, self.effects, self.checked)

    def first(self) -> at.Why:
        """The first example."""
        return at.Why(EXAMPLES[0])

    def render(self, address: at.Why) -> Updates:
        """The next tokens, and the latents' effects."""
        if not address.prompt:
            return {self.next: "", self.effects: "", self.checked: {}}
        view = self.actions.why(address.prompt, address.target, address.contrast)
        return {
            self.next: html("next_tokens", view),
            self.effects: effects_panel(view),
            self.checked: {**view, "address": address},
        }

    def wire(self, app: App) -> None:
        """Tokens are chosen by a click; checks by ablation fill in one row at a time."""
        app.on(self.asked, self._explain, self, progress_on=self.effects)
        app.on_select(self.examples, self._example, self, progress_on=self.effects)
        app.on_select(self.next, self._choose, self, progress_on=self.effects)
        app.on_select(self.effects, self.open_or_steer, self, leads_to=("feature",))
        self.effects.ablate(
            self._ablate,
            self.checked,
            [self.notice, self.ablated],
            api_visibility="private",
            show_progress_on=[self.effects],
        ).then(
            self._note_check,
            [self.ablated, self.checked],
            [self.effects, self.checked],
            api_visibility="private",
            show_progress="hidden",
        )

    def _explain(self, *values: object) -> at.Why:
        address = self.address(*values)
        validate.text(address.prompt)  # there has to be one
        return address

    def _example(self, do: str, number: str, to: str, *values: object) -> at.Why:
        return at.Why(one_of(EXAMPLES, number))

    def _choose(self, do: str, token: str, to: str, *values: object) -> at.Why:
        now, index = self.address(*values), whole(token)
        typed = spelling(self.subject, index)
        if do == "alone":
            return replace(now, contrast=ALONE)
        if do == "contrast":
            return replace(now, contrast=typed)
        is_contrast = is_token(self.subject, now.contrast, index)
        return replace(now, target=typed, contrast="" if is_contrast else now.contrast)

    def _ablate(self, event: gr.EventData, view: Json) -> Updates:
        try:
            latent, address = whole(clicked(event)[1]), view["address"]
            question = (address.target, address.contrast)
            result = self.actions.check_ablation(address.prompt, latent, *question)
        except ValueError as error:
            return {self.notice: html("error", str(error))}
        return {self.notice: "", self.ablated: (address, latent, result["ablation"])}

    def _note_check(self, ablated: tuple[at.Why, int, float] | None, view: Json) -> Updates:
        """A check in its row, unless another question is shown by now."""
        address, latent, ablation = ablated or (None, None, None)
        if address is None or view.get("address") != address:
            return {self.effects: gr.skip()}
        rows = [
            {**row, "ablation": ablation} if row["latent"] == latent else row
            for row in view["rows"]
        ]
        view = {**view, "rows": rows}
        view["sentence"] = summary(view)
        return {self.effects: effects_panel(view), self.checked: view}


def effects_panel(view: dict[str, Any]) -> str:
    """HTML of a view of `why`: its sentence, the sum of its parts, and a row for each latent."""
    sizes = [abs(v) for row in view["rows"] for v in (row["value"], row["ablation"]) if v]
    # rounded, the parts add up to the total to the last digit: `rest` takes what rounding leaves
    parts = {name: round(view[name], 2) for name in ("others", "error", "bias", "total")}
    parts["shown"] = round(sum(round(row["value"], 2) for row in view["rows"]), 2)
    spent = sum(parts[name] for name in ("shown", "others", "error", "bias"))
    parts["rest"] = round(parts["total"] - spent, 2)
    return html("effects", {**view, **parts, "largest": max(sizes, default=1.0)})


class GraphPage(QuestionPage[at.Graph]):
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
            self.ask(next="the likeliest ones", other="nothing", button="Make the graph")
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
            app.on(self.asked, self._make, self, progress_on=self.drawn, queue="slow")

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
