"""A run's inputs: what it loads, and how text, pictures or files become activations, evaluations,
examples and tables; and the job that each stage gets.

Text goes through a language model, or through several that read the same tokens; pictures through a
vision model of transformers; files of activations need no model. A *foreign text* of an evaluation
is unlike that of the training.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..activations import (
    ActivationBatch,
    FileSource,
    Harvester,
    InputSource,
    MeasuredText,
    PackedRows,
    Split,
    TextArguments,
    TextSource,
    apart,
    check_text,
    is_hub,
    local_files,
    plain_text,
    text_origin,
    text_record,
)
from ..activations.files import warn_of_equal_documents
from ..activations.held_out import HELD_OUT
from ..activations.tokens import counted_predictions
from ..evaluation import (
    EvaluationArguments,
    EvaluationResult,
    evaluate_all,
    evaluate_reconstructions,
    output_change,
)
from ..evaluation.result import NO_PREDICTION, ForeignText, in_units
from ..features import (
    FeatureStore,
    LabelTable,
    collect,
    collect_rows,
    label_table,
    read_labels_table,
    refuse_few_documents,
)
from ..features.pictures import write_pictures
from ..io.errors import Refused
from ..io.file_names import COLLECTING
from ..io.local_paths import without_local_paths
from ..io.units import UNITS
from ..lm import (
    LoadedEncoder,
    LoadedLM,
    LoadedLMs,
    contract,
    load_encoder,
    load_lm,
    refuse_other_vocabularies,
    widths_of,
)
from ..models import SAE
from ..packaged import packaged_names, text_licence
from .recipe import LMArguments, Recipe, rows_ahead, sides_of

_EVERY = {
    "activations": "All rows of the held-out documents count, apart from those that the file "
    "leaves out.",
    "images": "All kept positions of the held-out documents count; which these are is a setting of "
    "the inputs",
    "text": "All kept tokens of the held-out documents count; a token whose norm is above its "
    "limit at any site of any model is left out.",
}
"""Positions that an evaluation counts, by section of the recipe."""


Models = dict[str, PreTrainedModel]
"""A recipe's models without weights, by the names that sites have: of a single one "". Empty where
activations are read from files."""
Loaded = LoadedLM | LoadedLMs | LoadedEncoder | torch.device
"""What a recipe has loaded once, before its stages run; of files, only the SAEs' device."""


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


def load_for(args: LMArguments, device: str | None = None) -> LoadedEncoder:
    """The recipe's vision model."""
    return load_encoder(
        args.name,
        revision=args.revision,
        dtype=args.dtype,
        device=device,
        attn_implementation=args.attn_implementation,
    )


def load_inputs(recipe: Recipe, device: str | None = None) -> Loaded:
    """What the recipe's inputs need in memory: its model, or nothing where files are read."""
    if recipe.kind == "files":
        return torch.device(device or "cpu")
    if recipe.kind != "text":
        return load_for(recipe.lm, device)
    if recipe.lms:
        several = LoadedLMs({name: load(args, device) for name, args in recipe.models.items()})
        refuse_other_vocabularies({name: one.tokenizer for name, one in several.items()})
        return several
    return load(recipe.lm, device)


def inputs_of(recipe: Recipe, loaded: Loaded) -> "Inputs":
    """The recipe's inputs, opened with what `load_inputs` loaded."""
    if isinstance(loaded, torch.device):
        return FileInputs(recipe, loaded)
    if isinstance(loaded, LoadedEncoder):
        return PictureInputs(recipe, loaded)
    return TextInputs(recipe, loaded)


class Job(NamedTuple):
    """What each stage gets."""

    recipe: Recipe
    inputs: "Inputs"
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
        """The language model."""
        if isinstance(self.loaded, LoadedLM):
            return self.loaded
        if isinstance(self.loaded, LoadedLMs):
            raise Refused(
                f"{self.folder} has an SAE over several language models "
                f"({', '.join(self.loaded)}), and this needs a single one"
            )
        raise Refused(
            f"{self.folder} has no language model: its SAE was trained on other activations than "
            "text's, so that there is nothing to steer, and no token to name"
        )


def token_bar(name: str, total: int | None, *, unit: str = "tok", delay: float = 0) -> tqdm:
    """A bar of tokens, or of another unit, for `with`; it is shown after `delay` seconds."""
    every = 0.2 if sys.stderr.isatty() else 15.0
    how: dict[str, Any] = {"unit": unit, "unit_scale": True, "mininterval": every}
    return tqdm(total=total, desc=name, delay=delay, **how)


def with_progress(batches: Iterable[ActivationBatch], bar: tqdm) -> Iterator[ActivationBatch]:
    """The same batches; the bar gets the number of activations of each when it was used."""
    for batch in batches:
        yield batch
        bar.update(len(batch.document))


class AnyInputs:
    """A recipe's inputs, opened: their source, checks, evaluations, examples and tables."""

    recipe: Recipe
    device: torch.device
    """of the model, or of the SAEs where there is none"""
    unit: str
    """A position in words."""

    def terms(self) -> dict[str, Any]:
        """Fields for the configs of SAEs that are trained on these: none without a model."""
        return {}

    def about(self) -> dict[str, Any]:
        """Entries on the model for training.json."""
        return {}

    def illustrate(self, job: Job) -> None:
        """Copies of what examples are from: of pictures alone."""


class RowInputs(AnyInputs):
    """Rows of activations that are no tokens: the same evaluation, examples and tables of labels
    for files and pictures."""

    section: str
    """of the recipe"""

    def source(
        self, sites: Sequence[str], limits: Mapping[str, float] | None = None
    ) -> FileSource | InputSource:
        """The training's activations, without end.

        Args:
            limits: by site, the largest norm of a kept activation; None: by the recipe.
        """
        raise NotImplementedError

    def after_training(self, has_labels: bool) -> list[tuple[Split, int | None]]:
        """The sides that a run reads after its training, and how much of each (None: all); with
        labels, all documents of the held-out side."""
        sizes, calibration = self.recipe.sizes, self.recipe.training.calibration_tokens
        n_evaluated = None if has_labels else sizes.evaluation
        parts: list[tuple[Split, int | None]] = [("train", sizes.examples)]
        parts.append((sides_of(self.recipe)[-1], n_evaluated))
        return [*parts, ("validation", calibration)] if calibration else parts

    def evaluate(
        self, saes: Mapping[str, SAE], limits: dict[str, float], *, losses: bool = True
    ) -> dict[str, EvaluationResult]:
        """Fidelity on held-out documents, for each SAE; of pictures also how far the model's own
        output moves on reconstructions, beside both ablations.

        Args:
            losses: measure that.
        """
        args, n = self.recipe.evaluation, self.recipe.sizes.evaluation
        results = {}
        for name, sae in saes.items():
            source = self.source([*widths_of(sae.config)], limits)
            with token_bar("evaluate", n, unit=self.unit) as bar:
                batches = with_progress(source.batches(args.side, n), bar)
                result = evaluate_reconstructions(sae, batches, args)
            result.side, result.mask_policy = args.side, _EVERY[self.section]
            if losses and isinstance(source, InputSource):
                inputs, lm = source.inputs(args.side, n), source.encoder.model
                result.metrics |= output_change(lm, sae, inputs, args, norm_limits=limits)
            results[name] = in_units(result, UNITS[self.section])
        return results

    def collect(self, job: Job) -> FeatureStore:
        """Rows or pictures on which the latents of the job's SAE fire."""
        n, source = self.recipe.sizes.examples, self.source(job.sae.config.reads.names, job.limits)
        meta = {}
        if isinstance(source, InputSource):  # for who draws the patches
            grid = source.grid
            meta = {"grid": [grid.rows, grid.columns], "patch": list(grid.step)}
        with token_bar("collect", n, unit=self.unit) as bar:
            return collect_rows(
                job.sae,
                with_progress(source.batches(job.side, n), bar),
                self.recipe.collect,
                caption=source.caption,
                unit=self.unit,
                meta=meta,
            )

    def tabulate(self, job: Job) -> LabelTable:
        """How the latents of the job's SAE go with labels of documents, or of rows, on the held-out
        side."""
        source = self.source(job.sae.config.reads.names, job.limits)
        if isinstance(source, InputSource):
            labels = source.labels()
        else:
            path = self.recipe.activations.labels
            labels = read_labels_table(path, source.rows.document, source.documents)
        batches = source.batches(sides_of(self.recipe)[-1])
        return label_table(job.sae, batches, labels, seed=self.recipe.seed)


class FileInputs(RowInputs):
    """Rows of activations in files."""

    section, unit = "activations", UNITS["activations"].one

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        self.recipe, self.device = recipe, device

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
        args, source = self.recipe.activations, self.source(self.recipe.sites)
        source.tell_doubts()
        side = sides_of(self.recipe)[-1]
        if args.labels:
            labels = read_labels_table(args.labels, source.rows.document, source.documents)
            documents = source.rows.document[source.row_numbers(side)]
            share = f"; activations.held_out_fraction is {args.held_out_fraction:g}: raise it"
            refuse_few_documents(len(np.intersect1d(labels.document, documents)), share)
        with token_bar("check", None, unit=self.unit, delay=10) as bar:
            if not source.is_in_order:  # which a harvest wrote, and looked at
                for acts in source.ahead(rows_ahead(self.recipe)):
                    bar.update(len(next(iter(acts.values()))))
            for which, n in self.after_training(bool(args.labels)):
                is_known = source.is_in_order and which == "train"
                for _ in with_progress(source.batches(which, 0 if is_known else n), bar):
                    pass
        held_out = source.batches(side, self.recipe.sizes.evaluation)
        training = () if side == "train" else source.batches("train")
        warn_of_equal_documents(held_out, training, "activations.files")


class PictureInputs(RowInputs):
    """Pictures through a vision model."""

    section, unit = "images", UNITS["images"].one

    def __init__(self, recipe: Recipe, loaded: LoadedEncoder) -> None:
        self.recipe, self.loaded, self.device = recipe, loaded, loaded.model.device

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
        source = self.source(self.recipe.sites)
        has_labels = bool(source.labels())
        source.fill(min(rows_ahead(self.recipe), source.n_positions("train")))  # nothing runs yet
        for which, n in self.after_training(has_labels):
            if not any([*source.once(which, n)]) and n != 0:
                raise Refused(f"no pictures on the {which} side can be read")

    def terms(self) -> dict[str, str | None]:
        """The model's weights, dtype and attention."""
        return contract.terms(self.loaded.model, None, None)

    def about(self) -> dict[str, Any]:
        """The model: the recipe's section, the copy that was loaded, its commit."""
        return {"lm": _about(self.recipe.lm, self.loaded, self.loaded.model)}

    def illustrate(self, job: Job) -> None:
        """Small copies of the pictures that examples are from."""
        source = self.source(job.sae.config.reads.names, job.limits)
        write_pictures(job.folder, source.picture)


class TextInputs(AnyInputs):
    """Text through a causal language model, or through several."""

    unit = "tok"

    def __init__(self, recipe: Recipe, loaded: LoadedLM | LoadedLMs) -> None:
        self.recipe, self.loaded = recipe, loaded
        single = isinstance(loaded, LoadedLM)
        self.each = {"": loaded} if single else loaded
        self.lm = loaded.lm if single else loaded.lms
        self.device = next(iter(self.each.values())).lm.device

    def source(self, sites: Sequence[str], limits: Mapping[str, float] | None = None) -> TextSource:
        """The recipe's text through the language models."""
        tokenizer, harvest = self.loaded.tokenizer, self.recipe.harvest
        rows = PackedRows(tokenizer, self.recipe.text, "train", rows=harvest.rows, epochs=None)
        return TextSource(rows, Harvester(self.lm, sites, harvest, norm_limits=limits))

    def check(self) -> None:
        """Read a batch of each side, and of each foreign text.

        Raises:
            ValueError: a line or a file cannot be read, a side keeps no token, or the evaluation's
                side or a foreign text no prediction.
        """
        recipe = self.recipe
        for side in sides_of(recipe):
            rows = read_rows(recipe, self.loaded, side, None)
            if isinstance(self.loaded, LoadedLMs):
                if not any(batch.keep.any() for batch in rows):
                    raise Refused(f"no token of the {side} side is left to read; give more text")
            elif not any(
                (b.keep if side == "train" else counted_predictions(b)).any() for b in rows
            ):
                raise Refused(NO_PREDICTION)
        if recipe.sizes.evaluation != 0 and recipe.evaluation.texts:
            self._foreign_rows()

    def _foreign_rows(self) -> dict[str, PackedRows]:
        """The token rows of each foreign text, by name; one that fills no row, or has no
        prediction, is refused."""
        recipe, rows = self.recipe, dict[str, PackedRows]()
        how = {"rows": recipe.harvest.rows, "max_tokens": recipe.evaluation.n_foreign_tokens}
        for name, dataset in recipe.evaluation.texts.items():
            text = foreign_text(recipe.text, dataset)
            with _naming_text(name):
                rows[name] = PackedRows(self.loaded.tokenizer, text, "test", **how)
                if not any(counted_predictions(batch).any() for batch in rows[name]):
                    raise Refused(NO_PREDICTION)
        return rows

    def terms(self) -> dict[str, Any]:
        """The activation contract: weights, tokenizer, BOS, dtype and attention, of each model."""
        tokenizer, bos = self.loaded.tokenizer, self.recipe.text.bos
        if isinstance(self.loaded, LoadedLMs):
            return contract.terms_together(self.loaded.lms, tokenizer, bos)
        return contract.terms(self.loaded.lm, tokenizer, bos)

    def about(self) -> dict[str, Any]:
        """Each language model: the recipe's fields, the copy that was loaded, its commit."""
        models, each = self.recipe.models, self.each
        every = {name: _about(args, each[name], each[name].lm) for name, args in models.items()}
        return {"lms": every} if isinstance(self.loaded, LoadedLMs) else {"lm": every[""]}

    def evaluate(
        self, saes: Mapping[str, SAE], limits: dict[str, float], *, losses: bool = True
    ) -> dict[str, EvaluationResult]:
        """On the recipe's side of the text, and on each foreign text. Of several language models,
        there is no single one whose loss could be measured: fidelity alone.

        Args:
            losses: as in `evaluate_all`.

        Raises:
            ValueError: as in `evaluate_all`; of a foreign text with its name.
        """
        foreign = self._foreign_rows()  # first: what is wrong with one is told before hours
        args = replace(self.recipe.evaluation, n_tokens=self.recipe.sizes.evaluation)
        held_out = read_rows(self.recipe, self.loaded, args.side, args.most_tokens)
        results = self._evaluate("evaluate", args, held_out, saes, limits, losses)
        few = replace(args, n_tokens=args.n_foreign_tokens)
        for name, rows in foreign.items():
            with _naming_text(name):
                on_text = self._evaluate(f"evaluate {name}", few, rows, saes, limits, losses)
            for key, result in on_text.items():
                about = {"dataset": rows.args.dataset, "origin": text_origin(rows.args)}
                results[key].texts[name] = ForeignText(
                    result.metrics,
                    result.n_tokens,
                    result.n_documents,
                    **without_local_paths({"text": about})["text"],
                    licence=text_licence(str(rows.args.dataset)),
                    held_out=text_record(rows.args).get(HELD_OUT),
                )
        return results

    def _evaluate(
        self,
        title: str,
        args: EvaluationArguments,
        rows: PackedRows,
        saes: Mapping[str, SAE],
        limits: dict[str, float],
        losses: bool,
    ) -> dict[str, EvaluationResult]:
        if isinstance(self.loaded, LoadedLM):
            with token_bar(title, args.most_tokens) as bar:
                how: dict[str, Any] = {"norm_limits": limits, "losses": losses}
                how["progress"] = lambda n: bar.update(n - bar.n)
                return evaluate_all(self.loaded.lm, saes, rows, args, **how)
        results = {}
        for name, sae in saes.items():
            contract.check_models(self.loaded.lms, sae, self.loaded.tokenizer)
            sites, harvest = [*widths_of(sae.config)], self.recipe.harvest
            harvester = Harvester(self.loaded.lms, sites, harvest, norm_limits=limits)
            found = map(harvester, rows)
            batches = (ActivationBatch(h.activations, h.document, h.position) for h in found)
            with token_bar(title, args.most_tokens) as bar:
                result = evaluate_reconstructions(
                    sae, with_progress(batches, bar), self.recipe.evaluation
                )
            result.side, result.mask_policy = args.side, _EVERY["text"]
            results[name] = result
        return results

    def collect(self, job: Job) -> FeatureStore:
        """Windows of the recipe's text on which the latents of the job's SAE fire."""
        recipe, n_tokens = self.recipe, self.recipe.sizes.examples
        if isinstance(self.loaded, LoadedLMs):
            contract.check_models(self.loaded.lms, job.sae, self.loaded.tokenizer)
        with token_bar("collect", n_tokens) as bar:
            return collect(
                self.lm,
                job.sae,
                read_rows(recipe, self.loaded, job.side, n_tokens),
                recipe.collect,
                tokenizer=self.loaded.tokenizer,
                norm_limits=job.limits,
                harvest=recipe.harvest if recipe.harvest.cache else None,
                progress=bar.update,
                resume=job.folder / COLLECTING,
            )

    def tabulate(self, job: Job) -> LabelTable:
        """Documents of text have no labels."""
        raise Refused("a table of labels is made of files and pictures; see `hfsae probe`")


Inputs = TextInputs | FileInputs | PictureInputs
"""A recipe's inputs, opened: their sources, checks, evaluations, examples and tables."""


def _about(
    args: LMArguments, loaded: LoadedLM | LoadedEncoder, model: PreTrainedModel
) -> dict[str, Any]:
    """A model for training.json: the recipe's fields, the copy that was loaded, its commit."""
    revision = getattr(model.config, "_commit_hash", None) or args.revision
    return {**asdict(args), "origin": loaded.origin, "revision": revision}


def read_rows(
    recipe: Recipe, loaded: LoadedLM | LoadedLMs, split: Split, n: int | None
) -> PackedRows:
    """The token rows of one side of the text, once: all of them, or enough for n tokens."""
    return PackedRows(loaded.tokenizer, recipe.text, split, rows=recipe.harvest.rows, max_tokens=n)


def foreign_text(text: TextArguments, dataset: str) -> TextArguments:
    """A data set, read with the other settings of the text: all its documents are on the test side
    but those that the training read, where the training text can be listed here."""
    trained = text.trained if isinstance(text, MeasuredText) else text
    return apart(_all_documents(text, dataset), trained, 1.0)


def _all_documents(text: TextArguments, dataset: str) -> TextArguments:
    """All documents of a data set on the test side, read with the other settings of the text."""
    return replace(
        TextArguments(**plain_text(text)),
        dataset=dataset,
        fractions={},
        dataset_config=None,
        dataset_revision=None,
        held_out_fraction=1.0,
        validation_fraction=0.0,
    )


def check_foreign(
    evaluation: EvaluationArguments, text: TextArguments, trained_on: str | list[str] | None
) -> None:
    """Read one document of each foreign text.

    Args:
        trained_on: `text.dataset` of the SAE's training; None where it is not known.

    Raises:
        ValueError: a text cannot be read, or is a part of the training text.
    """
    training = _parts_of(trained_on) if trained_on else set()
    for name, dataset in evaluation.texts.items() if evaluation.n_tokens != 0 else ():
        with _naming_text(name):
            if shared := sorted(training & _parts_of(dataset)):
                raise Refused(f"{shared[0]} is in the training text; give a text that is not")
            check_text(_all_documents(text, dataset), "test")  # without listing the training text


def _parts_of(dataset: str | list[str]) -> set[str]:
    """The parts of a data set: packaged texts, files, the Hub's name; of a list none."""
    if not isinstance(dataset, str):
        return set()
    if names := packaged_names(dataset):
        return {f"packaged:{name}" for name in names}
    if is_hub(dataset):
        return {dataset}
    try:
        return {str(Path(path).resolve()) for path in local_files(dataset)}
    except Refused:  # of a training elsewhere; what reads a foreign text reports it
        return set()


@contextmanager
def _naming_text(name: str) -> Iterator[None]:
    """Put a foreign text's name in front of a refusal."""
    try:
        yield
    except Refused as error:
        raise Refused(f"evaluation.texts.{name}: {error}") from error
