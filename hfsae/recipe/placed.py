"""An SAE in a folder of its own, with the language model and the text that it is measured on."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

from ..activations import (
    HarvestArguments,
    Harvester,
    MeasuredText,
    TextArguments,
    apart,
    check_text,
    plain_text,
)
from ..activations.held_out import HELD_OUT
from ..lm import LoadedLM, widths_of
from ..machine.files import read_json, reading, write_whole
from ..machine.names import MEASURED, RECIPE, TRAINING
from ..machine.refused import Refused
from ..models import SAE
from ..training.trainer import make_accelerator, sum_products_in_float32
from .fields import LMArguments, Recipe, Sections
from .folder import home_of, load_trained, norm_limits
from .opening import load
from .shipped import read_recipe
from .text import read_rows

"""Fields of a recipe: {section: {field: value}}, or {section: value} of one without fields."""
_KINDS = {"lm": LMArguments, "text": TextArguments, "harvest": HarvestArguments}


@dataclass
class PlacedSAE:
    """An SAE, the folder of its results, and the recipe that these follow."""

    folder: Path
    """in hfsae's own format; results go there"""
    sae: SAE
    recipe: Recipe
    """its sections lm, text and harvest set what the SAE is measured on"""
    home: Path | None = None
    """the folder of its run, with recipe.yaml; None: the SAE is from elsewhere"""
    origin: Path | None = None
    """of an SAE from elsewhere: its own folder, if that is in hfsae's format"""
    source: str = ""
    """where it is from, for records"""

    @property
    def root(self) -> Path:
        """The folder to lock."""
        return self.home or self.folder


def of_run(folder: Path) -> PlacedSAE:
    """The SAE in the folder of a run.

    Raises:
        ValueError: the folder belongs to no run, or is damaged.
    """
    home = home_of(folder)
    if home is None:
        raise Refused(
            f"{folder} belongs to no run: without a recipe.yaml its language model and held-out "
            "text are unknown; `hfsae train` writes one"
        )
    return PlacedSAE(folder, load_trained(folder), read_recipe(home / RECIPE), home)


def changed(
    recipe: Recipe,
    given: Sections,
    trained: TextArguments | None,
    fraction: float | None = None,
    digest: str | None = None,
) -> Recipe:
    """The recipe with these fields. Another language model has no revision of the old one's; of
    every text only documents that training has not read are on the test side.

    Args:
        trained: the text of the SAE's training; None: unknown.
        fraction: the share of the recipe's text that a user wanted held out, if one did.
        digest: of the training's text as it was; None: not known.

    Raises:
        ValueError: a value that a field cannot have.
    """
    lm, text = (dict(given.get(name, {})) for name in ("lm", "text"))
    base = recipe
    if lm.get("name", recipe.lm.name) != recipe.lm.name:
        kept = {"dtype": recipe.lm.dtype, "attn_implementation": recipe.lm.attn_implementation}
        base = replace(base, lm=LMArguments(**kept))
    if text.get("dataset", recipe.text.dataset) != recipe.text.dataset:
        size, bos = recipe.text.context_size, recipe.text.bos
        base, fraction = replace(base, text=TextArguments(context_size=size, bos=bos)), None
    sections: dict[str, Any] = {}
    for name, value in given.items():
        old = getattr(base, name)
        has_fields = hasattr(old, "__dataclass_fields__")
        sections[name] = replace(old, **value) if has_fields else value
    new = replace(base, **sections)
    fraction = text.get("held_out_fraction", fraction)
    return replace(new, text=apart(new.text, trained, fraction, digest))


def check_held_out(placed: PlacedSAE, why: str) -> None:
    """Check that the text of an SAE holds out documents.

    Args:
        why: what needs documents that training has not read.

    Raises:
        ValueError: the text holds out no documents, or cannot be read.
    """
    text = placed.recipe.text
    if text.held_out_fraction == 0:
        where = placed.home / RECIPE if placed.home else placed.source
        raise Refused(
            f"{where} holds out no documents (text.held_out_fraction is 0), but {why} "
            "that training has not read; train with 0.05, or give --text.dataset with other text "
            "(and --text.held_out_fraction 1.0 where its training text is not on this machine)"
        )
    if placed.home is None:
        check_text(text, "test")


def limits_of(placed: PlacedSAE, loaded: LoadedLM) -> dict[str, float]:
    """By site, the largest norm of an activation that counts: from the record of the training; for
    an SAE from elsewhere from the first rows, if a ratio is given. Without either, no limits."""
    recipe, sae = placed.recipe, placed.sae
    if placed.home is None and recipe.harvest.max_norm_ratio is not None:
        rows = next(iter(read_rows(recipe, loaded, recipe.evaluation.side, None)))
        args = HarvestArguments(recipe.harvest.rows, recipe.harvest.max_norm_ratio)
        harvester = Harvester(loaded.lm, [*widths_of(sae.config)], args)
        harvester(rows)
        return harvester.norm_limits
    has_record = placed.home is not None or (placed.folder / TRAINING).is_file()
    return norm_limits(sae, placed.folder) if has_record else {}


def refuse_without_text(placed: PlacedSAE) -> None:
    """Refuse an SAE of activations that are not text's, where a language model is needed.

    Raises:
        ValueError: it was trained on files or pictures.
    """
    if placed.recipe.lms:
        raise Refused(
            f"{placed.folder} holds an SAE over several language models "
            f"({', '.join(placed.recipe.lms)}), and this runs a single one; `hfsae diff` compares "
            "them, and `hfsae show` and `hfsae demo` show what its latents fire on"
        )
    if placed.recipe.kind != "text":
        raise Refused(
            f"{placed.folder} holds an SAE of {placed.recipe.kind}, so there is no language model "
            "and no text for this; `hfsae show` and `hfsae demo` show what its latents fire on"
        )


def opened(*placed: PlacedSAE) -> LoadedLM:
    """The language model of SAEs that share one, with them on its device; from here on the process
    sums products in float32."""
    recipe = placed[0].recipe
    refuse_without_text(placed[0])
    sum_products_in_float32()
    loaded = load(recipe.lm, str(make_accelerator(recipe.training).device))
    for one in placed:
        one.sae.to(cast(Any, loaded.lm.device))
    return loaded


def remember(placed: PlacedSAE) -> None:
    """Keep the language model, the text and the site of a measure in the folder of an SAE from
    elsewhere: the next measure takes the same. The file holds paths of this machine, and is never
    published."""
    if placed.home is not None:
        return
    recipe = placed.recipe
    sections = {name: asdict(getattr(recipe, name)) for name in ("lm", "harvest")}
    rule = {HELD_OUT: {"rule": recipe.text.rule}} if isinstance(recipe.text, MeasuredText) else {}
    sections["text"] = {**plain_text(recipe.text), **rule}
    for section, field in (("lm", "name"), ("text", "dataset")):
        value = sections[section][field]
        if isinstance(value, str) and Path(value).exists():
            sections[section][field] = str(Path(value).absolute())
    plain = {**sections, "site": placed.sae.config.site}
    write_whole(placed.folder / MEASURED, json.dumps(plain, indent=1) + "\n")


def remembered(folder: Path) -> Sections:
    """What `remember` kept in a folder; empty without it.

    Raises:
        Damaged: the file is damaged.
    """
    path = folder / MEASURED
    if not path.is_file():
        return {}
    plain = read_json(path)
    with reading(path):
        for name, kind in _KINDS.items():
            kind(**{key: value for key, value in plain[name].items() if key != HELD_OUT})
    return plain
