"""The page on which people rate: one item at a time, without its SAE, latent or kind.

    GET  /        the page           GET  /item    ?rater=NAME[&at=POSITION]
    POST /answer  an item's answer   POST /undo    take back the last one

What a browser gets of an item is its windows, its question and its place in the rater's own order.
"""

import hmac
import logging
import statistics
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import unquote, urlsplit

import uvicorn
from filelock import FileLock, Timeout
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from .answers import Answer, Ledger, checked, is_closed, ledgers, open_ledger, rater_name
from .plan import Damaged, Item, Plan, Refused

logger = logging.getLogger(__name__)
_HOME = Path(__file__).parent
_ASSETS = {"/": "page.html", "/rate.js": "rate.js", "/rate.css": "rate.css"}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_LOCAL = ("localhost", "127.0.0.1", "::1")
_MAX_BODY = 10_000  # bytes
_FIELDS = {"item": str, "answer": (str, int, type(None)), "words": str, "seconds": (int, float)}
_NEEDED = ("item", "answer")
_ENOUGH = 3  # answers, before a time is predicted
CLOSED = "this study is closed: it takes no more answers"


class Wrong(Refused):
    """A request with a wrong code, or one that comes too late."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Desk:
    """A study that is being rated: its plan, and the answers of each rater."""

    def __init__(self, study: Path, plan: Plan) -> None:
        self.study, self.plan = study, plan
        self.items = {item.id: item for item in plan.items}
        self._ledgers: dict[str, Ledger] = {}
        self._orders: dict[str, list[Item]] = {}
        self._lock = Lock()

    def page(self, rater: str, at: int | None = None) -> dict[str, Any]:
        """What a rater sees at a position of their order; by default the first open item."""
        with self._lock:
            return self._page(rater_name(rater), at)

    def answer(self, rater: str, answer: Answer) -> dict[str, Any]:
        """Keep an answer; the next page."""
        with self._lock:
            self._refuse_closed()
            ledger = self._ledger(rater := rater_name(rater))
            ledger.add(checked(answer, self.items))
            return self._page(rater, self._after(rater, answer.item))

    def undo(self, rater: str) -> dict[str, Any]:
        """Take back the last answer; the page that it was on."""
        with self._lock:
            self._refuse_closed()
            item = self._ledger(rater := rater_name(rater)).undo()
            return self._page(rater, None if item is None else self._places(rater)[item])

    def _refuse_closed(self) -> None:
        if is_closed(self.study):
            raise Wrong(CLOSED, 409)

    def _ledger(self, rater: str) -> Ledger:
        if rater not in self._ledgers:
            self._ledgers[rater] = open_ledger(self.study, self.plan, rater)
            self._orders[rater] = self.plan.order(rater)
        return self._ledgers[rater]

    def _places(self, rater: str) -> dict[str, int]:
        return {item.id: place for place, item in enumerate(self._orders[rater])}

    def _after(self, rater: str, item: str) -> int | None:
        """The next open item behind this one; None: the first open one."""
        latest, order = self._ledger(rater).latest, self._orders[rater]
        behind = range(self._places(rater)[item] + 1, len(order))
        return next((i for i in behind if order[i].id not in latest), None)

    def _page(self, rater: str, at: int | None) -> dict[str, Any]:
        self._refuse_closed()
        latest, order = self._ledger(rater).latest, self._orders[rater]
        is_open = [item.id not in latest for item in order]
        if at is None:
            at = is_open.index(True) if any(is_open) else len(order)
        skipped = [i for i, item in enumerate(order) if _is_skipped(latest.get(item.id))]
        about = {"rater": rater, "n": len(order), "n_done": len(order) - sum(is_open)}
        about |= {"skipped": skipped, "at": at, "seconds_left": _left(latest, sum(is_open))}
        if not 0 <= at < len(order):
            return about | {"at": len(order), "done": True}
        return about | _shown(order[at], latest.get(order[at].id))


def _is_skipped(answer: Answer | None) -> bool:
    return answer is not None and answer.answer is None


def _left(latest: dict[str, Answer], n_open: int) -> int | None:
    """Seconds that the open items take, by the median of those answered."""
    seconds = [answer.seconds for answer in latest.values() if answer.seconds > 0]
    return round(statistics.median(seconds) * n_open) if len(seconds) >= _ENOUGH else None


def _shown(item: Item, answer: Answer | None) -> dict[str, Any]:
    """An item as a browser gets it."""
    windows = [{"tokens": window.tokens, "marks": window.marks} for window in item.windows]
    given = {} if answer is None else {"answer": answer.answer, "words": answer.words}
    return {"item": item.id, "question": item.question, "windows": windows, **given}


def app_of(study: Path, plan: Plan, code: str | None = None, host: str = "127.0.0.1") -> Starlette:
    """The web application.

    Args:
        code: that the page asks each rater for; None: no code.
        host: the address that it is served on. On a loopback address it answers this machine's own
            browsers alone; on another one, all who know the code.
    """
    desk = Desk(study, plan)

    async def item(request: Request) -> Response:
        at = request.query_params.get("at", "")
        place = int(at) if at.isdecimal() and len(at) < 9 else None
        rater = request.query_params.get("rater", "")
        return await _answered(request, code, lambda: desk.page(rater, place))

    async def answer(request: Request) -> Response:
        body = await _body(request)
        rater = str(body.pop("rater", ""))
        fields = {key: body[key] for key in _FIELDS if key in body}
        return await _answered(request, code, lambda: desk.answer(rater, _answer(fields)))

    async def undo(request: Request) -> Response:
        rater = str((await _body(request)).get("rater", ""))
        return await _answered(request, code, lambda: desk.undo(rater))

    routes = [Route(path, _asset(name)) for path, name in _ASSETS.items()]
    routes += [Route("/item", item), Route("/answer", answer, methods=["POST"])]
    routes += [Route("/undo", undo, methods=["POST"])]
    name = host.strip("[]").lower()
    is_local = name in _LOCAL or name.startswith("127.")
    hosts = {*_LOCAL, name}

    async def host_check(request: Request, go_on: RequestResponseEndpoint) -> Response:
        """A page from elsewhere, whose name its owner lets resolve to 127.0.0.1, could use this one
        as if it were its own ("DNS rebinding"): its Host and its Origin reveal it."""
        addresses = [f"//{request.headers.get('host', '')}"]
        addresses += [o for o in [request.headers.get("origin")] if o is not None]
        if is_local and not all(_host_name(address) in hosts for address in addresses):
            sentence = f"this page is for {', '.join(_LOCAL)}, not for {', '.join(addresses)}"
            return PlainTextResponse(f"{sentence}; --host opens it", 403)
        return await go_on(request)

    return Starlette(
        routes=routes, middleware=[Middleware(BaseHTTPMiddleware, dispatch=host_check)]
    )


def _host_name(address: str) -> str | None:
    """The host of an address, without its port; None if it has none."""
    try:
        return urlsplit(address).hostname
    except ValueError:
        return None


def _asset(name: str) -> Callable[[Request], Response]:
    def asset(request: Request) -> Response:
        return FileResponse(_HOME / name, headers=_HEADERS)

    return asset


def _answer(fields: dict[str, Any]) -> Answer:
    for name, kinds in _FIELDS.items():
        if name in _NEEDED and name not in fields:
            raise Refused(f"an answer needs the field {name}")
        if name in fields and not isinstance(fields[name], kinds):
            raise Refused(f"the field {name} of an answer cannot be {str(fields[name])[:40]!r}")
    return Answer(**fields)


async def _body(request: Request) -> dict[str, Any]:
    """A JSON object; empty for anything else, such as the form of another site's page."""
    is_json = request.headers.get("content-type", "").startswith("application/json")
    if not is_json or int(request.headers.get("content-length") or _MAX_BODY + 1) > _MAX_BODY:
        return {}
    try:
        content = await request.json()
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


async def _answered(
    request: Request, code: str | None, act: Callable[[], dict[str, Any]]
) -> Response:
    """What an action gives, or the sentence that refuses it."""
    try:
        given = unquote(request.headers.get("x-code", ""))
        if code is not None and not hmac.compare_digest(given.encode(), code.encode()):
            raise Wrong("the code is wrong; enter this study's code" if given else "code", 401)
        return JSONResponse(await run_in_threadpool(act), headers=_HEADERS)
    except Damaged as error:  # it names files, and a folder may be called after its SAEs
        logger.error("%s", error)
        sentence = "your earlier answers cannot be read; tell whoever runs this study"
        return JSONResponse({"error": sentence}, 500, headers=_HEADERS)
    except Refused as error:
        status = error.status if isinstance(error, Wrong) else 400
        return JSONResponse({"error": str(error)}, status, headers=_HEADERS)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        sentence = f"the answer could not be saved: {reason}"
        return JSONResponse({"error": sentence}, 507, headers=_HEADERS)


def rate(
    study: Path, *, host: str, port: int, code: str | None, ready: Callable[[], object] = str
) -> None:
    """Serve a study until it is interrupted.

    Args:
        ready: called once nothing more is refused, before the page answers.

    Raises:
        ValueError: there is no plan, it is closed, another process serves it, or an answer's file
            is damaged or of another plan.
    """
    plan = Plan.load(study)
    if is_closed(study):
        raise Refused(
            f"{study} is closed: it takes no more answers; `python -m studies report {study}`"
        )
    ledgers(study, plan)
    try:
        lock = FileLock(study / ".in-use", timeout=0).acquire()
    except Timeout as error:
        raise Refused(f"another process serves {study}; end it, or rate on its page") from error
    with lock:
        ready()
        uvicorn.run(app_of(study, plan, code, host), host=host, port=port, log_level="warning")
