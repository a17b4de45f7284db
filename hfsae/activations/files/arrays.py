"""Tensors that lie row by row in a file: .safetensors and .npy.

Rows are read at their place. A memory map would do the same, but its pages count as the process's
own, and the map that safetensors makes cannot be larger than the machine's memory.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ...machine.files import damaged, json_value, reading
from ...machine.refused import Damaged, Refused
from .shard import EDGE, FLOATS, INTEGERS, Header, Read, blocks, bytes_of, file_errors, size_of

_STORED = {kind: np.dtype(kind) for kind in ("float32", "float16", "bool", *INTEGERS)}
_STORED["bfloat16"] = np.dtype("int16")  # numpy has no bfloat16: the same bits
_SAFETENSORS = {"F": "float", "BF": "bfloat", "I": "int", "U": "uint", "C": "complex"}
_MAX_HEADER = 2**24  # bytes; it takes about 100 a tensor


class ArrayShard:
    """Tensors of one .safetensors file, or of a .npy file each."""

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
        return partial(_rows_of, {name: self._headers[name] for name in names})

    def values(self, name: str) -> np.ndarray:
        """All values of a tensor, flat."""
        header = self._headers[name]
        return _values(header, 0, header.n_values)

    def units(self, n_rows: int, block: int) -> Iterator[tuple[int, int]]:
        """Blocks."""
        return blocks(n_rows, block)

    def edges(self, names: Sequence[str]) -> Iterator[bytes]:
        """Of each tensor: its header, and the bytes at its start and at its end."""
        for name in names:
            path, kind, shape, offset = self._headers[name]
            yield f"{name} {path.name} {size_of(path)} {kind} {shape}".encode()
            size = math.prod(shape) * _STORED[kind].itemsize
            for start in (0, max(0, size - EDGE)):
                yield bytes_of(path, offset + start, min(EDGE, size))


def _rows_of(headers: dict[str, Header], start: int, stop: int) -> dict[str, Tensor]:
    return {name: _rows(header, start, stop) for name, header in headers.items()}


def _rows(header: Header, start: int, stop: int) -> Float[Tensor, "n d"]:
    width = header.shape[-1]
    flat = torch.from_numpy(_values(header, start * width, stop * width))
    return flat.view(FLOATS[header.kind]).view(stop - start, width)


def _values(header: Header, start: int, stop: int) -> np.ndarray:
    dtype = _STORED[header.kind]
    offset = header.offset + start * dtype.itemsize
    with file_errors(header.path):
        values = np.fromfile(header.path, dtype, stop - start, offset=offset)
    if len(values) < stop - start:
        raise Damaged(damaged(header.path, "it has become shorter"))
    return values


def safetensors_shard(path: Path) -> ArrayShard:
    """All tensors of a .safetensors file.

    Raises:
        ValueError: its header is damaged, or the file is cut off.
    """
    size = size_of(path)
    length = int.from_bytes(bytes_of(path, 0, 8), "little")
    if size < 8 or length > min(size - 8, _MAX_HEADER):
        raise Damaged(damaged(path, f"its {size:,} bytes do not begin with a safetensors header"))
    with reading(path):
        entries = json_value(bytes_of(path, 8, length))
        metadata = {k: str(v) for k, v in entries.pop("__metadata__", {}).items()}
        headers = {name: _entry(path, name, 8 + length, one) for name, one in entries.items()}
        end = max((int(one["data_offsets"][1]) for one in entries.values()), default=0)
    if 8 + length + end > size:
        raise Damaged(damaged(path, f"cut off: it has {size:,} of {8 + length + end:,} bytes"))
    return ArrayShard(path, headers, metadata)


def _entry(path: Path, name: str, first: int, entry: dict[str, Any]) -> Header:
    letters, bits = re.fullmatch(r"([A-Z]*)(.*)", entry["dtype"]).groups()  # pyright: ignore
    kind = "bool" if letters == "BOOL" else f"{_SAFETENSORS.get(letters, letters)}{bits.lower()}"
    shape, (start, stop) = tuple(map(int, entry["shape"])), map(int, entry["data_offsets"])
    is_whole = kind not in _STORED or stop - start == math.prod(shape) * _STORED[kind].itemsize
    if not is_whole or min(start, *shape, 0) < 0:
        raise Refused(f"{name!r} has {stop - start:,} bytes for {list(shape)}")
    return Header(path, kind, shape, first + start)


def numpy_header(path: Path) -> Header:
    """What a .npy file says of its array.

    Raises:
        ValueError: it is cut off, holds objects, or does not lie row by row.
    """
    size = size_of(path)
    with file_errors(path), path.open("rb") as file, reading(path):
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
    _refuse_layout(path, dtype, is_fortran and sum(n > 1 for n in shape) > 1)
    end = offset + math.prod(shape) * dtype.itemsize
    if end > size:
        raise Damaged(damaged(path, f"cut off: it has {size:,} of {end:,} bytes"))
    return Header(path, dtype.name, shape, offset)


def _refuse_layout(path: Path, dtype: np.dtype, is_by_columns: bool) -> None:
    """Check that a .npy file holds plain values, row by row."""
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
    if is_by_columns:
        raise Refused(
            f"{path} lies column by column; save it row by row: "
            f'`numpy.save("{path}", numpy.ascontiguousarray({array}))`'
        )
    if not dtype.isnative:
        raise Refused(
            f"{path} has the byte order of another processor; convert it: "
            f'`numpy.save("{path}", {array}.astype("{dtype.name}"))`'
        )
