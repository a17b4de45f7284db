"""Files of activations as a source: no model runs, and files may be larger than the memory.

`check_files` compares headers before anything is read or written; `Rows` has the document and the
side of each row; `FileSource` gives rows in an order that changes with each epoch. The shards of a
harvest are known by the hashes in its harvest.json (`refuse_other_shards`).
"""

import logging
import random
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property, lru_cache
from hashlib import blake2b, sha256
from itertools import accumulate
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from ..io.checksums import once_a_state
from ..io.errors import Refused, closest
from ..io.file_names import HARVEST
from ..io.files import printable, read_json
from ..io.local_paths import LOCAL_FILES
from .arguments import DOCUMENTS, ActivationArguments, Split, side_of
from .harvest import rows_not_finite
from .shards import (
    FLOATS,
    INTEGERS,
    TEXT,
    Header,
    Shard,
    is_like_documents,
    open_shards,
    paths_of,
    safetensors_shard,
    sites_in,
)
from .source import ActivationBatch, Filling

logger = logging.getLogger(__name__)
KEEP = "keep"
"""The tensor or column that is false for rows to leave out."""
SHARDS = "shards"
"""The key of {file name: hash} in harvest.json."""
_SIDES: tuple[Split, ...] = ("train", "validation", "test")
_SHARE_OF: dict[Split, str] = {
    "train": "held_out_fraction",
    "validation": "validation_fraction",
    "test": "held_out_fraction",
}
_LEFT_OUT = 4  # added to the number of a side
_TOGETHER = 1000  # rows of [n, d] that are a document where none is given
_FEW = 100  # rows too few to judge a column by
_FAR = 100  # times the median norm: a mean beyond it is that of a few rows
_COMPARED = 2**30  # bytes of training rows that are compared with held-out ones: about a second

Activations = dict[str, Float[Tensor, "_ _"]]


class FileShapes(NamedTuple):
    """Files whose headers fit each other and the sites."""

    shards: list[Shard]
    tensors: dict[str, str]
    """By site, the tensor or column that holds it."""
    headers: dict[str, list[Header]]
    """By site, one of each shard."""

    @property
    def widths(self) -> dict[str, int]:
        """By site."""
        return {site: headers[0].shape[-1] for site, headers in self.headers.items()}

    @property
    def dtypes(self) -> dict[str, torch.dtype]:
        """By site."""
        return {site: FLOATS[headers[0].kind] for site, headers in self.headers.items()}

    @property
    def n_rows(self) -> int:
        """Of all sides, and with those to leave out."""
        return sum(header.n_rows for header in next(iter(self.headers.values())))


def check_files(args: ActivationArguments, sites: Sequence[str]) -> FileShapes:
    """The shards and what their headers say: widths, dtypes and the number of rows. Nothing else is
    read.

    Raises:
        ValueError: a file is damaged or of another format, lacks a site, or differs from the others
            in a site's width or dtype.
    """
    if not sites:
        raise Refused(f"no site is named; the files have {', '.join(sites_in(args)) or 'none'}")
    for site in args.sites:
        if site not in sites:
            raise Refused(
                f"activations.sites has {site!r}, and the sites are {', '.join(sites)}"
                f"{closest(site, sites)}; rename it"
            )
    tensors = {site: args.sites.get(site, site) for site in sites}
    more = [name for name in (args.documents, KEEP) if name]
    shards = open_shards(paths_of(args), tensors, more)
    headers = {site: [shard.header(name) for shard in shards] for site, name in tensors.items()}
    for site in sites:
        first = headers[site][0]
        for header, beside in zip(headers[site], headers[sites[0]], strict=True):
            path, kind, shape, _ = header
            if kind not in FLOATS:
                raise Refused(
                    f"{path} holds {kind} at site {site!r}; convert it to float32, float16 or "
                    "bfloat16"
                )
            if len(shape) not in (2, 3) or 0 in shape:
                raise Refused(
                    f"{path} has shape {list(shape)} at site {site!r}; give [n, d] or "
                    "[rows, ctx, d], none of them 0"
                )
            if (kind, shape[-1]) != (first.kind, first.shape[-1]):
                raise Refused(
                    f"{path} holds {kind} of width {shape[-1]:,} at site {site!r}, and "
                    f"{first.path} {first.kind} of width {first.shape[-1]:,}; give all files one "
                    "dtype and width"
                )
            if header.n_rows != beside.n_rows:
                raise Refused(
                    f"{path} has {header.n_rows:,} rows at site {site!r}, and {beside.path} "
                    f"{beside.n_rows:,} at another; give all sites the same rows"
                )
    _check_documents_and_marks(shards, headers[sites[0]], args.documents)
    return FileShapes(shards, tensors, headers)


def _check_documents_and_marks(
    shards: Sequence[Shard], headers: Sequence[Header], documents: str
) -> None:
    """By headers alone."""
    for name, kinds in ((documents, (*INTEGERS, TEXT)), (KEEP, ("bool",))):
        lacking = [shard for shard in shards if name not in shard.names]
        if lacking and name == documents == DOCUMENTS:
            shard = lacking[0]
            for other in _like_documents(shard, headers[shards.index(shard)], DOCUMENTS):
                raise Refused(
                    f"{shard.path} has no {DOCUMENTS!r}, and {other!r} with a value for each row: "
                    f"give --activations.documents {other} if these are the rows' documents, or "
                    "else '' for none"
                )
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


def _like_documents(shard: Shard, header: Header, documents: str) -> list[str]:
    """Other tensors or columns that may hold documents, by their names: a whole number or a text
    for each row."""
    near = [n for n in shard.names if is_like_documents(n) and n != documents]
    kinds = {name: shard.header(name) for name in near}
    return [
        name
        for name, one in kinds.items()
        if one.kind in (*INTEGERS, TEXT) and one.n_values == header.n_rows
    ]


class Rows:
    """The document and the side of each row, in the order of the shards.

    A document is what its id says, in whichever shard its rows are. Where no ids are given, each
    row of [rows, ctx, d] is a document, and each 1,000 rows of an [n, d].

    Memory: 9 bytes a row, and for a document about what its id takes.

    Args:
        headers: of the first site, in each shard.
        args: they name the tensor or column with the ids, which may be absent.
    """

    def __init__(
        self, shards: Sequence[Shard], headers: Sequence[Header], args: ActivationArguments
    ):
        self._headers = headers
        self.starts = [0, *accumulate(header.n_rows for header in headers)]
        """The first row of each shard, and the end."""
        self.are_given = args.documents in shards[0].names
        if self.are_given:
            values = [shard.values(args.documents) for shard in shards]
            self.ids: Sequence[str] | Int64[np.ndarray, " _"]
            if values[0].dtype == object:  # texts
                known: dict[str, int] = {}
                each = (known.setdefault(text, len(known)) for part in values for text in part)
                self.document = np.fromiter(each, np.int64, sum(map(len, values)))
                self.ids = list(known)
            else:
                whole = np.concatenate(values).astype(np.int64)
                self.ids, self.document = np.unique(whole, return_inverse=True)
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
        texts = (str(id_).encode("utf-8", "replace") for id_ in self.ids)
        hashes = (blake2b(text, digest_size=8).hexdigest() for text in texts)
        sides = [_SIDES.index(side_of(hash_, args)) for hash_ in hashes]
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


def _size(header: Header) -> int:
    """Rows of a document where none is given."""
    return header.shape[1] if len(header.shape) == 3 else _TOGETHER


class Block(NamedTuple):
    """Rows that are read together."""

    shard: int
    start: int
    """Its first row in the shard."""
    n: int
    first: int
    """Its first row among those of all shards."""
    unit: int
    """The range of rows that it belongs to; blocks of one are read in their order."""


Piece = tuple[int, int, int]
"""Of a block's training rows those that are read: its number, the first, the end."""


class FileSource:
    """A source that reads files of activations.

    Each training row comes once in an epoch. The order of blocks is another in each epoch; rows of
    a block stay together, and are shuffled by the bucket that they fill. The position is the epoch,
    the place in its order of blocks, and how many rows of that block were used.

    Memory, beyond what is filled: a block, and 9 bytes a row for its document and side.

    Args:
        sites: keys of the activations; `args.sites` names tensors that are called otherwise.
        batch_size: activations in a global batch of a training; None: there is no training, and the
            files may have few rows or no held-out ones.

    Raises:
        ValueError: as `check_files`; shards of a harvest are missing, swapped, doubled or changed;
            or there are too few training rows for a batch, or no row on a side whose share is above
            0.
    """

    refusals: ClassVar[Mapping[str, str]] = {
        "too_few": "the activation files gave {n} rows, fewer than a batch ({batch_size}); give "
        "more, or a smaller batch_size",
        "other_content": "the activation files, or how they are read, differ from those at the "
        "start of this training (bucket {bucket} differs); restore them and the settings of "
        "activations, or train in another output_dir",
        "other_origin": "the activation files differ from those at the start of this training; "
        "restore them, or train in another output_dir",
    }
    device = torch.device("cpu")

    def __init__(
        self, args: ActivationArguments, sites: Sequence[str], batch_size: int | None = None
    ):
        self.args, self.sites, self.batch_size = args, list(sites), batch_size
        self.shapes = check_files(args, sites)
        shards = self.shapes.shards
        refuse_other_shards([shard.path for shard in shards])
        self.rows = Rows(shards, self.shapes.headers[sites[0]], args)
        self.blocks = list[Block]()
        unit = 0
        for i, shard in enumerate(shards):
            first = self.rows.starts[i]
            for low, high in shard.units(self.rows.starts[i + 1] - first, args.block):
                for start in range(low, high, args.block):
                    n = min(args.block, high - start)
                    self.blocks.append(Block(i, start, n, first + start, unit))
                unit += 1
        firsts = [block.first for block in self.blocks]
        self._n_used = np.add.reduceat(self.rows.are_on("train"), firsts, dtype=np.int64)
        self._n_left_out = np.add.reduceat(self.rows.are_left_out("train"), firsts, dtype=np.int64)
        self._position = {"epoch": 0, "block": 0, "rows": 0}
        self._order: tuple[int, Int64[np.ndarray, " n"]] = (-1, np.empty(0, np.int64))
        self._read_rows = _reader(self.shapes)
        self._is_looked_at = False
        if batch_size is None:
            return
        if (n := self.n_rows("train")) < batch_size:
            raise Refused(
                f"{self._where} has {n:,} training rows, of {self.shapes.n_rows:,} rows in "
                f"{len(self.rows.ids):,} documents, fewer than a batch ({batch_size:,}); give "
                "more, or a smaller training.batch_size"
            )
        for side in ("validation", "test"):
            if getattr(self.args, _SHARE_OF[side]) > 0:
                self._refuse_empty(side)

    def _refuse_empty(self, side: Split) -> None:
        if self.n_rows(side):
            return
        name = _SHARE_OF[side]
        ids = "" if self.rows.are_given else ", or ids in a tensor `document`"
        raise Refused(
            f"none of the {len(self.rows.ids):,} documents of {self._where} gives a row on the "
            f"{side} side at activations.{name}={getattr(self.args, name)}; change it, or give "
            f"more documents{ids}"
        )

    @property
    def _where(self) -> str:
        paths = [header.path for header in self.shapes.headers[self.sites[0]]]
        return f"{paths[0]}" if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more files"

    def n_rows(self, side: Split) -> int:
        """Rows on a side that are not left out."""
        return int(self.rows.are_on(side).sum())

    def row_numbers(self, side: Split) -> Int64[np.ndarray, " n"]:
        """The rows that `batches` gives, counted over all files in their order."""
        return np.flatnonzero(self.rows.are_on(side))

    @property
    def documents(self) -> list[str] | list[int]:
        """The ids of documents as the files give them; `ActivationBatch.document` counts these.
        Where they give none, a document is called by its file and its number in it."""
        ids = self.rows.ids
        return ids.tolist() if isinstance(ids, np.ndarray) else list(ids)

    def caption(self, document: int, position: int) -> str:
        """Where a row is, in words: "document 17, row 4", counted from 0."""
        return self.rows.caption(document, position)

    # Training: an endless order of rows.

    def fill(self, n: int, rank: int = 0, n_processes: int = 1) -> Filling:
        """The next n training rows, of which each process reads its share.

        Where an epoch has fewer, it gives as many whole batches as that has: a bucket never holds
        more than the files do.
        """
        n_epoch, batch_size = int(self._n_used.sum()), self.batch_size or 1
        if self.is_in_order:  # the training rows of the next files, until there are n
            n_asked, n, place = n, 0, self._position["block"]
            while n < n_asked:
                shard = self.blocks[place].shard
                while place < len(self.blocks) and self.blocks[place].shard == shard:
                    n, place = n + int(self._n_used[place]), place + 1
                place %= len(self.blocks)
        elif n > n_epoch:
            n = n_epoch // batch_size * batch_size
        pieces, n_left_out = self._next(n)
        # the text is hashed into checkpoints, so that another one would refuse those
        read = ", ".join(f"_Piece(block={i}, start={a}, stop={b})" for i, a, b in pieces)
        digest = blake2b(f"{self.content()} {self._layout} [{read}]".encode(), digest_size=8)
        capacity = sum(stop - start for _, start, stop in pieces)
        parts = self._parts(pieces, rank, n_processes)
        return Filling(capacity, n_left_out, digest.hexdigest(), parts)

    @cached_property
    def is_in_order(self) -> bool:
        """Whether the files were written in the order of a training, one for each bucket."""
        return all(shard.metadata.get("order") == "given" for shard in self.shapes.shards)

    def ahead(self, n: int) -> Iterator[Activations]:
        """The next n training rows, or one epoch's; a check of them before a training reads them.

        Raises:
            ValueError: one holds NaN or infinity.
        """
        pieces, _ = self._next(min(n, int(self._n_used.sum())))
        return map(self._read, pieces)

    def _next(self, n: int) -> tuple[list[Piece], int]:
        """The next n training rows, and how many rows their blocks leave out."""
        pieces, n_left_out = [], 0
        epoch, place, used = self._position.values()
        while n:
            block = int(self._ordered(epoch)[place])
            n_left_out += 0 if used else int(self._n_left_out[block])
            stop = min(used + n, int(self._n_used[block]))
            if stop > used:
                pieces.append((block, used, stop))
            n, used = n - (stop - used), stop
            if used == self._n_used[block]:
                place, used = place + 1, 0
            if place == len(self.blocks):
                epoch, place = epoch + 1, 0
        self._position = {"epoch": epoch, "block": place, "rows": used}
        return pieces, n_left_out

    def _ordered(self, epoch: int) -> Int64[np.ndarray, " n"]:
        """The blocks in an epoch's order: units change places, and blocks stay in order inside."""
        if self.is_in_order:
            return np.arange(len(self.blocks))
        if self._order[0] != epoch:
            seed = random.Random(f"{self.args.seed} {epoch}").getrandbits(63)
            unit = np.array([block.unit for block in self.blocks])
            generator = torch.Generator().manual_seed(seed)
            place = torch.randperm(int(unit[-1]) + 1, generator=generator).numpy()
            self._order = epoch, np.argsort(place[unit], kind="stable")
        return self._order[1]

    def _parts(
        self, pieces: list[Piece], rank: int, n_processes: int
    ) -> Generator[Activations, None, None]:
        nothing = {
            site: torch.empty(0, width, dtype=self.shapes.dtypes[site])
            for site, width in self.shapes.widths.items()
        }
        for mine in range(rank, len(pieces) + rank, n_processes):
            acts = self._read(pieces[mine]) if mine < len(pieces) else nothing
            n_rows = len(next(iter(acts.values())))
            if rank == 0 and not self._is_looked_at and n_rows >= _FEW:
                self._is_looked_at = True
                for site, x in acts.items():
                    _warn_of_doubts(x.float(), f"{self._where}, site {site!r}")
            yield acts

    def _read(self, piece: Piece) -> Activations:
        number, start, stop = piece
        block = self.blocks[number]
        rows = self._rows_on("train", block)[start:stop]
        return self._read_rows(block.shard, rows)

    def _rows_on(self, side: Split, block: Block) -> Int64[np.ndarray, " n"]:
        """Rows of a block that are on a side, by their numbers in the shard."""
        return block.start + np.flatnonzero(
            self.rows.are_on(side, block.first, block.first + block.n)
        )

    # Evaluation: one side, in the order of the files.

    def batches(self, side: Split, n: int | None = None) -> Iterator[ActivationBatch]:
        """One side's activations, once, in the order of the files, those of one block at a time.

        A position is the row's number in its document, which counts rows that are left out, too.

        Args:
            n: give only the first n.

        Raises:
            ValueError: no row is on that side, or a row holds NaN or infinity.
        """
        self._refuse_empty(side)
        left = self.n_rows(side) if n is None else n
        seen, read = np.zeros(len(self.rows.ids), np.int64), _reader(self.shapes)
        for block in self.blocks:
            document = self.rows.document[block.first : block.first + block.n]
            order = np.argsort(document, kind="stable")
            numbers, firsts, counts = np.unique(
                document[order], return_index=True, return_counts=True
            )
            position = np.empty(len(document), np.int64)  # the number of each row in its document
            position[order] = np.arange(len(document)) - np.repeat(firsts - seen[numbers], counts)
            seen[numbers] += counts
            chosen = self._rows_on(side, block)[:left] - block.start
            if len(chosen):
                acts = read(block.shard, chosen + block.start)
                at = (torch.from_numpy(x[chosen]) for x in (document, position))
                yield ActivationBatch(acts, *at)
            left -= len(chosen)
            if not left:
                return

    def tell_doubts(self) -> None:
        """Log tensors that may be meant as documents, but are not read, and where the row groups of
        tables, and not blocks, change places."""
        shard, documents = self.shapes.shards[0], self.args.documents
        if documents in shard.names:
            first = self.shapes.headers[self.sites[0]][0]
            for name in _like_documents(shard, first, documents):
                logger.warning(
                    "%s: the documents of rows are in %r (activations.documents), and %r is not "
                    "read",
                    *(shard.path, documents, name),
                )
        n, size = max(Counter(block.unit for block in self.blocks).values()), self.args.block
        if n > 1:
            logger.warning(
                "%s: row groups change places as a whole (up to %d blocks of %s rows), so that the "
                "order of rows, and the SAE, is another than from .safetensors or .npy; with row "
                "groups of at most %d rows (pyarrow: row_group_size) it is the same to the bit",
                *(self._where, n, f"{size:,}", 2 * size),
            )

    # What identifies the files.

    def state_dict(self) -> dict[str, Any]:
        """The epoch, the place in its order of blocks, the rows of that block that were used."""
        return dict(self._position)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a position that `state_dict` returned."""
        self._position = {name: state[name] for name in self._position}

    def origin(self) -> str:
        """The same as `content`: nothing else makes the activations."""
        return self.content()

    def content(self) -> str:
        """Hash of the files: names, sizes, headers, documents and marks whole, and of each tensor
        the first and last MiB (of a parquet file, those of the file).

        A change in between that keeps the size is not noticed.
        """
        return self._content

    @cached_property
    def _content(self) -> str:
        digest = sha256()
        for shard in self.shapes.shards:
            for part in shard.edges(sorted({*self.shapes.tensors.values()})):
                digest.update(part)
        for part in self.rows.parts():
            digest.update(part)
        return f"SHA-256 of activation files {digest.hexdigest()}"

    @cached_property
    def _layout(self) -> str:
        """Hash of all that decides which rows a block gives."""
        digest = blake2b(self.rows.side.data, digest_size=8)
        digest.update(f"{self.args.block}".encode())
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """All settings, how much there is on each side, and the hash of the files."""
        counts = {f"{side}_rows": self.n_rows(side) for side in get_args(Split)}
        about = {"origin": LOCAL_FILES, "n_documents": len(self.rows.ids), **counts}
        about["content"] = self.content()
        return {"activations": {**asdict(self.args), **about}}


def _reader(files: FileShapes) -> Callable[[int, Int64[np.ndarray, " n"]], Activations]:
    """A function that reads rows of a shard by their numbers, which ascend; one shard is open.

    It raises ValueError where one of them holds NaN or infinity.
    """
    names = sorted({*files.tensors.values()})
    opened = lru_cache(maxsize=1)(lambda shard: files.shards[shard].reader(names))

    def read(shard: int, rows: Int64[np.ndarray, " n"]) -> Activations:
        start, stop = int(rows[0]), int(rows[-1]) + 1
        whole = opened(shard)(start, stop)
        if len(rows) < stop - start:
            chosen = torch.from_numpy(rows - start)
            whole = {name: x.index_select(0, chosen) for name, x in whole.items()}
        for site, name in files.tensors.items():
            if bad := rows_not_finite(whole[name]).tolist():
                header, n_more = files.headers[site][shard], len(bad) - 1
                more = f", as do {n_more:,} more of the {len(rows):,} rows read with it"
                raise Refused(
                    f"{header.place(int(rows[bad[0]]))} of {header.path} holds NaN or infinity at "
                    f"site {site!r}{more if n_more else ''}; repair what is wrong, or mark rows to "
                    f"leave out by false in a bool tensor `{KEEP}`"
                )
        return {site: whole[name] for site, name in files.tensors.items()}

    return read


def _warn_of_doubts(x: Float[Tensor, "n d"], where: str) -> None:
    """Log what is unlikely to be meant: columns that do not vary, and a few rows of huge norm."""
    constant = (x == x[0]).all(0).nonzero()[:, 0].tolist()
    if constant:
        logger.warning(
            "%s: %d of %d columns have one value in the %d rows read first, such as column %d; "
            "check that they belong to the activations",
            *(where, len(constant), x.shape[1], len(x), constant[0]),
        )
    norms = x.norm(dim=1)
    mean, median = float(norms.mean()), float(norms.median())
    if mean > _FAR * median:
        logger.warning(
            "%s: the mean norm (%.3g) is more than %d times the median (%.3g) in the %d rows read "
            "first: a few rows outweigh all others; mark these by false in a bool tensor `%s`",
            *(where, mean, _FAR, median, len(x), KEEP),
        )


@once_a_state
def shard_hash(path: Path) -> str:
    """Hash of a shard's name, size, headers, and the first and last MiB of each tensor."""
    shard = safetensors_shard(path)
    digest = sha256(repr(sorted(shard.metadata.items())).encode())
    for part in shard.edges(sorted(shard.names)):
        digest.update(part)
    return digest.hexdigest()


def refuse_other_shards(paths: Sequence[Path]) -> None:
    """Refuse files that are not those of the harvest in whose folder they lie; others pass, as does
    a harvest from before these hashes.

    Raises:
        ValueError: a shard is missing, was changed or swapped, or is none of the harvest's.
    """
    for folder in dict.fromkeys(path.parent for path in paths):
        path = folder / HARVEST
        shards = read_json(path).get(SHARDS) if path.is_file() else None
        if not isinstance(shards, dict):
            continue
        names = [p.name for p in paths if p.parent == folder]
        for name in sorted({*shards, *names}):
            why = ""
            if not (folder / name).is_file():
                why = "is missing"
            elif name not in shards:
                why = "is none of its shards, such as a copy of one"
            elif name in names and shard_hash(folder / name) != shards[name]:
                why = "is not the file that was written: its hash differs, as of a swapped one"
            if why:
                raise Refused(
                    f"{folder / name} {why} ({HARVEST} has {len(shards):,} shards of this harvest "
                    "with their hashes); put back what was written, or harvest into another folder"
                )


def warn_of_equal_documents(
    held_out: Iterable[ActivationBatch], training: Iterable[ActivationBatch], where: str
) -> None:
    """Log how many held-out documents have all of their rows among those of training, of which 1
    GiB is read. The activations of the first site count."""
    each = [(_hashes_of(_first(batch)), batch.document.numpy()) for batch in held_out]
    if not each:
        return
    hashes, document = (np.concatenate(part) for part in zip(*each, strict=True))
    distinct, which = np.unique(hashes, return_inverse=True)
    is_there, n_bytes, n_rows = np.zeros(len(distinct), dtype=bool), 0, 0
    for batch in training:
        x = _first(batch)
        at = np.searchsorted(distinct, read := _hashes_of(x)).clip(max=len(distinct) - 1)
        is_there[at[distinct[at] == read]] = True
        n_bytes, n_rows = n_bytes + x.nbytes, n_rows + len(x)
        if n_bytes >= _COMPARED:
            break
    documents, number = np.unique(document, return_inverse=True)
    is_doubled = np.ones(len(documents), dtype=bool)
    np.logical_and.at(is_doubled, number, is_there[which])
    if n := int(is_doubled.sum()):
        logger.warning(
            "%s: %d of %d held-out documents have all of their rows among %s training rows, "
            "under other ids: results on them are not of held-out data; give equal documents "
            "one id",
            *(where, n, len(documents), f"{n_rows:,}"),
        )


def _first(batch: ActivationBatch) -> Float[Tensor, "n d"]:
    return next(iter(batch.activations.values()))


def _hashes_of(x: Float[Tensor, "n d"]) -> Int64[np.ndarray, " n"]:
    """Of each row a number that follows from its bits."""
    bits = x.contiguous().view({2: torch.int16, 4: torch.int32}[x.element_size()])
    weights = np.random.default_rng(0).integers(1, 2**62, x.shape[1]) * 2 + 1
    return (bits.numpy().astype(np.int64) * weights).sum(1)  # modulo 2**64
