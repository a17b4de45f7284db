"""Vision models: load one with its processor, and run it on pictures.

Sites are module paths, as in language models: `layers.8`, `encoder.layer.8`; `print(model)` shows
them. Of a pair of towers for pictures and text (CLIP, SigLIP) the vision tower alone is loaded, and
its paths begin there: `encoder.layers.8`.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    PreTrainedConfig,
    PreTrainedModel,
)

from ..io.errors import Refused, one_line
from ..io.lock import one_at_a_time
from ..io.processor import refuse_absent, spare_bfloat16_
from .copies import (
    check_dtype,
    config_of,
    encoder_config,
    main_input,
    note_commit_,
    refuse_random_weights,
)
from .hooks import capture
from .located import Copy, locate, refusal
from .sites import unwrapped

logger = logging.getLogger(__name__)
_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")


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
    copy = _located(name, revision)
    attention = {"attn_implementation": attn_implementation} if attn_implementation else {}
    try:
        config = _config(copy)
        processor = _processor(copy)
        with one_at_a_time, _without_reports():
            model, info = AutoModel.from_pretrained(
                copy.path,
                config=config,
                dtype=dtype,
                output_loading_info=True,
                **attention,
                **copy.options,
            )
        missing = sorted(info["missing_keys"])
        if missing and all(weight.startswith("pooler.") for weight in missing):
            logger.info("%s: its files have no weights of a pooling layer, which is left out", name)
            model.pooler, missing = None, []
        refuse_random_weights(missing, "a vision model")
    except Exception as error:  # readers of damaged files raise whatever they meet
        raise refusal(name, revision, copy, error) from error
    commit = note_commit_(model.config, copy)
    origin = f"{copy.origin} at {commit}" if commit else copy.origin
    logger.info("%s: %s, %s", name, origin, model.dtype)
    model.name_or_path = name
    model.to(device)
    spare_bfloat16_(model)
    return LoadedEncoder(model.eval().requires_grad_(False), processor, origin)


def empty_encoder(name: str, *, revision: str | None = None) -> PreTrainedModel:
    """The model without its weights, on the meta device: what an estimate needs.

    Raises:
        ValueError: as `load_encoder`; only the config is read.
    """
    copy = _located(name, revision)
    try:
        config = _config(copy)
    except Exception as error:  # as in load_encoder
        raise refusal(name, revision, copy, error) from error
    note_commit_(config, copy)
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    return model.eval()


def _located(name: str, revision: str | None) -> Copy:
    copy = locate(name, revision, "auto")
    if "gguf_file" in copy.options:
        raise Refused(f"model {name!r} is a .gguf file, which reads text; leave out lm.kind")
    return copy


def _config(copy: Copy) -> PreTrainedConfig:
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


def forward(model: nn.Module, inputs: Mapping[str, Tensor]) -> Any:
    """The output of a model on its inputs, by name; of a language model on {"input_ids": ...}.

    Inputs go to the model's device, those in floating point in its dtype. Nothing is cached.
    """
    whole = unwrapped(model)
    cast = {
        name: x.to(whole.device, whole.dtype if x.is_floating_point() else x.dtype)
        for name, x in inputs.items()
    }
    return model(**cast, use_cache=False) if "input_ids" in cast else model(**cast)


def smallest_inputs(model: nn.Module) -> dict[str, Tensor]:
    """Zeros in the shape of one picture; of a language model one token."""
    whole = unwrapped(model)
    if whole.main_input_name != "pixel_values":
        return {"input_ids": torch.zeros(1, 1, dtype=torch.long, device=whole.device)}
    size = getattr(whole.config, "image_size", 224)
    height, width = (size, size) if isinstance(size, int) else size
    shape = (1, getattr(whole.config, "num_channels", 3), height, width)
    return {"pixel_values": torch.zeros(shape, dtype=whole.dtype, device=whole.device)}


def encoder_width(model: nn.Module, site: str) -> int:
    """Width of the activation at a site, from a forward pass of `smallest_inputs` that stops there.

    Works on the meta device too, for estimates without weights.

    Raises:
        ValueError: there is no such site, or it has not one vector a position.
    """
    return _at_sites(model, [site], smallest_inputs(model))[site].shape[-1]


def n_positions(model: nn.Module, sites: Sequence[str], inputs: Mapping[str, Tensor]) -> int:
    """The number of positions that each of the sites has on the first row of some inputs.

    Raises:
        ValueError: the model does not take such inputs, a site has not one vector a position, or
            the sites differ in their positions.
    """
    acts = _at_sites(model, sites, {name: x[:1] for name, x in inputs.items()})
    counts = {site: x.shape[1] for site, x in acts.items()}
    if len({*counts.values()}) > 1:
        listed = ", ".join(f"{site} {n}" for site, n in counts.items())
        raise Refused(f"the sites differ in their positions ({listed}); train them apart")
    return next(iter(counts.values()))


@torch.no_grad()
def _at_sites(
    model: nn.Module, sites: Sequence[str], inputs: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    try:
        with capture(model, sites, stop_early=True) as acts:
            forward(model, inputs)
    except Refused:
        raise
    except (ValueError, RuntimeError) as error:
        shapes = ", ".join(f"{name} {tuple(x.shape)}" for name, x in inputs.items())
        raise Refused(
            f"{type(unwrapped(model)).__name__} does not take {shapes} ({one_line(error)}); does "
            "its processor belong to it?"
        ) from error
    for site, x in acts.items():
        if x.ndim != 3 or len(x) != 1:
            raise Refused(
                f"site {site!r} has activations of shape {list(x.shape)} for one input; name a "
                "site with one vector a position, [1, positions, width], such as a block"
            )
    return acts
