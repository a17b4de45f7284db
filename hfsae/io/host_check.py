"""A guard for pages that this machine serves: they answer only this machine's browsers, unless they
are opened to others.

A page from elsewhere, whose name its owner lets resolve to 127.0.0.1, could use such a server as if
it were the server's own page ("DNS rebinding"). Its Host and its Origin reveal it.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

_LOCAL = ("localhost", "127.0.0.1", "::1")
_Message = MutableMapping[str, Any]
_Send = Callable[[_Message], Awaitable[None]]
_Receive = Callable[[], Awaitable[_Message]]
_App = Callable[[_Message, _Receive, _Send], Awaitable[None]]


def local_hosts(host: str) -> frozenset[str]:
    """Names by which this machine's browsers call a server; empty if others may reach it.

    Args:
        host: the address that the server listens on.
    """
    name = host.strip("[]").lower()
    is_local = name in _LOCAL or name.startswith("127.")
    return frozenset({*_LOCAL, name}) if is_local else frozenset()


class HostCheck:
    """ASGI middleware: answers 403 to requests for another host, or from a page of one.

    Args:
        hosts: as `local_hosts` gives them; empty: all requests pass.
    """

    def __init__(self, app: _App, hosts: frozenset[str]) -> None:
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        refusal = self._refusal(scope) if scope["type"] in ("http", "websocket") else ""
        if not refusal:
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": refusal[:100]})
        else:
            text = refusal.encode()
            headers = [(b"content-type", b"text/plain; charset=utf-8")]
            headers += [(b"content-length", str(len(text)).encode())]
            await send({"type": "http.response.start", "status": 403, "headers": headers})
            await send({"type": "http.response.body", "body": text})

    def _refusal(self, scope: _Message) -> str:
        """Why a request is refused; empty if it is answered."""
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host, origin = headers.get(b"host", ""), headers.get(b"origin")
        if self.hosts and _host_name(f"//{host}") not in self.hosts:
            return f"this page is for {', '.join(_LOCAL)}, not for {host!r}; --host opens it"
        if self.hosts and origin is not None and _host_name(origin) not in self.hosts:
            return f"a page of {origin!r} may not use this one"
        return ""


def _host_name(address: str) -> str | None:
    """The host of an address, without its port; None if it has none."""
    try:
        return urlsplit(address).hostname
    except ValueError:
        return None
