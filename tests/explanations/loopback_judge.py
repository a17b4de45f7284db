"""A server with an OpenAI-compatible language model on the loopback interface, for tests.

    with LoopbackJudge() as server:
        server.faults["prompt 3"] = [status(500), hang]   # the first calls with it, in turn
        server.always = status(401)                       # or each call
        server.bodies, server.most_at_once                # what came

What it answers depends on the last message alone: `sound_text`, `sound_logprobs`.
"""

import json
import math
import re
import threading
from collections import Counter
from collections.abc import Callable
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Respond = Callable[["Handler", dict[str, Any]], None]


def sound_text(prompt: str) -> str:
    """The answer to a prompt."""
    return json.dumps({"answer": sha256(prompt.encode()).hexdigest()[:8]})


def sound_logprobs(prompt: str) -> list[dict[str, Any]]:
    """Likely first tokens with log-probabilities: yes in three spellings, no in one, another."""
    share = (1 + sha256(prompt.encode()).digest()[0] % 50) / 100
    probabilities = {"yes": share, " Yes": 0.1, "Y": 0.05, "no": 0.7 - share, "maybe": 0.1}
    return [{"token": t, "logprob": math.log(p)} for t, p in probabilities.items()]


def n_tokens(text: str) -> int:
    """The server's own count: pieces of words, and other signs."""
    return len(re.findall(r"\w{1,5}|[^\w\s]", text))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "LoopbackJudge"

    def log_message(self, *args: object) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["messages"][-1]["content"]
        with self.server.calling(prompt, body, dict(self.headers), self.path) as respond:
            respond(self, body)

    def reply(self, code: int, text: str, kind: str = "application/json", **headers: str) -> None:
        """Send an answer whole."""
        data = text.encode()
        self.send_response(code)
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        for name, value in {**fields, "Content-Type": kind, "Content-Length": len(data)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(data)

    def complete(self, body: dict[str, Any], content: Any, stop: str = "stop", **more: Any) -> None:
        """Send a chat completion."""
        message = {"role": "assistant", "content": content, **more}
        choice: dict[str, Any] = {"index": 0, "message": message, "finish_reason": stop}
        if body.get("logprobs"):
            top = sound_logprobs(body["messages"][-1]["content"])
            tokens = [{"token": t, "logprob": 0.0, "top_logprobs": top} for t in ["yes"]]
            choice["logprobs"] = {"content": tokens}
        n_tokens = self.server.n_tokens
        n_in = 3 + sum(4 + n_tokens(m["content"]) for m in body["messages"])
        usage = {"prompt_tokens": n_in, "completion_tokens": n_tokens(str(content))}
        usage["total_tokens"] = sum(usage.values())
        self.server.count(usage)
        reply = {"id": "1", "created": 0, "model": "m", "choices": [choice], "usage": usage}
        self.reply(200, json.dumps(reply))


def sound(handler: Handler, body: dict[str, Any]) -> None:
    """Answer."""
    handler.complete(body, sound_text(body["messages"][-1]["content"]))


def status(code: int, text: str = "no", **headers: str) -> Respond:
    """Answer with an error."""
    return lambda handler, body: handler.reply(code, json.dumps({"error": text}), **headers)


def content(text: Any, stop: str = "stop", **more: Any) -> Respond:
    """Answer with this text."""
    return lambda handler, body: handler.complete(body, text, stop, **more)


def raw(text: str, kind: str = "text/html") -> Respond:
    """Answer with status 200 and something that is no completion."""
    return lambda handler, body: handler.reply(200, text, kind)


def hang(handler: Handler, body: dict[str, Any]) -> None:
    """Do not answer while the server is up."""
    handler.server.is_over.wait(60)
    handler.close_connection = True


def cut_off(handler: Handler, body: dict[str, Any]) -> None:
    """Close the connection in the middle of an answer."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    handler.close_connection = True


def unless(key: str, otherwise: Respond) -> Respond:
    """Sound, but for a body with this key."""
    return lambda handler, body: (otherwise if key in body else sound)(handler, body)


class LoopbackJudge(ThreadingHTTPServer):
    """See the file's first lines."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.faults: dict[str, list[Respond]] = {}
        self.always: Respond = sound
        self.n_tokens: Callable[[str], int] = n_tokens
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.asked: Counter[str] = Counter()
        self.usage: Counter[str] = Counter()
        self.n_at_once = self.most_at_once = 0
        self.is_over = threading.Event()
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def __enter__(self) -> "LoopbackJudge":
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.is_over.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request: object, address: object) -> None:
        """A client that hangs up is no error."""

    def calling(
        self, prompt: str, body: dict[str, Any], headers: dict[str, str], path: str
    ) -> "Calling":
        with self._lock:
            self.asked[prompt] += 1
            self.bodies.append(body)
            self.headers.append(headers)
            self.paths.append(path)
            queue = self.faults.get(prompt)
            return Calling(self, queue.pop(0) if queue else self.always)

    def count(self, usage: dict[str, int]) -> None:
        with self._lock:
            self.usage.update(usage)


class Calling:
    """A call while it is answered."""

    def __init__(self, server: LoopbackJudge, respond: Respond) -> None:
        self._server, self._respond = server, respond

    def __enter__(self) -> Respond:
        with self._server._lock:
            self._server.n_at_once += 1
            self._server.most_at_once = max(self._server.most_at_once, self._server.n_at_once)
        return self._respond

    def __exit__(self, *error: object) -> None:
        with self._server._lock:
            self._server.n_at_once -= 1
