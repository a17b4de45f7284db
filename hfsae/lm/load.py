"""Load a language model or a vision model: from the Hub, a folder, a .gguf file, or a package.

Sites of vision models are module paths, as in language models: `layers.8`, `encoder.layer.8`;
`print(model)` shows them. Of a pair of towers for pictures and text (CLIP, SigLIP) the vision tower
alone is loaded, and its paths begin there: `encoder.layers.8`.
"""

import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from functools import lru_cache
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from huggingface_hub import try_to_load_from_cache
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from ..io.errors import Refused
from ..io.file_names import CONFIG
from ..io.files import one_at_a_time
from ..io.processor import refuse_absent, spare_bfloat16_
from .hooks import unwrapped
from .located import Copy, dense_weights, locate, refusal

logger = logging.getLogger(__name__)
_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
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
    options: dict[str, Any] = {"dtype": dtype}
    options |= {"attn_implementation": attn_implementation} if attn_implementation else {}
    try:
        with one_at_a_time, quick_gguf():
            tokenizer = _tokenizer(copy)
            if "gguf_file" in copy.options:  # whose config is not read a second time
                options |= {"config": config_of(copy), **dense_weights()}
            lm, origin = _frozen_model(
                AutoModelForCausalLM, "a causal language model", name, copy, device, options
            )
    except Exception as error:  # readers of damaged files raise whatever they meet
        refuse_encoder(name, copy)
        raise refusal(name, revision, copy, error) from error
    _tokenizers[lm] = tokenizer
    return LoadedLM(lm, tokenizer, origin)


def _frozen_model(
    auto: Any,
    kind: str,
    name: str,
    copy: Copy,
    device: str | torch.device | None,
    options: dict[str, Any],
) -> tuple[PreTrainedModel, str]:
    """The model of a copy, and its origin. A pooling layer without weights is left out; other
    missing weights are refused, since transformers would draw them at random, and only log it.

    Args:
        kind: the kind of model that is expected, in words.

    Raises:
        ValueError: a weight is missing.
    """
    model, info = auto.from_pretrained(
        copy.path, output_loading_info=True, **options, **copy.options
    )
    missing = sorted(info["missing_keys"])
    if missing and all(weight.startswith("pooler.") for weight in missing):
        logger.info("%s: its files have no weights of a pooling layer, which is left out", name)
        model.pooler = None
    elif missing:
        more = f" and {len(missing) - 1} more" if missing[1:] else ""
        raise Refused(
            f"its files lack {missing[0]}{more}, which would be random; is the download whole, and "
            f"is it {kind}?"
        )
    commit = note_commit_(model.config, copy)
    origin = f"{copy.origin} at {commit}" if commit else copy.origin
    logger.info("%s: %s, %s", name, origin, model.dtype)
    model.name_or_path = name  # a packaged copy is of this model, too
    if device is not None and torch.device(device).type == "cpu":
        device = "cpu"  # to "cpu:0", as accelerate names it to several processes, torch copies all
    model.to(device)
    spare_bfloat16_(model)
    return model.eval().requires_grad_(False), origin


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


# Several language models.


class LoadedLMs(dict[str, LoadedLM]):
    """Language models by the names that stand before the slash, with one vocabulary."""

    @property
    def lms(self) -> dict[str, PreTrainedModel]:
        """The models alone."""
        return {name: loaded.lm for name, loaded in self.items()}

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The first one's: all have its vocabulary."""
        return next(iter(self.values())).tokenizer

    @property
    def device(self) -> torch.device:
        """The first one's."""
        return next(iter(self.lms.values())).device


def refuse_other_vocabularies(tokenizers: Mapping[str, PreTrainedTokenizerBase]) -> None:
    """Refuse models to which the same ids are other tokens.

    Args:
        tokenizers: by the names of their models.

    Raises:
        ValueError: two tokenizers differ; the sentence has the first id that does.
    """
    tokens = {
        name: {id_: token for token, id_ in tokenizer.get_vocab().items()}
        for name, tokenizer in tokenizers.items()
    }
    for (one, ours), (other, theirs) in combinations(tokens.items(), 2):
        unlike = (i for i in sorted({*ours, *theirs}) if ours.get(i) != theirs.get(i))
        if (id_ := next(unlike, None)) is not None:
            raise Refused(
                f"the tokenizers of {one} and {other} differ: id {id_} is {_shown(ours, id_)} in "
                f"{one} and {_shown(theirs, id_)} in {other}; models that read the same tokens "
                "need the same vocabulary"
            )


def _shown(tokens: Mapping[int, str], id_: int) -> str:
    return repr(tokens[id_]) if id_ in tokens else "no token"


# Vision models.


class LoadedEncoder(NamedTuple):
    model: PreTrainedModel
    processor: Any
    """An image processor of transformers."""
    origin: str
    """The copy that was loaded, in words, as in `LoadedLM`."""


def load_encoder(
    name: str,
    *,
    revision: str | None = None,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    attn_implementation: str | None = None,
) -> LoadedEncoder:
    """A vision model, frozen and in eval mode, with its processor.

    A pooling layer that the files lack, as those of many image classifiers do, is left out: no site
    lies behind it. Pictures are processed by pillow whether or not torchvision is installed, since
    the two resize differently.

    Args:
        name: a Hub id, or a folder that `save_pretrained` wrote model and processor to.
        dtype: a torch dtype or its name, or "auto": as saved.

    Raises:
        ValueError: the model is not found, gated, or the Hub is unreachable; it reads no
            pictures; its files lack weights; there is no such device; or the processor is missing.
            The sentence names the remedy.
    """
    check_dtype(dtype)
    refuse_absent(device)
    copy = _encoder_located(name, revision)
    options = {"attn_implementation": attn_implementation} if attn_implementation else {}
    try:
        options |= {"dtype": dtype, "config": _vision_config(copy)}
        processor = _processor(copy)
        with one_at_a_time, _without_reports():
            model, origin = _frozen_model(AutoModel, "a vision model", name, copy, device, options)
    except Exception as error:  # readers of damaged files raise whatever they meet
        raise refusal(name, revision, copy, error) from error
    return LoadedEncoder(model, processor, origin)


def empty_encoder(name: str, *, revision: str | None = None) -> PreTrainedModel:
    """The model without its weights, on the meta device: what an estimate needs.

    Raises:
        ValueError: as `load_encoder`; only the config is read.
    """
    copy = _encoder_located(name, revision)
    try:
        config = _vision_config(copy)
    except Exception as error:  # as in load_encoder
        raise refusal(name, revision, copy, error) from error
    note_commit_(config, copy)
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    return model.eval()


def _encoder_located(name: str, revision: str | None) -> Copy:
    copy = locate(name, revision, "auto")
    if "gguf_file" in copy.options:
        raise Refused(f"model {name!r} is a .gguf file, which reads text; leave out lm.kind")
    return copy


def _vision_config(copy: Copy) -> PreTrainedConfig:
    config = encoder_config(config_of(copy))
    if main_input(config) != "pixel_values":
        raise Refused(
            f"it is a {config.model_type}, which reads no pictures; leave out lm.kind if it is a "
            "language model, or train on files of its activations (activations.files)"
        )
    return config


def _processor(copy: Copy) -> Any:
    folder = Path(copy.path)
    if folder.is_dir() and not any((folder / file).is_file() for file in _PROCESSOR_FILES):
        raise Refused(_NO_PROCESSOR)
    try:
        from transformers import AutoImageProcessor  # takes half a second

        return AutoImageProcessor.from_pretrained(copy.path, backend="pil", **copy.options)
    except OSError as error:
        # of a repository that has no such file; its text is about a folder of that name
        if folder.is_dir() or not str(error).startswith("Can't load"):
            raise
        raise Refused(_NO_PROCESSOR) from error


_NO_PROCESSOR = (
    "it comes without a processor (preprocessor_config.json); put the one it was trained with into "
    "a folder with the model, as with processor.save_pretrained(folder), and name that"
)


@contextmanager
def _without_reports() -> Iterator[None]:
    """Leave out transformers' table of the weights that a part of a model does not use."""

    def is_other(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    of_loading = logging.getLogger("transformers.modeling_utils")
    of_loading.addFilter(is_other)
    try:
        yield
    finally:
        of_loading.removeFilter(is_other)


# What both have in common: the config of a copy, and what is refused of it.


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
