"""Load a causal language model: from the Hub, a folder, a .gguf file, or a Python package."""

import logging
from pathlib import Path
from typing import Any, Literal, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from ..io.errors import Refused
from ..io.lock import one_at_a_time
from ..io.processor import refuse_absent, spare_bfloat16_
from .copies import (
    check_dtype,
    config_of,
    note_commit_,
    quick_gguf,
    refuse_encoder,
    refuse_random_weights,
)
from .located import Copy, locate, refusal
from .sites import unwrapped
from .unpacking import dense_weights

logger = logging.getLogger(__name__)
_tokenizers: WeakKeyDictionary[nn.Module, PreTrainedTokenizerBase] = WeakKeyDictionary()


class LoadedLM(NamedTuple):
    lm: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    origin: str
    """The copy that was loaded, in words: Hub and commit, Python package and version, or folder."""


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
    check_dtype(dtype)
    refuse_absent(device)
    copy = locate(name, revision, source)
    attention = {"attn_implementation": attn_implementation} if attn_implementation else {}
    try:
        with one_at_a_time, quick_gguf():
            tokenizer = _tokenizer(copy)
            lm, info = AutoModelForCausalLM.from_pretrained(  # pyright: ignore[reportGeneralTypeIssues]
                copy.path,
                dtype=dtype,
                output_loading_info=True,
                **attention,
                **copy.options,
                **_of_gguf(copy),
            )
        refuse_random_weights(sorted(info["missing_keys"]), "a causal language model")
    except Exception as error:  # readers of damaged files raise whatever they meet
        refuse_encoder(name, copy)
        raise refusal(name, revision, copy, error) from error
    commit = note_commit_(lm.config, copy)
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
    name: str,
    *,
    revision: str | None = None,
    source: Literal["auto", "hub", "packaged"] = "auto",
) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, without the model.

    Raises:
        ValueError: as `load_lm`.
    """
    copy = locate(name, revision, source)
    try:
        with quick_gguf():
            return _tokenizer(copy)
    except Exception as error:  # as in load_lm
        refuse_encoder(name, copy)
        raise refusal(name, revision, copy, error) from error


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
    copy = locate(name, revision, source)
    try:
        config = config_of(copy)
    except Exception as error:  # as in load_lm
        raise refusal(name, revision, copy, error) from error
    if type(config) not in AutoModelForCausalLM._model_mapping:
        refuse_encoder(name, copy)
        raise Refused(f"model {name!r} is a {config.model_type}, not a causal language model")
    note_commit_(config, copy)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config).eval()


def _tokenizer(copy: Copy) -> PreTrainedTokenizerBase:
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


def _of_gguf(copy: Copy) -> dict[str, Any]:
    """Further options for a GGUF file: its config, which is not read a second time, and always
    dequantised weights, since packed kernels give other numbers."""
    if "gguf_file" not in copy.options:
        return {}
    return {"config": config_of(copy), **dense_weights()}
