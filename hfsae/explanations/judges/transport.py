"""One request to a server that chats, and what went wrong with it in one word.

For a provider huggingface_hub prepares the request, as for its InferenceClient, and its session
sends it. For an address neither would do: they write a JSON schema in a form that OpenAI-compatible
servers do not know, send the Hub's token where no key is given, and under HF_HUB_OFFLINE ask no
server at all, not even one on this machine.

No server is trusted, and the answers of both are read here: a call ends after its time, an answer
at its largest size, a redirection is not followed, and keys that a server echoes are hidden before
anything else sees them.
"""

import importlib
import json
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from email.utils import parsedate_to_datetime
from queue import Empty, SimpleQueue
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

import huggingface_hub
from huggingface_hub.errors import (
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from ...machine.client import HTTPError
from ...machine.keys import hider
from ...machine.refused import Refused, one_line
from .base import JudgeArguments


class _Response(Protocol):
    """What is read of an answer; it is httpx's or httpx2's, by huggingface_hub's version."""

    status_code: int

    @property
    def is_success(self) -> bool: ...

    @property
    def headers(self) -> Mapping[str, str]: ...

    @property
    def text(self) -> str: ...

    def iter_raw(self) -> Iterator[bytes]: ...


_HTTP: Any = importlib.import_module(HTTPError.__module__.partition(".")[0])
Body = dict[str, Any]
Send = Callable[[Body], dict[str, Any]]
"""The reply to a body in the form of OpenAI's chat completions.

Raises:
    Trouble: there is none.
"""
# Of what some servers answer with other statuses, 429 and 400.
_WORDS = {"insufficient_quota": 402, "model_not_found": 404, "model_not_supported": 404}
MAX_WAIT = 120.0  # seconds, whatever a server wants
MAX_ANSWER = 2**23
"""Bytes of an answer, unpacked. The longest that we ask for have some ten thousand."""
_UNPACKED = {"Accept-Encoding": "identity"}
_MAX_ERROR, _PIECE = 2**16, 2**16  # bytes of an error's text that are read; unpacked at a time


_Kind = Literal["status", "unreachable", "broken", "no chat"]


class Trouble(Exception):
    """A request without a reply.

    Args:
        kind: "status": the server answered with an error; "unreachable": no connection; "broken":
            the connection broke, or took too long; "no chat": a reply of another shape.
        status: of HTTP, 0 for other kinds.
        wait: seconds that the server wants to be left alone.
    """

    def __init__(
        self,
        kind: _Kind,
        reason: str,
        status: int = 0,
        wait: float | None = None,
    ) -> None:
        super().__init__(reason)
        self.kind: _Kind = kind
        self.reason, self.status, self.wait = reason, status, wait

    @property
    def may_pass(self) -> bool:
        """Whether the same request may succeed later."""
        return (
            self.kind in ("unreachable", "broken")
            or self.status in (408, 429)
            or (self.status >= 500 and self.status != 501)
        )


def sender_of(args: JudgeArguments) -> Send:
    """What sends requests to the server that the arguments name.

    Raises:
        ValueError: the key is missing.
    """
    key = args.key()
    if args.base_url is not None:
        send = _to_address(args.base_url, key, args.timeout)
    else:
        send = _to_provider(args, key)
    return _without_keys(_in_time(send, args.timeout), hider(args.secrets()))


def _in_time(send: Send, seconds: int | float) -> Send:
    """The same, but a call that takes longer is given up, in whichever state it is: looking up a
    name, amid the reply's headers, or amid its body."""

    def limited(body: Body) -> dict[str, Any]:
        done: SimpleQueue[dict[str, Any] | BaseException] = SimpleQueue()

        def call() -> None:
            try:
                done.put(send(body))
            except BaseException as error:  # raised again by the thread that waits
                done.put(error)

        threading.Thread(target=call, daemon=True).start()
        try:
            reply = done.get(timeout=min(seconds, threading.TIMEOUT_MAX))
        except Empty:
            raise _too_late(seconds) from None
        if isinstance(reply, BaseException):
            raise reply
        return reply

    return limited


def _too_late(seconds: int | float) -> Trouble:
    return Trouble("broken", f"no whole answer within {seconds:g} s")


def _without_keys(send: Send, hidden: Callable[[Any], Any]) -> Send:
    """The same with keys hidden in replies and errors: here all that a server sends comes in."""

    def hiding(body: Body) -> dict[str, Any]:
        try:
            return hidden(send(body))
        except Trouble as error:
            reason = hidden(error.reason)
            raise Trouble(error.kind, reason, error.status, error.wait) from None
        except Refused as error:
            raise Refused(hidden(str(error))) from None

    return hiding


def _to_address(base_url: str, key: str | None, timeout: int | float) -> Send:
    headers = {**_UNPACKED, "Authorization": f"Bearer {key}"} if key else _UNPACKED
    limits = _HTTP.Limits(max_connections=None)  # those given up do not hold up others
    client, url = _HTTP.Client(headers=headers, limits=limits), chat_url(base_url)
    return lambda body: _posted(client, url, timeout, json=body)


def _posted(client: Any, url: str, timeout: int | float, **request: Any) -> dict[str, Any]:
    """The reply to a request by this client, read up to its largest size."""
    end, how = time.monotonic() + timeout, {"timeout": timeout, "follow_redirects": False}
    try:
        with client.stream("POST", url, **how, **request) as response:
            content = _content(response, lambda: time.monotonic() > end)
    except (HTTPError, _HTTP.InvalidURL) as error:
        raise _of_error(error, timeout) from error
    if content is None:
        raise _too_late(timeout)
    if not response.is_success:
        raise _of_response(response, content.decode("utf-8", "replace"))
    try:
        return _checked(json.loads(content))
    except (ValueError, RecursionError) as error:
        raise Trouble("no chat", "the reply is not JSON") from error


def _content(response: _Response, is_late: Callable[[], bool]) -> bytes | None:
    """The body of a response, of an error its beginning; None: it is late.

    Raises:
        Trouble: it is too large, or packed in a way that was not asked for.
    """
    parts, n_bytes = [], 0
    for part in _unpacked(response):
        if is_late():
            return None
        parts.append(part)
        n_bytes += len(part)
        if not response.is_success and n_bytes > _MAX_ERROR:
            break
        if n_bytes > MAX_ANSWER:
            reason = f"the answer is larger than {MAX_ANSWER / 2**20:g} MB"
            raise Trouble("no chat", reason)
    return b"".join(parts)


def _unpacked(response: _Response) -> Iterator[bytes]:
    """The body in pieces of limited size, however well it was packed."""
    coding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if coding == "identity":
        yield from response.iter_raw()
        return
    if coding not in ("gzip", "deflate"):
        raise Trouble(
            "no chat", f"the answer is packed as {coding[:20]!r}, which was not asked for"
        )
    unpack = zlib.decompressobj(zlib.MAX_WBITS | 32)  # the head tells gzip from zlib
    try:
        for packed in response.iter_raw():
            while packed:
                yield unpack.decompress(packed, _PIECE)
                packed = unpack.unconsumed_tail
        yield unpack.flush()
    except zlib.error as error:
        raise Trouble("broken", f"the answer cannot be unpacked: {one_line(error)}") from error


def _to_provider(args: JudgeArguments, key: str | None) -> Send:
    def send(body: Body) -> dict[str, Any]:
        try:
            request = _prepared(args, key, body)
            headers = {**request.headers, **_UNPACKED}
            session = huggingface_hub.get_session()
            return _posted(session, request.url, args.timeout, json=request.json, headers=headers)
        except OfflineModeIsEnabled as error:
            raise Refused(
                "HF_HUB_OFFLINE is set, and Inference Providers are online; unset it, or name a "
                "local model"
            ) from error

    return send


def _prepared(args: JudgeArguments, key: str | None, body: Body) -> Any:
    """The request to a provider, in its own form: `url`, `headers` and `json`.

    The function that prepares it is no public one. InferenceClient calls it, and then reads answers
    of any size.
    """
    parameters = dict(body)
    try:
        providers: Any = importlib.import_module("huggingface_hub.inference._providers")
        helper = providers.get_provider_helper(args.provider, "conversational", args.model)
        return helper.prepare_request(
            inputs=parameters.pop("messages"),
            parameters=parameters,
            headers={},
            model=args.model,
            api_key=key,
        )
    except HTTPError as error:  # of the Hub, which knows the providers of a model
        raise _of_error(error, args.timeout) from error
    except (ImportError, AttributeError, TypeError, LookupError) as error:
        raise Refused(
            f"huggingface_hub {huggingface_hub.__version__} cannot prepare a request to "
            f"{args.address} ({one_line(error)[:200]}); install another version, or name the "
            "provider's address with --base_url"
        ) from error
    except ValueError as error:  # no such provider, or not with this model
        raise Refused(
            f"{args.address} cannot answer for {args.model!r}: {one_line(error).rstrip('.')}"
        ) from error


def chat_url(base_url: str) -> str:
    """Where an address takes chat completions; one without a path is meant as HOST/v1."""
    parts = urlsplit(base_url)
    path = parts.path.rstrip("/") or "/v1"
    if not path.endswith("/chat/completions"):
        path += "/chat/completions"
    return parts._replace(path=path, fragment="").geturl()


def _checked(reply: object) -> dict[str, Any]:
    """A reply that has answers in it; some servers put errors into a reply with status 200."""
    if isinstance(reply, dict) and reply.get("choices"):
        return reply
    error = reply.get("error") if isinstance(reply, dict) else None
    if isinstance(error, dict) and str(error.get("code")).isdigit():
        text = one_line(Exception(str(error.get("message"))))[:200]
        raise Trouble("status", text, int(error["code"]))
    raise Trouble("no chat", "the reply has no choices")


def _of_error(error: Exception, timeout: int | float) -> Trouble:
    """What an error of the HTTP client is about."""
    response = getattr(error, "response", None)
    if response is not None:
        trouble = _of_response(response, _text_of(response))
        if isinstance(error, RepositoryNotFoundError):
            trouble.status = 404
        return trouble
    names = {kind.__name__ for kind in type(error).__mro__}
    text = one_line(error)[:200]
    if names & {
        "ConnectError",
        "ConnectTimeout",
        "UnsupportedProtocol",
        "ProxyError",
        "InvalidURL",
    }:
        return Trouble("unreachable", text)
    return _too_late(timeout) if "Time" in type(error).__name__ else Trouble("broken", text)


def _text_of(response: _Response) -> str:
    try:
        return response.text
    except Exception:  # a stream that was not read, or broke
        return ""


def _of_response(response: _Response, text: str) -> Trouble:
    if 300 <= response.status_code < 400:
        return Trouble("no chat", f"it redirects, with status {response.status_code}")
    reason = " ".join(text.split())[:200] or f"status {response.status_code}"
    status = next((s for word, s in _WORDS.items() if word in text), response.status_code)
    return Trouble("status", reason, status, retry_after(response.headers))


def retry_after(headers: Mapping[str, str], now: Callable[[], float] = time.time) -> float | None:
    """Seconds to wait by the header Retry-After, which has seconds or a date; at most 120."""
    value = str(headers.get("Retry-After") or "").strip()
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - now()
        except (ValueError, TypeError, OverflowError):
            return None
    return min(max(seconds, 0.0), MAX_WAIT) if seconds == seconds else None
