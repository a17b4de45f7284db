"""What a page is to the app, and how an event leads from one address to another."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import gradio as gr

from ..actions import Actions
from ..address import Address, Steer, page_of, to_query
from ..parts import html

Updates = dict[Any, Any]


class Page:
    """Widgets within a tab. `render` gives what they show at an address; it alone fills them."""

    title: ClassVar[str]
    notice: gr.HTML
    """where a sentence stands if something cannot be done"""
    inputs: Sequence[Any]
    """components whose values are the page's state"""
    outputs: Sequence[Any]
    """components that `render` may update"""

    def __init__(self, actions: Actions) -> None:
        self.actions = actions

    def address(self, *values: Any) -> Address:
        """The state that the values of `inputs` are."""
        raise NotImplementedError

    def fill(self, address: Any) -> Updates:
        """The values of the inputs at an address."""
        raise NotImplementedError

    def render(self, address: Any) -> Updates:
        """What stands below the inputs. Raises ValueError with a sentence for the notice."""
        raise NotImplementedError

    def joined(self, asked: Any, *values: Any) -> Address:
        """What the values of `inputs` are, with what another page asks for."""
        raise NotImplementedError

    def wire(self, app: "App") -> None:
        """Connect this page's events."""


@dataclass
class App:
    """The tabs, the link in the browser's address bar, and the pages by name."""

    tabs: gr.Tabs
    link: gr.Textbox
    asked: gr.State
    """the address that the page was opened at; None until that is known"""
    pages: dict[str, Page] = field(default_factory=dict)

    def fill(self, address: Address) -> Updates:
        """The tab, the link and the fields of an address."""
        page = self.pages[page_of(address)]
        return {
            self.tabs: gr.Tabs(selected=page_of(address)),
            self.link: to_query(address),
            page.notice: "",
            **page.fill(address),
        }

    def show(self, address: Address) -> Updates:
        """All updates that bring the browser to an address."""
        updates, page = self.fill(address), self.pages[page_of(address)]
        try:
            return updates | page.render(address)
        except ValueError as error:
            return updates | {page.notice: html("error", str(error))}

    def outputs(self, *names: str) -> list[Any]:
        """Components that showing any of these pages may update."""
        found = [self.tabs, self.link]
        for name in names:
            page = self.pages[name]
            found += [page.notice, *page.inputs, *page.outputs]
        return list(dict.fromkeys(found))

    def on(
        self,
        triggers: Sequence[Callable[..., Any]],
        to: Callable[..., Address],
        page: Page,
        *,
        leads_to: Sequence[str] = (),
        progress_on: Any = None,
    ) -> list[Any]:
        """When one of the events happens, show `to(*values of the page's inputs)`."""

        def handler(*values: Any) -> Updates:
            return self._guarded(page, to, (), values)

        return [self._bind(t, handler, page, leads_to, progress_on) for t in triggers]

    def on_select(
        self,
        panel: gr.HTML,
        to: Callable[..., Address],
        page: Page,
        *,
        leads_to: Sequence[str] = (),
        progress_on: Any = None,
    ) -> Any:
        """When something with data-do is clicked: show `to(do, at, to, *values)`."""

        def handler(event: gr.EventData, *values: Any) -> Updates:
            data = event._data if isinstance(event._data, dict) else {}
            asked = [str(data.get(name) or "") for name in ("do", "at", "to")]
            return self._guarded(page, to, asked, values)

        return self._bind(panel.select, handler, page, leads_to, progress_on)

    def follow(self, triggers: Sequence[Callable[..., Any]], page: Page) -> None:
        """When one of the page's fields has changed, the link says so: one answer at a time, so
        that the last change has the last word."""

        def handler(*values: Any) -> Updates:
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
        page: Page,
        to: Callable[..., Address],
        asked: Sequence[str],
        values: Sequence[Any],
    ) -> Updates:
        """Fields that stay as they are are left out: somebody may be typing there by now. A latent
        that is to be steered joins those that are."""
        n = len(page.inputs)
        own, of_steer = values[:n], values[n:]
        try:
            address = to(*asked, *own)
            if of_steer and isinstance(address, Steer):
                address = self.pages["steer"].joined(address, *of_steer)
            updates = self.show(address)
        except ValueError as error:
            return {page.notice: html("error", str(error))}
        seen = dict(zip(self._inputs(page, bool(of_steer)), values, strict=True))
        return {part: new for part, new in updates.items() if part not in seen or new != seen[part]}

    def _inputs(self, page: Page, with_steer: bool) -> list[Any]:
        return [*page.inputs, *(self.pages["steer"].inputs if with_steer else ())]

    def _bind(
        self,
        trigger: Callable[..., Any],
        handler: Callable[..., Updates],
        page: Page,
        leads_to: Sequence[str],
        progress_on: Any,
    ) -> Any:
        name = next(name for name, p in self.pages.items() if p is page)
        return trigger(
            handler,
            self._inputs(page, "steer" in leads_to),
            self.outputs(name, *leads_to),
            show_progress="minimal" if progress_on is not None else "hidden",
            show_progress_on=progress_on,
            api_visibility="private",
            concurrency_id="look",
            concurrency_limit=8,
        )


def whole(text: str) -> int:
    """What an element's data-at says."""
    if not text.isdecimal() or len(text) > 9:
        raise ValueError("that element names no number; reload the page")
    return int(text)


def one_of(choices: Sequence[Any], index: str) -> Any:
    """The one that an element's data-at says."""
    return choices[min(whole(index), len(choices) - 1)]
