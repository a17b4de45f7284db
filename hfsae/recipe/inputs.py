"""What a recipe loads before its stages run."""

from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from ..lm import LoadedEncoder, LoadedLM, LoadedLMs


class NoModel(NamedTuple):
    """In the place of a model where activations are read from files."""

    device: torch.device
    """the SAEs' device"""


class EmptyLMs(NamedTuple):
    """Several language models without their weights, by name."""

    each: dict[str, PreTrainedModel]


Model = PreTrainedModel | EmptyLMs | None
"""A recipe's model, or models, without weights; None where activations are read from files."""
Loaded = LoadedLM | LoadedLMs | LoadedEncoder | NoModel
"""What a recipe has loaded once, before its stages run."""


def first_model(model: Model) -> PreTrainedModel | None:
    """The only model, or the first of several."""
    return next(iter(model.each.values())) if isinstance(model, EmptyLMs) else model
