"""A picture to share of a text beside its steered version: a PNG, and a web page of its own.

The fonts are those that come with matplotlib: signs that they lack, such as emoji, are boxes in the
PNG, and themselves in the page.
"""

import base64
import importlib.util
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from .parts import document

WIDTH, HEIGHT = 1200, 630
_FINE = 2  # drawn this much larger, so that edges are smooth
_MARGIN, _GAP, _PAD, _TOP, _FOOT = 48, 28, 28, 168, 62
_INK, _QUIET, _LINE, _ACCENT, _GROUND = "#1e293b", "#566276", "#dbe1ea", "#4338ca", "#f5f7fa"
_HOT, _PAPER = (240, 140, 26), (255, 255, 255)
_SIZES = (28, 25, 22, 20, 18, 16)  # of the texts: the largest that fits
_MARKED = 1.0  # nats that steering adds to a token: from here it is marked
_STRONGEST = 5.0  # nats


class Piece(NamedTuple):
    """Part of a text, with its colour, and how strongly it is marked, 0 to 1."""

    text: str
    colour: str = _INK
    mark: float = 0.0


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


def png(steered: Steered) -> bytes:
    """The picture, 1200 x 630 pixels; its field `Source` holds the whole link."""
    image = Image.new("RGB", (_FINE * WIDTH, _FINE * HEIGHT), _GROUND)
    draw = ImageDraw.Draw(image)
    _head(draw, steered)
    wide = (WIDTH - 2 * _MARGIN - _GAP) // 2
    steered_pieces = [_marked(token) for token in steered.tokens]
    columns = ("As it is", [Piece(steered.plain)], _LINE), ("Steered", steered_pieces, _ACCENT)
    size = min(_fitting([Piece(steered.prompt), *pieces], wide) for _, pieces, _ in columns)
    for i, (title, pieces, edge) in enumerate(columns):
        left = _MARGIN + i * (wide + _GAP)
        box = (left, _TOP, left + wide, HEIGHT - _FOOT)
        draw.rounded_rectangle(_scaled(box), _FINE * 14, "white", edge, _FINE * 2)
        _write(draw, left + _PAD, _TOP + 20, title, 17, edge if i else _QUIET, bold=True)
        _text(draw, [Piece(steered.prompt, _QUIET), *pieces], box, size)
    foot = f"made with hfsae{'   ·   ' + _shown(steered.link) if steered.link else ''}"
    _write(draw, _MARGIN, HEIGHT - _FOOT + 20, _cut(foot, 16), 16, _QUIET)
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
    return document("picture.html", **{**steered._asdict(), "tokens": tokens})


def _shown(link: str) -> str:
    """A link that can be typed: whole where it is short, else the app's address."""
    plain = link.partition("://")[2] or link
    is_short = _width(plain, 16) <= WIDTH - 2 * _MARGIN - 200
    return plain if is_short else plain.partition("/")[0]


def as_link(content: bytes, kind: str) -> str:
    """Content as a link that holds it; kind: its media type."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _head(draw: ImageDraw.ImageDraw, steered: Steered) -> None:
    room = WIDTH - 2 * _MARGIN
    size = next((s for s in (32, 28, 25) if _width(steered.what, s, True) <= room), 22)
    _write(draw, _MARGIN, 38, _cut(steered.what, size, bold=True), size, _INK, bold=True)
    below = f"{steered.model}   ·   read and steered through {steered.sae}"
    _write(draw, _MARGIN, 86, _cut(below, 19), 19, _QUIET)
    if any(_strength(token) for token in steered.tokens):
        _legend(draw)


def _legend(draw: ImageDraw.ImageDraw) -> None:
    text = "marked: tokens that steering made likelier"
    _write(draw, _MARGIN + 26, 124, text, 16, _QUIET)
    box = (_MARGIN, 127, _MARGIN + 18, 141)
    draw.rounded_rectangle(_scaled(box), _FINE * 3, _shade(0.8))


def _strength(token: dict[str, Any]) -> float:
    raised = token.get("raised") or 0.0
    return min(1.0, raised / _STRONGEST) if raised > _MARKED else 0.0


def _marked(token: dict[str, Any]) -> Piece:
    return Piece(token["text"], _INK, _strength(token))


def _shade(mark: float) -> tuple[int, int, int]:
    share = 0.6 * mark
    red, green, blue = (round(p + share * (h - p)) for p, h in zip(_PAPER, _HOT, strict=True))
    return red, green, blue


def _scaled(box: Iterable[int | float]) -> list[int | float]:
    return [_FINE * side for side in box]


def _write(
    draw: ImageDraw.ImageDraw,
    x: int | float,
    y: int | float,
    text: str,
    size: int,
    colour: str,
    *,
    bold: bool = False,
) -> None:
    draw.text((_FINE * x, _FINE * y), text, colour, _font(size, bold))


def _cut(text: str, size: int, *, bold: bool = False) -> str:
    """As much of a line as fits the picture's width."""
    text = " ".join(text.split())
    while _width(text, size, bold) > WIDTH - 2 * _MARGIN:
        text = f"{text[:-2].rstrip()}…"
    return text


def _fitting(pieces: list[Piece], wide: int | float) -> int:
    """The largest size of letters at which a text fits its column; else the smallest."""
    room = HEIGHT - _FOOT - _TOP - 56 - _PAD
    fitting = (s for s in _SIZES if len(list(_lines(pieces, wide - 2 * _PAD, s))) * 1.45 * s < room)
    return next(fitting, _SIZES[-1])


def _text(
    draw: ImageDraw.ImageDraw, pieces: list[Piece], box: tuple[int | float, ...], size: int
) -> None:
    left, top, right, bottom = box
    y = top + 56
    for line in _lines(pieces, right - left - 2 * _PAD, size):
        last = y + 2.9 * size > bottom - _PAD / 2
        x = left + _PAD
        for piece in line:
            wide = _width(piece.text, size)
            if piece.mark:
                mark = (x, y - 0.05 * size, x + wide, y + 1.25 * size)
                draw.rounded_rectangle(_scaled(mark), _FINE * 3, _shade(piece.mark))
            _write(draw, x, y, piece.text, size, piece.colour)
            x += wide
        if last:
            _write(draw, x, y, " …", size, _QUIET)
            return
        y += 1.45 * size


def _lines(pieces: list[Piece], wide: int | float, size: int) -> Iterator[list[Piece]]:
    """Lines of a text, broken between words, or within one that is too long for a line."""
    line: list[Piece] = []
    x = 0.0
    for word in _words(pieces):
        needed = sum(_width(piece.text, size) for piece in word)
        is_end = word[0].text == "\n"
        if is_end or (line and x + needed > wide and not word[0].text.isspace()):
            yield line
            line, x = [], 0.0
        if is_end or (not line and word[0].text.isspace()):
            continue
        for piece in word if needed <= wide else _letters(word):
            if line and x + _width(piece.text, size) > wide and not piece.text.isspace():
                yield line
                line, x = [], 0.0
            line.append(piece)
            x += _width(piece.text, size)
    yield line


def _words(pieces: list[Piece]) -> Iterator[list[Piece]]:
    """Words, spaces and line ends; a word may be of several pieces."""
    word: list[Piece] = []
    for piece in pieces:
        for part in re.findall(r"\n|[^\S\n]+|\S+", piece.text):
            if part.isspace():
                if word:
                    yield word
                yield [piece._replace(text=part, mark=0.0)]
                word = []
            else:
                word.append(piece._replace(text=part))
    if word:
        yield word


def _letters(word: list[Piece]) -> list[Piece]:
    return [piece._replace(text=letter) for piece in word for letter in piece.text]


def _width(text: str, size: int, bold: bool = False) -> float:
    return _font(size, bold).getlength(text) / _FINE


@lru_cache(maxsize=32)
def _font(size: int, bold: bool = False) -> Any:
    spec = importlib.util.find_spec("matplotlib")
    assert spec is not None and spec.origin is not None  # the app's extra brings it
    name = f"DejaVuSans{'-Bold' if bold else ''}.ttf"
    path = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / name
    return ImageFont.truetype(path, _FINE * size)
