"""The configs of a recipe's SAEs, and what is refused of a recipe before anything is loaded."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel

from ..lm import site_width
from ..machine.refused import Refused
from ..models import DEFAULT_VARIANT, SAEConfig, variants
from ..models.registry import refuse_configs_alone
from .declared import check_model_type, known_variants
from .fields import Recipe
from .inputs import Model
from .lms import check_lms

logger = logging.getLogger(__name__)
CheckCost = Callable[[Recipe, Model, dict[str, SAEConfig], torch.device], None]


def make_configs(
    recipe: Recipe, model: PreTrainedModel | Mapping[str, int]
) -> dict[str, SAEConfig]:
    """Each SAE's config, with d_in (and a transcoder's d_out) taken from the model.

    Args:
        model: a language model, which may be without weights; or the width of each site.

    Raises:
        ValueError: no site, an unknown field or model_type, or a width that is not the site's.
    """
    check_given(recipe)
    refuse_configs_alone()
    configs = {}
    for name, given in recipe.sae_fields().items():
        of_model = _of_model(recipe)
        fields = {**of_model, **_for_variant(name, given)}
        for key in ("site", "target_site"):
            if not isinstance(fields.get(key), str | None):
                raise Refused(f"sae.{key} must be text, such as 'layers.12', got {fields[key]!r}")
        places = {"d_in": [fields["site"]] if fields.get("site") else fields["sites"]}
        if fields.get("target_site"):
            places["d_out"] = [fields["target_site"]]
        if fields.get("target_sites"):
            places["d_out"] = fields["target_sites"]
        for key, sites in places.items():
            widths = [
                model[s] if isinstance(model, Mapping) else site_width(model, s) for s in sites
            ]
            if len(sites) > 1:
                fields.setdefault("widths", widths)
            width, site = sum(widths), ", ".join(sites)
            if key == "d_out" and len(sites) > 1 and {*widths} != {*fields["widths"]}:
                raise Refused(
                    f"sae.target_sites are {widths} wide, and sae.sites {fields['widths']}; a "
                    f"{fields['model_type']} needs sites of one width"
                )
            if fields.setdefault(key, width) != width:
                whose = ", ".join(recipe.model_names) if of_model else "activations.files"
                raise Refused(
                    f"sae.{key} is {fields[key]}, but {site} of {whose} is {width} wide; "
                    f"leave {key} out: it is taken from there"
                )
        if isinstance(model, PreTrainedModel):
            fields.setdefault("model_revision", getattr(model.config, "_commit_hash", None))
        configs[name] = AutoConfig.for_model(**fields)
    return configs


def _of_model(recipe: Recipe) -> dict[str, Any]:
    """The field of an SAE's config that names its model, or models."""
    if recipe.kind == "files":
        return {}
    if recipe.lms:
        return {"model_names": {name: args.name for name, args in recipe.models.items()}}
    return {"model_name": recipe.lm.name}


def _for_variant(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """The fields without those of other variants; a field that no variant has stays an error.

    An SAE that chooses k latents takes target_l0 as its k.
    """
    fields = {"model_type": DEFAULT_VARIANT, **given}
    model_type = fields["model_type"]
    by_variant = {type_: {"model_type", *v.fields} for type_, v in known_variants().items()}
    own = by_variant.get(model_type)
    if own is None:
        return fields
    subject = f"saes.{name}" if name else "sae"
    others = set().union(*by_variant.values()) - own
    target = fields.get("target_l0")
    if "k" in fields and "k" in own:
        others.add("target_l0")
    elif "k" in own and isinstance(target, int | float) and target % 1 == 0:
        fields["k"] = int(fields.pop("target_l0"))
        logger.info("%s: a %s takes target_l0 as its k, %d", subject, model_type, fields["k"])
    dropped = sorted(others & {*fields})
    if dropped:
        listed = ", ".join(f"{key} ({fields.pop(key)!r})" for key in dropped)
        logger.info(
            "%s: fields left out, since a %s does not use them: %s", subject, model_type, listed
        )
    return fields


def check_given(recipe: Recipe) -> None:
    """Checks that need no model, which may have to be downloaded.

    Raises:
        ValueError: an SAE has no site, no d_sae, or an unknown model_type.
    """
    _check_kind(recipe)
    if recipe.kind == "text":
        check_lms(recipe.lms, recipe.lm, recipe.sae_fields().values())
    for fields in recipe.sae_fields().values():
        if fields.get("site") in (None, "") and not fields.get("sites"):
            example = "'layers.12'" if recipe.kind != "files" else "the name of a tensor in them"
            raise Refused(
                "the recipe's sae section names no site; name a recipe file, or give sae.site, as "
                f"{example}"
            )
        if fields.get("d_sae") is None:
            raise Refused("the recipe's sae section gives no d_sae; 8 to 32 times d_in is usual")
        given = check_model_type(fields)
        causal = sorted(c.model_type for c in variants() if c.is_causal)
        if fields.get("target_sites") and given not in causal:
            raise Refused(
                f"sae.sites name targets ({fields['target_sites'][0]}, ...), and a {given} of "
                "several sites reconstructs what it reads; leave the targets out, or set "
                f"sae.model_type to {' or '.join(causal)}"
            )


def _check_kind(recipe: Recipe) -> None:
    """Refuse inputs that do not suit the kind of model."""
    pictures = bool(recipe.images.files or recipe.images.folder)
    if recipe.lms and recipe.kind != "text":
        raise Refused(
            f"lms are language models, and this is a recipe of {recipe.kind}; leave out lms"
        )
    if recipe.kind == "files" and pictures:
        raise Refused("the recipe has activations.files and pictures; leave out one")
    if recipe.kind == "text" and pictures:
        raise Refused(
            "the recipe has images, which a language model does not read; set lm.kind to auto, and "
            "lm.name to a vision model"
        )
    if recipe.kind == "pictures" and not pictures:
        raise Refused(
            "lm.kind is 'auto', and the recipe names no pictures (images.files, images.folder); "
            "leave lm.kind out for a language model on text"
        )
