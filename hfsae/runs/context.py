"""An SAE in a folder of its own, with the language model and the text that it is measured on.

That of a run has the run's recipe. One from elsewhere gets a recipe.yaml beside it with its first
measure: its source, and the sections lm, text, harvest and sae.site that the next measure takes.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import torch

from ..activations import HarvestArguments, Harvester, MeasuredText, check_text, plain_text
from ..lm import LoadedLM, widths_of
from ..io.file_names import RECIPE, TRAINING
from ..io.errors import Refused
from ..models import SAE
from ..training.trainer import make_accelerator, sum_products_in_float32
from .fields import Recipe
from .folder import home_of, load_trained, norm_limits
from .inputs_text import read_rows
from .job import load
from .recipe_files import SOURCE, read_recipe, save_recipe


@dataclass
class SAEInContext:
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


def of_run(folder: Path) -> SAEInContext:
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
    return SAEInContext(folder, load_trained(folder), read_recipe(home / RECIPE), home)


def check_held_out(placed: SAEInContext, why: str) -> None:
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


def limits_of(placed: SAEInContext, loaded: LoadedLM) -> dict[str, float]:
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


def refuse_without_text(placed: SAEInContext) -> None:
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


def load_lm_for(*placed: SAEInContext) -> LoadedLM:
    """The language model of SAEs that share one, with them on its device; from here on the process
    sums products in float32."""
    recipe = placed[0].recipe
    refuse_without_text(placed[0])
    sum_products_in_float32()
    loaded = load(recipe.lm, str(make_accelerator(recipe.training).device))
    for one in placed:
        one.sae.to(cast(torch.device, loaded.lm.device))
    return loaded


def remember(placed: SAEInContext) -> None:
    """Write the recipe of an SAE from elsewhere into its folder: the next measure takes the same.
    It holds paths of this machine, and is never published."""
    if placed.home is not None:
        return
    recipe = placed.recipe
    text = plain_text(recipe.text)
    is_given = isinstance(recipe.text, MeasuredText) and recipe.text.rule == "given"
    if text["held_out_fraction"] == 1 and not is_given:
        del text["held_out_fraction"]  # which follows from the text of the training
    plain = {"lm": asdict(recipe.lm), "text": text, "harvest": asdict(recipe.harvest)}
    for section, field in (("lm", "name"), ("text", "dataset")):
        value = plain[section][field]
        if isinstance(value, str) and Path(value).exists():
            plain[section][field] = str(Path(value).absolute())
    sae = {"sae": {"site": placed.sae.config.site}}
    save_recipe(placed.folder, {SOURCE: placed.source, **plain, **sae})
