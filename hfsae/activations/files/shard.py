"""A shard: what it holds, from its header alone, and rows of it at any place."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ...machine.files import unreadable
from ...machine.refused import Refused

FLOATS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
"""The kinds of numbers that activations can be, and torch's dtype of each."""
INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32")
TEXT = "text"
EDGE = 2**20
"""Bytes at each end of a file or tensor that `Shard.edges` gives."""

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


@runtime_checkable  # types are checked in tests
class Shard(Protocol):
    """Tensors or columns with the same rows: one file, or .npy files side by side."""

    path: Path
    """The file that sentences and captions name."""

    @property
    def metadata(self) -> Mapping[str, str]:
        """What its writer noted; `hfsae.recipe.harvesting` notes "side" and "order"."""
        ...

    @property
    def names(self) -> list[str]:
        """The tensors or columns in it."""
        ...

    def header(self, name: str) -> Header:
        """What the file says of one of them."""
        ...

    def reader(self, names: Sequence[str]) -> Read:
        """A function that reads rows of these tensors."""
        ...

    def values(self, name: str) -> np.ndarray:
        """All values of a tensor that holds no vectors, flat; texts are an array of objects."""
        ...

    def units(self, n_rows: int, block: int) -> Iterator[tuple[int, int]]:
        """Ranges of rows that can be read in any order; inside one, rows are read forward."""
        ...

    def edges(self, names: Sequence[str]) -> Iterator[bytes]:
        """For a hash: headers, and bytes at the start and at the end."""
        ...


@contextmanager
def file_errors(path: Path) -> Iterator[None]:
    """Around code that opens a file: the system's errors become sentences that name it."""
    try:
        yield
    except OSError as error:
        raise Refused(unreadable(path, error)) from error


def blocks(n_rows: int, block: int) -> Iterator[tuple[int, int]]:
    """Ranges of so many rows each, the last of what is left."""
    for start in range(0, n_rows, block):
        yield start, min(start + block, n_rows)


def is_like_documents(name: str) -> bool:
    """Whether a tensor's or column's name may mean the documents of rows."""
    return name.casefold().startswith("doc")


def size_of(path: Path) -> int:
    """A file's bytes."""
    with file_errors(path):
        return path.stat().st_size


def bytes_of(path: Path, start: int, n: int) -> bytes:
    """n bytes of a file, or as many as there are."""
    with file_errors(path), path.open("rb") as file:
        file.seek(start)
        return file.read(n)
