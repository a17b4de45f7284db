"""What a recipe loads before its stages run."""

from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from ..lm import LoadedEncoder, LoadedLM


class NoModel(NamedTuple):
    """In the place of a model where activations are read from files."""

    device: torch.device
    """the SAEs' device"""


Model = PreTrainedModel | None
"""A recipe's model without its weights; None where activations are read from files."""
Loaded = LoadedLM | LoadedEncoder | NoModel
"""What a recipe has loaded once, before its stages run."""
