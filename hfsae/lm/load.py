"""Load a causal language model: from the Hub, a folder, a .gguf file, or a Python package."""

import logging
import os
import re
from collections.abc import Sequence
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple
from weakref import WeakKeyDictionary

import torch
from huggingface_hub import HfApi, is_offline_mode, try_to_load_from_cache
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
)
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from ..machine.client import HTTPError, hub_reason
from ..machine.loading import one_at_a_time
from ..machine.names import CONFIG, WEIGHTS, WEIGHTS_INDEX
from ..machine.processor import refuse_absent, spare_bfloat16_
from ..machine.refused import HubRefused, Refused, closest, one_line
from ..packaged import PACKAGED_LMS, packaged_lm, require_gguf_reader, require_packaged_lm
from .sites import unwrapped
from .unpacking import dense_weights, unpacked

logger = logging.getLogger(__name__)
_tokenizers: WeakKeyDictionary[nn.Module, PreTrainedTokenizerBase] = WeakKeyDictionary()


class LoadedLM(NamedTuple):
    lm: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    origin: str
    """The copy that was loaded, in words: Hub and commit, Python package and version, or folder."""


class _Copy(NamedTuple):
    path: str
    options: dict[str, Any]
    origin: str


def load_lm(
    name: str,
    *,
    revision: str | None = None,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    attn_implementation: str | None = None,
    source: Literal["auto", "hub", "packaged"] = "auto",
) -> LoadedLM:
    """A causal language model, frozen and in eval mode, with its tokenizer.

    Args:
        name: a Hub id, a folder that `save_pretrained` wrote model and tokenizer to, or a .gguf
            file or a folder with one.
        dtype: a torch dtype or its name, or "auto": as saved (a .gguf file: float32).
        source: "auto" takes the Hub's copy, fresh or cached; if neither is available and no
            revision is given, the packaged one, if it exists.

    Raises:
        ValueError: the model is not found, gated, or the Hub is unreachable; there is no such
            device; or a package or the tokenizer is missing. The sentence names the remedy.
    """
    is_dtype = dtype == "auto" or isinstance(dtype, torch.dtype)
    if not is_dtype and not isinstance(getattr(torch, str(dtype), None), torch.dtype):
        raise Refused(f"dtype {dtype!r} does not exist; choose 'auto', 'float32' or 'bfloat16'")
    refuse_absent(device)
    copy = _locate(name, revision, source)
    attention = {"attn_implementation": attn_implementation} if attn_implementation else {}
    try:
        tokenizer = _tokenizer(copy)
        with one_at_a_time:
            lm, info = AutoModelForCausalLM.from_pretrained(  # pyright: ignore[reportGeneralTypeIssues]
                copy.path,
                dtype=dtype,
                output_loading_info=True,
                **attention,
                **copy.options,
                **_of_gguf(copy),
            )
        _refuse_random_weights(sorted(info["missing_keys"]))
    except Exception as error:  # readers of damaged files raise whatever they meet
        raise _refusal(name, revision, copy, error) from error
    commit = getattr(lm.config, "_commit_hash", None)
    origin = f"{copy.origin} at {commit}" if commit else copy.origin
    logger.info("%s: %s, %s", name, origin, lm.dtype)
    lm.name_or_path = name  # a packaged copy is of this model, too
    lm.to(device)  # pyright: ignore[reportArgumentType] - transformers' wrapper hides the types
    spare_bfloat16_(lm)
    _tokenizers[lm] = tokenizer
    return LoadedLM(lm.eval().requires_grad_(False), tokenizer, origin)


def tokenizer_of(lm: nn.Module) -> PreTrainedTokenizerBase:
    """The tokenizer that `load_lm` loaded with a model.

    Raises:
        ValueError: the model was loaded by other means.
    """
    tokenizer = known_tokenizer(lm)
    if tokenizer is None:
        raise Refused(
            "text needs a tokenizer, and this model was not loaded by hfsae.load_lm; give "
            "tokenizer=, or token ids in place of text"
        )
    return tokenizer


def known_tokenizer(lm: nn.Module) -> PreTrainedTokenizerBase | None:
    """The tokenizer that `load_lm` loaded with a model; None if the model came by other means."""
    return _tokenizers.get(unwrapped(lm))


def load_tokenizer(
    name: str, *, source: Literal["auto", "hub", "packaged"] = "auto"
) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, without the model.

    Raises:
        ValueError: as `load_lm`.
    """
    copy = _locate(name, None, source)
    try:
        return _tokenizer(copy)
    except Exception as error:  # as in load_lm
        raise _refusal(name, None, copy, error) from error


def empty_lm(
    name: str,
    *,
    revision: str | None = None,
    source: Literal["auto", "hub", "packaged"] = "auto",
) -> PreTrainedModel:
    """The model without its weights, on the meta device: what an estimate needs.

    Raises:
        ValueError: as `load_lm`; only the config is read.
    """
    copy = _locate(name, revision, source)
    try:
        config = _config(copy)
    except Exception as error:  # as in load_lm
        raise _refusal(name, revision, copy, error) from error
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise Refused(f"model {name!r} is a {config.model_type}, not a causal language model")
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config).eval()


def _config(copy: _Copy) -> PreTrainedConfig:
    if "gguf_file" not in copy.options:
        return AutoConfig.from_pretrained(copy.path, **copy.options)
    file = Path(copy.path) / copy.options["gguf_file"]
    return deepcopy(_gguf_config(file, file.stat().st_mtime_ns))


@lru_cache(maxsize=4)  # a read takes seconds: the file's head holds the whole vocabulary
def _gguf_config(file: Path, changed: int) -> PreTrainedConfig:
    return AutoConfig.from_pretrained(file.parent, gguf_file=file.name)


def _refuse_random_weights(missing: Sequence[str]) -> None:
    """Refuse missing weights: transformers would initialise them at random, and only log it."""
    if missing:
        more = f" and {len(missing) - 1} more" if missing[1:] else ""
        raise Refused(
            f"its files lack {missing[0]}{more}, which would be random; is the download whole, and "
            "is it a causal language model?"
        )


def _tokenizer(copy: _Copy) -> PreTrainedTokenizerBase:
    """The tokenizer beside a model. Where there is none, transformers fails in three lines or makes
    one of special tokens alone, to which any text is empty."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(copy.path, **copy.options)
    except ValueError as error:
        files = ("tokenizer.*", "*vocab*", "*.model", "*.tiktoken", "tekken.json", "*.gguf", "*.py")
        folder = Path(copy.path)
        if not folder.is_dir() or any(any(folder.glob(pattern)) for pattern in files):
            raise
        raise Refused(_NO_TOKENIZER) from error
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise Refused(_NO_TOKENIZER)
    return tokenizer


_NO_TOKENIZER = (
    "it comes without a tokenizer; save the one it was trained with to its folder, as with "
    "tokenizer.save_pretrained(folder)"
)


def _of_gguf(copy: _Copy) -> dict[str, Any]:
    """Further options for a GGUF file: its config, which is not read a second time, and always
    dequantised weights, since packed kernels give other numbers."""
    if "gguf_file" not in copy.options:
        return {}
    return {"config": _config(copy), **dense_weights()}


def _locate(name: str, revision: str | None, source: str) -> _Copy:
    path = os.path.expanduser(name)
    if os.path.isdir(path):
        return _in_folder(name, Path(path))
    if os.path.isfile(path):
        if not name.endswith(".gguf"):
            raise Refused(f"model {name!r} is a file; name its folder, or a .gguf file")
        return _gguf_copy(Path(path))
    if _is_path(name):
        raise Refused(f"model {name!r} is a local path, but {_missing(name)}")
    if source == "packaged":
        return _packaged_copy(name, revision)
    online = not is_offline_mode() and _hub_answers(name, revision)
    fallback = source == "auto" and revision is None and packaged_lm(name) is not None
    if fallback and not online and not _is_cached(name):
        return _packaged_copy(name, revision)
    # local_files_only: an unreachable Hub would be retried for half a minute
    return _Copy(name, {"revision": revision, "local_files_only": not online}, "Hugging Face Hub")


def _in_folder(name: str, folder: Path) -> _Copy:
    if (folder / CONFIG).is_file():
        return _Copy(str(folder), {}, f"folder {name}")
    files = sorted(folder.glob("*.gguf"))
    if not files:
        raise Refused(
            f"the folder {name!r} holds no model: it has no config.json and no .gguf file"
        )
    if len(files) > 1:
        shown = ", ".join(file.name for file in files[:5]) + (", ..." if files[5:] else "")
        raise Refused(
            f"the folder {name!r} holds {len(files)} .gguf files ({shown}); name one of them, such "
            f"as {str(Path(name, files[0].name))!r}"
        )
    return _gguf_copy(files[0])


def _gguf_copy(file: Path) -> _Copy:
    if re.search(r"-\d+-of-\d+\.gguf$", file.name):
        raise Refused(
            f"{str(file)!r} is one part of a model, whose other weights would be random; merge the "
            "parts into one file: `llama-gguf-split --merge`"
        )
    require_gguf_reader(repr(str(file)))
    return _Copy(str(file.parent), {"gguf_file": file.name}, f"folder {file.parent}, {file.name}")


def _is_path(name: str) -> bool:
    """Whether a name can only be meant as a path: a Hub id is 'owner/model' or 'model'."""
    begins = name.startswith((".", "~", "/", os.sep))
    return begins or name.count("/") > 1 or name.endswith(("/", ".gguf"))


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


def _packaged_copy(name: str, revision: str | None) -> _Copy:
    if revision is not None:
        raise Refused(
            f"the packaged copy of {name!r} has no revisions: leave out revision={revision!r}"
        )
    copy = require_packaged_lm(name)
    if copy.sha256 is not None:
        return _Copy(str(unpacked(name, copy)), {}, copy.origin)
    (file,) = copy.paths
    return _Copy(str(file.parent), {"gguf_file": file.name}, copy.origin)


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


def _is_cached(name: str) -> bool:
    weights = (WEIGHTS, WEIGHTS_INDEX)
    return any(isinstance(try_to_load_from_cache(name, file), str) for file in weights)


def _refusal(name: str, revision: str | None, copy: _Copy, error: Exception) -> Refused:
    """One sentence for transformers' error, whose text has several lines and at times misleads."""
    is_local = os.path.exists(copy.path)
    reason = None if is_local else hub_reason(error, name, revision)
    if reason is None:
        return Refused(f"model {name!r} cannot be loaded: {_in_brief(error)}")
    if name in PACKAGED_LMS:
        reason += f"; a packaged copy comes with `{PACKAGED_LMS[name].install_command}`"
    if name.count("/") == 1 and os.path.isdir(os.path.dirname(name)):
        reason += f"; if a local path is meant, {_missing(name)}"
    return HubRefused(f"model {name!r} (not a local folder) cannot be loaded: {reason}")


def _in_brief(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    # a first line that ends in a colon needs the list below it
    text = one_line(error) if lines[0].rstrip().endswith(":") else lines[0]
    is_clear = isinstance(error, ImportError | OSError | ValueError | SafetensorError)
    return text if is_clear else f"{type(error).__name__}: {text}"
