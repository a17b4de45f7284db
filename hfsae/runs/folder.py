"""Folders of runs and of their SAEs: locks, SAEs and their norm limits, figures and cards."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from transformers import AutoModel

from .. import cards
from ..cards import figures
from ..io.checksums import refuse_changed, refuse_mixture
from ..io.errors import Damaged, Refused
from ..io.file_names import CHECKPOINTS, CONFIG, RECIPE, STEPS, TRAINING
from ..io.files import damaged, read_json
from ..lm import widths_of
from ..models import SAE
from ..models.base import refuse_unknown_variant
from .recipe import is_of_training


def names_apart(folders: Sequence[Path]) -> list[str]:
    """Each folder's path without the parts that all of them share."""
    parts = [folder.resolve().parts for folder in folders]
    if len(parts) == 1:
        return [parts[0][-1]]
    columns = [{*column} for column in zip(*parts, strict=False)]
    shared = {i for i, names in enumerate(columns) if len(names) == 1}
    return [
        "/".join(p for i, p in enumerate(path) if i not in shared) or path[-1] for path in parts
    ]


def load_trained(folder: Path) -> SAE:
    """The SAE in a folder that `hfsae train` wrote."""
    return AutoModel.from_pretrained(folder).eval()


def norm_limits(sae: SAE, folder: Path) -> dict[str, float]:
    """By site, the norm above which training of the folder's SAE dropped positions."""
    path = folder / TRAINING
    harvested = read_json(path).get("harvested")
    limits = harvested.get("norm_limits") if isinstance(harvested, dict) else None
    if not isinstance(limits, dict):
        raise Damaged(damaged(path, "it has no norm limits"))
    return {site: limit for site, limit in limits.items() if site in widths_of(sae.config)}


def load_all_trained(
    folders: Mapping[str, Path], device: str | torch.device
) -> tuple[dict[str, SAE], dict[str, float]]:
    """By name, the SAEs in folders that `hfsae train` wrote, on a device; `norm_limits` of all."""
    saes = {name: load_trained(folder).to(device) for name, folder in folders.items()}
    limits: dict[str, float] = {}
    for name, sae in saes.items():
        limits |= norm_limits(sae, folders[name])
    return saes, limits


def home_of(folder: Path) -> Path | None:
    """The folder of an SAE's run: the SAE's own, or a parent if the run has several SAEs."""
    recipes = (home / RECIPE for home in (folder, *folder.parents[:3]))
    found = next((path for path in recipes if path.is_file()), None)
    return found.parent if found and is_of_training(found) else None


def trained_folder(folder: str | Path) -> Path:
    """The folder, if `hfsae train` finished an SAE there.

    Raises:
        ValueError: training is unfinished, or the folder holds no hfsae SAE.
    """
    path = Path(folder)
    if not (path / CONFIG).is_file():
        if next(path.glob(f"{CHECKPOINTS}/{STEPS}"), None) and (path / RECIPE).is_file():
            raise Refused(
                f"the training in {folder} is not finished; `hfsae train {path / RECIPE}` "
                "resumes it"
            )
        inside = sorted(p.parent.name for p in path.glob(f"*/{CONFIG}"))
        hint = f"; it holds {', '.join(inside)}" if inside else ""
        raise Refused(f"{folder} is not the folder of a trained SAE (no config.json){hint}")
    config = read_json(path / CONFIG)
    if "d_sae" not in config:
        raise Refused(
            f"{folder} holds a model that is not an hfsae SAE (its config.json has no d_sae); "
            "`hfsae convert` reads other libraries' SAEs"
        )
    refuse_unknown_variant(config.get("model_type"), folder)
    return path


def finish(folder: Path) -> None:
    """Draw the figures and write the card, from the results in the folder.

    Raises:
        ValueError: the folder mixes results of different weights, one was changed, or the card has
            no block to keep.
    """
    refuse_mixture(folder)
    refuse_changed(folder)
    cards.refuse_card_of_others(folder)
    figures.draw(folder)
    cards.write_card(folder)
