"""Activations that are read from files, as the inputs of a run: no model, and no text."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from ..activations import FileSource, Split
from ..activations.files import warn_of_equal_documents
from ..evaluation import EvaluationResult, evaluate_reconstructions
from ..evaluation.result import in_units
from ..features import (
    FeatureStore,
    LabelTable,
    collect_rows,
    label_table,
    read_labels_table,
    refuse_few_documents,
)
from ..io.units import UNITS
from ..models import SAE
from .fields import Recipe, rows_ahead, sides_of
from .job import Inputs, Job, NoModel, counted, token_bar

_EVERY_ROW = "All rows of the held-out documents count, apart from those that the file leaves out."


class FileInputs(Inputs):
    """Rows of activations in files."""

    section = "activations"
    unit = UNITS[section].one

    def __init__(self, recipe: Recipe, loaded: NoModel) -> None:
        self.recipe, self.loaded = recipe, loaded

    @property
    def device(self) -> torch.device:
        """The SAEs' device."""
        return self.loaded.device

    def source(self, sites: Sequence[str], limits: Mapping[str, float] | None = None) -> FileSource:
        """The recipe's files; no row is left out for its norm."""
        return FileSource(self.recipe.activations, list(sites), self.recipe.training.batch_size)

    def check(self) -> None:
        """Read all rows that the run will read, and the labels: what is wrong with them is told
        before training, not in it or after it.

        Raises:
            ValueError: fewer training rows than a batch, none to evaluate on, a row that is not
                finite, or labels that do not fit the documents, or fit too few of them.
        """
        args, sizes = self.recipe.activations, self.recipe.sizes
        source = self.source(self.recipe.sites)
        source.tell_doubts()
        side = sides_of(self.recipe)[-1]
        if args.labels:
            labels = read_labels_table(args.labels, source.rows.document, source.documents)
            documents = source.rows.document[source.row_numbers(side)]
            share = f"; activations.held_out_fraction is {args.held_out_fraction:g}: raise it"
            refuse_few_documents(len(np.intersect1d(labels.document, documents)), share)
        n_examples = 0 if source.is_in_order else sizes.examples
        n_evaluated = None if args.labels else sizes.evaluation
        with token_bar("check", None, unit=self.unit, delay=10) as progress:
            if not source.is_in_order:  # which a harvest wrote, and looked at
                for acts in source.ahead(rows_ahead(self.recipe)):
                    progress(len(next(iter(acts.values()))))
            parts: list[tuple[Split, int | None]] = [("train", n_examples), (side, n_evaluated)]
            if calibration := self.recipe.training.calibration_tokens:
                parts.append(("validation", calibration))
            for which, n in parts:
                for _ in counted(source.batches(which, n), progress):
                    pass
        held_out = source.batches(side, sizes.evaluation)
        training = () if side == "train" else source.batches("train")
        warn_of_equal_documents(held_out, training, "activations.files")

    def evaluate(
        self, saes: Mapping[str, SAE], limits: dict[str, float], *, losses: bool = True
    ) -> dict[str, EvaluationResult]:
        """Fidelity on held-out rows; there is no model whose loss could be measured."""
        args, n = self.recipe.evaluation, self.recipe.sizes.evaluation
        results = {}
        for name, sae in saes.items():
            source = self.source([*sae.config.reads.names, *sae.config.writes.names])
            batches = source.batches(args.side, n)
            with token_bar("evaluate", n, unit=self.unit) as progress:
                result = evaluate_reconstructions(sae, counted(batches, progress), args)
            result.side, result.mask_policy = args.side, _EVERY_ROW
            results[name] = in_units(result, UNITS[self.section])
        return results

    def collect(self, job: Job) -> FeatureStore:
        """Rows on which the latents of the job's SAE fire."""
        n, source = self.recipe.sizes.examples, self.source(job.sae.config.reads.names)
        with token_bar("collect", n, unit=self.unit) as progress:
            return collect_rows(
                job.sae,
                counted(source.batches(job.side, n), progress),
                self.recipe.collect,
                caption=source.caption,
                unit=self.unit,
            )

    def tabulate(self, job: Job) -> LabelTable:
        """How latents go with the labels of documents, or of rows, on the held-out side."""
        source = self.source(job.sae.config.reads.names)
        path = self.recipe.activations.labels
        labels = read_labels_table(path, source.rows.document, source.documents)
        batches = source.batches(sides_of(self.recipe)[-1])
        return label_table(job.sae, batches, labels, seed=self.recipe.seed)
