"""The stage of a run that evaluates: on held-out text, and on foreign texts."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..activations import PackedRows
from ..evaluation import EvaluationArguments, EvaluationResult, evaluate_all
from ..evaluation.fidelity import counted_predictions
from ..evaluation.probing.extract import KEY as PROBING_KEY
from ..evaluation.probing.extract import kept_extract
from ..evaluation.result import NO_PREDICTION
from ..lm import LoadedLM, LoadedLMs
from ..machine.files import write_whole
from ..machine.names import EVALUATION
from ..machine.refused import Refused
from ..machine.seal import sealed
from ..machine.weights import stamp
from ..models import SAE
from .fields import Recipe
from .foreign import foreign_result
from .job import Job
from .text import read_foreign, read_rows, token_bar


def evaluate(job: Job) -> None:
    """Evaluate by the recipe's evaluation section, and write evaluation.json."""
    result = job.inputs.evaluate({"": job.sae}, job.limits)[""]
    write_whole(job.folder / EVALUATION, evaluation_text(result, job.folder, job.more))


def evaluation_text(
    result: EvaluationResult, folder: Path, more: Mapping[str, Any] | None = None
) -> str:
    """Of evaluation.json, for the weights that lie in a folder; it has the means of their probing,
    too, if they were probed."""
    record = with_probing({**result.to_dict(), **stamp(folder), **(more or {})}, folder)
    return json.dumps(record, indent=1) + "\n"


def with_probing(evaluation: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A record of an evaluation with the means of the folder's probing, if there is one, sealed."""
    probing = kept_extract(folder)
    plain = {key: value for key, value in evaluation.items() if key != PROBING_KEY}
    return sealed(plain | ({PROBING_KEY: probing} if probing else {}))


def evaluate_on_text(
    recipe: Recipe,
    loaded: LoadedLM,
    saes: Mapping[str, SAE],
    limits: dict[str, float],
    *,
    losses: bool = True,
) -> dict[str, EvaluationResult]:
    """Evaluation by the recipe's evaluation section, on its side of the text and on each foreign
    text.

    Args:
        losses: as in `evaluate_all`.

    Raises:
        ValueError: as in `evaluate_all`; of a foreign text with its name.
    """
    check_foreign_rows(recipe, loaded)
    args = replace(recipe.evaluation, n_tokens=recipe.sizes.evaluation)
    held_out = read_rows(recipe, loaded, args.side, args.most_tokens)
    results = _evaluate("evaluate", args, held_out, loaded, saes, limits, losses)
    few = replace(args, n_tokens=args.n_foreign_tokens)
    for name, rows in read_foreign(recipe, loaded).items():
        with naming_text(name):
            on_text = _evaluate(f"evaluate {name}", few, rows, loaded, saes, limits, losses)
        for key, result in on_text.items():
            results[key].texts[name] = foreign_result(result, rows.args)
    return results


def _evaluate(
    title: str,
    args: EvaluationArguments,
    rows: PackedRows,
    loaded: LoadedLM,
    saes: Mapping[str, SAE],
    limits: dict[str, float],
    losses: bool,
) -> dict[str, EvaluationResult]:
    done = 0
    with token_bar(title, args.most_tokens) as progress:

        def advance(n: int) -> None:
            nonlocal done
            progress(n - done)
            done = n

        how = {"norm_limits": limits, "progress": advance, "losses": losses}
        return evaluate_all(loaded.lm, saes, rows, args, **how)


def check_foreign_rows(recipe: Recipe, loaded: LoadedLM | LoadedLMs) -> None:
    """Check that each foreign text has something to evaluate on.

    Raises:
        ValueError: a foreign text of the evaluation fills no row, or has no prediction.
    """
    texts = read_foreign(recipe, loaded) if recipe.sizes.evaluation != 0 else {}
    for name, rows in texts.items():
        with naming_text(name):
            if not any(counted_predictions(batch).any() for batch in rows):
                raise Refused(NO_PREDICTION)


@contextmanager
def naming_text(name: str) -> Iterator[None]:
    """Put a foreign text's name in front of a refusal."""
    try:
        yield
    except Refused as error:
        raise Refused(f"evaluation.texts.{name}: {error}") from error
