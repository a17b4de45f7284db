"""Columns of a .parquet file, which can only be read forward from the start of a row group."""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ...machine.files import damaged
from ...machine.refused import Damaged, Refused, one_line
from .shard import EDGE, FLOATS, TEXT, Header, Read, blocks, bytes_of, file_errors, size_of

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow.parquet import FileMetaData, ParquetFile

_ARROW = {"halffloat": "float16", "float": "float32", "double": "float64"}
_BATCH = 2**19  # numbers that are decoded at once
_BUFFER = 2**20  # bytes that are read at once: without it, all of a row group is


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
        is_text, known = self.header(name).kind == TEXT, {}
        parts, n_read = [], 0
        with _table(self.path) as file:
            for batch in file.iter_batches(_BATCH, columns=[name]):
                column = batch.column(name)
                _refuse_nulls(self.path, name, column, n_read)
                values = _texts(column, known) if is_text else column.to_numpy(False)
                parts.append(values)
                n_read += len(column)
        return np.concatenate(parts)

    def units(self, n_rows: int, block: int) -> Iterator[tuple[int, int]]:
        """Blocks, as of a file without row groups; where a row group has more than two, so that a
        block would be decoded with many before it, row groups, of which smaller ones are joined."""
        is_fine = max(np.diff(self._starts), default=0) <= 2 * block
        return blocks(n_rows, block) if is_fine else self._joined(n_rows, block)

    def has_other_blocks(self, block: int) -> bool:
        """Whether its blocks cut row groups, which were once kept together."""
        n_rows = self._starts[-1]
        joined = [*self._joined(n_rows, block)]
        return [*self.units(n_rows, block)] != joined

    def _joined(self, n_rows: int, block: int) -> Iterator[tuple[int, int]]:
        start = 0
        for stop in self._starts[1:]:
            if stop - start >= block or (stop == n_rows and stop > start):
                yield start, stop
                start = stop

    def edges(self, names: Sequence[str]) -> Iterator[bytes]:
        """The file's start and its end, which tells the sizes and extremes of all columns."""
        size = size_of(self.path)
        yield f"{self.path.name} {size} {[*names]}".encode()
        for start in (0, max(0, size - EDGE)):
            yield bytes_of(self.path, start, min(EDGE, size))


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
            self._batches = _decoded(self._path, groups, self._headers)
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


def _decoded(
    path: Path, groups: list[int], headers: dict[str, Header]
) -> Iterator["pa.RecordBatch"]:
    """Row groups, in batches of a few MB."""
    n_rows = max(1, _BATCH // sum(header.shape[-1] for header in headers.values()))
    with _table(path) as file:
        several = len(headers) > 1  # threads decode a column each, and cost time for a single one
        yield from file.iter_batches(n_rows, groups, columns=list(headers), use_threads=several)


def _refuse_nulls(path: Path, name: str, column: "pa.Array", first: int) -> None:
    if column.null_count:
        row = first + column.is_null().to_pylist().index(True)
        raise Refused(f"row {row:,} of {path} has no value in column {name!r}; give it one")


def _texts(column: "pa.Array", known: dict[str, str]) -> np.ndarray:
    """Texts, of which equal ones are one object."""
    if not hasattr(column, "dictionary"):
        column = column.dictionary_encode()
    texts = [known.setdefault(text, text) for text in column.dictionary.to_pylist()]
    return np.array(texts, dtype=object)[column.indices.to_numpy(False)]


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

    with file_errors(path):
        path.stat()
    try:
        with ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False) as file:
            yield file
    except (ArrowException, OSError) as error:
        raise Damaged(damaged(path, one_line(error))) from error
