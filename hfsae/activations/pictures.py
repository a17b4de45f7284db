"""Pictures as a source of activations, through a vision model of transformers.

Pictures are read whole or in random crops, by the model's own processor. The order of an epoch is
a permutation of all pieces (pictures or their crops), by the seed and the epoch, so a position is
two numbers. Which positions are kept is known before the model runs: every process plans the same
bucket and harvests its share of it.
"""

import csv
import logging
import os
import random
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from hashlib import blake2b, sha256
from inspect import signature
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from ..io.checksums import file_hash, once_a_state
from ..io.errors import Refused, closest, one_line
from ..io.files import refuse_special, unreadable
from ..io.local_paths import LOCAL_FILES
from ..lm import LoadedEncoder, n_positions
from .arguments import (
    HarvestArguments,
    ImageArguments,
    Split,
    find_files,
    natural,
    side_of,
)
from .harvest import Harvester, InputBatch, lm_digest
from .source import ActivationBatch, Filling, harvest_share

if TYPE_CHECKING:
    from PIL.Image import Image

logger = logging.getLogger(__name__)
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
MOST_PIXELS = 50_000_000
"""Of a picture that is decoded: 150 MB as RGB, and three times that where it is transparent."""
_PREFIX = 2  # a CLS and a distillation token; registers are in the config
_MOST_FAULTS = 0.01  # share of pictures that cannot be read
_COLUMN = "file"  # of a table of labels


Piece = tuple[int, int]
"""The number of a picture, and that of its crop, counted from 0."""


class Grid(NamedTuple):
    """How a model's positions lie on a picture: tokens such as CLS first, then patches by rows."""

    rows: int
    columns: int
    n_prefix: int
    step: tuple[float, float]
    """Height and width of a patch, as fractions of what the model sees."""

    @property
    def n_patches(self) -> int:
        """Patches of a picture."""
        return self.rows * self.columns

    def positions(self, number: int) -> Int64[Tensor, " ctx"]:
        """`ActivationBatch.position` of a picture's crop: patches from 0 on, by rows; CLS -1,
        registers -2 and so on; those of later crops lie beyond those of earlier ones."""
        prefix = -1 - torch.arange(self.n_prefix) - number * self.n_prefix
        return torch.cat([prefix, torch.arange(self.n_patches) + number * self.n_patches])

    def find(self, position: int) -> tuple[int, int]:
        """The crop that a position belongs to, and the position in it, which is negative before
        the patches."""
        if position >= 0:
            return divmod(position, self.n_patches)
        number, i = divmod(-1 - position, max(1, self.n_prefix))
        return number, -1 - i


class InputSource:
    """A source that runs a vision model on pictures.

    Documents are pictures. `ActivationBatch.position` is a patch's number, by rows from the top
    left (CLS -1, registers -2 and so on).

    Args:
        arguments: the pictures.
        harvest: its `rows` are the pictures of a forward pass.
        norm_limits: by site, the largest norm of a kept activation; None: by the harvest's
            `max_norm_ratio`.

    Raises:
        ValueError: no pictures are named or found, pillow is not installed, or the model's
            positions at the sites are no patches of a picture.
    """

    refusals: ClassVar[Mapping[str, str]] = {
        "too_few": "the pictures gave {n} activations, fewer than a batch ({batch_size}); give "
        "more pictures or a smaller batch_size",
        "other_content": "the pictures differ from those at the start of this training (bucket "
        "{bucket} differs); restore them, or train in another output_dir",
        "other_origin": "the model's weights differ from those at the start of this training; use "
        "the original model, or train in another output_dir",
    }

    def __init__(
        self,
        arguments: ImageArguments,
        encoder: LoadedEncoder,
        sites: Sequence[str],
        harvest: HarvestArguments | None = None,
        *,
        norm_limits: dict[str, float] | None = None,
    ) -> None:
        try:
            import PIL.Image
        except ImportError as error:
            raise Refused("pictures are read by pillow: pip install 'hfsae[vision]'") from error
        self.arguments, self.encoder = arguments, encoder
        harvest = harvest or HarvestArguments()
        self.harvester = Harvester(encoder.model, sites, harvest, norm_limits=norm_limits)
        self._takes = {*signature(encoder.model.forward).parameters}
        self._paths = paths_of(arguments)
        try:
            self.ids = [file_hash(path)[:16] for path in self._paths]
        except OSError as error:
            raise Refused(f"a picture cannot be read ({error}); check it") from error
        """16 hexadecimal digits of a hash of each file's content"""
        folders = [path.absolute().parent for path in self._paths]
        common = os.path.commonpath(folders)
        self.names = [path.absolute().relative_to(common).as_posix() for path in self._paths]
        """Each path below the folder that all have in common"""

        kind = type(encoder.model).__name__
        wide, high = (PIL.Image.new("RGB", size) for size in ((640, 480), (300, 700)))
        inputs = self._processed([wide])
        shapes = [tuple(x["pixel_values"].shape) for x in (inputs, self._processed([high]))]
        if shapes[0] != shapes[1] or len(shapes[0]) != 4:
            raise Refused(
                f"the processor of {kind} makes pictures of several sizes "
                f"({shapes[0]} and {shapes[1]}); set size and crop_size in its "
                "preprocessor_config.json so that all have one"
            )
        self.size = shapes[0][2:]
        n = n_positions(encoder.model, sites, inputs)
        self.grid = grid_of(encoder.model.config, n, self.size)
        if arguments.positions == "cls" and not self.grid.n_prefix:
            raise Refused(f"images.positions is 'cls', and {kind} has no CLS token; use 'patches'")
        place = torch.arange(n)
        kept = {"patches": place >= self.grid.n_prefix, "cls": place == 0, "all": place >= 0}
        self.keep: Bool[Tensor, " ctx"] = kept[arguments.positions]
        """The positions of a piece whose activations are used"""
        self._n_kept = int(self.keep.sum())

        self._position = {"epoch": 0, "offset": 0}
        self._faults: dict[int, str | None] = {}
        self._order = lru_cache(maxsize=1)(self._ordered)

    @property
    def sites(self) -> list[str]:
        """The harvester's sites."""
        return self.harvester.sites

    @property
    def device(self) -> torch.device:
        """The model's device."""
        return self.encoder.model.device

    # Pictures and what the model sees of them.

    def _processed(self, images: "Sequence[Image]", **options: Any) -> dict[str, Tensor]:
        made = self.encoder.processor(images=list(images), return_tensors="pt", **options)
        return {name: x for name, x in made.items() if name in self._takes}

    def fault(self, document: int) -> str | None:
        """Why a picture does not decode; None if it does."""
        path = self._paths[document]
        try:
            return _fault(path)
        except OSError as error:  # it has gone
            raise Refused(unreadable(path, error)) from error

    @property
    def n_faults(self) -> int:
        """Pictures so far that could not be read, and are left out."""
        return sum(fault is not None for fault in self._faults.values())

    def _is_readable(self, document: int) -> bool:
        """Whether a picture decodes, found out at its first use; if not, it is counted.

        Raises:
            ValueError: too many do not.
        """
        if document in self._faults:
            return self._faults[document] is None
        fault = self._faults[document] = self.fault(document)
        if fault is None:
            return True
        logger.warning("%s cannot be read and is left out: %s", self.names[document], fault)
        if self.n_faults > _MOST_FAULTS * len(self.ids):
            number, first = next((i, f) for i, f in self._faults.items() if f is not None)
            raise Refused(
                f"{self.n_faults} of {len(self.ids)} pictures cannot be read, more than "
                f"{_MOST_FAULTS:.0%}; the first is {self.names[number]} ({first}); remove or "
                "replace them"
            )
        return False

    def _cut(self, piece: Piece) -> "Image":
        """The picture, or its crop."""
        document, number = piece
        image = rgb_of(self._paths[document])
        if not self.arguments.crops:
            return image
        rng = random.Random(f"{self.arguments.seed} {self.ids[document]} {number}")
        side = min(*self.size, *image.size)
        left, top = (rng.randint(0, length - side) for length in image.size)
        return image.crop((left, top, left + side, top + side))

    def read(self, pieces: Sequence[Piece]) -> InputBatch:
        """Pixels by the name of the model's argument, a row for each piece.

        Raises:
            ValueError: a picture does not decode.
        """
        try:
            inputs = self._processed([self._cut(piece) for piece in pieces])
        except Exception as error:  # as in `_fault`
            among = ", ".join(self.names[document] for document, _ in pieces[:3])
            raise Refused(f"a picture among {among} cannot be read: {one_line(error)}") from error
        documents = torch.tensor([document for document, _ in pieces])
        return InputBatch(inputs, self.keep.expand(len(pieces), -1), documents)

    def picture(self, document: int, position: int = 0) -> "Image":
        """What the model sees of a picture, or of its crop that a position belongs to: resized and
        cut, before colours are normalised."""
        from PIL import Image

        piece = document, self.grid.find(position)[0]
        unscaled = {"do_normalize": False, "do_rescale": False}
        (pixels,) = self._processed([self._cut(piece)], **unscaled)["pixel_values"]
        colours = pixels.float().round().clamp(0, 255).byte().permute(1, 2, 0)
        return Image.fromarray(np.ascontiguousarray(colours.numpy())).convert("RGB")

    def caption(self, document: int, position: int) -> str:
        """Such as "flower.jpg, patch row 3 column 7"; rows and columns are counted from 1."""
        number, i = self.grid.find(position)
        name = self.names[document]
        name += f", crop {number + 1}" if self.arguments.crops else ""
        if i == -1:
            return f"{name}, CLS token"
        if i < 0:
            return f"{name}, register {-1 - i}"
        row, column = divmod(i, self.grid.columns)
        return f"{name}, patch row {row + 1} column {column + 1}"

    def labels(self) -> dict[str, list[str | None]]:
        """By column the label of each picture; no column, if there are none."""
        return read_labels(self.arguments.labels, self.names)

    # Their order.

    def pieces(self, side: Split) -> list[Piece]:
        """All pieces of one side, in the order of pictures.

        Raises:
            ValueError: no picture is on this side.
        """
        args = self.arguments
        chosen = [i for i, id_ in enumerate(self.ids) if side_of(id_, args) == side]
        if not chosen:
            name = "validation_fraction" if side == "validation" else "held_out_fraction"
            raise Refused(
                f"none of the {len(self.ids)} pictures is on the {side} side at "
                f"images.{name}={getattr(args, name)}; change it or give more pictures"
            )
        return [(i, number) for i in chosen for number in range(max(1, args.crops))]

    def n_positions(self, side: Split) -> int:
        """Positions of one side that are kept, with those of pictures that may not decode."""
        return self._n_kept * len(self.pieces(side))

    def _ordered(self, side: Split, epoch: int) -> list[Piece]:
        """One side's pieces in an epoch's order."""
        pieces = self.pieces(side)
        mixed = random.Random(f"{self.arguments.seed} {epoch}").getrandbits(63)
        generator = torch.Generator().manual_seed(mixed)
        return [pieces[i] for i in torch.randperm(len(pieces), generator=generator).tolist()]

    def _batches(self, side: Split, epoch: int, offset: int) -> Iterator[tuple[list[Piece], int]]:
        """Pieces that make a batch, and the place after them in the epoch's order."""
        batch: list[Piece] = []
        order = self._order(side, epoch)
        for place in range(offset, len(order)):
            if self._is_readable(order[place][0]):
                batch.append(order[place])
            if len(batch) == self.harvester.args.rows:
                yield batch, place + 1
                batch = []
        if batch:
            yield batch, len(order)

    def fill(self, n: int, rank: int = 0, n_processes: int = 1) -> Filling:
        """Plan batches until n positions are kept; each process reads and harvests its share.

        Raises:
            ValueError: no picture of the training side can be read.
        """
        planned: list[list[Piece]] = []
        capacity = 0
        while capacity < n:
            before = len(planned)
            for batch, place in self._batches("train", **self._position):
                planned.append(batch)
                self._position["offset"] = place
                capacity += self._n_kept * len(batch)
                if capacity >= n:
                    break
            else:
                if len(planned) == before and not self._position["offset"]:
                    raise Refused("none of the training pictures can be read")
                self._position = {"epoch": self._position["epoch"] + 1, "offset": 0}
        n_special = len(self.keep) * sum(map(len, planned)) - capacity
        read = {name: getattr(self.arguments, name) for name in ("positions", "crops", "seed")}
        digest = blake2b(f"{read}".encode(), digest_size=8)
        for document, number in (piece for batch in planned for piece in batch):
            digest.update(f"{self.ids[document]} {number} ".encode())
        documents: list[Tensor] = []
        parts = harvest_share(self.harvester, planned, self.read, rank, n_processes, documents)
        return Filling(capacity, n_special, digest.hexdigest(), parts, documents)

    def once(self, side: Split, n: int | None) -> Iterator[list[Piece]]:
        """The pieces of each of one side's batches, once; with n, until n positions are kept."""
        n_left = None if n is None else -(-n // self._n_kept)  # pieces
        for batch, _ in self._batches(side, 0, 0):
            if n_left is not None:
                batch = batch[:n_left]
                n_left -= len(batch)
            if batch:
                yield batch
            if n_left == 0:
                return

    def inputs(self, side: Split, n: int | None = None) -> Iterable[InputBatch]:
        """One side's inputs, which can be read several times; with n, only as many as keep n
        positions."""
        return _Inputs(self, side, n)

    def batches(self, side: Split, n: int | None = None) -> Iterator[ActivationBatch]:
        """One side's activations, once; with n, only those of pieces that keep n positions."""
        for pieces in self.once(side, n):
            harvested = self.harvester(self.read(pieces))
            places = torch.stack([self.grid.positions(number) for _, number in pieces])
            position = places[harvested.row.cpu(), harvested.position.cpu()]
            document = harvested.document
            yield ActivationBatch(harvested.activations, document, position.to(document.device))

    # What identifies it.

    def state_dict(self) -> dict[str, Any]:
        """The position in the epochs, and the norm limits."""
        return {"inputs": dict(self._position), "norm_limits": dict(self.harvester.norm_limits)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a position that `state_dict` returned."""
        self._position = dict(state["inputs"])
        self.harvester.norm_limits = dict(state["norm_limits"])

    def origin(self) -> str:
        """Hash of the model's weights."""
        return lm_digest(self.encoder.model)

    def content(self) -> str:
        """Hash of all pictures, all sides."""
        digest = sha256(" ".join(self.ids).encode()).hexdigest()
        return f"SHA-256 of {len(self.ids)} pictures {digest}"

    def describe(self) -> dict[str, Any]:
        """All settings of the pictures and of the harvest, how many there are, and their hash."""
        counts = {"n_documents": len(self.ids), "n_unreadable": self.n_faults}
        about = {**asdict(self.arguments), "origin": LOCAL_FILES, **counts}
        about["content"] = self.content()
        return {"images": about, "harvest": asdict(self.harvester.args)}


class _Inputs:
    """One side's inputs, read again each time."""

    def __init__(self, source: InputSource, side: Split, n: int | None) -> None:
        self.source, self.n = source, n
        self.side: Split = side

    def __iter__(self) -> Iterator[InputBatch]:
        return map(self.source.read, self.source.once(self.side, self.n))


def grid_of(config: Any, n_positions: int, size: tuple[int, int]) -> Grid:
    """Where a model's positions lie on a picture.

    Later blocks of some models (Swin) have fewer patches, each of 2 x 2, 4 x 4 and so on.

    Args:
        config: the model's, with `patch_size`.
        n_positions: at the sites, for one picture.
        size: height and width of the picture that the model takes.

    Raises:
        ValueError: the positions are no patches in rows and columns.
    """
    patch = getattr(config, "patch_size", None)
    if patch is None:
        raise Refused(
            f"{config.model_type} has no patches: its positions at these sites cannot be placed in "
            "a picture; use a vision transformer"
        )
    height, width = (patch, patch) if isinstance(patch, int) else patch
    most = _PREFIX + (getattr(config, "num_register_tokens", None) or 0)
    for merged in (1, 2, 4, 8, 16, 32):
        rows, columns = (
            side // (p * merged) for side, p in zip(size, (height, width), strict=True)
        )
        n_prefix = n_positions - rows * columns
        are_tokens = merged == 1 and 0 < n_prefix <= most
        if rows * columns and (n_prefix == 0 or are_tokens):
            step = (height * merged / size[0], width * merged / size[1])
            return Grid(rows, columns, n_prefix, step)
    raise Refused(
        f"{config.model_type} has {n_positions} positions at these sites for a picture of "
        f"{size[0]} x {size[1]} in patches of {height} x {width}, so they cannot be placed in it; "
        "name a block's output as the site"
    )


# Files.


def paths_of(args: ImageArguments) -> list[Path]:
    """The files that a section's path, folder, globs or list name, each once, in natural order.

    Raises:
        ValueError: a name leads to no file, or a named file has another suffix.
    """
    field, given = ("images.folder", args.folder) if args.folder else ("images.files", args.files)
    if not given:
        raise Refused("images names no pictures; give images.files or images.folder")
    return sorted(find_files(field, given, SUFFIXES), key=natural)


@once_a_state
def _fault(path: Path) -> str | None:
    """Why a picture does not decode; None if it does. A JPEG is decoded at an eighth of its size,
    which reads all of it in a third of the time."""
    try:
        rgb_of(path, draft=True)
    except Exception as error:  # readers of damaged files raise whatever they meet
        return one_line(error)
    return None


def rgb_of(
    file: Path | IO[bytes],
    formats: list[str] | tuple[str, ...] | None = None,
    *,
    draft: bool = False,
) -> "Image":
    """A picture in three colours of 8 bits; what shines through is white.

    Args:
        formats: pillow's names of those that may be read; None: all.
        draft: decode a JPEG at an eighth of its size.

    Raises:
        ValueError: it has too many pixels, which is known before they are decoded, or
            floating-point ones; and whatever pillow raises where a file is damaged.
    """
    from PIL import Image, ImageOps

    too_large = f"it has more than {MOST_PIXELS:,} pixels; make it smaller"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # pillow's limits
            image = Image.open(file, formats=formats)
    except Image.DecompressionBombError as error:
        raise Refused(too_large) from error
    with image:
        if image.width * image.height > MOST_PIXELS:  # a file of 17 KB may unpack to gigabytes
            raise Refused(too_large)
        if draft:
            image.draft("RGB", (image.width // 8, image.height // 8))
        image = ImageOps.exif_transpose(image)
        image.load()
        if image.mode.startswith("I"):  # 16 bits, which a conversion would cut off at 255
            return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
        if image.mode == "F":
            raise ValueError("its pixels are in floating point; save it with 8 bits a colour")
        if not image.has_transparency_data:
            return image.convert("RGB")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def read_labels(given: str, names: Sequence[str]) -> dict[str, list[str | None]]:
    """By column the label of each picture; None for those that the table lacks.

    Args:
        given: a csv or parquet table whose column "file" has the pictures' names; "folders": the
            label is the name of the folder that a picture lies in; "": there are no labels.

    Raises:
        ValueError: the table cannot be read, has no such column, or names none of the pictures.
    """
    if not given:
        return {}
    if given == "folders":
        return {"folder": [Path(name).parent.name or None for name in names]}
    path, example = Path(given).expanduser(), repr(next(iter(names), "a.png"))
    if path.suffix.lower() not in (".parquet", ".csv"):
        raise Refused(
            f"images.labels is {str(path)!r}; name a .csv or .parquet table, or 'folders'"
        )
    refuse_special(path)
    try:
        if path.suffix.lower() == ".parquet":
            from pyarrow import parquet

            table = parquet.read_table(path).to_pylist()
            rows = [{k: "" if v is None else str(v) for k, v in row.items()} for row in table]
        else:
            with path.open(encoding="utf-8-sig", newline="") as file:
                rows = [
                    {k: v for k, v in row.items() if k}
                    for row in csv.DictReader(file, restkey="", restval="")
                ]
    except (OSError, ValueError, csv.Error) as error:  # pyarrow's errors are one of the first two
        raise Refused(f"images.labels: {path} cannot be read ({error}); check it") from error
    by_name: dict[str, dict[str, str]] = {}
    for number, row in enumerate(rows, 1):
        if not row.get(_COLUMN):
            raise Refused(
                f"images.labels: row {number} of {path} names no file in a column {_COLUMN!r}; add "
                f"it, with names such as {example}"
            )
        by_name[row[_COLUMN]] = row
    if by_name.keys().isdisjoint(names):
        raise Refused(
            f"images.labels: {path} names none of the {len(names)} files; its column {_COLUMN!r} "
            f"needs names such as {example}"
        )
    if unknown := [name for name in by_name if name not in {*names}]:
        near = closest(unknown[0], names)
        logger.warning("images.labels: no file is called %r, as in %s%s", unknown[0], path, near)
    columns = dict.fromkeys(column for row in rows for column in row if column != _COLUMN)
    return {
        column: [by_name.get(name, {}).get(column) or None for name in names] for column in columns
    }
