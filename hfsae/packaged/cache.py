"""Folders that are made once of what lies in packages, and then read in seconds."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from huggingface_hub.constants import HF_HOME

from ..machine.checksums import file_hash
from ..machine.files import write_whole
from ..machine.lock import locked
from ..machine.names import WEIGHTS

_HASH = "weights.sha256"  # written last: a folder that has it is whole


def made_once(name: str, make: Callable[[Path], None]) -> Path:
    """The folder of a model in the cache of Hugging Face's libraries (HF_HOME), under "hfsae"; made
    if it is missing or its weights are not those that were saved.

    Args:
        name: of the model, as on the Hub.
        make: writes the model's files into an empty folder, weights as model.safetensors.

    Raises:
        ValueError: the cache cannot be written to, or what `make` raises: nothing is left then.
    """
    folder = Path(HF_HOME) / "hfsae" / name.replace("/", "--")
    with locked(folder, wait=True):
        if not _is_whole(folder):
            with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
                make(Path(temporary))
                for file in Path(temporary).iterdir():
                    shutil.move(file, folder / file.name)
            write_whole(folder / _HASH, file_hash(folder / WEIGHTS) + "\n")
    return folder


def _is_whole(folder: Path) -> bool:
    weights, recorded = folder / WEIGHTS, folder / _HASH
    if not (weights.is_file() and recorded.is_file()):
        return False
    return file_hash(weights) == recorded.read_text(encoding="utf-8").strip()
