"""Batches of inputs that are no text, and what their reader has to offer.

    pictures or sound --Reader--> InputBatch --Harvester--> activations of kept positions

`InputSource` puts the two together.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from jaxtyping import Bool, Int64
from torch import Tensor

from .arguments import Shares
from .tokens import TokenBatch


class InputBatch(NamedTuple):
    """Rows of inputs, each a picture, a crop of one, or a piece of sound."""

    inputs: dict[str, Tensor]
    """By the name of the model's argument, such as pixel_values [rows, 3, height, width]."""
    keep: Bool[Tensor, "rows ctx"]
    """Positions whose activations are used."""
    document: Int64[Tensor, " rows"]
    """The number of each row's picture or sound file among all of the source."""


Batch = TokenBatch | InputBatch


def inputs_of(batch: Batch) -> dict[str, Tensor]:
    """What `hfsae.lm.forward` takes: a batch's tensors by the names of the model's arguments."""
    return {"input_ids": batch.input_ids} if isinstance(batch, TokenBatch) else batch.inputs


class Piece(NamedTuple):
    """A document, or a part of it that the model reads at once."""

    document: int
    number: int
    """Of the crop, or of the part in time; counted from 0."""
    shape: int
    """Pieces of one batch agree in it."""


class Reader(Protocol):
    """Documents that are no text, and how a model reads them."""

    section: str
    """of the recipe: "images" or "audio" """
    noun: str
    """documents in words, such as "pictures" """
    origin: str
    """where they come from, in words"""
    names: list[str]
    """of the documents, for people"""
    ids: list[str]
    """of the documents: 16 hexadecimal digits of a hash of the content"""

    @property
    def arguments(self) -> Shares:
        """The recipe's section."""
        ...

    def pieces(self, document: int) -> list[Piece]:
        """What the model reads of a document; nothing, if it holds nothing."""
        ...

    def fault(self, document: int) -> str | None:
        """Why a document cannot be read; None if it can."""
        ...

    def inputs(self, pieces: Sequence[Piece]) -> dict[str, Tensor]:
        """A row for each piece, by the name of the model's argument."""
        ...

    def keep(self, piece: Piece) -> Bool[Tensor, " ctx"]:
        """Which of the model's positions are used."""
        ...

    def positions(self, piece: Piece) -> Int64[Tensor, " ctx"]:
        """`ActivationBatch.position` for each of the model's positions."""
        ...

    def place(self, position: int) -> str:
        """A position in words."""
        ...

    def labels(self) -> dict[str, list[str | None]]:
        """By column the label of each document; no column, if there are none."""
        ...
