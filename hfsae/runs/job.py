"""What a run has loaded, its inputs once they are open, and the job that each stage gets."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..activations import ActivationBatch, Source, Split
from ..evaluation import EvaluationResult
from ..features import FeatureStore, LabelTable
from ..lm import LoadedEncoder, LoadedLM, LoadedLMs, load_lm
from ..io.errors import Refused
from ..models import SAE
from .fields import LMArguments, Recipe


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


def load(args: LMArguments, device: str | None = None) -> LoadedLM:
    """The recipe's language model."""
    return load_lm(
        args.name,
        revision=args.revision,
        dtype=args.dtype,
        device=device,
        attn_implementation=args.attn_implementation,
        source=args.source,
    )


@runtime_checkable
class Inputs(Protocol):  # checkable: types are checked in tests
    """A recipe's inputs, opened: its classes are those of text, of files, of pictures."""

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

    def terms(self) -> dict[str, Any]:
        """Fields for the configs of SAEs that are trained on these (`hfsae.lm.contract`)."""
        return {}

    def about(self) -> dict[str, Any]:
        """Entries on the model for training.json; empty without one."""
        return {}

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
        """Write what shows saved examples beyond their words: pictures have more."""

    def tabulate(self, job: "Job") -> LabelTable:
        """How the latents of the job's SAE go with labels of documents."""
        raise Refused("a table of labels is made of files and pictures; see `hfsae probe`")


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
        if isinstance(self.loaded, LoadedLMs):
            raise Refused(
                f"{self.folder} has an SAE over several language models "
                f"({', '.join(self.loaded.each)}), and this needs a single one"
            )
        raise Refused(
            f"{self.folder} has no language model: its SAE was trained on other activations than "
            "text's, so that there is nothing to steer, and no token to name"
        )


@contextmanager
def token_bar(
    name: str, total: int | None, *, unit: str = "tok", delay: float = 0
) -> Iterator[Callable[[int], None]]:
    """A progress bar of tokens, or of another unit; gives a function that takes the number of
    further ones. It is shown after `delay` seconds."""
    every = 0.2 if sys.stderr.isatty() else 15.0
    settings: dict[str, Any] = {"unit": unit, "unit_scale": True, "mininterval": every}
    with tqdm(total=total, desc=name, delay=delay, **settings) as bar:

        def advance(n: int) -> None:
            bar.update(n)

        yield advance


def counted(
    batches: Iterable[ActivationBatch], progress: Callable[[int], None]
) -> Iterator[ActivationBatch]:
    """The same batches; progress gets the number of activations of each when it was used."""
    for batch in batches:
        yield batch
        progress(len(batch.document))
