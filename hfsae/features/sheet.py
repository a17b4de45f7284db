"""A contact sheet: one PNG with a line of pictures for each of some latents, for documentation."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..machine.files import printable, replacing
from ..machine.refused import Refused
from .labels import read_names
from .pictures import Box, Grid, Picture, Pictures
from .store import FeatureStore, Latent

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

_SIDE, _GAP, _LEFT = 120, 10, 190  # pixels of a picture, between pictures, and for the words
_MARGIN = 16
_INK, _QUIET, _GROUND = "#1e293b", "#566276", "#ffffff"
_FRAME = ((1, "#0f1726"), (0, "#ffffff"))  # seen on dark pictures and on light ones
_LINE = 25  # characters of words beside pictures
_MOST = 200  # latents


def sheet(folder: str | Path, latents: Sequence[int], path: str | Path, *, n: int = 6) -> None:
    """Write a PNG: a line for each latent with its number, density and name, and the pictures of
    its n strongest examples, the patch on which it fires outlined.

    Args:
        folder: of an SAE with features/ and its pictures.
        latents: at most 200.

    Raises:
        ValueError: there are no pictures or no grid of patches, or there is no such latent.
    """
    from PIL import Image, ImageDraw

    store, pictures = FeatureStore.load(folder), Pictures.load(folder)
    grid = Grid.of(store.meta)
    if pictures is None or grid is None:
        raise Refused(f"{folder} has no pictures; `hfsae collect {folder}` makes those of a run")
    if not 0 < len(latents) <= _MOST or not all(0 <= i < len(store) for i in latents):
        last = len(store) - 1
        raise Refused(f"latents are {list(latents)[:8]}; name 1 to {_MOST} of 0 to {last}")
    names = read_names(folder)
    size = _LEFT + n * (_SIDE + _GAP) + 2 * _MARGIN, len(latents) * (_SIDE + _GAP) + 2 * _MARGIN
    image = Image.new("RGB", size, _GROUND)
    draw = ImageDraw.Draw(image)
    for i, latent in enumerate(latents):
        top, record = _MARGIN + i * (_SIDE + _GAP), store[latent]
        _words(draw, record, names.get(latent, ""), top)
        shown = record.examples[:n]
        keys = [(example.document, grid.part(example.position)) for example in shown]
        seen = pictures.read(keys)
        for j, (example, key) in enumerate(zip(shown, keys, strict=True)):
            if key in seen:
                left = _MARGIN + _LEFT + j * (_SIDE + _GAP)
                marked = _marked(seen[key], grid.box(example.position))
                image.paste(marked, (left, top + (_SIDE - marked.height) // 2))
    with replacing(Path(path)) as temporary:
        image.save(temporary, "PNG")


def _words(draw: "ImageDraw.ImageDraw", record: Latent, name: str, top: int) -> None:
    from PIL import ImageFont

    caption = record.examples[0].tokens[record.examples[0].firing] if record.examples else "silent"
    lines = [(str(record.index), 20, _INK), (f"on {record.density:.2%} of patches", 13, _QUIET)]
    lines += [(line, 13, _INK) for line in _wrapped(printable(name or caption))[:3]]
    for text, points, colour in lines:
        draw.text((_MARGIN, top), text, colour, ImageFont.load_default(points))
        top += points + 7


def _wrapped(text: str) -> list[str]:
    """The text in lines that fit beside the pictures."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if len(longer) <= _LINE:
            lines[-1] = longer
        else:
            lines.append(word[:_LINE])
    return lines


def _marked(picture: Picture, box: Box | None) -> "Image.Image":
    """The picture with its patch outlined."""
    from PIL import ImageDraw

    image = picture.image()
    scale = _SIDE / max(image.size)
    image = image.resize((round(scale * image.width), round(scale * image.height)))
    if box is not None:
        left, top = box.left * image.width, box.top * image.height
        right, bottom = left + box.width * image.width, top + box.height * image.height
        for out, colour in _FRAME:
            edges = (left - out, top - out, right + out, bottom + out)
            ImageDraw.Draw(image).rectangle(edges, outline=colour, width=1)
    return image
