"""The rows of files with activations: the document of each, and its side."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from itertools import accumulate

import numpy as np
from jaxtyping import Int64, UInt8

from ...machine.files import printable
from ...machine.refused import Refused, closest
from ..arguments import Shares, Split, side_of
from .arguments import DOCUMENTS
from .shard import INTEGERS, TEXT, Header, Shard, is_like_documents

KEEP = "keep"
"""The tensor or column that is false for rows to leave out."""
_SIDES: tuple[Split, ...] = ("train", "validation", "test")
_LEFT_OUT = 4  # added to the number of a side
_TOGETHER = 1000  # rows of [n, d] that are a document where none is given


class Rows:
    """The document and the side of each row, in the order of the shards.

    A document is what its id says, in whichever shard its rows are. Where no ids are given, each
    row of [rows, ctx, d] is a document, and each 1,000 rows of an [n, d].

    Memory: 9 bytes a row, and for a document about what its id takes.

    Args:
        headers: of the first site, in each shard.
        documents: the name of the tensor or column with the ids; it may be absent.
        shares: of the held-out sides.
    """

    def __init__(
        self, shards: Sequence[Shard], headers: Sequence[Header], documents: str, shares: Shares
    ):
        self._headers = headers
        self.starts = [0, *accumulate(header.n_rows for header in headers)]
        """The first row of each shard, and the end."""
        self.are_given = documents in shards[0].names
        if self.are_given:
            self.ids, self.document = _numbered([shard.values(documents) for shard in shards])
        else:
            numbers = [np.arange(header.n_rows) // _size(header) for header in headers]
            firsts = [0, *accumulate(int(number[-1]) + 1 for number in numbers)]
            self._firsts = firsts  # documents of each shard
            self.document: Int64[np.ndarray, " n"] = np.concatenate(
                [number + first for number, first in zip(numbers, firsts, strict=False)]
            )
            self.ids = [
                f"{header.path.name} {i}"
                for header, first, stop in zip(headers, firsts, firsts[1:], strict=False)
                for i in range(stop - first)
            ]
        sides = [_SIDES.index(side_of(_hash(id_), shares)) for id_ in self.ids]
        self.side: UInt8[np.ndarray, " n"] = np.array(sides, np.uint8)[self.document]
        for shard, start, stop in zip(shards, self.starts, self.starts[1:], strict=False):
            if (side := shard.metadata.get("side")) in _SIDES:  # decided as it was written
                self.side[start:stop] = _SIDES.index(side)
        if KEEP in shards[0].names:
            keep = np.concatenate([shard.values(KEEP) for shard in shards])
            self.side[~keep] += _LEFT_OUT

    def are_on(self, side: Split, start: int = 0, stop: int | None = None) -> np.ndarray:
        """For rows start to stop, whether each is on a side and not left out."""
        return self.side[start:stop] == _SIDES.index(side)

    def are_left_out(self, side: Split) -> np.ndarray:
        """For each row, whether it is on a side but left out."""
        return self.side == _SIDES.index(side) + _LEFT_OUT

    def parts(self) -> Iterator[bytes | memoryview]:
        """For a hash: all that was read of the files."""
        if self.are_given:
            yield self.document.data
            ids = self.ids
            yield ids.data if isinstance(ids, np.ndarray) else repr(ids).encode("utf-8", "replace")
        yield (self.side >= _LEFT_OUT).data

    def caption(self, document: int, position: int) -> str:
        """Where a row is, in words."""
        if self.are_given:
            return f"document {printable(str(self.ids[document]))}, row {position:,}"
        shard = bisect_right(self._firsts, document) - 1
        header = self._headers[shard]
        row = (document - self._firsts[shard]) * _size(header) + position
        return f"{printable(header.path.name)}, {header.place(row)}"


def check_rows(shards: Sequence[Shard], headers: Sequence[Header], documents: str) -> None:
    """Check, by headers alone, the documents and marks that belong to rows.

    Raises:
        ValueError: only some shards have them, or they are of a wrong kind or length.
    """
    for name, kinds in ((documents, (*INTEGERS, TEXT)), (KEEP, ("bool",))):
        lacking = [shard for shard in shards if name not in shard.names]
        if lacking and name == documents == DOCUMENTS:
            _refuse_another_name(lacking[0], headers[shards.index(lacking[0])])
        if lacking and (len(lacking) < len(shards) or name not in (DOCUMENTS, KEEP, "")):
            path, names = lacking[0].path, lacking[0].names
            raise Refused(
                f"{path} has no tensor or column {name!r}{closest(name, names)}; give it to all "
                "files, or to none"
            )
        marks = [] if lacking else [shard.header(name) for shard in shards]
        for mark, header in zip(marks, headers, strict=False):
            if mark.kind not in kinds:
                fix = "bool" if name == KEEP else "int64; in parquet it may be text, too"
                raise Refused(f"{mark.path} holds {mark.kind} in {name!r}; convert it to {fix}")
            if (mark.kind == TEXT) != (marks[0].kind == TEXT):
                raise Refused(
                    f"{name!r} is {mark.kind} in {mark.path} and {marks[0].kind} in "
                    f"{marks[0].path}; give one kind in all files"
                )
            if mark.n_values != header.n_rows:
                raise Refused(
                    f"{mark.path} has {mark.n_values:,} values in {name!r} for "
                    f"{header.n_rows:,} rows of activations; give one for each row"
                )


def like_documents(shard: Shard, header: Header, documents: str) -> list[str]:
    """Other tensors or columns that may hold documents, by their names: a whole number or a text
    for each row."""
    near = [n for n in shard.names if is_like_documents(n) and n != documents]
    kinds = {name: shard.header(name) for name in near}
    return [
        name
        for name, one in kinds.items()
        if one.kind in (*INTEGERS, TEXT) and one.n_values == header.n_rows
    ]


def _refuse_another_name(shard: Shard, header: Header) -> None:
    """Refuse documents under another name, which would be passed over."""
    for name in like_documents(shard, header, DOCUMENTS):
        raise Refused(
            f"{shard.path} has no {DOCUMENTS!r}, and {name!r} with a value for each row: give "
            f"--activations.documents {name} if these are the rows' documents, or else '' for none"
        )


def places(document: Int64[np.ndarray, " n"], seen: Int64[np.ndarray, " _"]) -> np.ndarray:
    """The number of each row within its document. `seen` holds how many rows of each document came
    before, and is counted on."""
    order = np.argsort(document, kind="stable")
    numbers, firsts, counts = np.unique(document[order], return_index=True, return_counts=True)
    place = np.empty(len(document), np.int64)
    place[order] = np.arange(len(document)) - np.repeat(firsts - seen[numbers], counts)
    seen[numbers] += counts
    return place


def _size(header: Header) -> int:
    """Rows of a document where none is given."""
    return header.shape[1] if len(header.shape) == 3 else _TOGETHER


def _numbered(
    values: list[np.ndarray],
) -> tuple[Sequence[str] | Int64[np.ndarray, " _"], Int64[np.ndarray, " n"]]:
    """The distinct ids, and for each row the index of its own."""
    if values[0].dtype == object:
        known: dict[str, int] = {}
        each = (known.setdefault(text, len(known)) for part in values for text in part)
        numbers = np.fromiter(each, np.int64, sum(map(len, values)))
        return list(known), numbers
    return np.unique(np.concatenate(values).astype(np.int64), return_inverse=True)


def _hash(id_: object) -> str:
    return blake2b(str(id_).encode("utf-8", "replace"), digest_size=8).hexdigest()
