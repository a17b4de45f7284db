"""The stage of a run that names latents: by template, a hundred of them with scores."""

import logging
from pathlib import Path
from typing import Any

from .. import cards
from ..activations import text_digest, text_record
from ..explanations import ExplainArguments, Explanations, explain
from ..explanations.stored import UNSCORED, stored_names
from ..explanations.study import write_record
from ..features import FeatureStore
from ..machine.files import read_json, write_whole
from ..machine.names import EVIDENCE, EXPLANATIONS, EXPLANATIONS_REPORT, FEATURES, META
from ..machine.refused import Refused
from ..machine.visible import public_record
from ..machine.weights import stamp
from .asked import JUDGE
from .fields import Recipe
from .job import Job
from .text import read_rows, token_bar

logger = logging.getLogger(__name__)
TEMPLATE = "template"


def name_latents(job: Job) -> None:
    """Names by template for all latents that there are examples of, and scores of a hundred, as
    `hfsae explain` gives them. Where held-out text is too little for scores there are names alone.
    """
    folder, args = job.folder, ExplainArguments(n_tokens=job.recipe.sizes.names)
    try:
        result = _scored(job, args)
    except Refused as error:
        again = f"`hfsae explain {folder} --n_tokens N` tries again"
        logger.info("note: names of latents have no scores: %s; %s", error, again)
        result = _unscored(job, args, str(error))
    _add_stored_names(result, folder)
    if result.rows:
        result.save(folder)
    else:
        _save_without_names(result, folder)


def is_named(record: Path) -> bool:
    """Whether the record of explanations is there, and has more than their plan."""
    return record.exists() and bool({"scores", UNSCORED} & {*read_json(record)})


def _scored(job: Job, args: ExplainArguments) -> Explanations:
    recipe, loaded, folder = job.recipe, job.with_lm, job.folder
    if recipe.text.held_out_fraction == 0:
        raise Refused("the recipe holds out no documents (text.held_out_fraction is 0)")
    rows = read_rows(recipe, loaded, "test", args.n_tokens)
    with token_bar("name", args.n_tokens) as progress:
        return explain(
            loaded.lm,
            job.sae,
            rows,
            args,
            source=TEMPLATE,
            settings={**settings_of(recipe), **stamp(folder)},
            tokenizer=loaded.tokenizer,
            norm_limits=job.limits,
            progress=progress,
            note_plan=lambda plan: write_record(folder, plan),
        )


def _unscored(job: Job, args: ExplainArguments, reason: str) -> Explanations:
    record = {**settings_of(job.recipe), **stamp(job.folder), "explainer": TEMPLATE}
    record |= {"arguments": args.as_plain(), "latents": [], UNSCORED: reason}
    return Explanations([], record, f"# Names for latents\n\nThey have no scores: {reason}.\n")


def save_named(result: Explanations, folder: Path) -> None:
    """Save explanations, and the card with them. Beside those by template and by a judge, latents
    that have examples in the folder get a name by template."""
    if result.record["explainer"] in (TEMPLATE, JUDGE):
        _add_stored_names(result, folder)
    result.save(folder)
    cards.write_card(folder)


def _add_stored_names(result: Explanations, folder: Path) -> None:
    """Add the names of latents that have examples in the folder and no explanation in `result`."""
    if not (folder / META).is_file():
        return
    names = stored_names(FeatureStore.load(folder), {row["latent"] for row in result.rows})
    result.rows += names
    result.record["n_stored_names"] = len(names)


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """What a recipe contributes to explanations: the model and the text, without paths of this
    machine."""
    # the key that records have: the hash of a study's plan covers it
    text = {"fingerprint": text_digest(recipe.text), "side": "test"}
    return public_record({"lm": vars(recipe.lm), "text": {**text_record(recipe.text), **text}})


def _save_without_names(result: Explanations, folder: Path) -> None:
    (folder / FEATURES).mkdir(exist_ok=True)
    for name in (EXPLANATIONS, EVIDENCE):
        (folder / name).unlink(missing_ok=True)
    write_whole(folder / EXPLANATIONS_REPORT, result.report)
    write_record(folder, result.record)
