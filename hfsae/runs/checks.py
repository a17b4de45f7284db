"""A recipe checked without running: its fields, its model without weights, its SAEs' configs."""

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel

from ..activations import check_files, check_text, sites_in, tensors_in
from ..io.errors import Refused
from ..lm import (
    by_model,
    empty_encoder,
    empty_lm,
    load_tokenizer,
    model_and_path,
    refuse_other_vocabularies,
    site_width,
)
from ..lm.places import SLASH
from ..models import SAEConfig, variants
from ..models.base import refuse_configs_alone
from ..training import read_directions
from .inputs import Models, check_foreign
from .recipe import (
    DEFAULT_VARIANT,
    LMArguments,
    Recipe,
    check_model_type,
    known_variants,
    sides_of,
)
from .stage_probe import check_probing

logger = logging.getLogger(__name__)
CheckCost = Callable[[Recipe, Models, dict[str, SAEConfig], torch.device], None]


def with_lone_site(recipe: Recipe) -> Recipe:
    """The recipe with the site of its files, if it names none and they have one."""
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


def check(recipe: Recipe) -> tuple[Models, dict[str, SAEConfig]]:
    """The recipe's models without their weights, and each SAE's config; nothing is written.

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
    read = {"text": recipe.text, "files": recipe.activations, "pictures": recipe.images}
    if recipe.training.calibration_tokens and not read[recipe.kind].validation_fraction:
        raise Refused(
            f"training.calibration_tokens is {recipe.training.calibration_tokens}, and no document "
            "is on the validation side, where thresholds are set; set its validation_fraction to "
            "0.02, or calibration_tokens to 0"
        )
    check_given(recipe)
    if recipe.kind != "text" and recipe.evaluation.texts:
        none = ", and activations.files has none" if recipe.kind == "files" else ""
        raise Refused(f"evaluation.texts needs a language model{none or '; this reads no text'}")
    if recipe.kind == "files":
        return {}, make_configs(recipe, check_files(recipe.activations, recipe.sites).widths)
    if recipe.kind != "text":
        if recipe.lm.source == "packaged":
            raise Refused("lm.source is 'packaged', and no vision model is; leave it out")
        model = empty_encoder(recipe.lm.name, revision=recipe.lm.revision)
        widths = {site: site_width(model, site) for site in recipe.sites}
        return {"": model}, make_configs(recipe, widths)
    if (cache := recipe.harvest.cache_folder) is not None:
        folder = Path(cache).expanduser()
        home = next(f for f in (folder, *folder.absolute().parents) if f.exists())
        if not home.is_dir() or not os.access(home, os.W_OK):
            raise Refused(
                f"harvest.cache {folder} cannot be made or written to; give another folder"
            )
    lms = {
        name: empty_lm(args.name, revision=args.revision, source=args.source)
        for name, args in recipe.models.items()
    }
    if recipe.lms:
        refuse_other_vocabularies(
            {
                name: load_tokenizer(args.name, revision=args.revision, source=args.source)
                for name, args in recipe.models.items()
            }
        )
        widths = {
            site: site_width(lms[name], path)
            for name, of_model in by_model(recipe.sites, lms).items()
            for site, path in of_model.items()
        }
        configs = make_configs(recipe, widths)
    else:
        configs = make_configs(recipe, lms[""])
    for side in sides_of(recipe):
        check_text(recipe.text, side)
    if recipe.evaluation.texts:
        check_foreign(recipe.evaluation, recipe.text, recipe.text.dataset)
    if recipe.sizes.probing and not recipe.lms:
        check_probing(recipe, configs)
    return lms, configs


def make_configs(
    recipe: Recipe, model: PreTrainedModel | Mapping[str, int]
) -> dict[str, SAEConfig]:
    """Each SAE's config, with d_in (and a transcoder's d_out) taken from the model.

    Args:
        model: a language model, which may be without weights; or the width of each site.

    Raises:
        ValueError: no site, an unknown field or model_type, a width that is not the site's, or
            training.init_decoder does not fit.
    """
    check_given(recipe)
    refuse_configs_alone()
    of_model: dict[str, Any] = {} if recipe.kind == "files" else {"model_name": recipe.lm.name}
    if recipe.lms:
        of_model = {"model_names": {name: args.name for name, args in recipe.models.items()}}
    by_variant = {type_: {"model_type", *v.fields} for type_, v in known_variants().items()}
    configs = {}
    for name, given in recipe.sae_fields().items():
        fields = {"model_type": DEFAULT_VARIANT, **given}
        # Without fields of other variants; one that no variant has stays an error.
        model_type, subject = fields["model_type"], f"saes.{name}" if name else "sae"
        own, target = by_variant[model_type], fields.get("target_l0")
        others = set().union(*by_variant.values()) - own
        if "k" in fields and "k" in own:
            others.add("target_l0")
        elif "k" in own and isinstance(target, int | float) and target % 1 == 0:
            fields["k"] = int(fields.pop("target_l0"))
            logger.info("%s: a %s takes target_l0 as its k, %d", subject, model_type, fields["k"])
        if dropped := sorted(others & {*fields}):
            listed = ", ".join(f"{key} ({fields.pop(key)!r})" for key in dropped)
            unused = "%s: fields left out, since a %s does not use them: %s"
            logger.info(unused, subject, model_type, listed)
        fields = {**of_model, **fields}
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
        if path := recipe.training_of(name).init_decoder:
            read_directions(path, configs[name])
    return configs


def check_given(recipe: Recipe) -> None:
    """Checks that need no model, which may have to be downloaded.

    Raises:
        ValueError: an SAE has no site, no d_sae, or an unknown model_type.
    """
    if recipe.lms and recipe.kind != "text":
        raise Refused(
            f"lms are language models, and this is a recipe of {recipe.kind}; leave out lms"
        )
    pictures = bool(recipe.images.files or recipe.images.folder)
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
    if recipe.kind == "text":  # sites name models, where there are several
        names = [*recipe.lms]
        if names and recipe.lm != LMArguments():
            raise Refused(f"the recipe has lm and lms ({', '.join(names)}); leave out one of them")
        read: set[str] = set()
        for fields in recipe.sae_fields().values():
            lists = [[fields.get("site"), fields.get("target_site")]]
            lists += [fields.get(name) or [] for name in ("sites", "target_sites")]
            sites = [site for each in lists for site in each if isinstance(site, str)]
            read |= {site.partition(SLASH)[0] for site in sites}
            if not names and (with_slash := [site for site in sites if SLASH in site]):
                raise Refused(
                    f"site {with_slash[0]!r} names a model, but the recipe has no lms; add lms, or "
                    f"give {with_slash[0].partition(SLASH)[2]}"
                )
            of = dict.fromkeys(model_and_path(site, names)[0] for site in sites if names)
            model_type = str(fields.get("model_type", "cross-layer transcoder"))
            if len(of) > 1 and (fields.get("target_sites") or model_type.endswith("_clt")):
                raise Refused(
                    f"a {model_type} has sites of several models ({', '.join(of)}), and it reads a "
                    "single forward pass; give it sites of one, or another variant"
                )
        if read and (unread := [name for name in names if name not in read]):
            raise Refused(
                f"no site is of {unread[0]}, one of lms ({', '.join(names)}); give one, as "
                f"{unread[0]}/layers.1, or leave the model out"
            )
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
