"""The README's pictures of the app, made anew:  python scripts/pictures.py [FOLDER]

Starts `hfsae demo` with the SAE that the package carries, offline, opens two of its addresses in a
headless Chromium at 1.6 times the usual resolution, and writes demo/pictures/*.png (or
FOLDER/*.png).
"""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlencode

from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).parent.parent
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
LIMIT = 300_000  # bytes of a picture
WAIT = 120_000  # ms, the most that a loaded machine is given
MARGIN = 12  # pixels around what is shown


class Picture(NamedTuple):
    """A page of the app, and what of it is shown."""

    name: str
    query: dict[str, str | int | float]
    """the address, as the app writes it"""
    ready: str
    """a selector of what must be there before the picture is taken"""
    first: str
    last: str
    """selectors: the picture goes from the top of the one to the bottom of the other"""


PROMPT = (
    "The ships of the old kingdom sailed across the sea, and their captains brought home silver, "
    "sugar and news of a war that nobody had won."
)
PICTURES = (
    Picture(
        "inspect",
        {"tab": "inspect", "latent": 1774, "prompt": PROMPT},
        "#inspect-latents .hf-id",
        "#header",
        "#inspect-text",
    ),
    Picture(
        "steer",
        {"tab": "steer", "prompt": "We decided to travel by", "latents": "1774:1"}
        | {"mode": "clamp", "temperature": 0, "max_new_tokens": 30, "run": 1},
        "#steer-output .hf-steered:not(:has(.hf-caret))",
        "#steer-chips",
        "#steer-output",
    ),
)


@contextmanager
def app() -> Iterator[str]:
    """The address of the app, which ends with the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "hfsae", "demo", "hfsae/shipped_sae", "--port", str(port)]
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    url = f"http://127.0.0.1:{port}/"
    try:
        while not answers(url):
            if process.poll() is not None:
                raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
            time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait(20)


def answers(url: str) -> bool:
    try:
        urllib.request.urlopen(f"{url}config", timeout=1).close()
    except OSError:
        return False
    return True


def take(page: Page, picture: Picture, folder: Path) -> None:
    page.wait_for_selector(picture.ready)
    page.evaluate("scrollTo(0, 0)")  # places are told from the window's top
    first, last = (page.locator(s).first.bounding_box() for s in (picture.first, picture.last))
    assert first is not None and last is not None
    left = min(first["x"], last["x"]) - MARGIN
    right = max(box["x"] + box["width"] for box in (first, last)) + MARGIN
    top, bottom = first["y"] - MARGIN, last["y"] + last["height"] + MARGIN
    clip = {"x": max(left, 0), "y": max(top, 0), "width": right - left, "height": bottom - top}
    path = folder / f"{picture.name}.png"
    page.screenshot(path=path, clip=clip, full_page=True, animations="disabled")
    size = path.stat().st_size
    print(f"{path}: {size:,} bytes")
    if size > LIMIT:
        raise SystemExit(f"{path} is larger than {LIMIT:,} bytes")


def main(folder: Path) -> None:
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    if executable is None:
        raise SystemExit("no Chromium: apt-get install chromium-headless-shell")
    folder.mkdir(parents=True, exist_ok=True)
    options = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    with app() as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=options)
        context = browser.new_context(
            viewport={"width": 1280, "height": 900}, device_scale_factor=1.6, color_scheme="light"
        )
        context.set_default_timeout(WAIT)
        for picture in PICTURES:
            page = context.new_page()
            page.goto(f"{url}?{urlencode(picture.query)}")
            take(page, picture, folder)
            page.close()
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "demo" / "pictures")
