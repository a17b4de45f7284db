"""A contact sheet: one PNG with a line of pictures for each of some latents, for documentation.

    python scripts/sheet.py runs/vision sheet.png 17 1234 ... [--n 6]

Each line has the latent's number, density and name, and the pictures of its strongest examples, the
patch on which it fires outlined. The folder is an SAE's, with features/ and its pictures.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

import hfsae
from hfsae.features import FeatureStore, Grid, Pictures, read_names

SIDE, GAP, LEFT, MARGIN = 120, 10, 190, 16
"""Pixels of a picture, between pictures, for the words, and around all."""
INK, QUIET, GROUND = "#1e293b", "#566276", "#ffffff"
FRAME = ((1, "#0f1726"), (0, "#ffffff"))  # seen on dark pictures and on light ones
LINE = 25  # characters of words beside pictures
MOST = 200  # latents


def sheet(folder: str | Path, latents: Sequence[int], path: str | Path, *, n: int = 6) -> None:
    """Write the PNG, with n pictures a line.

    Args:
        latents: at most 200.

    Raises:
        ValueError: there are no pictures or no grid of patches, or there is no such latent.
    """
    store, pictures = FeatureStore.load(folder), Pictures.load(folder)
    grid = Grid.of(store.meta)
    if pictures is None or grid is None:
        raise hfsae.Refused(
            f"{folder} has no pictures; `hfsae collect {folder}` makes those of a run"
        )
    if not 0 < len(latents) <= MOST or not all(0 <= i < len(store) for i in latents):
        last = len(store) - 1
        raise hfsae.Refused(f"latents are {list(latents)[:8]}; name 1 to {MOST} of 0 to {last}")
    names = read_names(folder)
    size = LEFT + n * (SIDE + GAP) + 2 * MARGIN, len(latents) * (SIDE + GAP) + 2 * MARGIN
    whole = Image.new("RGB", size, GROUND)
    draw = ImageDraw.Draw(whole)
    for i, latent in enumerate(latents):
        top, record = MARGIN + i * (SIDE + GAP), store[latent]
        first = record.examples[0] if record.examples else None
        caption = "silent" if first is None else first.tokens[first.firing]
        words = [(str(record.index), 20, INK), (f"on {record.density:.2%} of patches", 13, QUIET)]
        words += [(line, 13, INK) for line in wrapped(names.get(latent, "") or caption)[:3]]
        at = top
        for text, points, colour in words:
            draw.text((MARGIN, at), text, colour, ImageFont.load_default(points))
            at += points + 7
        shown = record.examples[:n]
        keys = [(example.document, grid.part(example.position)) for example in shown]
        small = pictures.read(keys)
        for j, (example, key) in enumerate(zip(shown, keys, strict=True)):
            if key not in small:
                continue
            image = small[key].image()
            scale = SIDE / max(image.size)
            image = image.resize((round(scale * image.width), round(scale * image.height)))
            if (box := grid.box(example.position)) is not None:
                left, width = (share * image.width for share in box[::2])
                upper, height = (share * image.height for share in box[1::2])
                right, lower = left + width, upper + height
                for out, colour in FRAME:
                    edges = (left - out, upper - out, right + out, lower + out)
                    ImageDraw.Draw(image).rectangle(edges, outline=colour, width=1)
            x = MARGIN + LEFT + j * (SIDE + GAP)
            whole.paste(image, (x, top + (SIDE - image.height) // 2))
    whole.save(path, "PNG")


def wrapped(text: str) -> list[str]:
    """The text in lines that fit beside the pictures."""
    lines = [""]
    for word in "".join(c if c.isprintable() else " " for c in text).split():
        longer = f"{lines[-1]} {word}".strip()
        if len(longer) <= LINE:
            lines[-1] = longer
        else:
            lines.append(word[:LINE])
    return lines


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", help="of an SAE with features/ and its pictures")
    parser.add_argument("path", help="of the PNG")
    parser.add_argument("latents", type=int, nargs="+")
    parser.add_argument("--n", type=int, default=6, help="pictures of each latent")
    options = parser.parse_args()
    try:
        sheet(options.folder, options.latents, options.path, n=options.n)
    except hfsae.Refused as error:
        sys.exit(f"sheet.py: {error}")
