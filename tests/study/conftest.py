"""A study without a language model, answers to it, and its page in a browser."""

import hashlib
import json
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from studies.answers import Answer, open_ledger
from studies.plan import Item, Plan, Shown, StudyArguments, arranged

NAMES = ["jumping", "topping"]  # of SAEs; no page may hold them
WEIGHTS = b"weights"
WEIGHTS_SHA256 = hashlib.sha256(WEIGHTS).hexdigest()
HOSTILE = "<img src=x onerror=\"document.title='hit'\">"


ROOT = Path(__file__).parent.parent.parent


def a_window(*of: object) -> Shown:
    """Text of its own, without a digit, so that a number on the page is a leak."""
    digest = hashlib.sha256(repr(of).encode()).hexdigest()[:8]
    word = digest.translate(str.maketrans("0123456789", "ghijklmnop"))
    return Shown([" a", f" {word}", " here", "↵", HOSTILE], "03100")


def a_plan(n_latents: int = 10, names: list[str] = NAMES, **changes) -> Plan:
    args = StudyArguments(n_latents=n_latents, windows=4, **changes)
    return Plan(
        vars(args),
        "some/model",
        [
            {"name": name, "l0": 50.0 + i, "weights_sha256": WEIGHTS_SHA256}
            for i, name in enumerate(names)
        ],
        arranged([_items(sae, args) for sae in range(len(names))], args),
    )


def _items(sae: int, args: StudyArguments) -> list[Item]:
    def item(kind: str, latent: int, n: int) -> Item:
        words = [a_window(kind, sae, latent, i) for i in range(n)]
        return Item(kind, sae, latent, 0.0123, words)

    intruders = [item("intruder", 7000 + i, 5) for i in range(args.n_of("intruders"))]
    for number, intruder in enumerate(intruders):
        intruder.odd, intruder.other = number % 5, 7500
    directions = [item("direction", -1 - i, 4) for i in range(args.n_of("controls"))]
    return [*(item("latent", 7000 + i, 4) for i in range(args.n_latents)), *directions, *intruders]


def answer_all(study: Path, plan: Plan, rater: str, rating: Callable[[Item], str | int]) -> None:
    """Answers of a rater to all items, without a server."""
    ledger = open_ledger(study, plan, rater)
    for item in plan.order(rater):
        ledger.add(Answer(item.id, rating(item), seconds=10.0))


@pytest.fixture
def study(tmp_path) -> Path:
    """A folder with a plan."""
    a_plan().save(tmp_path / "study")
    return tmp_path / "study"


@contextmanager
def serving(study: Path, code: str | None = None, host: str = "127.0.0.1") -> Iterator[str]:
    """The page's address, while a thread serves it as on an address of this machine."""
    uvicorn = pytest.importorskip("uvicorn")
    from studies.server import app_of

    with socket.create_server(("127.0.0.1", 0)) as listening:
        config = uvicorn.Config(app_of(study, Plan.load(study), code, host), log_level="error")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        finally:
            server.should_exit = True
            thread.join(20)


def call(url: str, body: dict | None = None, **headers: str) -> tuple[int, dict]:
    try:
        with send(url, body, **headers) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def send(url: str, body: dict | None = None, **headers: str) -> Any:
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", **headers}
    return urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=30)


def choice_of(page: dict) -> str | int:
    return "yes" if page["question"] == "meaning" else 2


def first_page(url: str, process: subprocess.Popen) -> dict:
    deadline = time.monotonic() + 300  # of a loaded machine
    while time.monotonic() < deadline and process.poll() is None:
        try:
            return call(f"{url}item?rater=ada")[1]
        except urllib.error.URLError:
            time.sleep(0.1)
    raise AssertionError("the server does not answer")
