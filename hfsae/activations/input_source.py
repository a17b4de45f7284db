"""Pictures or sound as a source of activations, through a model of transformers.

The order of an epoch is a permutation of all pieces (pictures, their crops, pieces of sound), by
the seed and the epoch, so a position is two numbers. Which positions are kept is known before the
model runs: every process plans the same bucket and harvests its share of it.
"""

import logging
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import lru_cache
from hashlib import blake2b, sha256
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from ..lm import LoadedEncoder
from ..machine.refused import Refused
from .arguments import AudioArguments, HarvestArguments, ImageArguments, Split, side_of
from .cache import lm_digest
from .harvest import Harvester
from .inputs import InputBatch, Piece, Reader
from .pictures import Pictures
from .sounds import Sounds
from .source import ActivationBatch, Filling, Refusals, harvest_share

if TYPE_CHECKING:
    from PIL.Image import Image

logger = logging.getLogger(__name__)
_MOST_FAULTS = 0.01  # share of documents that cannot be read
_SORTED_BATCHES = 64  # pieces of equal length are put together inside so many batches

R = TypeVar("R", Pictures, Sounds)
_REFUSALS = {
    noun: Refusals(
        too_few=f"the {noun} gave {{n}} activations, fewer than a batch ({{batch_size}}); give "
        f"more {noun} or a smaller batch_size",
        other_content=f"the {noun} differ from those at the start of this training (bucket "
        "{bucket} differs); restore them, or train in another output_dir",
        other_origin="the model's weights differ from those at the start of this training; use "
        "the original model, or train in another output_dir",
    )
    for noun in (Pictures.noun, Sounds.noun)
}


class InputSource:
    """A source that runs a vision or audio model on pictures or sound.

    Documents are pictures or sound files. `ActivationBatch.position` is a patch's number, by rows
    from the top left (CLS -1, registers -2 and so on), or a moment's.

    Args:
        arguments: the pictures or the sound.
        harvest: its `rows` are the pictures, or pieces of sound, of a forward pass.
        norm_limits: by site, the largest norm of a kept activation; None: by the harvest's
            `max_norm_ratio`.

    Raises:
        ValueError: nothing is found, a package is missing, the model reads something else, or its
            positions at the sites cannot be placed in a picture or in time.
    """

    def __init__(
        self,
        arguments: ImageArguments | AudioArguments,
        encoder: LoadedEncoder,
        sites: Sequence[str],
        harvest: HarvestArguments | None = None,
        *,
        norm_limits: dict[str, float] | None = None,
    ) -> None:
        harvest = harvest or HarvestArguments()
        self.arguments, self.encoder = arguments, encoder
        self.harvester = Harvester(encoder.model, sites, harvest, norm_limits=norm_limits)
        self.reader: Reader = (
            Pictures(arguments, encoder, sites)
            if isinstance(arguments, ImageArguments)
            else Sounds(arguments, encoder, sites)
        )
        self.refusals = _REFUSALS[self.reader.noun]
        self._position = {"epoch": 0, "offset": 0}
        self._faults: dict[int, str | None] = {}
        self._pieces: dict[Split, list[Piece]] = {}
        self._order = lru_cache(maxsize=1)(self._ordered)

    @property
    def sites(self) -> list[str]:
        """The harvester's sites."""
        return self.harvester.sites

    @property
    def device(self) -> torch.device:
        """The model's device."""
        return self.encoder.model.device

    @property
    def n_faults(self) -> int:
        """Documents so far that could not be read, and are left out."""
        return sum(fault is not None for fault in self._faults.values())

    def pieces(self, side: Split) -> list[Piece]:
        """All pieces of one side, in the order of documents.

        Raises:
            ValueError: no document is on this side.
        """
        if side not in self._pieces:
            self._pieces[side] = [piece for d in self._documents(side) for piece in self._of(d)]
        return self._pieces[side]

    def _documents(self, side: Split) -> list[int]:
        reader = self.reader
        ids = enumerate(reader.ids)
        chosen = [i for i, id_ in ids if side_of(id_, reader.arguments) == side]
        if not chosen:
            name = "validation_fraction" if side == "validation" else "held_out_fraction"
            raise Refused(
                f"none of the {len(reader.ids)} {reader.noun} is on the {side} side at "
                f"{reader.section}.{name}={getattr(reader.arguments, name)}; change it or give "
                f"more {reader.noun}"
            )
        return chosen

    def _of(self, document: int) -> list[Piece]:
        pieces = self.reader.pieces(document)
        if not pieces:
            self._is_readable(document)  # which counts it
        return pieces

    def _is_readable(self, document: int) -> bool:
        """Whether a document decodes, found out at its first use; if not, it is counted.

        Raises:
            ValueError: too many do not.
        """
        if document not in self._faults:
            fault = self._faults[document] = self.reader.fault(document)
            if fault is not None:
                self._count_fault(self.reader.names[document], fault)
        return self._faults[document] is None

    def _count_fault(self, name: str, fault: str) -> None:
        n, noun = len(self.reader.ids), self.reader.noun
        logger.warning("%s cannot be read and is left out: %s", name, fault)
        if self.n_faults > _MOST_FAULTS * n:
            number, first = next((i, f) for i, f in self._faults.items() if f is not None)
            raise Refused(
                f"{self.n_faults} of {n} {noun} cannot be read, more than {_MOST_FAULTS:.0%}; the "
                f"first is {self.reader.names[number]} ({first}); remove or replace them"
            )

    def n_positions(self, side: Split) -> int:
        """Positions of one side that are kept, with those of documents that may not decode."""
        return sum(map(self._n_kept, self.pieces(side)))

    def _n_kept(self, piece: Piece) -> int:
        return int(self.reader.keep(piece).sum())

    def _ordered(self, side: Split, epoch: int) -> list[Piece]:
        """One side's pieces in an epoch's order. Inside blocks of many batches pieces of equal
        length come together, so that batches are full."""
        pieces = self.pieces(side)
        mixed = random.Random(f"{self.arguments.seed} {epoch}").getrandbits(63)
        generator = torch.Generator().manual_seed(mixed)
        order = [pieces[i] for i in torch.randperm(len(pieces), generator=generator).tolist()]
        step = _SORTED_BATCHES * self.harvester.args.rows
        blocks = (order[first : first + step] for first in range(0, len(order), step))
        return [piece for block in blocks for piece in sorted(block, key=lambda p: p.shape)]

    def _batches(self, side: Split, epoch: int, offset: int) -> Iterator[tuple[list[Piece], int]]:
        """Pieces that make a batch, and the place after them in the epoch's order."""
        batch: list[Piece] = []
        order = self._order(side, epoch)
        for place in range(offset, len(order)):
            piece = order[place]
            if not self._is_readable(piece.document):
                continue
            if batch and piece.shape != batch[0].shape:
                yield batch, place
                batch = []
            batch.append(piece)
            if len(batch) == self.harvester.args.rows:
                yield batch, place + 1
                batch = []
        if batch:
            yield batch, len(order)

    def fill(self, n: int, rank: int = 0, n_processes: int = 1) -> Filling:
        """Plan batches until n positions are kept; each process reads and harvests its share.

        Raises:
            ValueError: no document of the training side can be read.
        """
        planned: list[list[Piece]] = []
        capacity = 0
        while capacity < n:
            before = len(planned)
            for batch, place in self._batches("train", **self._position):
                planned.append(batch)
                self._position["offset"] = place
                capacity += sum(map(self._n_kept, batch))
                if capacity >= n:
                    break
            else:
                if len(planned) == before and not self._position["offset"]:
                    raise Refused(f"none of the training {self.reader.noun} can be read")
                self._position = {"epoch": self._position["epoch"] + 1, "offset": 0}
        n_special = sum(self.reader.keep(p).numel() for batch in planned for p in batch) - capacity
        documents: list[Tensor] = []
        parts = harvest_share(self.harvester, planned, self.read, rank, n_processes, documents)
        return Filling(capacity, n_special, self._hash_of(planned), parts, documents)

    def _hash_of(self, batches: Iterable[Sequence[Piece]]) -> str:
        """Hash of the documents' contents, and of what of them is read."""
        digest = blake2b(f"{self._settings()}".encode(), digest_size=8)
        for piece in (piece for batch in batches for piece in batch):
            digest.update(f"{self.reader.ids[piece.document]} {piece.number} ".encode())
        return digest.hexdigest()

    def _settings(self) -> dict[str, Any]:
        """The settings that change what is read of a document."""
        own = ("positions", "crops", "seed") if self.reader.section == "images" else ("seconds",)
        return {name: getattr(self.arguments, name) for name in own}

    def read(self, pieces: Sequence[Piece]) -> InputBatch:
        """The rows of some pieces, as the model's processor makes them.

        Raises:
            ValueError: a document cannot be read.
        """
        inputs = self.reader.inputs(pieces)
        keep = torch.stack([self.reader.keep(piece) for piece in pieces])
        return InputBatch(inputs, keep, torch.tensor([piece.document for piece in pieces]))

    def once(self, side: Split, n: int | None) -> Iterator[list[Piece]]:
        """The pieces of each of one side's batches, once; with n, until n positions are kept."""
        seen = 0
        for batch, _ in self._batches(side, 0, 0):
            if n is None:
                yield batch
                continue
            first = []
            for piece in batch:
                if seen < n:
                    first.append(piece)
                    seen += self._n_kept(piece)
            if first:
                yield first
            if seen >= n:
                return

    def inputs(self, side: Split, n: int | None = None) -> Iterable[InputBatch]:
        """One side's inputs, which can be read several times; with n, only as many as keep n
        positions."""
        return _Inputs(self, side, n)

    def batches(self, side: Split, n: int | None = None) -> Iterator[ActivationBatch]:
        """One side's activations, once; with n, only those of pieces that keep n positions."""
        for pieces in self.once(side, n):
            harvested = self.harvester(self.read(pieces))
            places = torch.stack([self.reader.positions(piece) for piece in pieces])
            position = places[harvested.row.cpu(), harvested.position.cpu()]
            document = harvested.document
            yield ActivationBatch(harvested.activations, document, position.to(document.device))

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
        """Hash of all documents, all sides."""
        digest = sha256(" ".join(self.reader.ids).encode()).hexdigest()
        return f"SHA-256 of {len(self.reader.ids)} {self.reader.noun} {digest}"

    def describe(self) -> dict[str, Any]:
        """All settings of the pictures or the sound and of the harvest, how many there are, and
        their hash."""
        reader = self.reader
        counts = {"n_documents": len(reader.ids), "n_unreadable": self.n_faults}
        about = {**asdict(self.arguments), "origin": reader.origin, **counts}
        about["content"] = self.content()
        return {reader.section: about, "harvest": asdict(self.harvester.args)}

    def caption(self, document: int, position: int) -> str:
        """Such as "flower.jpg, patch row 3 column 7" or "news.wav, 1.25 s"."""
        return f"{self.reader.names[document]}, {self.reader.place(position)}"

    def picture(self, document: int, position: int = 0) -> "Image":
        """As `Pictures.picture`.

        Raises:
            ValueError: the source is of sound.
        """
        return self._only(Pictures).picture(document, position)

    def patch_box(self, position: int) -> tuple[float, float, float, float]:
        """As `Pictures.patch_box`.

        Raises:
            ValueError: the source is of sound.
        """
        return self._only(Pictures).patch_box(position)

    def seconds(self, position: int) -> float:
        """When in its sound file a position begins.

        Raises:
            ValueError: the source is of pictures.
        """
        return self._only(Sounds).seconds(position)

    def _only(self, kind: type[R]) -> R:
        if isinstance(self.reader, kind):
            return self.reader
        raise Refused(f"this source is of {self.reader.noun}, not of {kind.noun}")

    def labels(self) -> dict[str, list[str | None]]:
        """By column the label of each document; no column, if there are none."""
        return self.reader.labels()


class _Inputs:
    """One side's inputs, read again each time."""

    def __init__(self, source: InputSource, side: Split, n: int | None) -> None:
        self.source, self.n = source, n
        self.side: Split = side

    def __iter__(self) -> Iterator[InputBatch]:
        return map(self.source.read, self.source.once(self.side, self.n))
