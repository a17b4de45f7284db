"""The contents of a run's folder: its recipe, finished stages, stages that a change made stale."""

import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoModel

from ..lm import widths_of
from ..machine.files import damaged, parse_yaml, passes, read_json, sweep, write_whole
from ..machine.lock import is_first_process, locked
from ..machine.names import CARD, CHECKPOINTS, CONFIG, RECIPE, STEPS, TRAINING, existing
from ..machine.refused import Damaged, Refused
from ..machine.seal import changes
from ..machine.weights import of_others
from ..models import SAE
from ..models.registry import refuse_unknown_variant
from .differing import as_plain, differences, value_at, with_value
from .fields import TAKEN_FOLDERS, TRAINING_SECTIONS, Recipe
from .sizes import AUTO
from .table import STAGES

_REMAKING = ".remaking"
_N_SHOWN = 3


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


def forget_checkpoints(root: Path) -> None:
    """Delete the checkpoints, which a finished run does not need and the Hub should not get."""
    shutil.rmtree(root / CHECKPOINTS, ignore_errors=True)


def stale_stages(recipe: Recipe) -> list[str]:
    """Results in the output folder that are out of date, since a section of the recipe changed.

    Raises:
        ValueError: the folder holds something else, or a run of another recipe.
    """
    root = own_output_dir(recipe)
    held = sorted(p.name for p in root.iterdir() if not passes(p)) if root.exists() else []
    if not held:
        return []
    if not (root / RECIPE).is_file():
        raise Refused(
            f"the folder {root} holds something else ({held[0]}, and no recipe.yaml); give another "
            "training.output_dir"
        )
    if not any(next(root.rglob(made), None) for made in (STEPS, CONFIG)):
        return []  # claimed, but no result yet: another recipe may take it
    theirs, ours = load_plain(root), as_plain(recipe)
    if changes := list(differences(theirs, ours, TRAINING_SECTIONS)):
        listed = [f"{key} is {old} there and {new} here" for key, old, new in changes[:_N_SHOWN]]
        more = f"; {len(changes) - _N_SHOWN} more" if len(changes) > _N_SHOWN else ""
        key, old, _ = changes[0]
        is_one_word = len(changes) == 1 and re.fullmatch(r"'?[\w./:-]+'?", old) and old != "None"
        same = f"give --{key} {old} to go on with it, or " if is_one_word else "give "
        raise Refused(
            f"the folder {root} holds a run of another recipe ({'; '.join(listed)}{more}); {same}"
            "another training.output_dir, or delete the folder"
        )
    unfinished = remaking(root)
    return [
        stage.file
        for stage in STAGES
        if stage.size(recipe) != 0
        and (stage.file in unfinished or next(differences(theirs, ours, stage.sections), None))
    ]


def settled(recipe: Recipe, root: Path) -> Recipe:
    """The recipe with numbers of tokens for "auto". Results that the folder has from this training
    stand, whatever their number: nobody gave another."""
    held = load_plain(root) if (root / RECIPE).is_file() else {}
    plain = as_plain(recipe)
    if next(differences(held, plain, TRAINING_SECTIONS), None):
        held = {}
    for stage in STAGES:
        if value_at(plain, stage.setting) == AUTO:
            ours, theirs = stage.size(recipe), value_at(held, stage.setting)
            stands = isinstance(theirs, int | None) and 0 not in (ours, theirs)
            recipe = with_value(recipe, stage.setting, theirs if stands else ours)
    return recipe


def claim(root: Path, recipe: Recipe, stale: Sequence[str]) -> None:
    """Write recipe.yaml, and list the stages to be remade, so that an interrupted remake is not
    mistaken for a finished one."""
    plain = as_plain(recipe)
    if (root / RECIPE).is_file() and next(root.rglob(CONFIG), None):
        theirs = load_plain(root)
        sections = {section for stage in STAGES for section in stage.sections}
        plain |= {key: theirs[key] for key in sections & {*theirs}}
    note_remaking(root, {*remaking(root), *stale})
    save_recipe(root, plain)


def remaking(root: Path) -> list[str]:
    """Results whose remake was interrupted: they may belong to the old recipe or the new."""
    path = root / _REMAKING
    return path.read_text(encoding="utf-8").split() if path.is_file() else []


def note_remaking(root: Path, results: Iterable[str]) -> None:
    """List in a file the results being remade; without any, remove the file."""
    if listed := sorted(results):
        write_whole(root / _REMAKING, "\n".join(listed) + "\n")
    else:
        (root / _REMAKING).unlink(missing_ok=True)


def load_plain(root: Path) -> dict[str, Any]:
    """The folder's recipe.yaml, by section.

    Raises:
        Damaged: it is no YAML mapping.
    """
    path = root / RECIPE
    try:
        plain = parse_yaml(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise Damaged(damaged(path, error)) from error
    if not isinstance(plain, dict):
        raise Damaged(damaged(path, "no sections"))
    return plain


def save_recipe(root: Path, plain: dict[str, Any]) -> None:
    """Write the folder's recipe.yaml."""
    text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
    write_whole(root / RECIPE, text)


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


def missing_results(folder: Path, recipe: Recipe) -> list[str]:
    """Results of the recipe that the folder lacks, has of other weights, or has changed since they
    were written; a card older than its data counts as missing."""
    included = [stage for stage in STAGES if stage.size(recipe) != 0]
    names = [stage.file for stage in included]
    on_card = names[: names.index(CARD)]
    unfit = {*of_others(folder, on_card), *(change.record for change in changes(folder, on_card))}
    paths = {name: existing(folder, name) for name in (TRAINING, *names)}
    missing = [s.file for s in included if s.file in unfit or not s.is_finished(paths[s.file])]
    card = folder / CARD
    data = [paths[name] for name in (TRAINING, *on_card) if paths[name].exists()]
    if card.exists() and any(p.stat().st_mtime > card.stat().st_mtime for p in data):
        missing.append(CARD)
    return missing


def is_of_a_run(source: str) -> bool:
    """Whether a source is the folder of a run, or one with an SAE in hfsae's own format."""
    folder = Path(source)
    config = folder / CONFIG
    is_own = config.is_file() and "d_sae" in read_json(config)
    return is_own or (folder / RECIPE).is_file()


def home_of(folder: Path) -> Path | None:
    """The folder of an SAE's run: the SAE's own, or a parent if the run has several SAEs."""
    homes = [f for f in (folder, *folder.parents[:3]) if (f / RECIPE).is_file()]
    return homes[0] if homes else None


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
