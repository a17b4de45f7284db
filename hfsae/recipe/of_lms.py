"""Text through several language models that read the same tokens, as the inputs of a run."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from ..activations import ActivationBatch, Harvester, TextSource, TokenBatch, check_text
from ..evaluation import EvaluationResult, evaluate_reconstructions
from ..features import FeatureStore, LabelTable
from ..lm import (
    LoadedLMs,
    by_model,
    contract,
    empty_lm,
    load_tokenizer,
    refuse_other_vocabularies,
    site_width,
)
from ..machine.refused import Refused
from ..models import SAE, SAEConfig
from .collecting import collect_from_text
from .configs import make_configs
from .evaluating import check_foreign_rows, naming_text
from .fields import Recipe, sides_of
from .foreign import check_foreign, foreign_result
from .inputs import EmptyLMs
from .job import Job
from .text import counted, read_ahead, read_foreign, read_rows, source_of, token_bar

_EVERY_TOKEN = (
    "All kept tokens of the held-out documents count; a token whose norm is above its limit at any "
    "site of any model is left out."
)


class SeveralLMs:
    """Text through several causal language models."""

    unit = "tok"

    def __init__(self, recipe: Recipe, loaded: LoadedLMs) -> None:
        self.recipe, self.loaded = recipe, loaded

    @property
    def device(self) -> torch.device:
        """The first language model's."""
        return self.loaded.device

    def source(self, sites: Sequence[str], limits: Mapping[str, float] | None = None) -> TextSource:
        """The recipe's text through the language models."""
        return source_of(self.recipe, self.loaded, sites, limits)

    def check(self) -> None:
        """Read a batch of each side, and of each foreign text; of text that comes in its own order
        all that the run reads.

        Raises:
            ValueError: a line cannot be read, a side keeps no token, or a foreign text no
                prediction.
        """
        for side in sides_of(self.recipe):
            rows = read_rows(self.recipe, self.loaded, side, None)
            if not any(batch.keep.any() for batch in rows):
                raise Refused(f"no token of the {side} side is left to read; give more text")
        check_foreign_rows(self.recipe, self.loaded)
        read_ahead(self.recipe)

    def terms(self) -> dict[str, Any]:
        """The activation contract of each model."""
        return contract.terms_together(self.loaded.lms, self.loaded.tokenizer, self.recipe.text.bos)

    def about(self) -> dict[str, Any]:
        """Each language model: its fields, the copy that was loaded, its commit."""
        every = {}
        for name, args in self.recipe.models.items():
            loaded = self.loaded.each[name]
            revision = getattr(loaded.lm.config, "_commit_hash", None) or args.revision
            every[name] = {**asdict(args), "origin": loaded.origin, "revision": revision}
        return {"lms": every}

    def evaluate(
        self, saes: Mapping[str, SAE], limits: dict[str, float], *, losses: bool = True
    ) -> dict[str, EvaluationResult]:
        """Fidelity on held-out text and on foreign texts; there is no single model whose loss could
        be measured."""
        args, n = self.recipe.evaluation, self.recipe.sizes.evaluation
        foreign = read_foreign(self.recipe, self.loaded)
        results = {}
        for name, sae in saes.items():
            contract.hold_together(self.loaded.lms, sae, self.loaded.tokenizer)
            held_out = read_rows(self.recipe, self.loaded, args.side, n)
            result = self._evaluated("evaluate", n, sae, limits, held_out)
            result.side, result.mask_policy = args.side, _EVERY_TOKEN
            for text, rows in foreign.items():
                with naming_text(text):
                    on_text = self._evaluated(f"evaluate {text}", None, sae, limits, rows)
                result.texts[text] = foreign_result(on_text, rows.args)
            results[name] = result
        return results

    def _evaluated(
        self,
        title: str,
        n: int | None,
        sae: SAE,
        limits: dict[str, float],
        rows: Iterable[TokenBatch],
    ) -> EvaluationResult:
        sites = dict.fromkeys([*sae.config.reads.names, *sae.config.writes.names])
        harvester = Harvester(self.loaded.lms, [*sites], self.recipe.harvest, norm_limits=limits)
        with token_bar(title, n, unit=self.unit) as progress:
            batches = counted(_harvested(harvester, rows), progress)
            return evaluate_reconstructions(sae, batches, self.recipe.evaluation)

    def collect(self, job: Job) -> FeatureStore:
        """Windows of the text on which latents fire."""
        contract.hold_together(self.loaded.lms, job.sae, self.loaded.tokenizer)  # before the bar
        return collect_from_text(job, self.loaded)

    def illustrate(self, job: Job) -> None:
        """Nothing: examples are words."""

    def tabulate(self, job: Job) -> LabelTable:
        """Never: text has no labels."""
        raise Refused("a table of labels is made of files and pictures, and this is text")


def _harvested(harvester: Harvester, rows: Iterable[TokenBatch]) -> Iterator[ActivationBatch]:
    for harvested in map(harvester, rows):
        yield ActivationBatch(harvested.activations, harvested.document, harvested.position)


def check_recipe_of_several(recipe: Recipe) -> tuple[EmptyLMs, dict[str, SAEConfig]]:
    """The language models without their weights, and each SAE's config; nothing is written.

    Raises:
        ValueError: anything wrong that can be found without running: models, unlike tokenizers,
            sites, widths, unreadable text.
    """
    where = {
        name: {"revision": args.revision, "source": args.source}
        for name, args in recipe.models.items()
    }
    names = {name: args.name for name, args in recipe.models.items()}
    lms = {name: empty_lm(names[name], **given) for name, given in where.items()}
    refuse_other_vocabularies(
        {name: load_tokenizer(names[name], **given) for name, given in where.items()}
    )
    paths = by_model(recipe.sites, lms)
    widths = {
        site: site_width(lms[name], path)
        for name, of_model in paths.items()
        for site, path in of_model.items()
    }
    configs = make_configs(recipe, widths)
    for side in sides_of(recipe):
        check_text(recipe.text, side)
    check_foreign(recipe.evaluation, recipe.text, recipe.text.dataset)
    return EmptyLMs(lms), configs
