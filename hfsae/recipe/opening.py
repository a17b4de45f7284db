"""From a recipe to its inputs: check them, load what they need, and open them."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from ..activations import sites_in, tensors_in
from ..evaluation import EvaluationResult
from ..lm import LoadedEncoder, LoadedLM, LoadedLMs, load_lm, refuse_other_vocabularies
from ..machine.refused import Refused
from ..models import SAE, SAEConfig
from .configs import check_given
from .fields import LMArguments, Recipe, check_cache
from .inputs import Loaded, Model, NoModel
from .job import Inputs
from .of_encoders import EncoderInputs, check_encoder_recipe, load_for
from .of_files import FileInputs, check_file_recipe
from .of_lms import SeveralLMs, check_recipe_of_several
from .of_text import TextInputs, check_text_recipe


def with_lone_site(recipe: Recipe) -> Recipe:
    """The recipe with the site of its files, if it names none and they have one.

    Raises:
        ValueError: the files cannot be read.
    """
    several = recipe.sae_fields().values()
    is_open = any(not fields.get("site") and not fields.get("sites") for fields in several)
    if recipe.kind != "files" or not is_open:
        return recipe
    sites = sites_in(recipe.activations)
    if not sites:
        raise Refused(
            "activations.files has no tensor or column [n, d] or [rows, ctx, d] in float32, "
            f"float16 or bfloat16, but {tensors_in(recipe.activations)}; convert it, as float64 by "
            ".astype('float32')"
        )
    if len(sites) > 1:
        raise Refused(f"the files have several sites ({', '.join(sites)}); give --sae.site one")
    return replace(recipe, sae={**recipe.sae, "site": sites[0]})


def check(recipe: Recipe) -> tuple[Model, dict[str, SAEConfig]]:
    """The model without its weights, if the recipe has one, and each SAE's config; nothing is
    written.

    Raises:
        ValueError: anything wrong that can be found without running: fields, model, sites, widths,
            unreadable inputs.
    """
    if recipe.shuffle.bucket_tokens < recipe.training.batch_size:
        raise Refused(
            f"shuffle.bucket_tokens ({recipe.shuffle.bucket_tokens}) is smaller than "
            f"training.batch_size ({recipe.training.batch_size}); use a bucket of 50 "
            "batches or more"
        )
    _check_calibration(recipe)
    check_given(recipe)
    if recipe.kind == "files":
        return check_file_recipe(recipe)
    if recipe.kind != "text":
        return check_encoder_recipe(recipe)
    if (cache := recipe.harvest.cache_folder) is not None:
        check_cache(Path(cache).expanduser())
    return check_recipe_of_several(recipe) if recipe.lms else check_text_recipe(recipe)


def _check_calibration(recipe: Recipe) -> None:
    """Refuse thresholds that would be set on a side that has no share of the documents."""
    sections = {"text": recipe.text, "files": recipe.activations}
    sections |= {"pictures": recipe.images}
    if recipe.training.calibration_tokens and not sections[recipe.kind].validation_fraction:
        raise Refused(
            f"training.calibration_tokens is {recipe.training.calibration_tokens}, and no document "
            "is on the validation side, where thresholds are set; set its validation_fraction to "
            "0.02, or calibration_tokens to 0"
        )


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


def load_inputs(recipe: Recipe, device: str | None = None) -> Loaded:
    """What the recipe's inputs need in memory: its model, or nothing where files are read."""
    if recipe.kind == "files":
        return NoModel(torch.device(device or "cpu"))
    if recipe.kind != "text":
        return load_for(recipe.lm, device)
    if recipe.lms:
        several = LoadedLMs({name: load(args, device) for name, args in recipe.models.items()})
        refuse_other_vocabularies({name: one.tokenizer for name, one in several.each.items()})
        return several
    return load(recipe.lm, device)


def inputs_of(recipe: Recipe, loaded: Loaded) -> Inputs:
    """The recipe's inputs, opened with what `load_inputs` loaded."""
    if isinstance(loaded, NoModel):
        return FileInputs(recipe, loaded)
    if isinstance(loaded, LoadedEncoder):
        return EncoderInputs(recipe, loaded)
    if isinstance(loaded, LoadedLMs):
        return SeveralLMs(recipe, loaded)
    return TextInputs(recipe, loaded)


def evaluate_saes(
    recipe: Recipe,
    loaded: Loaded,
    saes: Mapping[str, SAE],
    limits: dict[str, float],
    *,
    losses: bool = True,
) -> dict[str, EvaluationResult]:
    """Evaluation by the recipe's evaluation section, on its side and on each foreign text.

    Args:
        losses: as in `evaluate_all`.

    Raises:
        ValueError: as in `evaluate_all`; of a foreign text with its name.
    """
    return inputs_of(recipe, loaded).evaluate(saes, limits, losses=losses)
