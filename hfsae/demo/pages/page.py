"""The interface of a page, and how an event leads from one address to another."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, ClassVar, Generic, TypeVar

import gradio as gr
from gradio.components import Component

from ...io.errors import Refused
from ..actions import QUEUES, Actions
from ..address import Address, Feature, Steer, to_query
from ..parts import html

A = TypeVar("A", bound=Address)
Updates = dict[Any, Any]
_NUMBERED = "(visit, lead, ...values) => [visit, String(++hfsae.clicks), ...values]"
LATENT_BOX: dict[str, Any] = {
    "label": "Latent",
    "placeholder": "number or word",
    "max_length": 40,
    "elem_classes": "hf-whole",
    "min_width": 170,
    "scale": 0,
    "max_lines": 1,
}


class Page(Generic[A]):
    """Widgets within a tab, some of which hold the fields of the page's address.

    `field` declares each of these once; default, link and updates follow from it. The other widgets
    are filled by `render` only, for an address.
    """

    title: ClassVar[str]
    state: ClassVar[type[Any]]
    """the dataclass of its addresses"""
    fields: dict[str, Component]
    """components by the field of `state` that they hold"""
    notice: gr.HTML
    """where an error sentence is shown"""
    outputs: Sequence[Any] = ()
    """components that `render` may update"""

    def __init__(self, actions: Actions) -> None:
        self.actions, self.subject = actions, actions.subject
        self.fields = {}

    @cached_property
    def opening(self) -> A:
        """What the page's fields hold from the start: nothing that somebody typed early is lost to
        an answer that fills them."""
        return self.first()

    def field(self, name: str, kind: Callable[..., Any], *args: object, **options: object) -> Any:
        """A new component for a field of the address; it begins as `first` has it."""
        value = self.to_component(name, getattr(self.opening, name))
        self.fields[name] = kind(*args, value=value, **options)
        return self.fields[name]

    @cached_property
    def names(self) -> list[str]:
        """The fields of the address that components hold, in the address's order."""
        return [f.name for f in dataclasses.fields(self.state) if f.name in self.fields]

    @property
    def inputs(self) -> list[Any]:
        """Components whose values are the page's state."""
        return [self.fields[name] for name in self.names]

    def address(self, *values: object) -> A:
        """The state from the values of `inputs`."""
        given = zip(self.names, values, strict=True)
        return self.state(**{name: self.from_component(name, value) for name, value in given})

    def values(self, address: A) -> list[Any]:
        """Of the inputs at an address, in their order."""
        return [self.to_component(name, getattr(address, name)) for name in self.names]

    def fill(self, address: A) -> Updates:
        """The values of the inputs at an address."""
        return dict(zip(self.inputs, self.values(address), strict=True))

    def to_component(self, name: str, value: object) -> Any:
        """A field's component for a value of the address."""
        return value

    def from_component(self, name: str, value: object) -> Any:
        """The address's value for what a field's component holds: None, if a box was emptied."""
        return "" if value is None and getattr(self.state(), name) == "" else value

    def first(self) -> A:
        """What the page shows before anything is asked of it; by default, what it shows empty."""
        return self.state()

    def render(self, address: A) -> Updates:
        """Updates of all below the inputs. Raises ValueError with a sentence for the notice."""
        return {}

    def wire(self, app: "App") -> None:
        """Connect this page's events."""

    def open_or_steer(self, do: str, index: str, to: str, *values: object) -> Address:
        """Where a click on a latent leads."""
        return Steer(latents={whole(index): 1.0}) if do == "steer" else Feature(whole(index))


@dataclass(eq=False)
class Job:
    """Work that takes long: texts to write, or a search for a strength."""

    values: Sequence[Any]
    """the page's inputs when it was requested"""
    latent: int | None
    """the only one that a search for a strength is for; None: all"""
    begun: bool = False
    over: bool = False
    """whether it has ended, or must: it was stopped, or another took its place"""
    stopped: bool = False


@dataclass
class Visit:
    """What is known of one browser's page, in a `gr.State`. Handlers change it in place: an event
    under way knows of the next.

    Jobs are our own, and not Gradio's `cancels=`, since a text that is stopped is still measured,
    and may be shared: a job is requested at once, begins when its turn in the queue comes, and ends
    where it may.
    """

    drawn: set[str] = field(default_factory=set)
    """names of the pages that were drawn; empty until the first is"""
    click: int = 0
    """the number of the last click in a panel"""
    opened: Address | None = None
    """what the link asked for"""
    selected: bool = False
    """whether the browser said that it has selected the first page, as it does at the start"""
    jobs: dict[str, Job] = field(default_factory=dict)
    """the last of each kind: texts, strength"""
    written: Any = None
    """the last texts of the page Steer: their address, the conversation's exchanges, and the
    view"""
    strength: Any = None
    """a steering address, and strengths that a search found for it"""

    def ask(
        self, *values: object, kind: str, instead_of: str = "", latent: int | None = None
    ) -> None:
        """Request a job; the one under way ends, as does one of another kind that it takes the
        place of, and says nothing of it."""
        for name in (kind, instead_of):
            if name in self.jobs:
                self.jobs[name].over = True
        self.jobs[kind] = Job(values, latent)

    def begin(self, kind: str) -> Job | None:
        """The last requested job, once, whoever's turn it is; None if there is none, or it was
        stopped while it waited."""
        job = self.jobs.get(kind)
        if job is None or job.begun or job.over:
            return None
        job.begun = True
        return job

    def stop(self) -> None:
        """All jobs under way end; one that waits never begins."""
        for job in self.jobs.values():
            job.stopped = job.stopped or not job.over
            job.over = True


class App:
    """The link in the browser's address bar, which page is to be opened, and the pages by name.

    Three things are our own. `link` is a hidden box, since no component of Gradio's writes the
    address bar. `lead` is another, with a click's number and the page that it leads to, since an
    update of `gr.Tabs` would bring back a page that somebody left while the answer was on its way:
    the browser, which knows of later clicks, decides. Clicks in panels are numbered, since of quick
    ones the last is shown: Gradio's "once" would lose one that comes before the answer to another,
    and its "always_last" would answer the first one twice.
    """

    def __init__(self) -> None:
        self.link = gr.Textbox(visible="hidden", elem_id="link")
        self.lead = gr.Textbox(visible="hidden", elem_id="lead")
        self.visit = gr.State(Visit())
        self.pages: dict[str, Any] = {}  # each a `Page`

    def page_of(self, address: Address) -> Page:
        """The page of an address.

        Raises:
            ValueError: this SAE has no such page.
        """
        if (page := self.pages.get(address.tab)) is None:
            there = ", ".join(self.pages)
            raise Refused(f"this SAE has no page {address.tab!r}; its pages: {there}")
        return page

    def fill(self, address: Address) -> Updates:
        """The link and the fields of an address."""
        page = self.page_of(address)
        return {self.link: to_query(address), page.notice: "", **page.fill(address)}

    def show(self, address: Address) -> Updates:
        """The link, and all updates of the page of an address."""
        updates, page = self.fill(address), self.page_of(address)
        try:
            return updates | page.render(address)
        except ValueError as error:
            return updates | {page.notice: html("error", str(error))}

    def outputs(self, *names: str) -> list[Any]:
        """Components that showing any of these pages may update."""
        components = [self.link, self.lead]
        for name in names:
            page = self.pages[name]
            components += [page.notice, *page.inputs, *page.outputs]
        return list(dict.fromkeys(components))

    def on(
        self,
        triggers: Sequence[Callable[..., Any]],
        to: Callable[..., Address],
        page: Page,
        *,
        leads_to: Sequence[str] = (),
        progress_on: Component | None = None,
        queue: str = "look",
    ) -> None:
        """When one of the events happens, show `to(*values of the page's inputs)`; what happens
        before the answer to an earlier one is answered after it, once."""

        def handler(visit: Visit, click: str, *values: object) -> Updates:
            return self._answer(visit, page, to, values, int(click) if leads_to else None)

        js = _NUMBERED if leads_to else None
        options = self._options(page, leads_to, progress_on) | QUEUES[queue]
        for trigger in triggers:
            trigger(handler, trigger_mode="always_last", js=js, **options)

    def on_select(
        self,
        panel: gr.HTML,
        to: Callable[..., Address],
        page: Page,
        *,
        leads_to: Sequence[str] = (),
        progress_on: Component | None = None,
    ) -> Any:
        """When something with data-do is clicked: show `to(do, at, to, *values)`, of quick clicks
        the last."""

        def handler(event: gr.EventData, visit: Visit, _: object, *values: object) -> Updates:
            *what, click = clicked(event)
            visit.click = max(visit.click, click)
            updates = self._answer(visit, page, partial(to, *what), values, click)
            return updates if click == visit.click else {self.link: gr.skip()}

        options = self._options(page, leads_to, progress_on)
        return panel.select(handler, trigger_mode="multiple", **options)

    def _options(
        self, page: Page, leads_to: Sequence[str], progress_on: Component | None
    ) -> dict[str, Any]:
        """Of an event whose answer may lead to some of these pages."""
        others = [other for other in leads_to if other in self.pages]
        inputs, outputs = list(page.inputs), self.outputs(page.state.tab, *others)
        if "steer" in others:
            inputs += self.pages["steer"].inputs
            outputs.append(self.pages["steer"].added)
        return {
            "inputs": [self.visit, self.lead, *inputs],
            "outputs": outputs,
            "show_progress": "minimal" if progress_on else "hidden",
            "show_progress_on": progress_on and [progress_on],
            "api_visibility": "private",
            **QUEUES["look"],
        }

    def _answer(
        self,
        visit: Visit,
        page: Page,
        to: Callable[..., Address],
        values: Sequence[Any],
        click: int | None,
    ) -> Updates:
        """Unchanged fields are not sent: somebody may be typing there. A latent to steer is added
        to those already steered. What has no click's number stays on its page."""
        n, seen, added = len(page.inputs), dict(zip(page.inputs, values, strict=False)), {}
        steer = self.pages.get("steer")
        try:
            address = to(*values[:n])
            if steer and values[n:]:
                seen |= zip(steer.inputs, values[n:], strict=True)
                if isinstance(address, Steer):
                    address, added = steer.join(address, *values[n:])
            updates = self.show(address) | added
            if steer and isinstance(address, Steer) and address.run:
                visit.ask(*steer.values(address), kind="texts")
        except ValueError as error:
            return {page.notice: html("error", str(error))}
        if click is not None:
            updates[self.lead] = f"{click} {address.tab}"
        visit.drawn.add(address.tab)
        return {part: new for part, new in updates.items() if part not in seen or new != seen[part]}


def clicked(event: gr.EventData) -> tuple[str, str, str, int]:
    """The data-do, data-at and data-to of what was clicked in a panel, and the click's number."""
    data: Any = event._data if isinstance(event._data, dict) else {}
    do, at, to = (str(data.get(name) or "") for name in ("do", "at", "to"))
    click = data.get("click")
    return do, at, to, click if isinstance(click, int) else 0


def box(lines: int, most: int = 8) -> dict[str, Any]:
    """Options of a text box where Enter runs and Shift+Enter breaks the line, this high: Gradio
    does so in a box of one line that may grow."""
    return {"lines": 1, "max_lines": most, "elem_classes": f"hf-box-{lines}"}


def whole(text: str) -> int:
    """The number in an element's data-at."""
    if not text.isdecimal() or len(text) > 9:
        raise Refused("that element has no number; reload the page")
    return int(text)


def one_of(choices: Sequence[Any], index: str) -> Any:
    """The choice whose number is in an element's data-at."""
    return choices[min(whole(index), len(choices) - 1)]
