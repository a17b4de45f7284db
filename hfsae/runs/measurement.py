"""Evaluate and collect again: for a run by its recipe, for an SAE from elsewhere in its folder."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from ..activations import text_origin, text_record
from ..io.checksums import SEALED, refuse_changed, refuse_mixture
from ..io.files import read_json, reading
from ..io.file_names import CONFIG, EVALUATION, FINGERPRINT, MADE_BY, TRAINING
from ..io.errors import Refused
from ..io.local_paths import without_local_paths
from .context import SAEInContext
from .fields import Recipe
from .folder import load_trained
from .recipe_files import load_plain
from .context import limits_of, load_lm_for
from .folder import norm_limits
from .inputs_text import check_foreign
from .job import Job
from .opening import inputs_of, load_inputs
from .recipe_files import as_plain, differences, save_recipe
from .results import make, outdated, stage_of
from .stages import finish, make_results
from ..training.trainer import make_accelerator, sum_products_in_float32


def refuse_unmeasurable(placed: SAEInContext, result: str) -> None:
    """Check a result of an SAE from elsewhere, before a model is loaded.

    Raises:
        ValueError: its recipe gives this result 0 tokens; or a foreign text of the evaluation
            cannot be read, or is a part of the training text.
    """
    _refuse_no_tokens(placed.recipe, result)
    path = placed.origin / TRAINING if placed.origin is not None else None
    trained_on = None
    if path is not None and path.is_file():
        with reading(path):
            trained_on = read_json(path).get("text", {}).get("dataset")
    if result == EVALUATION:
        check_foreign(placed.recipe.evaluation, placed.recipe.text, trained_on)


def _refuse_no_tokens(recipe: Recipe, result: str) -> None:
    stage = stage_of(result)
    if stage.size(recipe) == 0:
        raise Refused(
            f"{stage.setting} is 0, so `hfsae {MADE_BY[result]}` would do nothing; give 1 or more"
        )


def again(
    recipe: Recipe, folder: Path, home: Path, result: str, tell: Callable[[str], None] = print
) -> None:
    """Make one result of a finished run again, with its figures and card. Lock the run's folder
    first (`hfsae.runs.locked_run`).

    Where the recipe's sections for this result changed, it is made again for all SAEs of the run:
    one recipe.yaml describes them all.

    Args:
        recipe: the run's recipe, with changed fields in the sections that affect this result.
        folder: the SAE's folder.
        home: the run's folder, with its recipe.yaml.
        result: "evaluation.json" or "features/meta.json".

    Raises:
        ValueError: another section differs from the run's recipe; or 0 tokens.
    """
    sections, verb = stage_of(result).sections, MADE_BY[result]
    old, new = as_plain(Recipe()) | load_plain(home), as_plain(recipe)
    for key, _, _ in differences(old, new, set(new) - set(sections)):
        raise Refused(
            f"`hfsae {verb}` cannot change {key}, only {' and '.join(sections)}: the rest "
            "describes how this SAE was trained"
        )
    _refuse_no_tokens(recipe, result)
    if result == EVALUATION:
        check_foreign(recipe.evaluation, recipe.text, recipe.text.dataset)
    siblings = (home / name for name in recipe.sae_fields())
    others = [f for f in siblings if (f / CONFIG).is_file() and not f.samefile(folder)]
    others = [other for other in others if result in outdated(other, recipe)]
    sum_products_in_float32()
    device = str(make_accelerator(recipe.training).device)
    sae = load_trained(folder)  # first: a damaged file fails before the language model loads
    norm_limits(sae, folder)
    refuse_changed(folder, [name for name in SEALED if name != result])  # else: no card
    loaded = load_inputs(recipe, device)
    if others:
        tell(f"{verb}: all {1 + len(others)} SAEs of {home}, since they share one recipe.yaml")
    make_results(recipe, loaded, sae, folder, again=[result])
    for other in others:
        make_results(recipe, loaded, load_trained(other), other, again=[result])
    save_recipe(home, new)


def measure(placed: SAEInContext, result: str) -> None:
    """Make one result of an SAE from elsewhere in its folder, and its figures and card again.

    Only the test side of the text is read; evaluation may be set to another. The result has under
    `measured_with` the model, the text and the norm limits.

    Args:
        placed: with its weights in the folder, see `filled`.
        result: "evaluation.json" or "features/meta.json".
    """
    recipe, sae, folder = placed.recipe, placed.sae, placed.folder
    refuse_mixture(folder, [TRAINING, FINGERPRINT])  # no measurement remakes these
    refuse_changed(folder, [name for name in SEALED if name != result])  # else: no card
    loaded = load_lm_for(placed)
    limits = limits_of(placed, loaded)
    revision = getattr(loaded.lm.config, "_commit_hash", None) or recipe.lm.revision
    note = {
        "source": placed.source,
        "lm": {**asdict(recipe.lm), "origin": loaded.origin, "revision": revision},
        "text": {**text_record(recipe.text), "origin": text_origin(recipe.text)},
        "norm_limits": limits,
    }
    more = without_local_paths({"measured_with": note})
    inputs = inputs_of(recipe, loaded)
    job = Job(recipe, inputs, loaded, sae, folder, limits, side="test", more=more)
    make(stage_of(result), job)
    finish(folder)
