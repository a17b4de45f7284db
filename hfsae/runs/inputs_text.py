"""Text through a language model, or through several that read the same tokens, as a run's inputs.

A *foreign text* of an evaluation is unlike that of the training.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from ..activations import (
    ActivationBatch,
    Harvester,
    MeasuredText,
    PackedRows,
    Split,
    TextArguments,
    TextSource,
    TokenBatch,
    apart,
    check_text,
    is_hub,
    plain_text,
    text_origin,
    text_record,
)
from ..activations.held_out import HELD_OUT
from ..activations.tokens import documents, local_files
from ..evaluation import (
    EvaluationArguments,
    EvaluationResult,
    evaluate_all,
    evaluate_reconstructions,
)
from ..evaluation.fidelity import counted_predictions
from ..evaluation.result import NO_PREDICTION, ForeignText
from ..features import FeatureStore, collect
from ..lm import LoadedLM, LoadedLMs, contract
from ..io.file_names import COLLECTING
from ..io.errors import Refused
from ..io.local_paths import LOCAL_FILES, without_local_paths
from ..models import SAE
from ..packaged import packaged_names, text_licence
from .fields import Recipe, rows_ahead, sides_of
from .job import Inputs, Job, counted, token_bar

_CHARACTERS = 16  # of a token, at most: of English text it has 4 or 5
_EVERY_TOKEN = (
    "All kept tokens of the held-out documents count; a token whose norm is above its limit at any "
    "site of any model is left out."
)


class TextInputs(Inputs):
    """Text through a causal language model, or through several."""

    unit = "tok"

    def __init__(self, recipe: Recipe, loaded: LoadedLM | LoadedLMs) -> None:
        self.recipe, self.loaded = recipe, loaded
        single = isinstance(loaded, LoadedLM)
        self.each = {"": loaded} if single else loaded.each
        self.lm = loaded.lm if single else loaded.lms

    @property
    def device(self) -> torch.device:
        """The first language model's."""
        return next(iter(self.each.values())).lm.device

    def source(self, sites: Sequence[str], limits: Mapping[str, float] | None = None) -> TextSource:
        """The recipe's text through the language models."""
        tokenizer, harvest = self.loaded.tokenizer, self.recipe.harvest
        rows = PackedRows(tokenizer, self.recipe.text, "train", rows=harvest.rows, epochs=None)
        return TextSource(rows, Harvester(self.lm, sites, harvest, norm_limits=limits))

    def check(self) -> None:
        """Read a batch of each side, and of each foreign text; of text in files that comes in its
        own order all that the run reads: other text is read whole at its first use.

        Raises:
            ValueError: a line or a file cannot be read, a side keeps no token, or the evaluation's
                side or a foreign text no prediction.
        """
        recipe, text, sizes = self.recipe, self.recipe.text, self.recipe.sizes
        for side in sides_of(recipe):
            rows = read_rows(recipe, self.loaded, side, None)
            if isinstance(self.loaded, LoadedLMs):
                if not any(batch.keep.any() for batch in rows):
                    raise Refused(f"no token of the {side} side is left to read; give more text")
            elif not any(
                (b.keep if side == "train" else counted_predictions(b)).any() for b in rows
            ):
                raise Refused(NO_PREDICTION)
        self._check_foreign_rows()
        if text.shuffle_documents or text_origin(text) != LOCAL_FILES:
            return
        parts: list[tuple[Split, int | None]] = [
            ("train", max(rows_ahead(recipe), sizes.examples)),
            (sides_of(recipe)[-1], sizes.evaluation),
        ]
        with token_bar("check", None, unit="char", delay=10) as progress:
            for which, n in parts:
                left = math.inf if n is None else _CHARACTERS * n
                for document in documents(text, which):
                    if left <= 0:
                        break
                    left -= len(document.text)
                    progress(len(document.text))

    def _check_foreign_rows(self) -> None:
        """Refuse a foreign text that fills no row, or has no prediction."""
        for name, rows in self._foreign_rows().items() if self.recipe.sizes.evaluation != 0 else ():
            with _naming_text(name):
                if not any(counted_predictions(batch).any() for batch in rows):
                    raise Refused(NO_PREDICTION)

    def _foreign_rows(self) -> dict[str, PackedRows]:
        """The token rows of each foreign text, by name."""
        recipe = self.recipe
        n, rows = recipe.evaluation.n_foreign_tokens, recipe.harvest.rows
        texts = {name: foreign_text(recipe.text, d) for name, d in recipe.evaluation.texts.items()}
        return {
            name: PackedRows(self.loaded.tokenizer, text, "test", rows=rows, max_tokens=n)
            for name, text in texts.items()
        }

    def terms(self) -> dict[str, Any]:
        """The activation contract: weights, tokenizer, BOS, dtype and attention, of each model."""
        tokenizer, bos = self.loaded.tokenizer, self.recipe.text.bos
        if isinstance(self.loaded, LoadedLMs):
            return contract.terms_together(self.loaded.lms, tokenizer, bos)
        return contract.terms(self.loaded.lm, tokenizer, bos)

    def about(self) -> dict[str, Any]:
        """Each language model: the recipe's fields, the copy that was loaded, its commit."""
        every = {}
        for name, args in self.recipe.models.items():
            loaded = self.each[name]
            revision = getattr(loaded.lm.config, "_commit_hash", None) or args.revision
            every[name] = {**asdict(args), "origin": loaded.origin, "revision": revision}
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
        if isinstance(self.loaded, LoadedLM):
            self._check_foreign_rows()
        args = replace(self.recipe.evaluation, n_tokens=self.recipe.sizes.evaluation)
        held_out = read_rows(self.recipe, self.loaded, args.side, args.most_tokens)
        results = self._evaluated("evaluate", args, held_out, saes, limits, losses)
        few = replace(args, n_tokens=args.n_foreign_tokens)
        for name, rows in self._foreign_rows().items():
            with _naming_text(name):
                on_text = self._evaluated(f"evaluate {name}", few, rows, saes, limits, losses)
            for key, result in on_text.items():
                results[key].texts[name] = _foreign_result(result, rows.args)
        return results

    def _evaluated(
        self,
        title: str,
        args: EvaluationArguments,
        rows: PackedRows,
        saes: Mapping[str, SAE],
        limits: dict[str, float],
        losses: bool,
    ) -> dict[str, EvaluationResult]:
        if isinstance(self.loaded, LoadedLMs):
            return {
                name: self._reconstructed(title, args, rows, sae, limits, self.loaded)
                for name, sae in saes.items()
            }
        done = 0
        with token_bar(title, args.most_tokens) as progress:

            def advance(n: int) -> None:
                nonlocal done
                progress(n - done)
                done = n

            how = {"norm_limits": limits, "progress": advance, "losses": losses}
            return evaluate_all(self.loaded.lm, saes, rows, args, **how)

    def _reconstructed(
        self,
        title: str,
        args: EvaluationArguments,
        rows: PackedRows,
        sae: SAE,
        limits: dict[str, float],
        loaded: LoadedLMs,
    ) -> EvaluationResult:
        contract.check_models(loaded.lms, sae, loaded.tokenizer)
        sites = dict.fromkeys([*sae.config.reads.names, *sae.config.writes.names])
        harvester = Harvester(loaded.lms, [*sites], self.recipe.harvest, norm_limits=limits)
        with token_bar(title, args.most_tokens) as progress:
            batches = counted(_harvested(harvester, rows), progress)
            result = evaluate_reconstructions(sae, batches, self.recipe.evaluation)
        result.side, result.mask_policy = args.side, _EVERY_TOKEN
        return result

    def collect(self, job: Job) -> FeatureStore:
        """Windows of the recipe's text on which the latents of the job's SAE fire."""
        recipe, n_tokens = self.recipe, self.recipe.sizes.examples
        if isinstance(self.loaded, LoadedLMs):
            contract.check_models(self.loaded.lms, job.sae, self.loaded.tokenizer)
        with token_bar("collect", n_tokens) as progress:
            return collect(
                self.lm,
                job.sae,
                read_rows(recipe, self.loaded, job.side, n_tokens),
                recipe.collect,
                tokenizer=self.loaded.tokenizer,
                norm_limits=job.limits,
                harvest=recipe.harvest if recipe.harvest.cache else None,
                progress=progress,
                resume=job.folder / COLLECTING,
            )


def _harvested(harvester: Harvester, rows: Iterable[TokenBatch]) -> Iterator[ActivationBatch]:
    for harvested in map(harvester, rows):
        yield ActivationBatch(harvested.activations, harvested.document, harvested.position)


def read_rows(
    recipe: Recipe, loaded: LoadedLM | LoadedLMs, split: Split, n: int | None
) -> PackedRows:
    """The token rows of one side of the text, once: all of them, or enough for n tokens."""
    return PackedRows(loaded.tokenizer, recipe.text, split, rows=recipe.harvest.rows, max_tokens=n)


def foreign_text(text: TextArguments, dataset: str) -> TextArguments:
    """A data set, read with the other settings of the text: all its documents are on the test side
    but those that the training read, where the training text can be listed here."""
    trained = text.trained if isinstance(text, MeasuredText) else text
    return apart(_whole(text, dataset), trained, 1.0)


def _whole(text: TextArguments, dataset: str) -> TextArguments:
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
            check_text(_whole(text, dataset), "test")  # without listing the training text


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


def _foreign_result(result: EvaluationResult, text: TextArguments) -> ForeignText:
    """What is kept of an evaluation on a foreign text."""
    about = {"dataset": text.dataset, "origin": text_origin(text)}
    return ForeignText(
        result.metrics,
        result.n_tokens,
        result.n_documents,
        **without_local_paths({"text": about})["text"],
        licence=text_licence(str(text.dataset)),
        held_out=text_record(text).get(HELD_OUT),
    )


@contextmanager
def _naming_text(name: str) -> Iterator[None]:
    """Put a foreign text's name in front of a refusal."""
    try:
        yield
    except Refused as error:
        raise Refused(f"evaluation.texts.{name}: {error}") from error
