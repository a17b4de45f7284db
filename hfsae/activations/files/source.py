"""Files of activations as a source: no model runs, and files may be larger than the memory."""

import logging
import random
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict
from functools import cached_property
from hashlib import blake2b, sha256
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ...machine.refused import Refused
from ...machine.visible import LOCAL_FILES
from ..arguments import Split
from ..harvest import rows_not_finite
from ..source import ActivationBatch, Filling, Refusals
from .arguments import ActivationArguments
from .harvested import refuse_other_shards
from .rows import KEEP, Rows, like_documents, places
from .shapes import CheckedFiles, checked
from .shard import Header
from .tables import TableShard

logger = logging.getLogger(__name__)
_SHARE_OF: dict[Split, str] = {
    "train": "held_out_fraction",
    "validation": "validation_fraction",
    "test": "held_out_fraction",
}
_FEW = 100  # rows too few to judge a column by
_FAR = 100  # times the median norm: a mean beyond it is that of a few rows

Activations = dict[str, Float[Tensor, "_ _"]]


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


class _Piece(NamedTuple):
    block: int
    start: int
    """Of the block's training rows, the first."""
    stop: int


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

    refusals = Refusals(
        too_few="the activation files gave {n} rows, fewer than a batch ({batch_size}); give more, "
        "or a smaller batch_size",
        other_content="the activation files, or how they are read, differ from those at the start "
        "of this training (bucket {bucket} differs); restore them and the settings of activations, "
        "or train in another output_dir",
        other_origin="the activation files differ from those at the start of this training; "
        "restore them, or train in another output_dir",
    )
    device = torch.device("cpu")

    def __init__(
        self, args: ActivationArguments, sites: Sequence[str], batch_size: int | None = None
    ):
        self.args, self.sites, self.batch_size = args, list(sites), batch_size
        self._files = checked(args, sites)
        refuse_other_shards([shard.path for shard in self._files.shards])
        self.shapes = self._files.shapes
        self.rows = Rows(self._files.shards, self._files.headers[sites[0]], args.documents, args)
        self.blocks = [*_blocks(self._files, self.rows.starts, args.block)]
        firsts = [block.first for block in self.blocks]
        self._n_used = np.add.reduceat(self.rows.are_on("train"), firsts, dtype=np.int64)
        self._n_left_out = np.add.reduceat(self.rows.are_left_out("train"), firsts, dtype=np.int64)
        self._position = {"epoch": 0, "block": 0, "rows": 0}
        self._order: tuple[int, Int64[np.ndarray, " n"]] = (-1, np.empty(0, np.int64))
        self._reader = _Reader(self._files)
        self._is_looked_at = False
        if batch_size is not None:
            self._check_sides(batch_size)

    def _check_sides(self, batch_size: int) -> None:
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
        paths = [header.path for header in self._files.headers[self.sites[0]]]
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
        if self.is_in_order:
            n = self._n_whole(n)
        elif n > n_epoch:
            n = n_epoch // batch_size * batch_size
        pieces, n_left_out = self._next(n)
        digest = blake2b(f"{self.content()} {self._layout} {pieces}".encode(), digest_size=8)
        capacity = sum(piece.stop - piece.start for piece in pieces)
        parts = self._parts(pieces, rank, n_processes)
        return Filling(capacity, n_left_out, digest.hexdigest(), parts)

    @cached_property
    def is_in_order(self) -> bool:
        """Whether the files were written in the order of a training, one for each bucket."""
        return all(shard.metadata.get("order") == "given" for shard in self._files.shards)

    def ahead(self, n: int) -> Iterator[Activations]:
        """The next n training rows, or one epoch's; a check of them before a training reads them.

        Raises:
            ValueError: one holds NaN or infinity.
        """
        pieces, _ = self._next(min(n, int(self._n_used.sum())))
        return map(self._read, pieces)

    def _n_whole(self, n: int) -> int:
        """The training rows of the next files, until there are n."""
        n_rows, place = 0, self._position["block"]
        while n_rows < n:
            shard = self.blocks[place].shard
            while place < len(self.blocks) and self.blocks[place].shard == shard:
                n_rows, place = n_rows + int(self._n_used[place]), place + 1
            place %= len(self.blocks)
        return n_rows

    def _next(self, n: int) -> tuple[list[_Piece], int]:
        """The next n training rows, and how many rows their blocks leave out."""
        pieces, n_left_out = [], 0
        epoch, place, used = self._position.values()
        while n:
            block = int(self._ordered(epoch)[place])
            n_left_out += 0 if used else int(self._n_left_out[block])
            stop = min(used + n, int(self._n_used[block]))
            if stop > used:
                pieces.append(_Piece(block, used, stop))
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
        self, pieces: list[_Piece], rank: int, n_processes: int
    ) -> Generator[Activations, None, None]:
        nothing = {
            site: torch.empty(0, width, dtype=self.shapes.dtypes[site])
            for site, width in self.shapes.widths.items()
        }
        for mine in range(rank, len(pieces) + rank, n_processes):
            acts = self._read(pieces[mine]) if mine < len(pieces) else nothing
            if rank == 0 and not self._is_looked_at and _n(acts) >= _FEW:
                self._is_looked_at = True
                for site, x in acts.items():
                    _warn_of_doubts(x.float(), f"{self._where}, site {site!r}")
            yield acts

    def _read(self, piece: _Piece) -> Activations:
        block = self.blocks[piece.block]
        rows = self._rows_on("train", block)[piece.start : piece.stop]
        return self._reader.read(block.shard, rows)

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
        seen, reader = np.zeros(len(self.rows.ids), np.int64), _Reader(self._files)
        for block in self.blocks:
            document = self.rows.document[block.first : block.first + block.n]
            position = places(document, seen)
            chosen = self._rows_on(side, block)[:left] - block.start
            if len(chosen):
                acts = reader.read(block.shard, chosen + block.start)
                numbers = (torch.from_numpy(x[chosen]) for x in (document, position))
                yield ActivationBatch(acts, *numbers)
            left -= len(chosen)
            if not left:
                return

    def tell_doubts(self) -> None:
        """Log tensors that may be meant as documents, but are not read, and where the row groups of
        tables, and not blocks, change places."""
        shard, documents = self._files.shards[0], self.args.documents
        if documents in shard.names:
            first = self._files.headers[self.sites[0]][0]
            for name in like_documents(shard, first, documents):
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
        for shard in self._files.shards:
            for part in shard.edges(sorted({*self._files.tensors.values()})):
                digest.update(part)
        for part in self.rows.parts():
            digest.update(part)
        return f"SHA-256 of activation files {digest.hexdigest()}"

    @cached_property
    def _layout(self) -> str:
        """Hash of all that decides which rows a block gives."""
        digest, shards = blake2b(self.rows.side.data, digest_size=8), self._files.shards
        digest.update(f"{self.args.block}".encode())
        if any(isinstance(s, TableShard) and s.has_other_blocks(self.args.block) for s in shards):
            digest.update(b"blocks cut row groups")  # earlier versions joined these
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """All settings, how much there is on each side, and the hash of the files."""
        counts = {f"{side}_rows": self.n_rows(side) for side in get_args(Split)}
        about = {"origin": LOCAL_FILES, "n_documents": len(self.rows.ids), **counts}
        about["content"] = self.content()
        return {"activations": {**asdict(self.args), **about}}


class _Reader:
    """Reads rows of shards, one of which is open."""

    def __init__(self, files: CheckedFiles):
        self._files = files
        self._shard, self._rows = -1, _nothing

    def read(self, shard: int, rows: Int64[np.ndarray, " n"]) -> Activations:
        """Some rows of a shard, by site; their numbers ascend.

        Raises:
            ValueError: one of them holds NaN or infinity.
        """
        if shard != self._shard:
            names = sorted({*self._files.tensors.values()})
            self._shard, self._rows = shard, self._files.shards[shard].reader(names)
        start, stop = int(rows[0]), int(rows[-1]) + 1
        read = self._rows(start, stop)
        if len(rows) < stop - start:
            chosen = torch.from_numpy(rows - start)
            read = {name: x.index_select(0, chosen) for name, x in read.items()}
        for site, name in self._files.tensors.items():
            _refuse_not_finite(read[name], rows, self._files.headers[site][shard], site)
        return {site: read[name] for site, name in self._files.tensors.items()}


def _n(acts: Activations) -> int:
    return len(next(iter(acts.values())))


def _nothing(start: int, stop: int) -> Activations:
    return {}


def _refuse_not_finite(
    x: Float[Tensor, "n d"], rows: Int64[np.ndarray, " n"], header: Header, site: str
) -> None:
    bad = rows_not_finite(x).tolist()
    if bad:
        first, more = int(rows[bad[0]]), len(bad) - 1
        others = f", as do {more:,} more of the {len(rows):,} rows read with it" if more else ""
        raise Refused(
            f"{header.place(first)} of {header.path} holds NaN or infinity at site {site!r}"
            f"{others}; repair what is wrong, or mark rows to leave out by false in a bool tensor "
            f"`{KEEP}`"
        )


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


def _blocks(files: CheckedFiles, starts: Sequence[int], size: int) -> Iterator[Block]:
    """All blocks, in the order of the rows."""
    unit = 0
    for i, shard in enumerate(files.shards):
        for low, high in shard.units(starts[i + 1] - starts[i], size):
            for start in range(low, high, size):
                yield Block(i, start, min(size, high - start), starts[i] + start, unit)
            unit += 1
