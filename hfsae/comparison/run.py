"""Train and evaluate the missing SAEs of a comparison; existing results stay."""

import logging
from contextlib import ExitStack
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from ..io.errors import Refused
from ..io.file_names import CHECKPOINTS, CONFIG, FINGERPRINT, TRAINING
from ..runs import (
    as_plain,
    check,
    finish,
    inputs_of,
    load_all_trained,
    load_inputs,
    locked_run,
    refuse_another_training,
    run,
    save_recipe,
)
from ..runs.cost import check_memory
from ..training.trainer import make_accelerator, sum_products_in_float32
from . import results
from .arms import ArmRun, Comparison, arm_runs
from .frontier import Differences
from .report import write_report

logger = logging.getLogger(__name__)


def compare(comparison: Comparison, command: str = "") -> Path:
    """Train and evaluate missing SAEs, seed by seed, and write the report; returns its folder.

    Raises:
        ValueError: the comparison has an invalid setting; checked before any training.
    """
    check_comparison(comparison)
    measured = measure(comparison, command)
    return write_report(Differences(comparison, measured), command)


def check_comparison(comparison: Comparison) -> None:
    """Check all of its settings, before anything is trained.

    Raises:
        ValueError: one is invalid.
    """
    runs = list(arm_runs(comparison))
    if comparison.evaluation.n_tokens == 0:
        raise Refused(
            "evaluation.n_tokens is 0, but a comparison evaluates its SAEs; give 1 or more"
        )
    if make_accelerator(comparison.training).num_processes > 1:
        raise Refused(
            "a comparison runs in one process; start it without a launcher, and divide it with "
            "--only and --seeds"
        )
    targets: dict[str, str] = {}  # site: the first arm that writes there
    for each in runs:
        if each.seed == comparison.seeds[0]:  # invalid settings, before clashes with a folder
            _, configs = check(each.recipe)
            for config in configs.values():
                targets.setdefault(str(config.writes), each.arm)
            if len(targets) > 1:
                (one, arm), (another, other) = list(targets.items())[:2]
                raise Refused(
                    f"arm {arm} is at {one}, arm {other} at {another}; compare at one site at a "
                    "time"
                )
        if not each.made_by:
            refuse_another_training(each.recipe)


def measure(comparison: Comparison, command: str = "") -> list[results.Measured]:
    """Train and evaluate the SAEs of which neither the report nor a folder has results, seed by
    seed; the measurements of all.

    Raises:
        ValueError: SAEs of another library are not there, or a file is damaged.
    """
    sum_products_in_float32()
    runs = list(arm_runs(comparison))
    kept = results.kept(comparison.report_folder, runs)
    missing = [
        each
        for each in runs
        if not all(
            (each.arm, each.seed, name) in kept or results.is_measured(each, name)
            for name in each.folders
        )
    ]
    if not missing:
        return results.read(runs, kept)
    for each in missing:
        folders = each.folders.values() if each.made_by else ()
        if absent := [folder for folder in folders if not (folder / TRAINING).is_file()]:
            raise Refused(
                f"arm {each.arm} is made by {each.made_by}, and its SAE {absent[0]} is not there: "
                "in a clone of hfsae scripts/bench/peers.py makes it; or leave the arm out with "
                "--only"
            )
    device = make_accelerator(comparison.training).device
    for each in missing:
        if each.seed == missing[0].seed:  # other seeds cost the same
            check_memory(each.recipe, *check(each.recipe), device)
    loaded = load_inputs(comparison, str(device))
    inputs_of(missing[0].recipe, loaded).check()  # before anything is trained
    for seed, group in groupby(missing, key=lambda each: each.seed):
        of_seed = list(group)
        with ExitStack() as locks:
            for each in of_seed:
                if not each.made_by:
                    root = Path(each.recipe.training.output_dir)
                    locks.enter_context(locked_run(root, each.folders.values()))
            to_evaluate: dict[str, tuple[ArmRun, str]] = {}
            for i, each in enumerate(of_seed, start=1):
                logger.info("seed %d, arm %s (%d of %d)", seed, each.arm, i, len(of_seed))
                if not _is_trained(each):
                    # All SAEs of the run. Evaluation comes later, for all arms together.
                    evaluation = replace(each.recipe.evaluation, n_tokens=0)
                    run(replace(each.recipe, evaluation=evaluation), command, loaded)
                if not each.made_by:  # with this file, `hfsae train` gives the same numbers
                    save_recipe(Path(each.recipe.training.output_dir), as_plain(each.recipe))
                for name in each.folders:
                    if not results.is_measured(each, name):
                        to_evaluate[f"{each.arm}/{name}"] = each, name
            recipe = of_seed[0].recipe
            homes = {key: each.folders[name] for key, (each, name) in to_evaluate.items()}
            inputs = inputs_of(recipe, loaded)
            saes, limits = load_all_trained(homes, inputs.device)
            logger.info("seed %d: evaluating %d SAEs", seed, len(saes))
            for key, result in inputs.evaluate(saes, limits).items():
                each, name = to_evaluate[key]
                results.write(result, each, name)
                if not each.made_by:
                    finish(homes[key])
    return results.read(runs, kept)


def _is_trained(each: ArmRun) -> bool:
    is_left = Path(each.recipe.training.output_dir, CHECKPOINTS).exists()
    made = (f / file for f in each.folders.values() for file in (CONFIG, FINGERPRINT))
    return bool(each.made_by) or (all(path.is_file() for path in made) and not is_left)
