"""From a caller's picture to its patches, and to the latents that fire on them."""

import base64
import binascii
import re
import threading
from collections import OrderedDict
from functools import lru_cache
from hashlib import sha256
from inspect import signature
from io import BytesIO
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ..activations.pictures import grid_of, rgb_of
from ..activations.token_text import Tokens
from ..features.inspection import Inspection, firings_in
from ..features.pictures import Grid, Key, Picture, small
from ..lm import capture, cast_for, contract, forward
from ..machine.refused import Refused, one_line
from . import validate
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
_NOT_HERE = "that picture is no longer here; upload it again"


class Seen(NamedTuple):
    """What fires in a picture. Positions of the inspection count patches, from 0 on."""

    inspection: Inspection
    grid: Grid
    picture: Picture
    """as the model reads it"""


class Uploads:
    """The last pictures that people uploaded, by a name that follows from their content."""

    def __init__(self) -> None:
        self._held: OrderedDict[str, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, content: bytes) -> str:
        """Its name, under which `get` has it until others have come."""
        key = f"{_OWN}{sha256(content).hexdigest()[:16]}"
        with self._lock:
            self._held[key] = content
            self._held.move_to_end(key)
            while len(self._held) > _MOST_HELD:
                self._held.popitem(last=False)
        return key

    def get(self, key: str) -> bytes:
        """The picture with this name.

        Raises:
            ValueError: it is not held any more.
        """
        with self._lock:
            if key not in self._held:
                raise Refused(_NOT_HERE)
            return self._held[key]


def uploads(subject: Subject) -> Uploads:
    """Those of one app."""
    return subject.remembered("uploads", Uploads)


def upload(subject: Subject, content: bytes) -> str:
    """The name of a picture that somebody uploaded, once it is seen to be one.

    Raises:
        ValueError: it is none that can be read.
    """
    decoded(content)
    return uploads(subject).add(content)


def decoded(content: bytes) -> "Image.Image":
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


def seen(subject: Subject, picture: object) -> Seen:
    """What fires in a picture; the last ones are remembered.

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
        text = upload(subject, _of_base64(text))
    return subject.remembered("seen", lambda: lru_cache(_REMEMBERED)(_reader(subject)))(text)


def _of_base64(text: str) -> bytes:
    """A file's content; in front of it there may be a data link's head."""
    head, _, rest = text.rpartition(",")
    try:
        return base64.b64decode(rest if head.startswith("data:") else text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refused(
            "the picture is neither a document's number nor a file in base64; give one of them"
        ) from error


def _reader(subject: Subject) -> Any:
    def read(text: str) -> Seen:
        name, content = "your picture", b""
        if part := _PART.fullmatch(text):
            name, content = _of_part(subject, (int(part[1]), int(part[2] or 0)))
        return _seen(subject, name, decoded(content or uploads(subject).get(text)))

    return read


def is_upload(picture: str) -> bool:
    """Whether it is the name of an uploaded picture."""
    return picture.startswith(_OWN)


def part_name(key: Key) -> str:
    """The name of a picture that examples are from: its document's number, and for the second crop
    of it and further ones, "17.1"."""
    return f"{key[0]}.{key[1]}" if key[1] else str(key[0])


def _of_part(subject: Subject, key: Key) -> Picture:
    """The small copy of a picture that examples are from."""
    found = {} if subject.pictures is None else subject.pictures.read([key])
    if not found:
        raise Refused(f"no example is from picture {part_name(key)}; upload one of your own")
    return found[key]


@torch.no_grad()
def _seen(subject: Subject, name: str, image: "Image.Image") -> Seen:
    assert subject.encoder is not None
    model, processor = subject.encoder[:2]
    sae, reads = subject.sae, subject.sae.config.reads
    contract.hold(model, sae)
    takes = {*signature(model.forward).parameters}
    try:
        inputs = {
            name: x
            for name, x in processor(images=[image], return_tensors="pt").items()
            if name in takes
        }
    except Exception as error:  # a picture one pixel wide, and what else processors refuse
        raise Refused(f"the model's processor refuses this picture: {one_line(error)}") from error
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
    tokens = Tokens([*range(n)], [_caption(i, grid.columns) for i in range(n)], [False] * n)
    inspection = firings_in(sae, x, torch.arange(n), tokens)
    shown = small(_as_read(processor, image), _SHOWN_SIDE)
    return Seen(inspection, grid, Picture(name, shown))


def _caption(patch: int, columns: int) -> str:
    row, column = divmod(patch, columns)
    return f"patch row {row + 1} column {column + 1}"


def _as_read(processor: Any, image: "Image.Image") -> "Image.Image":
    """The picture as the model's processor resizes and cuts it, in its own colours."""
    from PIL import Image

    plain = {"do_normalize": False, "do_rescale": False}
    (pixels,) = processor(images=[image], return_tensors="pt", **plain)["pixel_values"]
    colours = pixels.float().round().clamp(0, 255).byte().permute(1, 2, 0)
    return Image.fromarray(colours.contiguous().numpy())
