"""From a recipe to its inputs: check it, make its SAEs' configs, load what it needs, open that."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel

from ..activations import check_files, check_text, sites_in, tensors_in
from ..evaluation import EvaluationResult
from ..lm import (
    LoadedEncoder,
    LoadedLMs,
    by_model,
    empty_encoder,
    empty_lm,
    load_tokenizer,
    model_and_path,
    refuse_other_vocabularies,
    site_width,
)
from ..lm.places import SLASH
from ..io.errors import Refused
from ..models import DEFAULT_VARIANT, SAE, SAEConfig, variants
from ..models.registry import refuse_configs_alone
from .declared_fields import check_model_type, known_variants
from .fields import LMArguments, Recipe, check_cache, sides_of
from .inputs_encoders import EncoderInputs, load_for
from .inputs_files import FileInputs
from .inputs_text import TextInputs, check_foreign
from .job import EmptyLMs, Inputs, Loaded, Model, NoModel, load
from .stage_probe import check_probing

logger = logging.getLogger(__name__)
CheckCost = Callable[[Recipe, Model, dict[str, SAEConfig], torch.device], None]


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
    sections = {"text": recipe.text, "files": recipe.activations}
    sections |= {"pictures": recipe.images}
    if recipe.training.calibration_tokens and not sections[recipe.kind].validation_fraction:
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
        return None, make_configs(recipe, check_files(recipe.activations, recipe.sites).widths)
    if recipe.kind != "text":
        if recipe.lm.source == "packaged":
            raise Refused("lm.source is 'packaged', and no vision model is; leave it out")
        model = empty_encoder(recipe.lm.name, revision=recipe.lm.revision)
        widths = {site: site_width(model, site) for site in recipe.sites}
        return model, make_configs(recipe, widths)
    if (cache := recipe.harvest.cache_folder) is not None:
        check_cache(Path(cache).expanduser())
    model, configs = _check_lms(recipe) if recipe.lms else _check_lm(recipe)
    for side in sides_of(recipe):
        check_text(recipe.text, side)
    check_foreign(recipe.evaluation, recipe.text, recipe.text.dataset)
    if not recipe.lms:
        check_probing(recipe, configs)
    return model, configs


def _check_lm(recipe: Recipe) -> tuple[PreTrainedModel, dict[str, SAEConfig]]:
    lm = empty_lm(recipe.lm.name, revision=recipe.lm.revision, source=recipe.lm.source)
    return lm, make_configs(recipe, lm)


def _check_lms(recipe: Recipe) -> tuple[EmptyLMs, dict[str, SAEConfig]]:
    lms, tokenizers = {}, {}
    for name, args in recipe.models.items():
        where = {"revision": args.revision, "source": args.source}
        lms[name] = empty_lm(args.name, **where)
        tokenizers[name] = load_tokenizer(args.name, **where)
    refuse_other_vocabularies(tokenizers)
    widths = {
        site: site_width(lms[name], path)
        for name, of_model in by_model(recipe.sites, lms).items()
        for site, path in of_model.items()
    }
    return EmptyLMs(lms), make_configs(recipe, widths)


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
        _check_sites_of_models(recipe)
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


def _check_sites_of_models(recipe: Recipe) -> None:
    """Check that sites name models, where there are several: each has one, and an SAE that reads
    the earlier ones of a forward pass has sites of one."""
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


def _check_kind(recipe: Recipe) -> None:
    """Refuse inputs that do not suit the kind of model."""
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
