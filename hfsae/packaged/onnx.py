"""The arrays and the nodes of an ONNX file, read without the onnx package.

An ONNX file is one protobuf message (onnx/onnx.proto): fields one after the other, each with its
number and its length. Of some two hundred fields a dozen are read here, the rest is passed over.
"""

from collections import defaultdict
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..machine.files import reading
from ..machine.refused import Refused

_Value = int | memoryview
_GRAPH = 7  # of a model
_NODE, _INITIALIZER = 1, 5  # of a graph
_INPUT, _OUTPUT, _NODE_NAME, _OPERATION = 1, 2, 3, 4  # of a node
_DIMS, _TYPE, _FLOATS, _INT32S, _INT64S, _NAME, _RAW = 1, 2, 4, 5, 7, 8, 9  # of an array
_ELSEWHERE = 14  # of an array: whether its values lie in another file
_DTYPES = {1: ("<f4", _FLOATS), 7: ("<i8", _INT64S), 10: ("<f2", _INT32S)}
"""By the number of a type: its values in `raw_data`, and the field that may have them instead."""


class OnnxNode(NamedTuple):
    """One operation of a graph."""

    name: str
    operation: str
    """such as MatMul"""
    inputs: list[str]
    """names of arrays and of other nodes' outputs; empty where an optional one is left out"""
    outputs: list[str]


class OnnxFile(NamedTuple):
    """What is read of an ONNX file."""

    arrays: dict[str, np.ndarray]
    """its initialisers, float32, float16 or int64, by name; they cannot be written to"""
    nodes: list[OnnxNode]
    """in the order of their computation"""


def read_onnx(path: Path) -> OnnxFile:
    """The arrays and the nodes of an ONNX file's graph.

        >>> from hfsae.packaged import PACKAGED_ENCODERS, read_onnx
        >>> file = read_onnx(PACKAGED_ENCODERS["facebook/dinov2-small"].path)
        >>> file.arrays["backbone.encoder.layer.0.norm1.weight"].shape
        (384,)

    Raises:
        ValueError: the file is truncated, damaged or no ONNX file, or an array is of another type
            or lies in another file.
    """
    with reading(path):
        graphs = _fields(memoryview(path.read_bytes()))[_GRAPH]
        if not graphs:
            raise Refused("it has no graph, as an ONNX file has")
        fields = [_fields(graph) for graph in graphs]
        arrays = (_array(value) for graph in fields for value in graph[_INITIALIZER])
        return OnnxFile(dict(arrays), [_node(value) for graph in fields for value in graph[_NODE]])


def _node(message: _Value) -> OnnxNode:
    fields = _fields(message)
    name, operation = (_text(fields[number]) for number in (_NODE_NAME, _OPERATION))
    inputs, outputs = ([_text([v]) for v in fields[number]] for number in (_INPUT, _OUTPUT))
    return OnnxNode(name, operation, inputs, outputs)


def _array(message: _Value) -> tuple[str, np.ndarray]:
    fields = _fields(message)
    name, shape = _text(fields[_NAME]), _integers(fields[_DIMS])
    kind = fields[_TYPE][-1] if fields[_TYPE] else 0
    if kind not in _DTYPES:
        raise Refused(f"the array {name!r} has type {kind}; float32, float16 and int64 are read")
    if any(fields[_ELSEWHERE]):
        raise Refused(f"the values of the array {name!r} lie in another file, which is not read")
    dtype, field = _DTYPES[kind]
    if fields[_RAW] or field == _FLOATS:
        values = np.frombuffer(_joined(fields[_RAW] or fields[field]), dtype)
    elif field == _INT64S:
        values = np.array(_integers(fields[field]), dtype)
    else:  # the bits of float16, as whole numbers
        values = np.array(_integers(fields[field]), "<u2").view(dtype)
    if values.size != prod(shape) or min(shape, default=0) < 0:
        raise Refused(f"the array {name!r} has {values.size} values and the shape {shape}")
    return name, values.reshape(shape)


def _fields(message: _Value) -> defaultdict[int, list[_Value]]:
    """The values of a message, by the number of the field, in their order."""
    if isinstance(message, int):
        raise Refused("a number, where a message must be")
    fields, at = defaultdict[int, list[_Value]](list), 0
    while at < len(message):
        key, at = _varint(message, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(message, at)
            fields[number].append(value)
            continue
        if wire not in (1, 2, 5):
            raise Refused(f"a field of kind {wire}, which ONNX files do not have")
        length, at = _varint(message, at) if wire == 2 else ({1: 8, 5: 4}[wire], at)
        if length > len(message) - at:
            raise Refused(f"it ends {length - len(message) + at:,} bytes too early")
        fields[number].append(message[at : at + length])
        at += length
    return fields


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A whole number, seven bits a byte, and the place behind it."""
    value = 0
    for i, byte in enumerate(message[at : at + 10]):
        value |= (byte & 127) << (7 * i)
        if byte < 128:
            return value, at + i + 1
    raise Refused("a number without an end")


def _integers(values: list[_Value]) -> list[int]:
    """Signed 64-bit numbers, one a field or many in one ("packed")."""
    return [n - 2**64 if n >= 2**63 else n for value in values for n in _unpacked(value)]


def _unpacked(value: _Value) -> Iterator[int]:
    if isinstance(value, int):
        yield value
        return
    at = 0
    while at < len(value):
        number, at = _varint(value, at)
        yield number


def _text(values: list[_Value]) -> str:
    return _joined(values[-1:]).decode("utf-8")


def _joined(values: list[_Value]) -> bytes:
    if any(isinstance(value, int) for value in values):
        raise Refused("a number, where bytes must be")
    return b"".join(value for value in values if not isinstance(value, int))
