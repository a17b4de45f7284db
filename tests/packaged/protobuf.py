"""An ONNX file byte by byte, as onnx/onnx.proto has it; written without the onnx package."""

from collections.abc import Mapping, Sequence

import numpy as np


def varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first; a negative number as that plus 2^64."""
    number %= 2**64
    pieces = []
    while number > 127:
        pieces.append(number % 128 + 128)
        number //= 128
    return bytes([*pieces, number])


def field(number: int, content: int | bytes) -> bytes:
    """A field of a message: a whole number, or bytes with their length before them."""
    if isinstance(content, int):
        return varint(8 * number) + varint(content)
    return varint(8 * number + 2) + varint(len(content)) + content


def array(name: str, shape: Sequence[int], kind: int, *values: bytes) -> bytes:
    """An initialiser of a graph, with its values in fields of their own."""
    dims = b"".join(field(1, size) for size in shape)
    return field(5, dims + field(2, kind) + b"".join(values) + field(8, name.encode()))


def node(name: str, operation: str, inputs: Sequence[str], outputs: Sequence[str]) -> bytes:
    """A node of a graph."""
    ends = [field(1, text.encode()) for text in inputs]
    ends += [field(2, text.encode()) for text in outputs]
    return field(1, b"".join(ends) + field(3, name.encode()) + field(4, operation.encode()))


def output(name: str) -> bytes:
    """A further output of a graph."""
    return field(12, field(1, name.encode()))


def model(*parts: bytes) -> bytes:
    """A whole file, of the parts of its graph; behind another one it adds to that one's graph."""
    return field(1, 7) + field(2, b"hfsae") + field(7, field(2, b"a graph") + b"".join(parts))


def float_arrays(arrays: Mapping[str, np.ndarray]) -> list[bytes]:
    """Initialisers in float32."""
    raw = {name: field(9, values.astype("<f4").tobytes()) for name, values in arrays.items()}
    return [array(name, values.shape, 1, raw[name]) for name, values in arrays.items()]
