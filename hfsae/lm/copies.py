"""The config of a model's copy, and what is refused of it.

What language models and encoders have in common when they are loaded: the place, the config, what
is refused, and the one sentence for an error of transformers.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import try_to_load_from_cache
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
)

from ..io.errors import Refused
from ..io.file_names import CONFIG
from .located import Copy


def check_dtype(dtype: str | torch.dtype) -> None:
    """Refuse what is neither "auto" nor a dtype of torch or the name of one.

    Raises:
        ValueError: there is no such dtype.
    """
    is_dtype = dtype == "auto" or isinstance(dtype, torch.dtype)
    if not is_dtype and not isinstance(getattr(torch, str(dtype), None), torch.dtype):
        raise Refused(f"dtype {dtype!r} does not exist; choose 'auto', 'float32' or 'bfloat16'")


def config_of(copy: Copy) -> PreTrainedConfig:
    """The model's config; a .gguf file's is read once."""
    if "gguf_file" not in copy.options:
        return AutoConfig.from_pretrained(copy.path, **copy.options)
    file = Path(copy.path) / copy.options["gguf_file"]
    return deepcopy(_gguf_config(file, file.stat().st_mtime_ns))


@lru_cache(maxsize=4)  # the file's head holds the whole vocabulary
def _gguf_config(file: Path, changed: int) -> PreTrainedConfig:
    with quick_gguf():
        return AutoConfig.from_pretrained(file.parent, gguf_file=file.name)


@contextmanager
def quick_gguf() -> Iterator[None]:
    """A block in which transformers reads the head of a .gguf file in a fifth of the time: its
    reader takes each text of a vocabulary out of a `numpy.memmap`, which is slow at that."""
    try:
        import gguf
    except ModuleNotFoundError:  # then there is none to read
        yield
        return
    usual = gguf.GGUFReader

    class Reader(usual):
        @property
        def data(self) -> np.ndarray:
            return self._plain

        @data.setter
        def data(self, mapped: np.ndarray) -> None:
            self._plain = np.asarray(mapped)  # the same bytes, still mapped

    gguf.GGUFReader = Reader
    try:
        yield
    finally:
        gguf.GGUFReader = usual


def note_commit_(config: PreTrainedConfig, copy: Copy) -> str | None:
    """The commit of a Hub's copy, noted in its config, where later versions of transformers leave
    it out; None of any other copy."""
    commit = getattr(config, "_commit_hash", None)
    if commit is None and not os.path.exists(copy.path):
        cached = try_to_load_from_cache(copy.path, CONFIG, revision=copy.options.get("revision"))
        folder = Path(cached).parent.name if isinstance(cached, str) else ""
        commit = folder if re.fullmatch(r"[0-9a-f]{40}", folder) else None
    config._commit_hash = commit
    return commit


def encoder_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The config of the model that reads pictures: of a pair of towers, such as CLIP's, that of the
    vision tower; else the config itself."""
    vision = getattr(config, "vision_config", None)
    is_lm = any(
        type(config) in auto._model_mapping
        for auto in (AutoModelForCausalLM, AutoModelForImageTextToText)
    )
    has_tower = not is_lm and type(vision) in AutoModel._model_mapping
    return vision if has_tower and isinstance(vision, PreTrainedConfig) else config


def main_input(config: PreTrainedConfig) -> str:
    """The name of what the model of a config reads, such as "pixel_values"; "" if transformers has
    no such model."""
    if type(config) not in AutoModel._model_mapping:
        return ""
    models: Any = AutoModel._model_mapping[type(config)]  # one class, or several
    return (models[0] if isinstance(models, tuple) else models).main_input_name


def refuse_encoder(name: str, copy: Copy) -> None:
    """Refuse a model of pictures, sound or another input where a language model is needed.

    Raises:
        ValueError: it reads no text.
    """
    try:
        config = encoder_config(config_of(copy))
        reads = main_input(config)
    except Exception:  # what is wrong with the config is said by whoever reads it in earnest
        return
    remedies = {"pixel_values": "set lm.kind to 'auto' and name its pictures under images"}
    for sound in ("input_features", "input_values"):
        remedies[sound] = "train on files of its activations (activations.files)"
    remedy = remedies.get(reads)
    if remedy is None or type(config) in AutoModelForCausalLM._model_mapping:
        return
    raise Refused(f"model {name!r} is a {config.model_type}, which reads no text; {remedy}")


def refuse_random_weights(missing: Sequence[str], kind: str) -> None:
    """Refuse missing weights: transformers would initialise them at random, and only log it.

    Args:
        kind: the kind of model that is expected, in words.

    Raises:
        ValueError: a weight is missing.
    """
    if missing:
        more = f" and {len(missing) - 1} more" if missing[1:] else ""
        raise Refused(
            f"its files lack {missing[0]}{more}, which would be random; is the download whole, and "
            f"is it {kind}?"
        )
