"""Pictures: the latents that fire in one, and pictures of examples for pages.

A latent's activations lie over a picture as a small picture of their own, a pixel a patch, whose
opacity is the activation as a share of the latent's largest. Where all patches are known, those on
which it does not fire are darkened: orange alone is lost on skin and wood.
"""

import base64
import binascii
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from hashlib import sha256
from inspect import signature
from io import BytesIO
from typing import TYPE_CHECKING

import torch

from ..activations.pictures import grid_of, rgb_of
from ..activations.token_text import Tokens
from ..features.inspection import Inspection, firings_in
from ..features.pictures import Grid, Key, Picture, small
from ..io.errors import Refused, one_line
from ..lm import capture, cast_for, contract, forward
from . import validate
from .parts import data_link
from .rows import Json, facts_of, firing_rows, trace_of
from .subject import Subject

if TYPE_CHECKING:
    from PIL import Image

MOST_BYTES = 8_000_000
"""of an uploaded picture"""
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
_SHOWN_SIDE = 448  # pixels of the picture on the page
_MOST_HELD = 16  # uploaded pictures
_REMEMBERED = 32  # pictures that were read
_PART = re.compile(r"(\d{1,9})(?:\.(\d{1,9}))?")  # a document, or a crop of one
_OWN = "own-"  # in front of the hash that names an uploaded picture
_HOT = (240, 140, 26)
_DARK = (15, 23, 38, round(0.5 * 255))
_FAINTEST, _MOST_OPAQUE = 0.1, 0.6  # what is in the picture is seen through it


def inspect_picture(
    subject: Subject,
    picture: str,
    latent: int | None = None,
) -> Json:
    """Latents of the SAE that fire in a picture: on the whole, and where one of them does.

    The most telling come first: those near their largest activation that fire on few patches. Those
    that fire on many patches are apart, under "dense".

    Args:
        picture: a picture's file (JPEG, PNG, WebP, GIF or BMP) in base64; or the number of a
            document that examples are from, as text, and of a crop: "17", "17.3".
        latent: index of the latent whose activation to give for every patch; null: the first that
            is listed.

    Returns:
        name (str): of the picture.
        rows (int): of patches; they are counted from the top left, row by row.
        columns (int): of patches.
        latent (int | None): the latent of "activations".
        label (str): its name; empty if it has none.
        activations (list): of "latent" on each patch, raw units; 0: it does not fire.
        ranking (list[Latent]): latents that fire in the picture, the most telling first: "value" is
            the largest activation here, "share" that over the latent's largest anywhere, "peak" the
            number of the patch where it is.
        dense (dict): {n, rows} of those that fire on many patches; "n_rest": how many others fire.
        usual_max (float | None): the largest activation of "latent" anywhere.
        l0 (float): latents that fire on a patch, on average.
        fvu (float | None): fraction of the activations' variance that the SAE leaves unexplained.
    """
    if latent is not None:
        latent = validate.latent(latent, subject.d_sae)
    inspection, grid, shown = picture_latents(subject, picture)
    ranking, dense = firing_rows(subject, inspection)
    if latent is None and ranking:
        latent = ranking[0]["latent"]
    found = {"activations": trace_of(inspection, latent), "ranking": ranking, "dense": dense}
    whole = {"name": shown.name, "rows": grid.rows, "columns": grid.columns}
    return {**whole, **found, **facts_of(subject, inspection, latent)}


def upload(subject: Subject, content: bytes) -> str:
    """The name of a picture that somebody uploaded, which follows from its content. Some are held,
    until others have come.

    Raises:
        ValueError: it is none that can be read.
    """
    as_rgb(content)
    name = f"{_OWN}{sha256(content).hexdigest()[:16]}"
    held: dict[str, bytes] = subject.cached("uploads", dict)
    held.pop(name, None)
    held[name] = content
    for old in list(held)[:-_MOST_HELD]:
        held.pop(old, None)
    return name


def as_rgb(content: bytes) -> "Image.Image":
    """A picture of anybody's as RGB; what shines through is white.

    Raises:
        ValueError: it is no picture, or too large.
    """
    if len(content) > MOST_BYTES:
        raise Refused(f"the picture has {len(content):,} bytes; at most {MOST_BYTES:,} fit here")
    try:
        return rgb_of(BytesIO(content), FORMATS)
    except Refused as error:
        raise Refused(f"the picture cannot be read: {error}") from error
    except Exception as error:  # readers of damaged files raise whatever they meet
        raise Refused("that is no picture; give a PNG, JPEG, WebP, GIF or BMP file") from error


def picture_latents(subject: Subject, picture: object) -> tuple[Inspection, Grid, Picture]:
    """What fires in a picture, whose positions count patches from 0 on, how patches cover it, and
    the picture as the model reads it; the last ones are remembered.

    Args:
        picture: the name of a picture that examples are from (see `part_name`), that of an
            uploaded one, or a picture's file in base64.

    Raises:
        ValueError: there is no such picture, or no model to read it.
    """
    if subject.encoder is None:
        raise Refused(f"this needs the model of pictures, which is not loaded: {subject.why_no_lm}")
    most = 4 * MOST_BYTES // 3
    text = validate.text(picture, "the picture", limit=most, empty="no picture is chosen")
    if not _PART.fullmatch(text) and not is_upload(text):
        head, _, rest = text.rpartition(",")  # a data link has a head
        try:
            content = base64.b64decode(rest if head.startswith("data:") else text, validate=True)
        except (binascii.Error, ValueError) as error:
            raise Refused(
                "the picture is neither a document's number nor a file in base64; give one of them"
            ) from error
        text = upload(subject, content)

    def read(text: str) -> tuple[Inspection, Grid, Picture]:
        if part := _PART.fullmatch(text):
            key = int(part[1]), int(part[2] or 0)
            copies = {} if subject.pictures is None else subject.pictures.read([key])
            if not copies:
                raise Refused(
                    f"no example is from picture {part_name(key)}; upload one of your own"
                )
            name, content = copies[key]
        else:
            name, content = "your picture", subject.cached("uploads", dict).get(text)
            if content is None:
                raise Refused("that picture is no longer here; upload it again")
        return _read(subject, name, as_rgb(content))

    return subject.cached("pictures read", lambda: lru_cache(_REMEMBERED)(read))(text)


def is_upload(picture: str) -> bool:
    """Whether it is the name of an uploaded picture."""
    return picture.startswith(_OWN)


def part_name(key: Key) -> str:
    """The name of a picture that examples are from: its document's number, and for the second crop
    of it and further ones, "17.1"."""
    return f"{key[0]}.{key[1]}" if key[1] else str(key[0])


@torch.no_grad()
def _read(subject: Subject, name: str, image: "Image.Image") -> tuple[Inspection, Grid, Picture]:
    from PIL import Image

    assert subject.encoder is not None
    model, processor = subject.encoder[:2]
    sae, reads = subject.sae, subject.sae.config.reads
    contract.check_model(model, sae)
    takes = {*signature(model.forward).parameters}
    try:
        inputs = processor(images=[image], return_tensors="pt").items()
    except Exception as error:  # a picture one pixel wide, and what else processors refuse
        raise Refused(f"the model's processor refuses this picture: {one_line(error)}") from error
    inputs = {name: x for name, x in inputs if name in takes}
    with capture(model, reads.names, stop_early=True) as acts:
        forward(model, inputs)
    x = reads.joined({site: acts[site][0] for site in reads.names})
    height, width = inputs["pixel_values"].shape[-2:]
    layout = grid_of(model.config, len(x), (height, width))
    grid = Grid(layout.rows, layout.columns, *layout.step)
    if subject.positions == "cls":  # one vector for the whole picture
        x, grid = x[:1], Grid(1, 1, 1.0, 1.0)
    else:
        x = x[layout.n_prefix :]
    n, x = len(x), cast_for(sae, x)
    places = (divmod(patch, grid.columns) for patch in range(n))
    captions = [f"patch row {row + 1} column {column + 1}" for row, column in places]
    inspection = firings_in(sae, x, torch.arange(n), Tokens([*range(n)], captions, [False] * n))
    # the picture as the processor resizes and cuts it, in its own colours
    plain = {"do_normalize": False, "do_rescale": False}
    (pixels,) = processor(images=[image], return_tensors="pt", **plain)["pixel_values"]
    colours = pixels.float().round().clamp(0, 255).byte().permute(1, 2, 0)
    cut = Image.fromarray(colours.contiguous().numpy())
    return inspection, grid, Picture(name, small(cut, _SHOWN_SIDE))


def crop(
    picture: Picture,
    grid: Grid,
    position: int | None,
    shares: Mapping[int, float],
    *,
    is_whole: bool = False,
) -> Json:
    """What a page shows of a picture: its pixels as a link, the patch's box, and the latent's
    activations over it.

    Args:
        position: of the patch to outline; None: no patch is.
        shares: of patches, the activation over the latent's largest.
        is_whole: whether those of all patches are known.
    """
    box = None if position is None else grid.box(position)
    return {
        "name": picture.name,
        "src": data_link(picture.content, "image/jpeg"),
        "box": box,
        "heat": heat(grid, shares, is_whole=is_whole),
        "across": grid.columns * grid.width,
        "down": grid.rows * grid.height,
    }


def heat(grid: Grid, shares: Mapping[int, float], *, is_whole: bool = False) -> str:
    """A link to a PNG with a pixel for each patch; empty if the latent fires nowhere.

    Args:
        is_whole: whether patches without a share are darkened.
    """
    from PIL import Image

    if not any(share > 0 for share in shares.values()):
        return ""
    pixels = bytearray(_DARK if is_whole else bytes(4)) * (grid.rows * grid.columns)
    for position, share in shares.items():
        if share > 0 and (cell := grid.cell(position)) is not None:
            at = 4 * (cell[0] * grid.columns + cell[1])
            opacity = max(_FAINTEST, _MOST_OPAQUE * min(1.0, share))
            pixels[at : at + 4] = (*_HOT, round(255 * opacity))
    image, done = Image.frombytes("RGBA", (grid.columns, grid.rows), bytes(pixels)), BytesIO()
    image.save(done, "PNG")
    return data_link(done.getvalue(), "image/png")


def add_crops(subject: Subject, groups: Iterable[Json]) -> None:
    """Give each example of these groups, of `inspect_actions.feature`, its picture under "crop",
    where there is one."""
    grid, pictures = subject.grid, subject.pictures
    if grid is None or pictures is None:
        return
    examples = [example for group in groups for example in group["examples"]]
    keys = [(example["document"], grid.part(example["position"])) for example in examples]
    found = pictures.read(keys)
    for example, key in zip(examples, keys, strict=True):
        if key in found:
            tokens = zip(example["places"], example["tokens"], strict=True)
            # the strongest patch has its frame, and is to be seen
            shares = {place: t["share"] for place, t in tokens if not t["firing"]}
            example["crop"] = crop(found[key], grid, example["position"], shares)
            example["picture"] = part_name(key) if key[1] >= 0 else ""


def add_strongest(subject: Subject, rows: Iterable[Json]) -> None:
    """Give each row of a latent the picture of its strongest example under "crop", where there is
    one."""
    import pyarrow.compute as pc

    grid, pictures, store, rows = subject.grid, subject.pictures, subject.store, [*rows]
    if grid is None or pictures is None or store is None or not rows:
        return
    of_these = pc.field("latent").isin([row["latent"] for row in rows])
    first = of_these & (pc.field("kind") == "top") & (pc.field("rank") == 0)
    table = store.examples.to_table(columns=["latent", "document", "position"], filter=first)
    strongest: dict[int, tuple[Key, int]] = {
        latent: ((document, grid.part(position)), position)
        for latent, document, position in zip(*table.to_pydict().values(), strict=True)
    }
    found = pictures.read([key for key, _ in strongest.values()])
    for row in rows:
        key, position = strongest.get(row["latent"], (None, 0))
        if key in found:
            row["crop"] = crop(found[key], grid, position, {})
