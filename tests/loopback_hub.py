"""A Hugging Face Hub on the loopback interface, for tests with the true client over real HTTP.

    hub = LoopbackHub()             # has its ports (hub.url is HF_ENDPOINT), but does not listen
    hub.start(folder)               # an empty Hub with its files in this folder
    hub.faults.append(Fault("PUT", UPLOADS, "cut_upload", times=2, at=100_000))
    hub.seen("POST", "/commit/")    # the requests that came
    hub.read_file("alice/sae", "README.md", rev="dev")    # what the Hub holds, without the client

It answers what huggingface_hub asks for repositories: create, delete, move, settings, preupload,
LFS, commits, pull requests, branches, tags, trees, downloads with ranges, whoami, card checks.
LFS bytes go to and come from a second origin, the "CDN". Tokens: hf_write (alice of acme), hf_read
(alice, may only read), hf_other (bob). The answers are in `hub_answers`.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qs, unquote, urlsplit

from .hub_answers import (
    LFS_SUFFIXES,
    MAIN,
    Commit,
    File,
    Refusal,
    Reply,
    Repo,
    User,
    answer,
    git_oid,
    is_lfs,
)

UPLOADS = "^/upload/"  # the CDN's path of an LFS upload
DOWNLOADS = "^/lfs/"  # and of an LFS download


@dataclass
class Fault:
    """Breaks requests of this method ("*": any) whose path a regular expression finds.

    status: answers `status` with `body`, and does nothing. meanwhile: calls `meanwhile` first.
    cut_upload: takes `at` bytes of the body, then resets the connection. cut_reply: does the work,
    then resets instead of answering. truncate: promises the whole body, sends `at` bytes. corrupt:
    flips the byte `at` (from the end if negative).
    """

    method: str
    path: str
    kind: Literal["status", "meanwhile", "cut_upload", "cut_reply", "truncate", "corrupt"]
    times: int | None = 1
    """How many requests; None for all."""
    at: int = 0
    status: int = 503
    retry_after: int | None = None
    """Seconds, as a header of the status."""
    body: bytes = b'{"error": "a fault of the test"}'
    meanwhile: Callable[[], object] | None = None


@dataclass
class Request:
    """One request as it came, and how it was answered."""

    method: str
    raw_path: str
    """Still quoted; `path` is what it says."""
    query: dict[str, str]
    headers: dict[str, str]
    """By names in lower case."""
    origin: str
    """"hub" or "cdn"."""
    body: bytes = b""
    status: int = 0
    fault: str | None = None
    user: User | None = None

    @property
    def path(self) -> str:
        return unquote(self.raw_path)


class LoopbackHub:
    """See the module's docstring. `unreachable_url` is an address where nobody ever listens."""

    def __init__(self) -> None:
        self._servers = {origin: _Server(self, origin) for origin in ("hub", "cdn", "nobody")}
        self.url, self.cdn_url, self.unreachable_url = (s.url for s in self._servers.values())
        self.lock = threading.RLock()
        self._listens = False
        self._forget()

    def _forget(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        """("models", "alice/sae") -> Repo."""
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.waits: list[float] = []
        """Seconds that the client in this process would have slept, had the fixture let it."""
        self.page_size = 1000

    def start(self, folder: Path) -> None:
        """Empty, with its files in `folder`; listens from the first time on."""
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._forget()
        if not self._listens:
            self._listens = True
            for origin in ("hub", "cdn"):
                self._servers[origin].listen()

    def close(self) -> None:
        for origin, server in self._servers.items():
            if self._listens and origin != "nobody":
                server.shutdown()
            server.server_close()

    # what a test asks and does without the client

    def seen(self, method: str = "*", path: str = "", origin: str | None = None) -> list[Request]:
        """The requests so far whose path a regular expression finds."""
        return [
            request
            for request in list(self.requests)
            if method in ("*", request.method)
            and re.search(path, request.path)
            and origin in (None, request.origin)
        ]

    def add_repo(
        self, repo: str, *, kind: str = "models", private: bool = False, gated: bool | str = False
    ) -> Repo:
        """A repository whose only file is .gitattributes."""
        made = self.repos[kind, repo] = Repo(repo, kind, private, gated)
        rules = "".join(
            f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES
        )
        attributes = self.store_blob(rules.encode())
        made.commit(MAIN, {".gitattributes": attributes}, "initial commit")
        return made

    def add_file(
        self, repo: str, path: str, data: bytes, *, kind: str = "models", rev: str = "main"
    ) -> Commit:
        """Commits one file, whatever its name and bytes; the repository is made if need be."""
        with self.lock:
            target = self.repos.get((kind, repo)) or self.add_repo(repo, kind=kind)
            store = self.store_lfs if is_lfs(path, len(data), data[:512]) else self.store_blob
            branch = target.branch(rev)
            files = target.at(branch).files | {path: store(data)}
            return target.commit(branch, files, f"add {path}")

    def list_files(self, repo: str, rev: str = "main", kind: str = "models") -> list[str]:
        return sorted(self.repos[kind, repo].at(rev).files)

    def read_file(self, repo: str, path: str, rev: str = "main", kind: str = "models") -> bytes:
        return self.content(self.repos[kind, repo].at(rev).files[path])

    # content-addressed files

    def content(self, file: File) -> bytes:
        return (self.folder / (file.sha256 or file.oid)).read_bytes()

    def has_lfs(self, sha256: str, size: int) -> bool:
        path = self.folder / sha256
        return path.is_file() and path.stat().st_size == size

    def store_blob(self, data: bytes) -> File:
        file = File(git_oid(data), len(data))
        self._write(file.oid, data)
        return file

    def store_lfs(self, data: bytes) -> File:
        sha256 = hashlib.sha256(data).hexdigest()
        self._write(sha256, data)
        return File.of_lfs(sha256, len(data))

    def _write(self, name: str, data: bytes) -> None:
        partial = self.folder / f"{name}.{threading.get_ident()}"
        partial.write_bytes(data)
        os.replace(partial, self.folder / name)

    # other processes

    def environment(self, home: Path, token: str | None = None) -> dict[str, str]:
        """This process's, but HF_* points at this Hub, with caches and logins under `home`."""
        outer = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("HF_", "HUGGING", "TRANSFORMERS_"))
        }
        return outer | hub_variables(self.url, home) | ({"HF_TOKEN": token} if token else {})

    def run_python(
        self, *arguments: str, home: Path, token: str | None = None, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """run_python("-m", "hfsae", home=tmp_path): here the client's retries wait for real."""
        return subprocess.run(
            [sys.executable, *arguments],
            env=self.environment(home, token),
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=600,
        )


def hub_variables(url: str, home: Path) -> dict[str, str]:
    """What the client reads once, when it is imported."""
    return {
        "HF_ENDPOINT": url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "HF_UPDATE_DOWNLOAD_COUNTS": "0",  # else `datasets` looks for s3.amazonaws.com
        "NO_PROXY": "127.0.0.1",
    }


class _Server(ThreadingHTTPServer):
    """Bound to a free port of the loopback interface; connections are refused until `listen`."""

    daemon_threads = True

    def __init__(self, hub: LoopbackHub, origin: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler, bind_and_activate=False)
        self.hub, self.origin = hub, origin
        self.server_bind()
        self.url = f"http://127.0.0.1:{self.server_port}"

    def listen(self) -> None:
        self.server_activate()
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # a client that left is no error
            traceback.print_exc()


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else 40 ms for each small answer

    def log_message(self, *args: object) -> None:
        pass

    def handle_any(self) -> None:
        url = urlsplit(self.path)
        query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        headers = {key.lower(): value for key, value in self.headers.items()}
        request = Request(self.command, url.path, query, headers, self.server.origin)
        fault = self._take_fault(request)
        try:
            if fault and fault.kind == "cut_upload":
                self._read_body(fault.at)
                return self._reset()
            request.body = self._read_body()
            reply = self._reply(request, fault)
            request.status = reply.status
            if fault and fault.kind == "cut_reply":
                return self._reset()
            self._send(reply, fault)
        except ConnectionError:  # the client has left
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any

    def _take_fault(self, request: Request) -> Fault | None:
        hub = self.server.hub
        with hub.lock:
            hub.requests.append(request)
            for fault in hub.faults:
                fits = fault.method in ("*", request.method) and re.search(fault.path, request.path)
                if fits and fault.times != 0:
                    fault.times = None if fault.times is None else fault.times - 1
                    request.fault = fault.kind
                    return fault
        return None

    def _reply(self, request: Request, fault: Fault | None) -> Reply:
        if fault and fault.kind == "status":
            wait = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
            return Reply(fault.status, fault.body, wait)
        if fault and fault.meanwhile:
            fault.meanwhile()
        try:
            return answer(self.server.hub, request)
        except Refusal as refusal:
            return Reply(refusal.status, refusal.body, refusal.headers)
        except Exception:  # our bug: to be seen in the test's captured output
            traceback.print_exc()
            return Reply(500, b'{"error": "a bug of the loopback Hub"}')

    def _read_body(self, limit: int | None = None) -> bytes:
        """Up to about `limit` bytes."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            size = int(self.headers.get("Content-Length") or 0)
            return self.rfile.read(size if limit is None else min(size, limit))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
            if limit is not None and len(body) >= limit:
                return body
        self.rfile.readline()
        return body

    def _send(self, reply: Reply, fault: Fault | None) -> None:
        body = reply.body
        if fault and fault.kind == "corrupt" and body:
            at = fault.at % len(body)
            body = body[:at] + bytes([body[at] ^ 0xFF]) + body[at + 1 :]
        self.send_response(reply.status)
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        for name, value in (headers | reply.headers).items():
            # a hostile file name may stand in a header: neither a second header nor a crash
            self.send_header(name, value.encode("ascii", "replace").decode().replace("\n", " "))
        if fault and fault.kind == "truncate":
            body = body[: fault.at]
            self.close_connection = True
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _reset(self) -> None:
        """RST instead of FIN: the client sees a broken connection, not an early end."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.rfile.close()  # the socket closes with its last user
        self.connection.close()
