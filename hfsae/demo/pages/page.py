"""The interface of a page, and how an event leads from one address to another."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, ClassVar, Generic, TypeVar

import gradio as gr
from gradio.components import Component

from ...machine.refused import Refused
from ..actions import Actions, in_queue
from ..address import Address, Steer, page_of, to_query
from ..parts import html
from ..subject import Subject

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
    noted: Sequence[Any] = ()
    """components that `added` may update"""

    def __init__(self, actions: Actions) -> None:
        self.actions, self.subject = actions, actions.subject
        self.fields = {}

    @classmethod
    def fits(cls, subject: Subject) -> bool:
        """Whether the page has a use for such an SAE; by default, for every one."""
        return True

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

    @property
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
        return {
            component: self.to_component(name, getattr(address, name))
            for name, component in self.fields.items()
        }

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

    def joined(self, other: Steer, *values: object) -> Steer:
        """The state from the values of `inputs`, with another page's request."""
        raise NotImplementedError

    def added(self, latents: Mapping[int, float], *values: object) -> Updates:
        """Further updates when another page adds latents to the values of `inputs`."""
        return {}

    def request_run(self, request: gr.Request, address: Address) -> None:
        """Request what an address asks to be written, in the name of the request's session."""

    def wire(self, app: "App") -> None:
        """Connect this page's events."""


class TextPage(Page[A]):
    """A page of SAEs that read text: it needs a language model."""

    @classmethod
    def fits(cls, subject: Subject) -> bool:
        """An SAE of the text of one language model, whether or not that is loaded."""
        return subject.runs_text


@dataclass
class Visit:
    """What is known of one browser's page. Handlers change it in place: the next event knows."""

    drawn: set[str] = field(default_factory=set)
    """names of the pages that were drawn; empty until the first is"""
    click: int = 0
    """the number of the last click in a panel"""
    opened: Address | None = None
    """what the link asked for"""
    selected: bool = False
    """whether the browser said that it has selected the first page, as it does at the start"""


@dataclass
class App:
    """The link in the browser's address bar, which page is to be opened, and the pages by name.

    An answer names the page that it leads to, and the click that it answers; whether the page is
    opened is decided in the browser, which knows of later clicks.
    """

    link: gr.Textbox
    lead: gr.Textbox
    """the number of a click, and the page that it leads to"""
    visit: gr.State
    """a `Visit`"""
    pages: dict[str, Page] = field(default_factory=dict)

    def page_of(self, address: Address) -> Page:
        """The page of an address.

        Raises:
            ValueError: this SAE has no such page.
        """
        if (page := self.pages.get(page_of(address))) is None:
            there = ", ".join(self.pages)
            raise Refused(f"this SAE has no page {page_of(address)!r}; its pages: {there}")
        return page

    def fill(self, address: Address) -> Updates:
        """The link and the fields of an address."""
        page = self.page_of(address)
        return {
            self.link: to_query(address),
            page.notice: "",
            **page.fill(address),
        }

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
        progress_on: Sequence[Component] | None = None,
    ) -> list[Any]:
        """When one of the events happens, show `to(*values of the page's inputs)`; what happens
        before the answer to an earlier one is answered after it, once."""

        def handler(request: gr.Request, visit: Visit, click: object, *values: object) -> Updates:
            number = int(str(click)) if leads_to and str(click).isdecimal() else None
            return self._guarded(request, visit, page, to, values, number)

        options = {"trigger_mode": "always_last", "js": _NUMBERED if leads_to else None}
        triggers = [partial(trigger, **options) for trigger in triggers]
        return [self._bind(t, handler, page, leads_to, progress_on) for t in triggers]

    def on_select(
        self,
        panel: gr.HTML,
        to: Callable[..., Address],
        page: Page,
        *,
        leads_to: Sequence[str] = (),
        progress_on: Sequence[Component] | None = None,
    ) -> Any:
        """When something with data-do is clicked: show `to(do, at, to, *values)`. Of quick clicks
        the last is shown: Gradio's "once" would lose one that comes before the answer to another,
        and its "always_last" would answer the first one twice."""

        def handler(
            event: gr.EventData, request: gr.Request, visit: Visit, _: object, *values: object
        ) -> Updates:
            data = event._data if isinstance(event._data, dict) else {}
            click = data.get("click")
            click = click if isinstance(click, int) else 0
            visit.click = max(visit.click, click)
            clicked = [str(data.get(name) or "") for name in ("do", "at", "to")]
            updates = self._guarded(request, visit, page, partial(to, *clicked), values, click)
            return updates if click == visit.click else {self.link: gr.skip()}

        select = partial(panel.select, trigger_mode="multiple")
        return self._bind(select, handler, page, leads_to, progress_on)

    def follow(self, triggers: Sequence[Callable[..., Any]], page: Page) -> None:
        """When one of the page's fields changes, update the link: one answer at a time, so that the
        last change wins."""

        def handler(*values: object) -> Updates:
            try:
                return {self.link: to_query(page.address(*values))}
            except ValueError as error:
                return {page.notice: html("error", str(error))}

        gr.on(
            triggers,
            handler,
            list(page.inputs),
            [page.notice, self.link],
            show_progress="hidden",
            api_visibility="private",
            trigger_mode="always_last",
        )

    def _guarded(
        self,
        request: gr.Request,
        visit: Visit,
        page: Page,
        to: Callable[..., Address],
        values: Sequence[Any],
        click: int | None,
    ) -> Updates:
        """Unchanged fields are not sent: somebody may be typing there. A latent to steer is added
        to those already steered. What has no click's number stays on its page."""
        n, steer = len(page.inputs), self.pages.get("steer")
        own, of_steer = values[:n], values[n:]
        try:
            address = to(*own)
            added: Updates = {}
            if steer and of_steer and isinstance(address, Steer):
                latents = address.latents
                address = steer.joined(address, *of_steer)
                added = steer.added(latents, *of_steer)
            updates = self.show(address) | added
            if steer:
                steer.request_run(request, address)
        except ValueError as error:
            return {page.notice: html("error", str(error))}
        if click is not None:
            updates[self.lead] = leading(click, address)
        visit.drawn.add(page_of(address))
        seen = dict(zip(self._inputs(page, bool(of_steer)), values, strict=True))
        return {part: new for part, new in updates.items() if part not in seen or new != seen[part]}

    def _inputs(self, page: Page, with_steer: bool) -> list[Any]:
        return [*page.inputs, *(self.pages["steer"].inputs if with_steer else ())]

    def _noted(self, leads_to: Sequence[str]) -> list[Any]:
        """What an event that may add a latent to those steered tells the steer page besides."""
        return list(self.pages["steer"].noted) if "steer" in leads_to else []

    def _bind(
        self,
        trigger: Callable[..., Any],
        handler: Callable[..., Updates],
        page: Page,
        leads_to: Sequence[str],
        progress_on: Sequence[Component] | None,
    ) -> Any:
        name = next(name for name, p in self.pages.items() if p is page)
        leads_to = [other for other in leads_to if other in self.pages]
        return trigger(
            handler,
            [self.visit, self.lead, *self._inputs(page, "steer" in leads_to)],
            [*self.outputs(name, *leads_to), *self._noted(leads_to)],
            show_progress="minimal" if progress_on is not None else "hidden",
            show_progress_on=progress_on,
            api_visibility="private",
            **in_queue("look"),
        )


def leading(click: int, address: Address) -> str:
    """What `App.lead` holds when a click leads to an address's page."""
    return f"{click} {page_of(address)}"


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
    """The number in an element's data-at."""
    return choices[min(whole(index), len(choices) - 1)]
