"""An SAE whose results a run makes, with all that its stages work on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..activations import Split
from ..lm import LoadedLM
from ..machine.refused import Refused
from ..models import SAE
from .fields import Recipe
from .inputs import Inputs, Loaded


class Job(NamedTuple):
    """What each stage gets."""

    recipe: Recipe
    inputs: Inputs
    loaded: Loaded
    """what the inputs were opened with"""
    sae: SAE
    folder: Path
    """of the SAE; results go there"""
    limits: dict[str, float]
    """by site, the largest norm of a kept activation"""
    side: Split = "train"
    """of the text, to search for examples; evaluation has its own setting"""
    more: Mapping[str, Any] | None = None
    """further fields for the records of an evaluation and of examples"""

    @property
    def with_lm(self) -> LoadedLM:
        """The language model.

        Raises:
            ValueError: the activations are of no language model.
        """
        if isinstance(self.loaded, LoadedLM):
            return self.loaded
        raise Refused(
            f"{self.folder} has no language model: its SAE was trained on other activations than "
            "text's, so that there is nothing to steer, and no token to name"
        )
