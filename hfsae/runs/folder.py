"""Folders of runs and of their SAEs: locked, found, loaded."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import AutoModel

from ..lm import widths_of
from ..io.files import damaged, read_json, sweep
from ..io.lock import is_first_process, locked
from ..io.file_names import CHECKPOINTS, CONFIG, RECIPE, STEPS, TRAINING
from ..io.errors import Damaged, Refused
from ..models import SAE
from ..models.registry import refuse_unknown_variant
from .fields import TAKEN_FOLDERS, Recipe
from .recipe_files import is_of_training


@contextmanager
def locked_run(root: Path, homes: Iterable[Path]) -> Iterator[None]:
    """Lock a run's folder, and remove files that killed processes left half written, there and in
    its SAEs' folders.

    Raises:
        ValueError: another process works there, or it cannot be written to.
    """
    with locked(root):
        if is_first_process():
            for home in {root, *homes}:
                for folder in (home, *(home / name for name in TAKEN_FOLDERS)):
                    sweep(folder)
        yield


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


def own_output_dir(recipe: Recipe) -> Path:
    """The recipe's output folder, checked to be writable.

    Raises:
        ValueError: it is a file, or cannot be written to.
    """
    root = Path(recipe.training.output_dir)
    for path in (root, *root.parents):
        if path.exists() and not path.is_dir():
            raise Refused(f"training.output_dir {root}: {path} is a file; name a folder")
    home = next(f for f in (root, *root.absolute().parents) if f.is_dir())
    if not os.access(home, os.W_OK):
        raise Refused(f"training.output_dir {root} cannot be written to; give another")
    return root


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


def is_of_a_run(source: str) -> bool:
    """Whether a source is the folder of a run, or one with an SAE in hfsae's own format."""
    folder = Path(source)
    config = folder / CONFIG
    is_own = config.is_file() and "d_sae" in read_json(config)
    return is_own or (folder / RECIPE).is_file()


def home_of(folder: Path) -> Path | None:
    """The folder of an SAE's run: the SAE's own, or a parent if the run has several SAEs."""
    recipes = (home / RECIPE for home in (folder, *folder.parents[:3]))
    found = next((path for path in recipes if path.is_file()), None)
    return found.parent if found and is_of_training(found) else None


def trained_folder(folder: str) -> Path:
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
