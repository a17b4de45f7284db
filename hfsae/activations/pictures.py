"""Pictures as a vision model reads them: whole or in random crops, by the model's own processor."""

import random
import warnings
from collections.abc import Sequence
from functools import lru_cache
from inspect import signature
from math import prod
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from ..lm import LoadedEncoder, n_positions
from ..machine.refused import Refused, one_line
from ..machine.visible import LOCAL_FILES
from .arguments import ImageArguments
from .input_files import Recent, ids_of, paths_of, read_labels, short_names, state
from .inputs import Piece

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
MOST_PIXELS = 50_000_000
"""Of a picture that is decoded: 150 MB as RGB, and three times that where it is transparent."""
_PREFIX = 2  # a CLS and a distillation token; registers are in the config


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


class Pictures:
    """The pictures that a recipe's section names, and how a model reads them.

    Raises:
        ValueError: no pictures are named or found, pillow is not installed, or the model's
            positions at the sites are no patches of a picture.
    """

    section, noun = "images", "pictures"
    origin = LOCAL_FILES

    def __init__(self, args: ImageArguments, encoder: LoadedEncoder, sites: Sequence[str]) -> None:
        self._require_pillow()
        self.arguments, self.processor = args, encoder.processor
        if encoder.model.main_input_name != "pixel_values":
            raise Refused(
                f"{type(encoder.model).__name__} reads sound, not pictures; give audio in place of "
                "images"
            )
        self._takes = {*signature(encoder.model.forward).parameters}
        given = args.folder or args.files
        if not given:
            raise Refused("images names no pictures; give images.files or images.folder")
        field = "images.folder" if args.folder else "images.files"
        self._paths = paths_of(field, given, SUFFIXES)
        self.names, self.ids = short_names(self._paths), ids_of(self._paths)
        self.size, self.grid = self._lay_out(encoder, sites)
        place = torch.arange(self.grid.n_prefix + self.grid.n_patches)
        kept = {"patches": place >= self.grid.n_prefix, "cls": place == 0, "all": place >= 0}
        self._keep: Bool[Tensor, " ctx"] = kept[args.positions]
        self._decoded: Recent[Image] = Recent(self._decode, lambda image: 3 * prod(image.size))

    @staticmethod
    def _require_pillow() -> None:
        try:
            import PIL.Image  # noqa: F401
        except ImportError as error:
            raise Refused("pictures are read by pillow: pip install 'hfsae[vision]'") from error

    def _lay_out(
        self, encoder: LoadedEncoder, sites: Sequence[str]
    ) -> tuple[tuple[int, int], Grid]:
        """Height and width that the model takes, and where its positions lie."""
        from PIL import Image

        wide, high = (Image.new("RGB", size) for size in ((640, 480), (300, 700)))
        inputs = self._processed([wide])
        shapes = [tuple(x["pixel_values"].shape) for x in (inputs, self._processed([high]))]
        if shapes[0] != shapes[1] or len(shapes[0]) != 4:
            raise Refused(
                f"the processor of {type(encoder.model).__name__} makes pictures of several sizes "
                f"({shapes[0]} and {shapes[1]}); set size and crop_size in its "
                "preprocessor_config.json so that all have one"
            )
        size = shapes[0][2:]
        grid = grid_of(encoder.model.config, n_positions(encoder.model, sites, inputs), size)
        if self.arguments.positions == "cls" and not grid.n_prefix:
            raise Refused(
                f"images.positions is 'cls', and {type(encoder.model).__name__} has no CLS token; "
                "use 'patches'"
            )
        return size, grid

    def _processed(self, images: "Sequence[Image]", **options: Any) -> dict[str, Tensor]:
        made = self.processor(images=list(images), return_tensors="pt", **options)
        return {name: x for name, x in made.items() if name in self._takes}

    def pieces(self, document: int) -> list[Piece]:
        """The picture, or its crops."""
        return [Piece(document, number, 0) for number in range(max(1, self.arguments.crops))]

    def fault(self, document: int) -> str | None:
        """Why a picture does not decode; None if it does."""
        path = self._paths[document]
        return _fault(path, *state(path))

    def _decode(self, document: int) -> "Image":
        return rgb_of(self._paths[document])

    def _cut(self, piece: Piece) -> "Image":
        if not self.arguments.crops:
            return self._decode(piece.document)
        image = self._decoded(piece.document)
        rng = random.Random(f"{self.arguments.seed} {self.ids[piece.document]} {piece.number}")
        side = min(*self.size, *image.size)
        left, top = (rng.randint(0, length - side) for length in image.size)
        return image.crop((left, top, left + side, top + side))

    def inputs(self, pieces: Sequence[Piece]) -> dict[str, Tensor]:
        """Pixels by the name of the model's argument, a row for each piece.

        Raises:
            ValueError: a picture does not decode.
        """
        try:
            return self._processed([self._cut(piece) for piece in pieces])
        except Exception as error:  # as in `fault`
            among = ", ".join(self.names[piece.document] for piece in pieces[:3])
            raise Refused(f"a picture among {among} cannot be read: {one_line(error)}") from error

    def keep(self, piece: Piece) -> Bool[Tensor, " ctx"]:
        """Patches, the CLS token, or all, by the section's `positions`."""
        return self._keep

    def positions(self, piece: Piece) -> Int64[Tensor, " ctx"]:
        """As `Grid.positions`."""
        return self.grid.positions(piece.number)

    def place(self, position: int) -> str:
        """Such as "patch row 3 column 7"; rows and columns are counted from 1."""
        number, i = self.grid.find(position)
        crop = f"crop {number + 1}, " if self.arguments.crops else ""
        if i == -1:
            return f"{crop}CLS token"
        if i < 0:
            return f"{crop}register {-1 - i}"
        row, column = divmod(i, self.grid.columns)
        return f"{crop}patch row {row + 1} column {column + 1}"

    def picture(self, document: int, position: int = 0) -> "Image":
        """What the model sees of a picture, or of its crop that a position belongs to: resized and
        cut, before colours are normalised."""
        from PIL import Image

        piece = Piece(document, self.grid.find(position)[0], 0)
        unscaled = {"do_normalize": False, "do_rescale": False}
        (pixels,) = self._processed([self._cut(piece)], **unscaled)["pixel_values"]
        colours = pixels.float().round().clamp(0, 255).byte().permute(1, 2, 0)
        return Image.fromarray(np.ascontiguousarray(colours.numpy())).convert("RGB")

    def patch_box(self, position: int) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of a patch, as fractions of `picture`; all of it for a token
        that is no patch."""
        i = self.grid.find(position)[1]
        if i < 0:
            return (0.0, 0.0, 1.0, 1.0)
        row, column = divmod(i, self.grid.columns)
        height, width = self.grid.step
        return (column * width, row * height, (column + 1) * width, (row + 1) * height)

    def labels(self) -> dict[str, list[str | None]]:
        """By column the label of each picture."""
        return read_labels("images.labels", self.arguments.labels, self.names)


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


@lru_cache(maxsize=2**20)  # a run checks its pictures, and opens them several times
def _fault(path: Path, size: int, changed: int) -> str | None:
    """A JPEG is decoded at an eighth of its size, which reads all of it in a third of the time."""
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
        return _in_rgb(ImageOps.exif_transpose(image))


def _in_rgb(image: "Image") -> "Image":
    from PIL import Image

    image.load()
    if image.mode.startswith("I"):  # 16 bits, which a conversion would cut off at 255
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("its pixels are in floating point; save it with 8 bits a colour")
    if not image.has_transparency_data:
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
