"""Find latents."""

from collections.abc import Callable

import gradio as gr

from .. import address as at
from ..actions import Actions
from ..crops import add_strongest
from ..finding import numbered
from ..inspect_actions import BY, BY_WITHOUT_TEXT, RAW, SCORES, check_query
from ..parts import html, number, panel, percent
from ..presets import searches
from .page import App, Page, Updates, one_of, whole

_NAMES = {
    "word": "a word or a subject",
    "promotes": "a token they make more likely",
    "fires on": "your own text they fire on",
    "label": "their label",
    "similar to": "the number of a similar latent",
}
_EXAMPLE = "war, the sea, or a latent's number"
_COLUMNS: dict[str, tuple[str, Callable[[float], str]]] = {
    SCORES["word"]: ("match", "{:.2f}".format),
    SCORES["fires on"]: ("share of largest", percent),
    SCORES["promotes"]: ("logit a unit", "{:.3f}".format),
    SCORES["label"]: ("BM25", "{:.2f}".format),
    SCORES["similar to"]: ("cosine", "{:.2f}".format),
    RAW: ("raw units", number),
}
"""of the numbers of each search, what stands above them, and how they are written"""


class SearchPage(Page[at.Search]):
    """A search, and the latents that it finds."""

    title = "Search"
    state = at.Search

    def __init__(self, actions: Actions) -> None:
        super().__init__(actions)
        self.choices = searches(actions.subject)
        unit = actions.subject.unit
        self.ways = BY if unit.is_text else BY_WITHOUT_TEXT
        names = {**_NAMES, **({} if unit.is_text else {"word": f"a {unit.whole} or a name"})}
        names = [(names[by], by) for by in names if by in self.ways]
        self.by = self.field(
            "by", gr.Radio, names, label="Find latents by", elem_classes="hf-choices"
        )
        with gr.Row(elem_classes="hf-buttons"):
            self.query = self.field(
                "query",
                gr.Textbox,
                label="Search",
                placeholder=_EXAMPLE if unit.is_text else f"part of a {unit.whole}'s name",
                scale=4,
                min_width=200,
                max_lines=3,
                elem_classes="hf-whole",
            )
            self.run = gr.Button("Search", variant="primary", min_width=100, scale=0)
            self.random = gr.Button("Random latent", min_width=130, scale=0)
        queries = [query for query, _ in self.choices]
        self.examples = panel(html("examples", queries), elem_id="search-examples")
        self.notice = panel()
        self.found = panel(elem_id="search-found")
        self.outputs = (self.found,)

    def to_component(self, name: str, value: object) -> object:
        """A valid way to search."""
        return at.Search.by if name == "by" and value not in self.ways else value

    def first(self) -> at.Search:
        """The first example."""
        return at.Search(*self.choices[0])

    def render(self, address: at.Search) -> Updates:
        """The latents that were found."""
        if not address.query:
            return {self.found: ""}
        view = self.actions.search(address.query, address.by)
        unit, written = _COLUMNS[view["score"]]
        rows = [{**row, "shown": written(row["value"])} for row in view["found"]]
        add_strongest(self.subject, rows)
        shown = {**view, "found": rows, "reasons": view["score"] == SCORES["word"]}
        shown["unit"] = self.subject.unit
        return {self.found: html("searched", shown, unit)}

    def wire(self, app: App) -> None:
        """A latent that was found leads to its page, or is steered."""
        begun = [self.run.click, self.query.submit]
        app.on(begun, self._search, self, leads_to=("feature",), progress_on=[self.found])
        app.on([self.by.input], self.address, self, progress_on=[self.found])
        app.on([self.random.click], self._random, self, leads_to=("feature",))
        app.on_select(self.examples, self._example, self, progress_on=[self.found])
        app.on_select(self.found, self._clicked, self, leads_to=("feature", "steer"))

    def _search(self, *values: object) -> at.Address:
        address = self.address(*values)
        check_query(address.query)  # there has to be one
        hits = numbered(self.subject, address.query) if address.by == at.Search.by else []
        return at.Feature(hits[0].latent) if hits else address

    def _example(self, do: str, number: str, to: str, *values: object) -> at.Search:
        return at.Search(*one_of(self.choices, number))

    def _random(self, *values: object) -> at.Feature:
        return at.Feature(self.actions.random_latent()["latent"])

    def _clicked(self, do: str, index: str, to: str, *values: object) -> at.Address:
        if do == "steer":
            return at.Steer(latents={whole(index): 1.0})
        return at.Feature(whole(index))
