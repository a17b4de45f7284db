"""What a request may carry: parsers of JSON recurse, and fail in a traceback on deep nesting."""

import re

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MOST_DEEP, MOST_BYTES = 64, 1_000_000
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"?', re.DOTALL)  # to the end, where it is not closed
_BRACKET = re.compile(rb"[\[\]{}]")


class BodyLimits:
    """Middleware: refuse a JSON body that is deeply nested or large, before anything parses it."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope) if scope["type"] == "http" else {}
        if scope.get("method") != "POST" or "multipart" in headers.get("content-type", ""):
            await self.app(scope, receive, send)  # Gradio limits what is uploaded
            return
        body = bytearray()
        async for part in Request(scope, receive).stream():
            body += part
            if len(body) > MOST_BYTES:
                break
        if refusal := _refusal(bytes(body)):
            status = 413 if len(body) > MOST_BYTES else 400
            await JSONResponse({"detail": refusal}, status)(scope, receive, send)
            return
        unread = iter([{"type": "http.request", "body": bytes(body), "more_body": False}])

        async def read() -> Message:
            return next(unread, None) or await receive()

        await self.app(scope, read, send)


def _refusal(body: bytes) -> str:
    """Why a body is refused; empty if it is not."""
    if len(body) > MOST_BYTES:
        return f"the request has more than {MOST_BYTES:,} bytes; send a shorter text"
    depth = 0
    for bracket in _BRACKET.finditer(_STRING.sub(b"", body)):
        depth += 1 if bracket[0] in b"[{" else -1
        if depth > MOST_DEEP:
            return f"the request's JSON is nested more than {MOST_DEEP} deep; no action needs that"
    return ""
