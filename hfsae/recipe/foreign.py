"""Foreign texts of an evaluation: text unlike that of the training."""

from dataclasses import replace
from pathlib import Path

from ..activations import (
    MeasuredText,
    TextArguments,
    apart,
    check_text,
    is_hub,
    plain_text,
    text_origin,
    text_record,
)
from ..activations.held_out import HELD_OUT
from ..activations.tokens import local_files
from ..evaluation import EvaluationArguments, EvaluationResult
from ..evaluation.result import ForeignText
from ..machine.refused import Refused
from ..machine.visible import public_record
from ..packaged import packaged_names, text_licence

Dataset = str | list[str]


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
    evaluation: EvaluationArguments, text: TextArguments, trained_on: Dataset | None
) -> None:
    """Read one document of each foreign text.

    Args:
        trained_on: `text.dataset` of the SAE's training; None where it is not known.

    Raises:
        ValueError: a text cannot be read, or is a part of the training text.
    """
    training = _sources(trained_on) if trained_on else set()
    for name, dataset in evaluation.texts.items() if evaluation.n_tokens != 0 else ():
        try:
            if shared := sorted(training & _sources(dataset)):
                raise Refused(f"{shared[0]} is in the training text; give a text that is not")
            check_text(_whole(text, dataset), "test")  # without listing the training text
        except Refused as error:
            raise Refused(f"evaluation.texts.{name}: {error}") from error


def _sources(dataset: Dataset) -> set[str]:
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


def foreign_result(result: EvaluationResult, text: TextArguments) -> ForeignText:
    """What is kept of an evaluation on a foreign text."""
    about = {"dataset": text.dataset, "origin": text_origin(text)}
    return ForeignText(
        result.metrics,
        result.n_tokens,
        result.n_documents,
        **public_record({"text": about})["text"],
        licence=text_licence(str(text.dataset)),
        held_out=text_record(text).get(HELD_OUT),
    )
