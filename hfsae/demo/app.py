"""The app: pages in tabs, the link in the address bar, the endpoints, and how it is started."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import gradio as gr
from gradio.themes import Base
from gradio.utils import colab_check
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from .. import circuits
from ..io.processor import keep_few_kernels
from ..io.units import ROW
from .actions import QUEUES, Actions, as_tools
from .address import Address, Feature, Inspect, Steer, from_query, to_query
from .opening import open_subject
from .pages import ALL
from .pages.page import App, Page, Updates, Visit, whole
from .parts import html, number, panel
from .picture_latents import MOST_BYTES
from .presets import first_texts, presets
from .subject import Choice, Subject, default_source, is_space

_HERE = Path(__file__).parent
_FILES = [(_HERE / f"{name}.js").read_text("utf-8") for name in ("page", "focus", "map", "lists")]
_FILES.append(circuits.SCRIPT)
_HEAD = "".join(f"<script>{file}</script>" for file in _FILES)
# Gradio compiles its templates in the browser, and has inline script and style: both need
# 'unsafe-'. Nothing is loaded from elsewhere, sent there, or framed.
POLICY = {
    "default-src": "'self'",
    "script-src": "'self' 'unsafe-inline' 'unsafe-eval'",
    "style-src": "'self' 'unsafe-inline'",
    "img-src": "'self' data: blob:",
    "media-src": "'self'",
    "font-src": "'self'",
    "connect-src": "'self'",
    "worker-src": "'self' blob:",
    "object-src": "'none'",
    "form-action": "'none'",
    "base-uri": "'self'",
}
# Gradio's own choices have less contrast than 4.5:1.
_READABLE = {
    "button_primary_background_fill": "*primary_600",
    "button_primary_background_fill_hover": "*primary_700",
    "button_primary_background_fill_dark": "*primary_600",
    "button_primary_background_fill_hover_dark": "*primary_700",
    "body_text_color_subdued": "*neutral_600",
    "body_text_color_subdued_dark": "*neutral_400",
    "input_placeholder_color": "*neutral_600",
    "input_placeholder_color_dark": "*neutral_300",
}
SESSIONS = 128
"""Callers that Gradio remembers, at some 0.5 MB each; it forgets the oldest: programs come as
new ones with every call. A page that is forgotten while it is open goes on, as if its other tabs
had not been opened before."""
_LOCAL = ("localhost", "127.0.0.1", "::1")
_TO_LINK = "(query) => { hfsae.link(query); }"
_TO_PAGE = "(lead) => hfsae.lead(lead)"


def build(subject: Subject) -> gr.Blocks:
    """The app for one SAE. `launch` starts it with its theme."""
    # else Gradio sums up, for its page /monitoring, the times of all past events after each one
    os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", "100")
    actions, pages = Actions(subject), pages_of(subject)
    with gr.Blocks(title=f"hfsae: {subject.name}", analytics_enabled=False) as blocks:
        about, health = actions.about(), actions.health()
        model = ("model", (about["model"] or "unknown").rpartition("/")[2])
        values = {m["name"]: m["value"] for m in health["metrics"]}
        measured = [(n, key) for key, n in (("l0", "L0"), ("fvu", "FVU")) if key in values]
        facts = [
            ("SAE", about["name"]),
            ("reads", "files of activations") if subject.unit == ROW else model,
            ("site", about["site"] or "unknown"),
            ("latents", f"{about['d_sae']:,}"),
            *((n, number(values[key])) for n, key in measured),
        ]
        panel(html("header", facts, subject.unit, subject.runs_text), elem_id="header")
        app = App()
        view = {
            "n": f"{subject.d_sae:,}",
            "model": model[1] if about["model"] else "a language model",
            "site": about["site"],
            "preset": presets(subject)[0]["name"],
        }
        tour = panel(html("tour", view), elem_id="tour") if subject.runs_text else None
        with gr.Tabs(selected=next(iter(pages)), overflow_behavior="wrap") as tabs:
            tab_of = {}
            for name, page_class in pages.items():
                with gr.Tab(page_class.title, id=name, elem_id=f"tab-{name}") as tab_of[name]:
                    app.pages[name] = page_class(actions)
        for name, page in app.pages.items():
            page.wire(app)
            _follow(app, tab_of[name], name)
        if tour is not None:
            _follow_tour(tour, app, actions)
        app.link.change(None, app.link, None, js=_TO_LINK, api_visibility="private")
        app.lead.change(None, app.lead, tabs, js=_TO_PAGE, api_visibility="private")
        _restore(blocks, app)
        actions.serve()
    return blocks.queue(default_concurrency_limit=8, max_size=128)


def pages_of(subject: Subject) -> dict[str, type[Page]]:
    """The pages that fit an SAE, by their names in links; the first is open at the start."""
    return {page.state.tab: page for page, fits in ALL.items() if fits(subject)}


def _follow_tour(tour: gr.HTML, app: App, actions: Actions) -> None:
    """The first minute: what a latent is, and three steps to a steered text. A click on a step
    shows it; the last one generates its texts. The visitor hides the panel, or goes the steps on
    the pages themselves: page.js marks those done, and remembers a hidden tour."""
    steer = app.pages["steer"]

    def step(do: str, number: str, shown: str, *values: object) -> Address:
        if number == "2":
            return replace(steer.preset(0), run=True)
        if number == "1" and shown:  # the first latent on the page Inspect, which page.js tells
            return Feature(whole(shown))
        text = first_texts(actions.subject)[0]
        first = actions.inspect(text)["ranking"][0]
        return Feature(first["latent"]) if number == "1" else Inspect(text, token=first["peak"])

    steer.then_generate(app.on_select(tour, step, steer, leads_to=("inspect", "feature")))


def _follow(app: App, tab: gr.Tab, name: str) -> None:
    """A click on a tab changes the link; a page that was not drawn before is."""
    page, opening = app.pages[name], next(iter(app.pages))

    def to(visit: Visit, *values: object) -> Updates:
        if not visit.drawn and name == opening:  # it is selected before the page was restored
            visit.selected = True
            return {app.link: gr.skip()}
        try:
            address = page.address(*values)
            if name == opening and not visit.selected:  # before its fields were filled
                visit.selected, opened = True, visit.opened
                address = opened if opened and opened.tab == name else address
            new = {} if name in visit.drawn else page.render(address)
        except ValueError as error:
            return {page.notice: html("error", str(error))}
        visit.drawn.add(name)
        return {app.link: to_query(address), **new}

    tab.select(
        to,
        [app.visit, *page.inputs],
        [app.link, page.notice, *page.outputs],
        **_progress(page),
        api_visibility="private",
        **QUEUES["look"],
    )


def _progress(*pages: Page, panel: int = 0) -> dict[str, Any]:
    """Options of an event that draws pages: it is seen to work on this panel of each, or on the
    last."""
    panels = [[part for part in page.outputs if isinstance(part, gr.HTML)] for page in pages]
    on = [parts[: panel + 1][-1] for parts in panels if parts]
    return {"show_progress": "minimal" if on else "hidden", "show_progress_on": on or None}


def _restore(blocks: gr.Blocks, app: App) -> None:
    """When the page opens, show the link's state, a generated text included. What is so already is
    not updated: somebody may have typed there, or pressed a button, by now."""
    name, first_page = next(iter(app.pages.items()))
    subject: Subject = first_page.subject
    if name != "feature" and not (subject.loaded or subject.encoder):  # it lacks its model
        first_page = app.pages["feature"]

    def changed(updates: Updates) -> Updates:
        """Those that differ from what the components began with."""
        return {part: new for part, new in updates.items() if new != part.value}

    def prepare(request: gr.Request, visit: Visit) -> Updates:
        """At once: the page to open, and the fields."""
        query, notice = {key: str(value) for key, value in request.query_params.items()}, {}
        try:
            address = from_query(query, app.pages)
            if address == Inspect() and "tab" not in query:
                address = first_page.first()
            elif address == (page := app.page_of(address)).state():
                address = page.first()
            updates = app.fill(address)
        except ValueError as error:
            address = first_page.first()
            updates = app.fill(address)
            notice = {first_page.notice: html("error", str(error))}
        visit.opened = address
        visit.drawn.add(address.tab)
        always = {app.link: updates.pop(app.link), app.lead: f"0 {address.tab}"}
        return {**always, **changed(updates), **notice}

    def restore(visit: Visit) -> Updates:
        assert visit.opened is not None
        page = app.page_of(visit.opened)
        try:
            return {app.link: gr.skip(), **changed(page.render(visit.opened))}
        except ValueError as error:
            return {page.notice: html("error", str(error))}

    def rerun(visit: Visit, *values: object) -> Iterator[Updates]:
        """Write the texts that the link asks for, once its page is shown."""
        if isinstance(visit.opened, Steer) and visit.opened.run:
            visit.ask(*values, kind="texts")
            yield from app.pages["steer"].generate(visit)
        else:
            yield {app.pages["steer"].notice: gr.skip()}

    options: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    outputs = app.outputs(*app.pages)
    opened = blocks.load(prepare, app.visit, outputs, **options)
    # the tab is selected meanwhile, and the end of that event hides the sign on the first panel
    seen = {**options, **_progress(*app.pages.values(), panel=1)}
    opened = opened.then(restore, app.visit, outputs, **seen)
    if steer := app.pages.get("steer"):
        inputs = [app.visit, *steer.inputs]
        opened.then(rerun, inputs, steer.written, **QUEUES["slow"], **options)


def launch(
    source: str | None = None,
    *,
    model: str | None = None,
    site: str | None = None,
    with_lm: bool = True,
    graphs: str | Path | None = None,
    mcp: bool = False,
    server_name: str | None = None,
    server_port: int | None = None,
    block: bool = True,
    **which: Any,
) -> str:
    """Open an SAE in the app and serve it; its address, once it is served.

    Args:
        source: folder or repository; by default the quickstart's SAE, or the one in the package.
        model: a language model to use instead of the one in the SAE's config.
        site: where an SAE whose config names no site reads, such as "layers.12".
        with_lm: False: only the pages that need no language model.
        graphs: folder of attribution graphs to show; in a Space by default the one in it.
        mcp: serve the actions as tools for agents too.
        which: subfolder, layer, width, l0, revision, as for `hfsae.load`.

    Raises:
        ValueError: there is no such SAE or model, or a file of `graphs` is no graph.
    """
    if graphs is None and is_space() and Path("graphs").is_dir():
        graphs = "graphs"
    kept = {} if graphs is None else circuits.read_graphs(graphs)
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "0", "HF_HUB_DISABLE_TELEMETRY": "1"}
    keep_few_kernels()
    choice = Choice(source or default_source(), **which)
    subject = open_subject(choice, model=model, site=site, with_lm=with_lm)
    subject.graphs = kept
    subject.only_here = bool(app_hosts(server_name))
    blocks = build(subject)
    where = {"server_name": server_name, "server_port": server_port, "mcp_server": mcp}
    shows = looks(server_name, uploads=subject.encoder is not None)
    blocks.launch(**shows, **where, prevent_thread_lock=True, quiet=True)
    print(f"{subject.name} is open at {blocks.local_url} (Ctrl-C ends it)", flush=True)
    if block:
        blocks.block_thread()
    return str(blocks.local_url)


def looks(server_name: str | None = None, *, uploads: bool = False) -> dict[str, Any]:
    """Options of serving: theme and style, and no data sent away or kept.

    Args:
        server_name: the address to listen on; None: Gradio's own choice.
        uploads: whether pictures are uploaded.
    """
    return {
        "theme": Base(
            primary_hue="indigo",
            neutral_hue="slate",
            radius_size="md",
            spacing_size="md",
            font=["system-ui", "sans-serif"],
            font_mono=["ui-monospace", "monospace"],
        ).set(**_READABLE),
        "css": (_HERE / "style.css").read_text(encoding="utf-8") + circuits.STYLE,
        "head": _HEAD,
        "run_history": False,
        "ssr_mode": False,
        "footer_links": ["api", "settings"],
        "max_file_size": MOST_BYTES if uploads else "1mb",
        "state_session_capacity": SESSIONS,
        "app_kwargs": {
            "middleware": [Middleware(_Guard, hosts=app_hosts(server_name))],
            "lifespan": as_tools,
        },
    }


def app_hosts(server_name: str | None) -> frozenset[str]:
    """Host names that browsers on this machine use for the app; empty if others may reach it."""
    name = server_name or os.environ.get("GRADIO_SERVER_NAME") or "127.0.0.1"
    name = name.strip("[]").lower()
    is_shared = os.environ.get("GRADIO_SHARE", "").lower() == "true" or colab_check()
    is_local = name in _LOCAL or name.startswith("127.")
    return frozenset({*_LOCAL, name}) if is_local and not is_shared else frozenset()


class _Guard:
    """Middleware: the app answers only this machine's browsers, unless it is opened to others, and
    serves the page for any link, under a policy.

    A page from elsewhere, whose name its owner lets resolve to 127.0.0.1, could use the app as if
    it were its own page ("DNS rebinding"): its Host and its Origin reveal it. A `page` unknown to
    Gradio would be an error 500; the link is read when the page opens, see `_restore`. A picture in
    a card from the Hub would reveal the reader to its server: the policy keeps the browser from
    loading it.

    Args:
        hosts: as `app_hosts` gives them; empty: requests for any host pass.
    """

    def __init__(self, app: ASGIApp, hosts: frozenset[str]):
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host, origin, refusal = headers.get(b"host", ""), headers.get(b"origin"), ""
        if self.hosts and _host_name(f"//{host}") not in self.hosts:
            refusal = f"this page is for {', '.join(_LOCAL)}, not for {host!r}; --host opens it"
        elif self.hosts and origin is not None and _host_name(origin) not in self.hosts:
            refusal = f"a page of {origin!r} may not use this one"
        if refusal:
            closed, refused = WebSocketClose(1008, refusal[:100]), PlainTextResponse(refusal, 403)
            await (closed if scope["type"] == "websocket" else refused)(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                policy = "; ".join(f"{name} {sources}" for name, sources in POLICY.items())
                header = b"content-security-policy", policy.encode()
                message["headers"] = [*message.get("headers", []), header]
            await send(message)

        opens = scope["type"] == "http" and scope["path"] == "/"
        await self.app({**scope, "query_string": b""} if opens else scope, receive, send_guarded)


def _host_name(address: str) -> str | None:
    """The host of an address, without its port; None if it has none."""
    try:
        return urlsplit(address).hostname
    except ValueError:
        return None
