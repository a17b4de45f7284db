"""Pages that find latents: by a search, on a map, by labels of documents, by one of two models."""

from collections.abc import Callable
from typing import Any

import gradio as gr

from .. import address as at
from ..actions import Actions
from ..inspect_actions import BY, BY_WITHOUT_TEXT, RAW, SCORES, check_query, latent_map
from ..parts import html, number, panel, percent
from ..picture_latents import add_strongest
from ..presets import searches
from ..subject import how_to_make
from ..table_actions import GROUPS, ORDERS
from ..word_search import by_number
from .page import App, Page, Updates, one_of

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
    SCORES["label"]: ("words in common", "{:.2f}".format),
    SCORES["similar to"]: ("cosine", "{:.2f}".format),
    RAW: ("raw units", number),
}
"""of the numbers of each search, what stands above them, and how they are written"""
_QUERY: dict[str, Any] = {"elem_classes": "hf-whole", "scale": 4, "min_width": 200}


class SearchPage(Page[at.Search]):
    """A search, and the latents that it finds."""

    title = "Search"
    state = at.Search

    def __init__(self, actions: Actions) -> None:
        super().__init__(actions)
        self.choices, unit = searches(actions.subject), actions.subject.unit
        self.ways = BY if unit.is_text else BY_WITHOUT_TEXT
        own = {} if unit.is_text else {"word": f"a {unit.whole} or a name"}
        names = [(name, by) for by, name in {**_NAMES, **own}.items() if by in self.ways]
        look = {"label": "Find latents by", "elem_classes": "hf-choices"}
        self.by = self.field("by", gr.Radio, names, **look)
        with gr.Row(elem_classes="hf-buttons"):
            hint = _EXAMPLE if unit.is_text else f"part of a {unit.whole}'s name"
            look = {"label": "Search", "placeholder": hint, "max_lines": 3}
            self.query = self.field("query", gr.Textbox, **look, **_QUERY)
            self.run = gr.Button("Search", variant="primary", min_width=100, scale=0)
            self.random = gr.Button("Random latent", min_width=130, scale=0)
        queries = [query for query, _ in self.choices]
        self.examples = panel(html("examples", queries), elem_id="search-examples")
        self.notice = panel()
        self.hits = panel(elem_id="search-found")
        self.outputs = (self.hits,)

    def to_component(self, name: str, value: object) -> object:
        """A valid way to search."""
        return at.Search.by if name == "by" and value not in self.ways else value

    def first(self) -> at.Search:
        """The first example."""
        return at.Search(*self.choices[0])

    def render(self, address: at.Search) -> Updates:
        """The latents that are found."""
        if not address.query:
            return {self.hits: ""}
        view = self.actions.search(address.query, address.by)
        unit, written = _COLUMNS[view["score"]]
        rows = [{**row, "shown": written(row["value"])} for row in view["found"]]
        add_strongest(self.subject, rows)
        shown = {**view, "found": rows, "reasons": view["score"] == SCORES["word"]}
        shown["unit"] = self.subject.unit
        return {self.hits: html("searched", shown, unit)}

    def wire(self, app: App) -> None:
        """A latent leads to its page, or is steered."""
        begun = [self.run.click, self.query.submit]
        app.on(begun, self._search, self, leads_to=("feature",), progress_on=self.hits)
        app.on([self.by.input], self.address, self, progress_on=self.hits)
        app.on([self.random.click], self._random, self, leads_to=("feature",))
        app.on_select(self.examples, self._example, self, progress_on=self.hits)
        app.on_select(self.hits, self.open_or_steer, self, leads_to=("feature", "steer"))

    def _search(self, *values: object) -> at.Address:
        address = self.address(*values)
        check_query(address.query)  # there has to be one
        hits = by_number(self.subject, address.query) if address.by == at.Search.by else []
        return at.Feature(hits[0].latent) if hits else address

    def _example(self, do: str, number: str, to: str, *values: object) -> at.Search:
        return at.Search(*one_of(self.choices, number))

    def _random(self, *values: object) -> at.Feature:
        return at.Feature(self.actions.random_latent()["latent"])


class MapPage(Page[at.Map]):
    """Every latent a point, near those with similar directions; a search highlights some."""

    title = "Map"
    state = at.Map

    def __init__(self, actions: Actions) -> None:
        super().__init__(actions)
        with gr.Row(elem_classes="hf-buttons"):
            hint, unit = "a word that latents fire on, or of their names", self.subject.unit
            if not unit.is_text:
                hint = f"a {unit.whole} that latents fire in, or a word of their names"
            look = {"label": "Highlight", "placeholder": hint, "max_lines": 1}
            self.query = self.field("query", gr.Textbox, **look, **_QUERY)
            self.run = gr.Button("Highlight", variant="primary", min_width=110, scale=0)
        self.notice = panel()
        self.map = panel(elem_id="map-all")
        self.hits = panel(elem_id="map-found")
        self.outputs = (self.map, self.hits)

    def first(self) -> at.Map:
        """With a word highlighted that some latent fires on, or that is in a name."""
        words = [query for query, by in searches(self.subject) if by in ("word", "label")]
        return at.Map((*words, "")[0])

    def render(self, address: at.Map) -> Updates:
        """The map, and the latents that are highlighted in it."""
        lacking = how_to_make(self.subject, "collect")
        view = {**latent_map(self.subject), "missing": lacking, "unit": self.subject.unit}
        drawn = html("latent_map", view)
        return {self.map: drawn, self.hits: self._hits(address.query)}

    def _hits(self, query: str) -> str:
        view = self.actions.find_on_map(query) if query.strip() else {"hits": [], "rows": []}
        add_strongest(self.subject, view["rows"])
        return html("on_map", {**view, "query": query, "unit": self.subject.unit})

    def wire(self, app: App) -> None:
        """A point leads to its latent's page; a search changes the highlights alone."""

        def highlight(*values: object) -> dict[Any, Any]:
            try:
                address = self.address(*values)
                hits = self._hits(address.query)
            except ValueError as error:
                return {self.notice: html("error", str(error))}
            return {self.notice: "", self.hits: hits, app.link: at.to_query(address)}

        options: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        for trigger in (self.run.click, self.query.submit):
            shown = [self.notice, self.hits, app.link]
            trigger(highlight, self.inputs, shown, trigger_mode="always_last", **options)
        for part in (self.map, self.hits):
            app.on_select(part, self.open_or_steer, self, leads_to=("feature", "steer"))


class LabelsPage(Page[at.Labels]):
    """A table of labels, each with its best latent beside the best single number."""

    title = "Labels"
    state = at.Labels

    def __init__(self, actions: Actions) -> None:
        super().__init__(actions)
        with gr.Row(elem_classes="hf-buttons"):
            look = {"label": "Only labels with", "placeholder": "all of them", "max_lines": 1}
            self.query = self.field("query", gr.Textbox, **look, **_QUERY)
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
        app.on([self.run.click, self.query.submit], self.address, self, progress_on=self.table)
        app.on_select(self.table, self.open_or_steer, self, leads_to=("feature",))


class DiffPage(Page[at.Diff]):
    """A table of latents by the model that they are of."""

    title = "Two models"
    state = at.Diff

    def __init__(self, actions: Actions) -> None:
        super().__init__(actions)
        first, second = self.subject.diff["models"]
        words = (f"mostly {first}", f"mostly {second}", "of both", "in between")
        groups = [("all", ""), ("little of it in the other model", "little")]
        groups += list(zip(words, GROUPS, strict=True))
        with gr.Row(elem_classes="hf-buttons"):
            wide = {"scale": 2, "min_width": 180}
            self.group = self.field("group", gr.Dropdown, groups, label="Latents", **wide)
            orders = [(words, key) for key, words in ORDERS.items()]
            self.by = self.field("by", gr.Dropdown, orders, label="Sorted by", **wide)
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
        app.on([self.run.click, self.by.input], self.address, self, progress_on=self.table)
        app.on([self.group.input], self.address, self, progress_on=self.table)
        app.on_select(self.table, self.open_or_steer, self, leads_to=("feature",))
