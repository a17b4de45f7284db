"""What activations are made from, for the stages of a run: text, tensor files, pictures or sound.

Each kind is a class in a file of its own (`of_text`, `of_files`, `of_encoders`); `opening` chooses.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import torch
from transformers import PreTrainedModel

from ..activations import Source
from ..evaluation import EvaluationResult
from ..features import FeatureStore, LabelTable
from ..lm import LoadedEncoder, LoadedLM
from ..models import SAE

if TYPE_CHECKING:
    from .job import Job


class NoModel(NamedTuple):
    """In the place of a model where activations are read from files."""

    device: torch.device
    """the SAEs' device"""


Model = PreTrainedModel | None
"""A recipe's model without its weights; None where activations are read from files."""
Loaded = LoadedLM | LoadedEncoder | NoModel
"""What a recipe has loaded once, before its stages run."""


@runtime_checkable
class Inputs(Protocol):  # checkable: types are checked in tests
    """A recipe's inputs, opened."""

    unit: str
    """a position in words, such as "tok" """

    @property
    def device(self) -> torch.device:
        """The model's device, and so the SAEs'."""
        ...

    def source(self, sites: Sequence[str], limits: Mapping[str, float] | None = None) -> Source:
        """The training's activations, without end.

        Args:
            limits: by site, the largest norm of a kept activation; None: by the recipe.
        """
        ...

    def check(self) -> None:
        """Read as much of each side as is needed, so that unusable inputs fail before training.

        Raises:
            ValueError: a side holds nothing to train on, or nothing to evaluate on.
        """
        ...

    def terms(self) -> dict[str, str | None]:
        """Fields for the configs of SAEs that are trained on these (`hfsae.lm.contract`)."""
        ...

    def about(self) -> dict[str, Any]:
        """Entries on the model for training.json; empty without one."""
        ...

    def evaluate(
        self, saes: Mapping[str, SAE], limits: dict[str, float], *, losses: bool = True
    ) -> dict[str, EvaluationResult]:
        """Evaluation by the recipe's evaluation section, for each SAE.

        Args:
            losses: measure the language model's loss on reconstructions, where there is one.
        """
        ...

    def collect(self, job: "Job") -> FeatureStore:
        """What the latents of the job's SAE fire on."""
        ...

    def illustrate(self, job: "Job") -> None:
        """Write what shows saved examples beyond their words."""
        ...

    def tabulate(self, job: "Job") -> LabelTable:
        """How the latents of the job's SAE go with labels of documents."""
        ...
