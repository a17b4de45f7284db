"""Small pictures of what a vision model read, for the examples of a feature store.

`features/pictures.parquet` has a row for each picture, or crop of one, that examples are from: the
document's number, which part of it, a name, and a JPEG of at most 160 pixels a side, which the grid
of patches covers. Its metadata has the hash of the examples that it was made for. Pillow, which
reads and writes JPEGs, comes with matplotlib.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..io.checksums import FILES, file_hash
from ..io.errors import Damaged, Refused
from ..io.file_names import EXAMPLES, META, PICTURES
from ..io.files import damaged, read_json, read_table, reading, replacing, table_metadata
from .store import FeatureStore

if TYPE_CHECKING:
    import pyarrow
    from PIL import Image

SIDE = 160
"""Pixels of the longer side, at most."""
MOST = 20_000
"""Pictures of a store: some 100 MB."""
_MOST_BYTES, _JPEG = 2**16, b"\xff\xd8\xff"  # of one, some 5,000, and how it begins
_LONGEST_NAME = 200  # characters
_QUALITY = 85
_ROWS_PER_GROUP = 128  # the unit that looking up one picture reads from disk
_MADE_FOR = "examples_sha256"
_MOST_PATCHES = 2**16

Key = tuple[int, int]
"""A document's number, and which part of it; see `Grid.part`."""


Box = tuple[float, float, float, float]
"""Left, top, width and height of a patch, in shares of its picture's width and height."""


class Grid(NamedTuple):
    """How patches cover a picture. Positions count them from the top left, row by row; those of a
    document's later crops go on after those of the earlier ones."""

    rows: int
    columns: int
    height: float
    """of a patch, as a share of the picture's"""
    width: float

    @classmethod
    def of(cls, meta: Mapping[str, Any]) -> "Grid | None":
        """That of a feature store, by its meta.json: `grid`, rows and columns of patches, and
        `patch`, the shares that one of them takes, where the grid leaves an edge of the picture
        uncovered. None of a store without pictures.

        Raises:
            ValueError: the numbers are out of range.
        """
        if "grid" not in meta:
            return None
        rows, columns = (int(n) for n in meta["grid"])
        if not (rows > 0 and columns > 0 and rows * columns <= _MOST_PATCHES):
            raise Refused(f"grid is {meta['grid']}, which are not rows and columns of patches")
        height, width = (float(n) for n in meta.get("patch", (1 / rows, 1 / columns)))
        if not (0 < height * rows < 1.001 and 0 < width * columns < 1.001):
            raise Refused(f"patch is {meta['patch']}, which is no share of {rows} x {columns}")
        return cls(rows, columns, height, width)

    def part(self, position: int) -> int:
        """Which part of its document a position lies in: the number of the crop; of a position that
        is no patch, such as the CLS vector's, itself."""
        return position // (self.rows * self.columns) if position >= 0 else position

    def cell(self, position: int) -> tuple[int, int] | None:
        """Row and column of a patch; None of a position that is no patch."""
        if position < 0:
            return None
        return divmod(position % (self.rows * self.columns), self.columns)

    def box(self, position: int) -> Box | None:
        """The place of a patch; None of a position that is no patch."""
        if (cell := self.cell(position)) is None:
            return None
        return cell[1] * self.width, cell[0] * self.height, self.width, self.height


class Picture(NamedTuple):
    """A document, or a crop of one, as the model read it, small."""

    name: str
    """by anybody: code that shows it has to escape it"""
    content: bytes
    """a JPEG"""

    def image(self) -> "Image.Image":
        """Its pixels, as RGB."""
        from PIL import Image

        return Image.open(BytesIO(self.content), formats=["JPEG"]).convert("RGB")


def write_pictures(folder: str | Path, picture: "Callable[[int, int], Image.Image]") -> int:
    """Write features/pictures.parquet for the examples of the feature store that is saved in a
    folder; how many pictures it has, at most 20,000: those of the strongest examples first.

    Args:
        picture: (document, position) -> what the model read there: after its processor has resized
            and cropped it, so that the grid of patches covers it.

    Raises:
        ValueError: there is no feature store in the folder, or none of pictures.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    home, store = Path(folder), FeatureStore.load(folder)
    if (grid := Grid.of(store.meta)) is None:
        raise Refused(f"the feature store in {str(folder)!r} is not of pictures: it has no grid")
    # the pictures that examples are from, those of the strongest first
    columns = ["kind", "rank", "document", "position", "firing", "tokens"]
    examples = store.examples.to_table(columns=columns)
    order = examples["rank"].to_numpy() + 2**20 * (examples["kind"].to_numpy() != "top")
    document, position = (examples[name].to_numpy() for name in ("document", "position"))
    found: dict[Key, int] = {}
    for i in order.argsort(kind="stable").tolist():
        found.setdefault((int(document[i]), grid.part(int(position[i]))), i)
        if len(found) == MOST:
            break
    captions = examples.select(["firing", "tokens"]).take([*found.values()]).to_pylist()
    names = (row["tokens"][row["firing"]].rpartition(", ")[0] for row in captions)
    shown = sorted(
        (key, int(position[i]), name[:_LONGEST_NAME] or f"picture {key[0]}")
        for (key, i), name in zip(found.items(), names, strict=True)
    )
    schema = pa.schema(
        {"document": pa.int64(), "part": pa.int64(), "name": pa.string(), "picture": pa.binary()},
        metadata={_MADE_FOR: file_hash(home / EXAMPLES)},
    )
    # JPEGs do not shrink any further
    packed: Any = {"compression": {name: "zstd" for name in schema.names} | {"picture": "none"}}
    with (
        replacing(home / PICTURES) as path,
        pq.ParquetWriter(path, schema, use_dictionary=False, **packed) as file,
    ):
        for first in range(0, len(shown), _ROWS_PER_GROUP):
            rows = [
                (*key, name, small(picture(key[0], at)))
                for key, at, name in shown[first : first + _ROWS_PER_GROUP]
            ]
            file.write_table(pa.table([*zip(*rows, strict=True)], schema=schema))
    return len(shown)


def small(image: "Image.Image", side: int = SIDE) -> bytes:
    """A JPEG of at most so many pixels a side; a smaller picture keeps its size."""
    copy, done = image.convert("RGB"), BytesIO()
    copy.thumbnail((side, side))
    copy.save(done, "JPEG", quality=_QUALITY, subsampling=0)  # small pictures keep their colours
    return done.getvalue()


class Pictures:
    """The pictures of a feature store; they stay on disk, read when they are asked for."""

    def __init__(self, path: Path, names: dict[Key, str]):
        self.path, self.names = path, names

    @classmethod
    def load(cls, folder: str | Path) -> "Pictures | None":
        """The pictures that `write_pictures` wrote to a folder; None without any.

        Raises:
            ValueError: they were made for other examples than the folder's, or are damaged.
        """
        home, path = Path(folder), Path(folder) / PICTURES
        if not path.is_file():
            return None
        hashes = read_json(home / META).get(FILES) if (home / META).is_file() else None
        own = hashes.get(Path(EXAMPLES).name) if isinstance(hashes, dict) else None
        if own is None and (home / EXAMPLES).is_file():
            own = file_hash(home / EXAMPLES)
        if table_metadata(path).get(_MADE_FOR) not in (None, own):
            raise Damaged(damaged(path, "it was made for other examples than those beside it"))
        table = read_table(path, ["document", "part", "name"])
        with reading(path):
            names = {key: str(name) for key, name in _keyed(table, "name")}
            if len(names) < len(table):
                raise Refused("it has a picture twice")
        return cls(path, names)

    def read(self, keys: Collection[Key]) -> dict[Key, Picture]:
        """Those of some documents' parts that have one.

        Raises:
            ValueError: one of them is damaged.
        """
        wanted = {*keys} & self.names.keys()
        if not wanted:
            return {}
        of_these = [("document", "in", sorted({document for document, _ in wanted}))]
        table = read_table(self.path, ["document", "part", "picture"], of_these)
        with reading(self.path):
            pictures = {
                key: Picture(self.names[key], content)
                for key, content in _keyed(table, "picture")
                if key in wanted
            }
            for (document, _), picture in pictures.items():
                if len(picture.content) > _MOST_BYTES or picture.content[:3] != _JPEG:
                    raise Refused(f"the picture of document {document} is no small JPEG")
        return pictures


def _keyed(table: "pyarrow.Table", column: str) -> Iterator[tuple[Key, Any]]:
    document, part, values = (table[n].to_pylist() for n in ("document", "part", column))
    return zip(zip(document, part, strict=True), values, strict=True)
