"""Pictures through a vision model of transformers, as the inputs of a run."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from ..activations import InputSource, Split
from ..evaluation import EvaluationResult, evaluate_reconstructions, output_change
from ..evaluation.result import in_units
from ..features import FeatureStore, LabelTable, collect_rows, label_table
from ..features.pictures import write_pictures
from ..lm import LoadedEncoder, contract, load_encoder
from ..io.errors import Refused
from ..io.units import PATCH
from ..models import SAE
from .fields import LMArguments, Recipe, rows_ahead, sides_of
from .job import Inputs, Job, counted, token_bar

_EVERY_POSITION = (
    "All kept positions of the held-out documents count; which these are is a setting of the inputs"
)


class EncoderInputs(Inputs):
    """Pictures through a vision model."""

    def __init__(self, recipe: Recipe, loaded: LoadedEncoder) -> None:
        self.recipe, self.loaded = recipe, loaded
        self.unit = PATCH.one

    @property
    def device(self) -> torch.device:
        """The model's."""
        return self.loaded.model.device

    def source(
        self, sites: Sequence[str], limits: Mapping[str, float] | None = None
    ) -> InputSource:
        """The recipe's pictures through the model."""
        known, images = None if limits is None else dict(limits), self.recipe.images
        return InputSource(images, self.loaded, sites, self.recipe.harvest, norm_limits=known)

    def check(self) -> None:
        """Decode all documents that the run will read: too many that cannot be read are told before
        training, not in it or after it.

        Raises:
            ValueError: a side holds no document, or none that can be read, or too many of all
                cannot be read.
        """
        source, sizes = self.source(self.recipe.sites), self.recipe.sizes
        side, labels = sides_of(self.recipe)[-1], source.labels()
        source.fill(min(rows_ahead(self.recipe), source.n_positions("train")))  # nothing runs yet
        n_evaluated = None if labels else sizes.evaluation
        parts: list[tuple[Split, int | None]] = [("train", sizes.examples), (side, n_evaluated)]
        if calibration := self.recipe.training.calibration_tokens:
            parts.append(("validation", calibration))
        for which, n in parts:
            if not any([*source.once(which, n)]) and n != 0:
                raise Refused(f"no pictures on the {which} side can be read")

    def terms(self) -> dict[str, str | None]:
        """The model's weights, dtype and attention."""
        return contract.terms(self.loaded.model, None, None)

    def about(self) -> dict[str, Any]:
        """The model: the recipe's section, the copy that was loaded, its commit."""
        args, commit = self.recipe.lm, getattr(self.loaded.model.config, "_commit_hash", None)
        revision = commit or args.revision
        return {"lm": {**asdict(args), "origin": self.loaded.origin, "revision": revision}}

    def evaluate(
        self, saes: Mapping[str, SAE], limits: dict[str, float], *, losses: bool = True
    ) -> dict[str, EvaluationResult]:
        """Fidelity on held-out documents, and how far the model's own output moves on
        reconstructions, beside both ablations."""
        args, n = self.recipe.evaluation, self.recipe.sizes.evaluation
        results = {}
        for name, sae in saes.items():
            sites = dict.fromkeys([*sae.config.reads.names, *sae.config.writes.names])
            source = self.source([*sites], limits)
            with token_bar("evaluate", n, unit=self.unit) as progress:
                batches = counted(source.batches(args.side, n), progress)
                result = evaluate_reconstructions(sae, batches, args)
            result.side, result.mask_policy = args.side, _EVERY_POSITION
            if losses:
                inputs = source.inputs(args.side, n)
                result.metrics |= output_change(
                    self.loaded.model, sae, inputs, args, norm_limits=limits
                )
            results[name] = in_units(result, PATCH)
        return results

    def collect(self, job: Job) -> FeatureStore:
        """Pictures on which the latents of the job's SAE fire."""
        n, source = self.recipe.sizes.examples, self.source(job.sae.config.reads.names, job.limits)
        grid = source.grid  # for who draws the patches
        with token_bar("collect", n, unit=self.unit) as progress:
            return collect_rows(
                job.sae,
                counted(source.batches(job.side, n), progress),
                self.recipe.collect,
                caption=source.caption,
                unit=self.unit,
                meta={"grid": [grid.rows, grid.columns], "patch": list(grid.step)},
            )

    def illustrate(self, job: Job) -> None:
        """Small copies of the pictures that examples are from."""
        source = self.source(job.sae.config.reads.names, job.limits)
        write_pictures(job.folder, source.picture)

    def tabulate(self, job: Job) -> LabelTable:
        """How latents go with the labels of documents; of all documents on the held-out side."""
        source = self.source(job.sae.config.reads.names, job.limits)
        batches = source.batches(sides_of(self.recipe)[-1])
        return label_table(job.sae, batches, source.labels(), seed=self.recipe.seed)


def load_for(args: LMArguments, device: str | None = None) -> LoadedEncoder:
    """The recipe's vision model."""
    return load_encoder(
        args.name,
        revision=args.revision,
        dtype=args.dtype,
        device=device,
        attn_implementation=args.attn_implementation,
    )
