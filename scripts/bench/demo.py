"""How long a person waits: the app's latencies, beside what they should stay under.

    python scripts/bench/demo.py [SAE]

Starts `hfsae demo` on the default SAE (or SAE) and drives it in a headless Chromium and through its
API. Medians of five, on an otherwise idle machine; the first call of each, which warms caches, is
left out and printed beside. Then twenty users at once, each of whom must get their own answer, and
the app's resident memory over 500 requests, every fourth of which steers.
"""

import shutil
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import children
from gradio_client import Client
from playwright.sync_api import Browser, sync_playwright

REPEATS = 5
USERS = 20
REQUESTS = (100, 500)  # after which the memory is read
PARAGRAPH = (
    "The president told Congress that the war was over and that the country would now turn to the "
    "work of peace. Ships came home from the sea, schools opened their doors again, and the price "
    "of bread fell for the first time in four years. In the cities people danced in the streets "
    "until the morning, and nobody asked what it had cost."
)


def main(argv: list[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "hfsae", "demo", *argv, "--port", str(port)]
    start = time.perf_counter()
    children.end_on_signals()
    url = f"http://127.0.0.1:{port}/"
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with children.child(command, **silent) as process:
        while not answers(url):
            if process.poll() is not None:
                raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
            time.sleep(0.05)
        print(f"started in {time.perf_counter() - start:.1f} s")
        measure(url)
        users(url)
        memory(url, process.pid)


def answers(url: str) -> bool:
    try:
        urllib.request.urlopen(f"{url}config", timeout=1).close()
    except OSError:
        return False
    return True


def measure(url: str) -> None:
    client = Client(url, verbose=False)
    text = PARAGRAPH
    while len(client.predict(prompt=text, api_name="/inspect")["tokens"]) > 65:  # 64 and BOS
        text = text.rsplit(" ", 1)[0]
    n = len(client.predict(prompt=text, api_name="/inspect")["tokens"]) - 1
    print(f"{'':<44}{'median':>9}{'first':>9}{'under':>9}")
    with browser() as chromium:
        show("first paint of the page", lambda i: paint(chromium, url), 3.0)
    fresh = [f"{i} {text[2:]}" for i in range(REPEATS + 1)]  # texts that were not read before
    show(
        f"inspect {n} tokens",
        lambda i: timed(lambda: client.predict(prompt=fresh[i], api_name="/inspect")),
        1.5,
    )
    show("first steered token", lambda i: first_token(client, i), 1.5)
    show(
        "feature page",
        lambda i: timed(lambda: client.predict(latent=100 + i, api_name="/feature")),
        0.3,
    )
    show(
        "why this token, 9 tokens",
        lambda i: timed(lambda: client.predict(prompt=f"{i} " + text[:40], api_name="/why")),
        None,
    )


def show(name: str, seconds: Callable[[int], float], limit: float | None) -> None:
    first, *rest = (seconds(i) for i in range(REPEATS + 1))
    median = statistics.median(rest)
    verdict = "" if limit is None else f"{limit:>7.1f} s{'' if median < limit else '  MISSED'}"
    print(f"{name:<44}{median:>7.2f} s{first:>7.2f} s{verdict}", flush=True)


def timed(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def first_token(client: Client, seed: int) -> float:
    start = time.perf_counter()
    job = client.submit(
        prompt="My favourite thing to do is",
        latents="876:20",
        unit="norm",
        max_new_tokens=8,
        seed=seed,
        api_name="/steer",
    )
    next(iter(job))
    waited = time.perf_counter() - start
    job.result()
    return waited


def users(url: str) -> None:
    """Twenty clients at once, each with a text of its own."""
    texts = [f"User {i} has seen {i + 1} ships come home from the sea." for i in range(USERS)]
    clients = [Client(url, verbose=False) for _ in texts]

    def ask(i: int) -> bool:
        tokens = clients[i].predict(prompt=texts[i], api_name="/inspect")["tokens"]
        return "".join(token["text"] for token in tokens if not token["special"]) == texts[i]

    start = time.perf_counter()
    with ThreadPoolExecutor(USERS) as pool:
        own = sum(pool.map(ask, range(USERS)))
    seconds = time.perf_counter() - start
    print(f"{USERS} users at once: {own} have their own answers, all after {seconds:.2f} s")


def memory(url: str, pid: int) -> None:
    """Resident memory at the start and after some requests; no text is read twice."""
    client = Client(url, verbose=False)
    print(f"resident memory: {resident(pid):,.0f} MiB", flush=True)
    for i in range(max(REQUESTS)):
        prompt = f"{i}. {PARAGRAPH[: 40 + i % 200]}"
        if i % 4:
            client.predict(prompt=prompt, api_name="/inspect")
        else:
            client.predict(prompt, "876:20", unit="norm", max_new_tokens=4, api_name="/steer")
        if i + 1 in REQUESTS:
            print(f"after {i + 1} requests: {resident(pid):,.0f} MiB", flush=True)


def resident(pid: int) -> float:
    """MiB of a process that are in memory."""
    listed = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, check=True)
    return int(listed.stdout) / 1024


class browser:
    """A headless Chromium for the block."""

    def __enter__(self) -> Browser:
        names = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
        executable = next(filter(None, map(shutil.which, names)), None)
        if executable is None:
            raise SystemExit("no Chromium: apt-get install chromium-headless-shell")
        self.playwright = sync_playwright().start()
        options = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        self.chromium = self.playwright.chromium.launch(executable_path=executable, args=options)
        return self.chromium

    def __exit__(self, *_: object) -> None:
        self.chromium.close()
        self.playwright.stop()


def paint(chromium: Browser, url: str) -> float:
    """Seconds until header, tabs and the first text's tokens are there, in an empty cache."""
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    start = time.perf_counter()
    page.goto(url)
    page.wait_for_selector("#inspect-text button.hf-token")
    waited = time.perf_counter() - start
    context.close()
    return waited


if __name__ == "__main__":
    sys.exit(__doc__) if {"-h", "--help"} & {*sys.argv} else main(sys.argv[1:])
