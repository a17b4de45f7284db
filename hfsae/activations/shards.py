"""Files of activations, by format: what their headers say, and rows of them at any place.

    .safetensors   a tensor a site
    .npy           one tensor a file, named by the file; acts-part1 and acts-part2 are both `acts`
    .parquet       a column of lists of numbers a site; read forward from the start of a row group

Nothing is unpickled: pickles are refused by their suffix, arrays of objects by their header.

Rows of arrays are read at their place. A memory map would do the same, but its pages count as the
process's own, and the map that safetensors makes cannot be larger than the machine's memory.
"""

import math
import os
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..io.errors import Damaged, Refused, closest, one_line
from ..io.files import damaged, json_value, reading, unreadable
from .arguments import ActivationArguments, find_files, natural

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow.parquet import FileMetaData, ParquetFile

FLOATS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
"""The kinds of numbers that activations can be, and torch's dtype of each."""
INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32")
TEXT = "text"
SUFFIXES = (".safetensors", ".npy", ".parquet")
_PICKLES = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt")
_EDGE = 2**20  # bytes at each end of a file or tensor that `edges` gives
# A shard's number in the name of a .npy file: acts-part1, acts-00001-of-00004.
_NUMBER = re.compile(r"(?<=.)([-_.](part|shard)[-_]?\d+|-\d+-of-\d+)$")
_STORED = {kind: np.dtype(kind) for kind in ("float64", "float32", "float16", "bool", *INTEGERS)}
_STORED["bfloat16"] = np.dtype("int16")  # numpy has no bfloat16: the same bits
_SAFETENSORS = {"F": "float", "BF": "bfloat", "I": "int", "U": "uint", "BOOL": "bool"}
_SAFETENSORS["C"] = "complex"
_MAX_HEADER = 2**24  # bytes; it takes about 100 a tensor
_ARROW = {"halffloat": "float16", "float": "float32", "double": "float64"}
_BATCH = 2**19  # numbers of a table that are decoded at once
_BUFFER = 2**20  # bytes of a table that are read at once: without it, all of a row group is

Read = Callable[[int, int], dict[str, Float[Tensor, "_ _"]]]
"""Rows start to stop of some tensors: [stop - start, d] by name."""


class Header(NamedTuple):
    """A tensor or column, as its file describes it."""

    path: Path
    kind: str
    """Of its values: "float32", "int64", "bool", "text"... """
    shape: tuple[int, ...]
    """Of a column of lists, [n, d]."""
    offset: int = 0
    """Bytes before its first value."""

    @property
    def n_values(self) -> int:
        """Numbers in it."""
        return math.prod(self.shape)

    @property
    def n_rows(self) -> int:
        """Vectors of activations in it."""
        return math.prod(self.shape[:-1])

    def place(self, row: int) -> str:
        """The words for a vector's place: its index, or both indices in [rows, ctx, d]."""
        if len(self.shape) < 3:
            return f"row {row:,}"
        number, position = divmod(row, self.shape[1])
        return f"row {number:,}, position {position:,}"


class ArrayShard:
    """Tensors of one .safetensors file, or of a .npy file each.

    `path` is the file that sentences and captions name; `metadata` is what its writer noted
    (`hfsae harvest` notes "side" and "order").
    """

    def __init__(
        self, path: Path, headers: dict[str, Header], metadata: Mapping[str, str] | None = None
    ):
        self.path, self._headers, self.metadata = path, headers, metadata or {}

    @property
    def names(self) -> list[str]:
        """The tensors in it."""
        return list(self._headers)

    def header(self, name: str) -> Header:
        """What the file says of a tensor."""
        return self._headers[name]

    def reader(self, names: Sequence[str]) -> Read:
        """A function that reads rows at their place."""

        def rows(start: int, stop: int) -> dict[str, Float[Tensor, "_ _"]]:
            read = {}
            for name in names:
                header = self._headers[name]
                width = header.shape[-1]
                flat = torch.from_numpy(_values(header, start * width, stop * width))
                read[name] = flat.view(getattr(torch, header.kind)).view(stop - start, width)
            return read

        return rows

    def values(self, name: str) -> np.ndarray:
        """All values of a tensor, flat."""
        header = self._headers[name]
        return _values(header, 0, header.n_values)

    def units(self, n_rows: int, block: int) -> Iterator[tuple[int, int]]:
        """Ranges of rows that can be read in any order: blocks."""
        return _blocks(n_rows, block)

    def edges(self, names: Sequence[str]) -> Iterator[bytes]:
        """For a hash: of each tensor its header, and the bytes at its start and at its end."""
        for name in names:
            path, kind, shape, offset = self._headers[name]
            yield f"{name} {path.name} {_size_of(path)} {kind} {shape}".encode()
            size = math.prod(shape) * _STORED[kind].itemsize
            for start in (0, max(0, size - _EDGE)):
                yield _bytes_of(path, offset + start, min(_EDGE, size))


def _values(header: Header, start: int, stop: int) -> np.ndarray:
    dtype = _STORED[header.kind]
    offset = header.offset + start * dtype.itemsize
    with _file_errors(header.path):
        values = np.fromfile(header.path, dtype, stop - start, offset=offset)
    if len(values) < stop - start:
        raise Damaged(damaged(header.path, "it has become shorter"))
    return values


def safetensors_shard(path: Path) -> ArrayShard:
    """All tensors of a .safetensors file.

    Raises:
        ValueError: its header is damaged, or the file is cut off.
    """
    with _file_errors(path), path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length) if length <= min(size - 8, _MAX_HEADER) else b""
    if size < 8 or length > min(size - 8, _MAX_HEADER):
        raise Damaged(damaged(path, f"its {size:,} bytes do not begin with a safetensors header"))
    headers, end = dict[str, Header](), 0
    with reading(path):
        entries = json_value(header)
        metadata = {k: str(v) for k, v in entries.pop("__metadata__", {}).items()}
        for name, entry in entries.items():
            letters, bits = re.fullmatch(r"([A-Z]*)(.*)", entry["dtype"]).groups()  # pyright: ignore
            kind = f"{_SAFETENSORS.get(letters, letters)}{bits.lower()}"
            shape, (start, stop) = tuple(map(int, entry["shape"])), map(int, entry["data_offsets"])
            if min(start, *shape, 0) < 0 or (
                kind in _STORED and stop - start != math.prod(shape) * _STORED[kind].itemsize
            ):
                raise Refused(f"{name!r} has {stop - start:,} bytes for {list(shape)}")
            headers[name], end = Header(path, kind, shape, 8 + length + start), max(end, stop)
    if 8 + length + end > size:
        raise Damaged(damaged(path, f"cut off: it has {size:,} of {8 + length + end:,} bytes"))
    return ArrayShard(path, headers, metadata)


def numpy_header(path: Path) -> Header:
    """What a .npy file says of its array.

    Raises:
        ValueError: it is cut off, holds objects, or does not lie row by row.
    """
    size = _size_of(path)
    with _file_errors(path), path.open("rb") as file, reading(path):
        if file.read(1) == b"\x80":
            raise Refused(
                f"{path} is a pickle, which can run any code, and is never read; save the array "
                "by numpy.save"
            )
        file.seek(0)
        if np.lib.format.read_magic(file) == (1, 0):
            shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
        else:
            shape, is_fortran, dtype = np.lib.format.read_array_header_2_0(file)
        offset = file.tell()
    array = f'numpy.load("{path}")'
    if dtype.hasobject:
        raise Refused(
            f"{path} holds pickled objects, which can run any code, and is never read; convert it "
            f'if you made it: `rows = numpy.load("{path}", allow_pickle=True)`, then '
            f'`numpy.save("{path}", numpy.stack(rows).astype("float32"))`'
        )
    if dtype.kind == "V":
        raise Refused(
            f"{path} holds {dtype}, which numpy does not read as numbers; save bfloat16 as "
            "safetensors"
        )
    if is_fortran and sum(n > 1 for n in shape) > 1:
        raise Refused(
            f"{path} lies column by column; save it row by row: "
            f'`numpy.save("{path}", numpy.ascontiguousarray({array}))`'
        )
    if not dtype.isnative:
        raise Refused(
            f"{path} has the byte order of another processor; convert it: "
            f'`numpy.save("{path}", {array}.astype("{dtype.name}"))`'
        )
    end = offset + math.prod(shape) * dtype.itemsize
    if end > size:
        raise Damaged(damaged(path, f"cut off: it has {size:,} of {end:,} bytes"))
    return Header(path, dtype.name, shape, offset)


class TableShard:
    """Columns of a .parquet file."""

    def __init__(self, path: Path):
        self.path = path
        self.metadata: Mapping[str, str] = {}
        with _table(path) as file:
            self._schema: pa.Schema = file.schema_arrow
            self._about: FileMetaData = file.metadata
        groups = (self._about.row_group(i).num_rows for i in range(self._about.num_row_groups))
        self._starts = [0, *accumulate(groups)]
        """The first row of each row group, and the end."""

    @property
    def names(self) -> list[str]:
        """The columns in it."""
        return self._schema.names

    def header(self, name: str) -> Header:
        """What the file says of a column.

        Raises:
            ValueError: its lists have different lengths, or there are two such columns.
        """
        import pyarrow as pa

        index = self._schema.get_field_index(name)
        if index < 0:
            raise Refused(f"{self.path} has several columns {name!r}; rename or drop all but one")
        column, n = self._schema.field(index).type, self._about.num_rows
        if pa.types.is_fixed_size_list(column):
            return Header(self.path, _kind(column.value_type), (n, column.list_size))
        if pa.types.is_list(column) or pa.types.is_large_list(column):
            kind = _kind(column.value_type)
            return Header(self.path, kind, (n, self._width(name) if kind in FLOATS else 1))
        return Header(self.path, _kind(column), (n,))

    def _width(self, name: str) -> int:
        """The length of all lists in a column: numbers over rows."""
        n_values = sum(
            chunk.num_values
            for group in map(self._about.row_group, range(self._about.num_row_groups))
            for chunk in map(group.column, range(group.num_columns))
            if chunk.path_in_schema.startswith(f"{name}.list.")
        )
        width, more = divmod(n_values, max(1, self._about.num_rows))
        if more:
            raise Refused(
                f"{self.path} has lists of different lengths in column {name!r} ({n_values:,} "
                f"numbers in {self._about.num_rows:,} rows); give all the same length"
            )
        return width

    def reader(self, names: Sequence[str]) -> Read:
        """A function that reads rows, with a place in the file of its own."""
        return _Cursor(self.path, self._starts, {name: self.header(name) for name in names}).rows

    def values(self, name: str) -> np.ndarray:
        """All values of a column without lists; texts are an array of objects."""
        is_text, known = (
            self.header(name).kind == TEXT,
            dict[str, str](),
        )  # equal ones are one object
        parts, n_read = [], 0
        with _table(self.path) as file:
            for batch in file.iter_batches(_BATCH, columns=[name]):
                column = batch.column(name)
                _refuse_nulls(self.path, name, column, n_read)
                n_read += len(column)
                if not is_text:
                    parts.append(column.to_numpy(False))
                    continue
                if not hasattr(column, "dictionary"):
                    column = column.dictionary_encode()
                texts = [known.setdefault(text, text) for text in column.dictionary.to_pylist()]
                parts.append(np.array(texts, dtype=object)[column.indices.to_numpy(False)])
        return np.concatenate(parts)

    def units(self, n_rows: int, block: int) -> Iterator[tuple[int, int]]:
        """Ranges of rows that can be read in any order; inside one, rows are read forward.

        Blocks, as of a file without row groups; where a row group has more than two, so that a
        block would be decoded with many before it, row groups, of which smaller ones are joined.
        """
        if max(np.diff(self._starts), default=0) <= 2 * block:
            yield from _blocks(n_rows, block)
            return
        start = 0
        for stop in self._starts[1:]:
            if stop - start >= block or (stop == n_rows and stop > start):
                yield start, stop
                start = stop

    def edges(self, names: Sequence[str]) -> Iterator[bytes]:
        """The file's start and its end, which tells the sizes and extremes of all columns."""
        size = _size_of(self.path)
        yield f"{self.path.name} {size} {[*names]}".encode()
        for start in (0, max(0, size - _EDGE)):
            yield _bytes_of(self.path, start, min(_EDGE, size))


class _Cursor:
    """Reads a table forward; for a row before its place, or in another row group, it begins at the
    start of that row's group."""

    def __init__(self, path: Path, starts: list[int], headers: dict[str, Header]):
        self._path, self._starts, self._headers = path, starts, headers
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._at = starts[-1]  # the first row that was not yet used
        self._rest: pa.RecordBatch | None = None
        """Rows from there on that are decoded."""

    def rows(self, start: int, stop: int) -> dict[str, Float[Tensor, "_ _"]]:
        """The rows, by column."""
        group = bisect_right(self._starts, start) - 1
        if not self._starts[group] <= self._at <= start:
            groups = list(range(group, len(self._starts) - 1))
            self._batches = self._decoded(groups)
            self._rest, self._at = None, self._starts[group]
        acts = {
            name: np.empty((stop - start, header.shape[-1]), header.kind)
            for name, header in self._headers.items()
        }
        while self._at < stop:
            row, batch = self._at, self._take(start if self._at < start else stop)
            for name, x in acts.items() if row >= start else ():
                x[row - start : self._at - start] = self._vectors(name, batch, row)
        return {name: torch.from_numpy(x) for name, x in acts.items()}

    def _decoded(self, groups: list[int]) -> Iterator["pa.RecordBatch"]:
        """Row groups, in batches of a few MB."""
        n_rows = max(1, _BATCH // sum(header.shape[-1] for header in self._headers.values()))
        several = len(self._headers) > 1  # threads decode a column each, and cost time for one
        with _table(self._path) as file:
            yield from file.iter_batches(
                n_rows, groups, columns=list(self._headers), use_threads=several
            )

    def _take(self, stop: int) -> "pa.RecordBatch":
        """Decoded rows from the place on, up to `stop` at most; the place moves behind them."""
        batch = next(self._batches, None) if self._rest is None else self._rest
        if batch is None:
            raise Damaged(damaged(self._path, "it has become shorter"))
        n = min(len(batch), stop - self._at)
        self._at += n
        self._rest = batch.slice(n) if n < len(batch) else None
        return batch.slice(0, n)

    def _vectors(self, name: str, batch: "pa.RecordBatch", row: int) -> np.ndarray:
        """The lists of a column, [n, d]; `row` is the place of the first in the file."""
        column, width = batch.column(name), self._headers[name].shape[-1]
        _refuse_nulls(self._path, name, column, row)
        values = column.flatten()
        offsets = column.offsets if hasattr(column, "offsets") else range(0, len(values) + 1, width)
        lengths = np.diff(np.asarray(offsets))
        if not np.all(lengths == width):
            bad = int(np.argmax(lengths != width))
            raise Refused(
                f"row {row + bad:,} of {self._path} has {lengths[bad]:,} numbers in {name!r}, "
                f"others {width:,}; give all lists the same length"
            )
        if values.null_count:
            bad = values.is_null().to_pylist().index(True) // width
            raise Refused(
                f"row {row + bad:,} of {self._path} has an empty number in {name!r}; leave the row "
                "out by a column `keep`, or repair it"
            )
        return values.to_numpy(zero_copy_only=False).reshape(-1, width)


def _refuse_nulls(path: Path, name: str, column: "pa.Array", first: int) -> None:
    if column.null_count:
        row = first + column.is_null().to_pylist().index(True)
        raise Refused(f"row {row:,} of {path} has no value in column {name!r}; give it one")


def _kind(column: "pa.DataType") -> str:
    import pyarrow as pa

    values = column.value_type if pa.types.is_dictionary(column) else column
    is_text = pa.types.is_string(values) or pa.types.is_large_string(values)
    return TEXT if is_text else _ARROW.get(str(values), str(values))


@contextmanager
def _table(path: Path) -> Iterator["ParquetFile"]:
    """An open parquet file; errors of its content are reported as damage."""
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    with _file_errors(path):
        path.stat()
    try:
        with ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False) as file:
            yield file
    except (ArrowException, OSError) as error:
        raise Damaged(damaged(path, one_line(error))) from error


Shard = ArrayShard | TableShard
"""Tensors or columns with the same rows: one file, or .npy files side by side."""


def paths_of(args: ActivationArguments) -> list[Path]:
    """All files, in their order; the table of labels is none of them.

    Raises:
        ValueError: a path, folder or glob names no file, or two name the same.
    """
    labels = os.path.realpath(Path(args.labels).expanduser()) if args.labels else None
    paths: dict[str, Path] = {}
    for name in [args.files] if isinstance(args.files, str) else args.files:
        if not name.strip():
            raise Refused("activations.files is empty; name a file, a folder, a glob, or a list")
        found = find_files("activations.files", name, SUFFIXES, refuse_other_formats)
        for file in sorted(found, key=natural):
            whole = os.path.realpath(file)
            if whole in paths:
                raise Refused(f"activations.files names {file} twice; name each file once")
            if whole != labels:
                paths[whole] = file
    return list(paths.values())


def open_shards(
    paths: Sequence[Path], tensors: Mapping[str, str], more: Sequence[str] = ()
) -> list[Shard]:
    """The shards in these files, in their order; each holds all sites.

    Args:
        tensors: by site, the tensor or column that holds it; of .npy files, the file's name without
            the number of its shard, or a pattern of the names of all its shards.
        more: names of tensors that may be absent.

    Raises:
        ValueError: a file is damaged, of an unknown format, or lacks a site.
    """
    if _format_of(paths) != ".npy":
        shards = [_open(path) for path in paths]
        for shard in shards:
            for site, name in tensors.items():
                if name not in shard.names:
                    of = f"site {site!r}" if site == name else f"{name!r}, for site {site!r}"
                    near = _rename(site, name, [at for at in shard.names if at not in more])
                    raise Refused(f"{shard.path} does not hold {of}{near}")
        return shards
    # The first file of each site makes a shard, the second of each the next, and so on.
    names = [*dict.fromkeys(_NUMBER.sub("", path.stem) for path in paths)]
    first = next(iter(tensors.values()))
    files = {
        name: [path for path in paths if fnmatchcase(_NUMBER.sub("", path.stem), name)]
        for name in tensors.values()
    }
    for name in more:  # these have one file for each shard, whatever its number looks like
        patterns = (name, f"{name}[-_]*")
        files[name] = [p for p in paths if any(fnmatchcase(p.stem, one) for one in patterns)]
    others = [name for name in names if name not in more]
    for site, name in tensors.items():
        if not files[name]:
            raise Refused(
                f"no .npy file is called {name}, for site {site!r}{_rename(site, name, others)}, "
                f"or by {{{site}: 'part*'}} if several files are its shards"
            )
    files = {name: found for name, found in files.items() if found}
    for name, found in files.items():
        if len(found) != len(files[first]):
            raise Refused(
                f"{found[0].parent} has {len(files[first])} files for {first!r} and {len(found)} "
                f"for {name!r}; give as many of each"
            )
    used = {path for found in files.values() for path in found}
    for name in names:  # `like_documents` tells of one that is not read
        found = [path for path in paths if _NUMBER.sub("", path.stem) == name]
        if is_like_documents(name) and used.isdisjoint(found) and len(found) == len(files[first]):
            files[name] = found
    return [
        ArrayShard(path, {name: numpy_header(found[i]) for name, found in files.items()})
        for i, path in enumerate(files[first])
    ]


def sites_in(args: ActivationArguments) -> list[str]:
    """The names of the tensors or columns that can be sites, from headers alone: of all .npy files,
    of others' first.

    Raises:
        ValueError: no file is there, or one is damaged or of another format.
    """
    paths = paths_of(args)
    if _format_of(paths) == ".npy":
        headers = {_NUMBER.sub("", path.stem): numpy_header(path) for path in paths}
    else:
        first = _open(paths[0])
        headers = {}
        for name in first.names:
            with suppress(Refused):  # lists of different lengths are something else than a site
                headers[name] = first.header(name)
    return [
        name for name, one in headers.items() if one.kind in FLOATS and len(one.shape) in (2, 3)
    ]


def tensors_in(args: ActivationArguments) -> str:
    """The tensors or columns of the first file, in words: name, type and shape, or the reason why
    that is not to be had."""
    path = paths_of(args)[0]
    if _format_of([path]) == ".npy":
        one = numpy_header(path)
        return f"{path} is {one.kind} {list(one.shape)}"
    shard, parts, most = _open(path), [], 3
    for name in shard.names[:most]:
        try:
            one = shard.header(name)
            parts.append(f"{name!r} {one.kind} {list(one.shape)}")
        except Refused as why:
            parts.append(f"{name!r} of which {why}")
    more = len(shard.names) - most
    return f"{path} has {', '.join(parts)}" + (f" and {more} more" if more > 0 else "")


def _open(path: Path) -> Shard:
    return TableShard(path) if path.suffix.lower() == ".parquet" else safetensors_shard(path)


def _rename(site: str, name: str, names: Sequence[str]) -> str:
    near = closest(name, names, cutoff=0.0)
    return f"{near}; give its name by activations.sites: {{{site}: NAME}}"


def _format_of(paths: Sequence[Path]) -> str:
    """The suffix that all files have."""
    for path in paths:
        refuse_other_formats(path)
    suffixes = sorted({path.suffix.lower() for path in paths})
    if len(suffixes) > 1:
        raise Refused(
            f"{paths[0].parent} has {' and '.join(suffixes)} files; name those of one format, as "
            f"in {paths[0].parent / '*'}{suffixes[0]}"
        )
    return suffixes[0]


def refuse_other_formats(path: Path) -> None:
    """Refuse a pickle or an archive, in which activations often are.

    Raises:
        ValueError: it is one; the sentence says how to convert it.
    """
    suffix = path.suffix.lower()
    if suffix in _PICKLES:
        converted = path.with_suffix(".safetensors")
        raise Refused(
            f"{path} is a pickle, which can run any code, and is never read; convert it: "
            f'`tensor = torch.load("{path}", weights_only=True)`, then '
            f'`safetensors.torch.save_file({{"SITE": tensor}}, "{converted}")`'
        )
    if suffix == ".npz":
        raise Refused(
            f"{path} is an archive, whose rows cannot be read without unpacking all; save each "
            f'array by itself: `numpy.save("SITE.npy", numpy.load("{path}")["NAME"])`'
        )


def is_like_documents(name: str) -> bool:
    """Whether a tensor's or column's name may mean the documents of rows."""
    return name.casefold().startswith("doc")


def _blocks(n_rows: int, block: int) -> Iterator[tuple[int, int]]:
    """Ranges of so many rows each, the last of what is left."""
    for start in range(0, n_rows, block):
        yield start, min(start + block, n_rows)


@contextmanager
def _file_errors(path: Path) -> Iterator[None]:
    """Around code that opens a file: the system's errors become sentences that name it."""
    try:
        yield
    except OSError as error:
        raise Refused(unreadable(path, error)) from error


def _size_of(path: Path) -> int:
    with _file_errors(path):
        return path.stat().st_size


def _bytes_of(path: Path, start: int, n: int) -> bytes:
    """n bytes of a file, or as many as there are."""
    with _file_errors(path), path.open("rb") as file:
        file.seek(start)
        return file.read(n)
