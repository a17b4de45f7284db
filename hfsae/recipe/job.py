"""An SAE whose results a run makes, with all that its stages work on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..activations import Split
from ..lm import LoadedLM
from ..models import SAE
from .fields import Recipe


class Job(NamedTuple):
    """What each stage gets."""

    recipe: Recipe
    loaded: LoadedLM
    sae: SAE
    folder: Path
    """of the SAE; results go there"""
    limits: dict[str, float]
    """by site, the largest norm of a kept activation"""
    side: Split = "train"
    """of the text, to search for examples; evaluation has its own setting"""
    more: Mapping[str, Any] | None = None
    """further fields for the records of an evaluation and of examples"""
