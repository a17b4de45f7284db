"""Text through a language model, as the inputs of a run."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from transformers import PreTrainedModel

from ..activations import TextSource, check_text
from ..evaluation import EvaluationResult
from ..evaluation.fidelity import counted_predictions
from ..evaluation.result import NO_PREDICTION
from ..features import FeatureStore, LabelTable
from ..lm import LoadedLM, contract, empty_lm
from ..machine.refused import Refused
from ..models import SAE, SAEConfig
from .collecting import collect_from_text
from .configs import make_configs
from .evaluating import check_foreign_rows, evaluate_on_text
from .fields import Recipe, sides_of
from .foreign import check_foreign
from .job import Job
from .probing import check_probing
from .text import read_ahead, read_rows, source_of


class TextInputs:
    """Text through a causal language model."""

    unit = "tok"

    def __init__(self, recipe: Recipe, loaded: LoadedLM) -> None:
        self.recipe, self.loaded = recipe, loaded

    @property
    def device(self) -> torch.device:
        """The language model's."""
        return self.loaded.lm.device

    def source(self, sites: Sequence[str], limits: Mapping[str, float] | None = None) -> TextSource:
        """The recipe's text through the language model."""
        return source_of(self.recipe, self.loaded, sites, limits)

    def check(self) -> None:
        """Read a batch of each side, and of each foreign text; of text that comes in its own order
        all that the run reads.

        Raises:
            ValueError: a line cannot be read, a side keeps no token, or the evaluation's side or a
                foreign text no prediction.
        """
        for side in sides_of(self.recipe):
            rows = read_rows(self.recipe, self.loaded, side, None)
            if not any((b.keep if side == "train" else counted_predictions(b)).any() for b in rows):
                raise Refused(NO_PREDICTION)
        check_foreign_rows(self.recipe, self.loaded)
        read_ahead(self.recipe)

    def terms(self) -> dict[str, str | None]:
        """The activation contract: weights, tokenizer, BOS, dtype and attention."""
        return contract.terms(self.loaded.lm, self.loaded.tokenizer, self.recipe.text.bos)

    def about(self) -> dict[str, Any]:
        """The language model: the recipe's section, the copy that was loaded, its commit."""
        args, loaded = self.recipe.lm, self.loaded
        commit = getattr(loaded.lm.config, "_commit_hash", None)
        revision = commit or args.revision
        return {"lm": {**asdict(args), "origin": loaded.origin, "revision": revision}}

    def evaluate(
        self, saes: Mapping[str, SAE], limits: dict[str, float], *, losses: bool = True
    ) -> dict[str, EvaluationResult]:
        """On the held-out text, and on foreign texts."""
        return evaluate_on_text(self.recipe, self.loaded, saes, limits, losses=losses)

    def collect(self, job: Job) -> FeatureStore:
        """Windows of the text on which latents fire."""
        return collect_from_text(job, self.loaded)

    def illustrate(self, job: Job) -> None:
        """Nothing: examples are words."""

    def tabulate(self, job: Job) -> LabelTable:
        """Never: `hfsae probe` tells what latents reveal about labelled texts."""
        raise Refused("a table of labels is made of files and pictures; see `hfsae probe`")


def check_text_recipe(recipe: Recipe) -> tuple[PreTrainedModel, dict[str, SAEConfig]]:
    """The language model without its weights, and each SAE's config; nothing is written.

    Raises:
        ValueError: anything wrong that can be found without running: model, sites, widths,
            unreadable text.
    """
    lm = empty_lm(recipe.lm.name, revision=recipe.lm.revision, source=recipe.lm.source)
    configs = make_configs(recipe, lm)
    for side in sides_of(recipe):
        check_text(recipe.text, side)
    check_foreign(recipe.evaluation, recipe.text, recipe.text.dataset)
    check_probing(recipe, configs)
    return lm, configs
