"""A picture to share of a text beside its steered version: a PNG, and a web page of its own.

The fonts are those that come with matplotlib: signs that they lack, such as emoji, are boxes in the
PNG, and themselves in the page.
"""

import importlib.util
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from .address import Steer, to_query
from .parts import cited, data_link, document, html
from .rows import Json, as_rows
from .subject import Subject

WIDTH, HEIGHT = 1200, 630
_FINE = 2  # drawn this much larger, so that edges are smooth
_MARGIN, _GAP, _PAD, _TOP, _FOOT = 48, 28, 28, 168, 62
_INK, _QUIET, _LINE, _ACCENT, _GROUND = "#1e293b", "#566276", "#dbe1ea", "#4338ca", "#f5f7fa"
_HOT, _PAPER = (240, 140, 26), (255, 255, 255)
_SIZES = (28, 25, 22, 20, 18, 16)  # of the texts: the largest that fits
_MARKED = 1.0  # nats that steering adds to a token: from here it is marked
_STRONGEST = 5.0  # nats
_HOW = {
    "add": "added at",
    "clamp": "clamped to",
    "scale": "scaled by",
    "ablate": "left out",
    "orthogonal": "set to",
    "cap": "capped at",
}
_UNITS = {"max": " x its largest activation", "norm": " % of the norm", "raw": " raw units"}
_OWN = ("localhost", "127.0.0.1", "::1", "0.0.0.0")


Piece = tuple[str, str, float]
"""part of a text, with its colour, and how strongly it is marked, 0 to 1"""


class Steered(NamedTuple):
    """What a picture shows."""

    model: str
    sae: str
    what: str
    """the latents with their names and strengths"""
    prompt: str
    plain: str
    tokens: list[dict[str, Any]]
    """of the steered text: "text", and "raised", the nats that steering added"""
    link: str
    """that shows it in the app; empty if others cannot reach it"""


def share_panel(subject: Subject, address: Steer, view: Json, origin: str) -> str:
    """HTML of the picture, with links that hold it and the page.

    Args:
        view: the texts of the address, as `steer_actions.write` gives them.
        origin: scheme and host of the app as the visitor reaches it.
    """
    is_public = urlsplit(origin).hostname not in (*_OWN, None)
    unit = "" if address.mode == "scale" else _UNITS[address.unit]
    latents = [{"latent": i, "value": s} for i, s in address.latents.items()]
    texts = []
    for i, row in enumerate(as_rows(subject, latents)):
        name = row["label"] or row["auto"] or next(iter(row.get("fires_on", [])), "")
        strength = "" if address.mode == "ablate" else f" {row['value']:g}{unit}"
        latent = f"{'latent' if i else 'Latent'} {row['latent']}"
        how = f"{_HOW[address.mode]}{strength}"
        texts.append(f"{latent}{f', {cited(name)},' if name else ''} {how}")
    steered = Steered(
        model=(subject.public_lm_name or "a language model").rpartition("/")[2],
        sae=subject.name,
        what=", and ".join(texts),
        prompt=address.prompt + ("\n\n" if address.chat else ""),
        plain=view["plain"],
        tokens=view["steered_tokens"] or [{"text": view["steered"], "raised": 0.0}],
        link=f"{origin}/?{to_query(replace(address, run=True))}" if is_public else "",
    )
    files = {
        "png": data_link(png(steered), "image/png"),
        "html": data_link(page(steered).encode(), "text/html"),
    }
    name = f"steered-{'-'.join(map(str, address.latents))}"
    return html(
        "shared", {"name": name, "files": files, "what": steered.what, "link": steered.link}
    )


def png(steered: Steered) -> bytes:
    """The picture, 1200 x 630 pixels; its field `Source` holds the whole link."""
    image = Image.new("RGB", (_FINE * WIDTH, _FINE * HEIGHT), _GROUND)
    draw = ImageDraw.Draw(image)

    def write(x: float, y: float, text: str, size: int, colour: str, bold: bool = False) -> None:
        draw.text((_FINE * x, _FINE * y), text, colour, _font(size, bold))

    def box(sides: Iterable[float], radius: int, *colours: Any) -> None:
        width = _FINE * 2 if len(colours) > 1 else 1
        scaled = [_FINE * side for side in sides]
        draw.rounded_rectangle(scaled, _FINE * radius, *colours, width=width)

    room = WIDTH - 2 * _MARGIN
    size = next((s for s in (32, 28, 25) if _width(steered.what, s, True) <= room), 22)
    write(_MARGIN, 38, _cut(steered.what, size, bold=True), size, _INK, bold=True)
    below = f"{steered.model}   ·   read and steered through {steered.sae}"
    write(_MARGIN, 86, _cut(below, 19), 19, _QUIET)
    marked = [(token["text"], _INK, _strength(token)) for token in steered.tokens]
    if any(mark for *_, mark in marked):
        write(_MARGIN + 26, 124, "marked: tokens that steering made likelier", 16, _QUIET)
        box((_MARGIN, 127, _MARGIN + 18, 141), 3, _shade(0.8))

    wide, high = (room - _GAP) // 2, HEIGHT - _FOOT - _TOP - 56 - _PAD
    plain = [(steered.plain, _INK, 0.0)]
    columns = ("As it is", plain, _LINE), ("Steered", marked, _ACCENT)
    prompt = (steered.prompt, _QUIET, 0.0)

    def fits(pieces: list[Piece], size: int) -> bool:
        return len(list(_lines(pieces, wide - 2 * _PAD, size))) * 1.45 * size < high

    texts = [[prompt, *pieces] for _, pieces, _ in columns]
    size = next((s for s in _SIZES if all(fits(pieces, s) for pieces in texts)), _SIZES[-1])
    for i, (title, pieces, edge) in enumerate(columns):
        left, bottom = _MARGIN + i * (wide + _GAP), HEIGHT - _FOOT
        box((left, _TOP, left + wide, bottom), 14, "white", edge)
        write(left + _PAD, _TOP + 20, title, 17, edge if i else _QUIET, bold=True)
        y = _TOP + 56.0
        for line in _lines([prompt, *pieces], wide - 2 * _PAD, size):
            x = float(left + _PAD)
            for text, colour, mark in line:
                end = x + _width(text, size)
                if mark:
                    box((x, y - 0.05 * size, end, y + 1.25 * size), 3, _shade(mark))
                write(x, y, text, size, colour)
                x = end
            if y + 2.9 * size > bottom - _PAD / 2:  # no room for another line
                write(x, y, " …", size, _QUIET)
                break
            y += 1.45 * size
    foot = f"made with hfsae{'   ·   ' + short_link(steered.link) if steered.link else ''}"
    write(_MARGIN, HEIGHT - _FOOT + 20, _cut(foot, 16), 16, _QUIET)
    done, about = BytesIO(), PngInfo()
    about.add_itxt("Title", steered.what)
    if steered.link:
        about.add_itxt("Source", steered.link)
    small = image.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
    small.quantize(128, dither=Image.Dither.NONE).save(done, "PNG", optimize=True, pnginfo=about)
    return done.getvalue()


def page(steered: Steered) -> str:
    """The same as a web page in one file, without scripts."""
    tokens = [{**t, "mark": _strength(t)} for t in steered.tokens]
    return document("share.html", **{**steered._asdict(), "tokens": tokens})


def short_link(link: str) -> str:
    """A link that can be typed: whole where it is short, else the app's address."""
    plain = link.partition("://")[2] or link
    is_short = _width(plain, 16) <= WIDTH - 2 * _MARGIN - 200
    return plain if is_short else plain.partition("/")[0]


def _strength(token: dict[str, Any]) -> float:
    raised = token.get("raised") or 0.0
    return min(1.0, raised / _STRONGEST) if raised > _MARKED else 0.0


def _shade(mark: float) -> tuple[int, int, int]:
    share = 0.6 * mark
    red, green, blue = (round(p + share * (h - p)) for p, h in zip(_PAPER, _HOT, strict=True))
    return red, green, blue


def _cut(text: str, size: int, *, bold: bool = False) -> str:
    """As much of a line as fits the picture's width."""
    text = " ".join(text.split())
    while _width(text, size, bold) > WIDTH - 2 * _MARGIN:
        text = f"{text[:-2].rstrip()}…"
    return text


def _lines(pieces: list[Piece], wide: float, size: int) -> Iterator[list[Piece]]:
    """Lines of a text, broken between words, or within one that is too long for a line."""
    words: list[list[Piece]] = [[]]  # also spaces and line ends; a word may be of several pieces
    for text, colour, mark in pieces:
        for part in re.findall(r"\n|[^\S\n]+|\S+", text):
            if part.isspace():
                words += [[(part, colour, 0.0)], []]
            else:
                words[-1].append((part, colour, mark))
    line: list[Piece] = []
    x = 0.0
    for word in filter(None, words):
        needed = sum(_width(text, size) for text, *_ in word)
        is_end, is_space = word[0][0] == "\n", word[0][0].isspace()
        if is_end or (line and x + needed > wide and not is_space):
            yield line
            line, x = [], 0.0
        if is_end or (not line and is_space):
            continue
        letters = [(letter, colour, mark) for text, colour, mark in word for letter in text]
        for piece in word if needed <= wide else letters:
            width = _width(piece[0], size)
            if line and x + width > wide and not piece[0].isspace():
                yield line
                line, x = [], 0.0
            line.append(piece)
            x += width
    yield line


def _width(text: str, size: int, bold: bool = False) -> float:
    return _font(size, bold).getlength(text) / _FINE


@lru_cache(maxsize=32)
def _font(size: int, bold: bool = False) -> Any:
    spec = importlib.util.find_spec("matplotlib")
    assert spec is not None and spec.origin is not None  # the app's extra brings it
    name = f"DejaVuSans{'-Bold' if bold else ''}.ttf"
    path = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / name
    return ImageFont.truetype(path, _FINE * size)
