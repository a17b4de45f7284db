"""The run that a recipe describes, from its inputs to a folder.

    train -> evaluate on other documents -> collect what latents fire on -> name them -> probe
    them -> figures and card -> look for presets

Each stage's result lies in the run's folder, so a second run of the same recipe resumes what was
interrupted and reuses what was finished; a changed section repeats only the stages that it affects.
"""

import logging
import platform
from collections.abc import Iterable
from contextlib import closing
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from transformers import AutoModel

from ..activations import ShuffledActivations, Source
from ..activations.arguments import OF_RUN
from ..activations.held_out import DIGEST
from ..lm import widths_of
from ..machine import processor
from ..machine.files import read_json
from ..machine.lock import is_first_process
from ..machine.names import CARD, CHECKPOINTS, CONFIG, TRAINING
from ..machine.refused import Refused
from ..machine.seal import SEALED, changes
from ..machine.units import section_of
from ..machine.weights import refuse_mixture
from ..models import SAE, SAEConfig
from ..packaged import licence_conflict
from ..training import Trainer
from ..training.trainer import make_accelerator, sum_products_in_float32
from .configs import CheckCost
from .differing import as_plain
from .fields import Recipe, bucket_tokens
from .folder import (
    claim,
    forget_checkpoints,
    load_trained,
    locked_run,
    missing_results,
    norm_limits,
    note_remaking,
    own_output_dir,
    save_recipe,
    settled,
    stale_stages,
)
from .inputs import Loaded
from .job import Inputs, Job
from .opening import check, inputs_of, load_inputs, with_lone_site
from .table import STAGES

logger = logging.getLogger(__name__)


def run(
    recipe: Recipe,
    command: str = "",
    loaded: Loaded | None = None,
    check_cost: CheckCost | None = None,
) -> list[Path]:
    """Run every stage that is not done yet; returns the folders of the trained SAEs.

    Args:
        loaded: what `load_inputs` gives for the recipe, if it is loaded already.
        check_cost: called before anything is loaded or written, with the recipe, its model without
            weights, the SAEs' configs and the device; it may raise ValueError.

    Raises:
        ValueError: anything in the recipe that is invalid or impossible.
    """
    root, recipe = own_output_dir(recipe), with_lone_site(recipe)
    with locked_run(root, [root / name for name in recipe.sae_fields()]):
        return _run(recipe, command, loaded, check_cost)


def _run(
    recipe: Recipe, command: str, loaded: Loaded | None, check_cost: CheckCost | None
) -> list[Path]:
    root = Path(recipe.training.output_dir)
    try:
        recipe = settled(recipe, root)
        stale = stale_stages(recipe)
    except ValueError:
        check(recipe)  # what is invalid anywhere, before what clashes with this folder
        raise
    folders = [root / name for name in recipe.sae_fields()]
    done = [all((f / file).exists() for f in folders) for file in (TRAINING, CONFIG)]
    if all(done) and not stale and all(not missing_results(f, recipe) for f in folders):
        if is_first_process():
            forget_checkpoints(root)  # of a run that was killed just before its end
        logger.info("%s is complete: nothing to do", root)
        return folders
    sum_products_in_float32()
    accelerator = make_accelerator(recipe.training)
    recipe.shuffle.check_device()  # by now a process has its GPU
    lm, configs = check(recipe)
    if check_cost is not None and not all(done):
        check_cost(recipe, lm, configs, accelerator.device)
    loaded = loaded or load_inputs(recipe, str(accelerator.device))
    inputs_of(recipe, loaded).check()
    if accelerator.is_main_process:
        claim(root, recipe, stale)
    if not all(done):
        _warn_of_licence(recipe)
        _train(recipe, loaded, configs, accelerator, command)
    if accelerator.is_main_process:
        for folder in folders:
            report(_with_cache(recipe), loaded, load_trained(folder), folder, again=stale)
        save_recipe(root, as_plain(recipe))
        note_remaking(root, ())
        forget_checkpoints(root)
    return folders


def _with_cache(recipe: Recipe) -> Recipe:
    """The recipe with a folder for the activations that it keeps while it runs."""
    if recipe.harvest.cache != OF_RUN:
        return recipe
    own = str(Path(recipe.training.output_dir) / CHECKPOINTS / "activations")
    return replace(recipe, harvest=replace(recipe.harvest, cache=own))


def _train(
    recipe: Recipe,
    loaded: Loaded,
    configs: dict[str, SAEConfig],
    accelerator: Accelerator,
    command: str,
) -> None:
    cache, inputs = recipe.harvest.cache, inputs_of(_with_cache(recipe), loaded)
    source = inputs.source([*widths_of(*configs.values())])
    stream = ShuffledActivations(
        source,
        replace(recipe.shuffle, bucket_tokens=bucket_tokens(recipe)),
        recipe.training.batch_size,
        n_batches=recipe.training.total_steps,
        process_index=accelerator.process_index,
        num_processes=accelerator.num_processes,
    )
    saes = {}
    for name, config in configs.items():
        for term, value in inputs.terms().items():
            setattr(config, term, value)
        torch.manual_seed(recipe.seed)  # for each SAE: others beside it change nothing
        saes[name] = AutoModel.from_config(config)
    about, content = source.describe(), source.content()
    if "harvest" in about:
        about["harvest"]["cache"] = cache
    if "text" in about:  # by which a later measure knows whether this text is what lies here
        about["text"] |= {DIGEST: content}
    trainer = Trainer(
        saes,
        stream,
        recipe.training,
        accelerator=accelerator,
        provenance=_provenance(recipe, inputs, about, command),
        text=content,
        unit=inputs.unit,
        own={name: recipe.training_of(name) for name in recipe.saes},
    )
    with closing(stream):
        trainer.train()
    trainer.close()


def _warn_of_licence(recipe: Recipe) -> None:
    """Say where the SAEs' cards would leave out terms of the language model."""
    remedy = "before you publish it, set license (--license %s)"
    for name in recipe.model_names if is_first_process() else ():
        if conflict := licence_conflict(recipe.license, name):
            logger.warning("%s; " + remedy, conflict.sentence, conflict.licence_id)


def _provenance(
    recipe: Recipe, inputs: Inputs, of_source: dict[str, Any], command: str
) -> dict[str, Any]:
    names = ("hfsae", "torch", "transformers", "accelerate", "datasets", "huggingface_hub")
    return {
        **inputs.about(),
        **of_source,
        "shuffle": asdict(recipe.shuffle),
        "seed": recipe.seed,
        "card": {"license": recipe.license},
        "command": command,
        "versions": {"python": platform.python_version(), **_versions(names)},
        "machine": processor.name_of(inputs.device),
    }


def _versions(names: tuple[str, ...]) -> dict[str, str]:
    versions = {}
    for name in names:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def report(
    recipe: Recipe, loaded: Loaded, sae: SAE, folder: Path, again: Iterable[str] = ()
) -> None:
    """Make the results that the folder lacks, and `again`; draw, and write the card.

    Raises:
        ValueError: a result that is kept is damaged, or of other weights; or the recipe's
            files are others than those of the training.
    """
    refuse_mixture(folder, [TRAINING])  # no later stage remakes it
    missing = {*missing_results(folder, recipe), *again, CARD}
    for change in changes(folder, [name for name in SEALED if name in missing]):
        logger.warning("%s: %s; %s is made again", change.path, change.why, change.record)
    for name in (stage.file for stage in STAGES if stage.file in SEALED):
        if name not in missing and (folder / name).is_file():
            read_json(folder / name)  # the card needs it: damage is told before the work
    inputs = inputs_of(recipe, loaded)
    if recipe.kind != "text":
        _refuse_replaced_files(inputs.source(recipe.sites), folder)
    sae.to(cast(Any, inputs.device))
    job = Job(recipe, inputs, loaded, sae, folder, norm_limits(sae, folder))
    for stage in STAGES:
        if stage.file in missing:
            stage.make(job)


def _refuse_replaced_files(source: Source, folder: Path) -> None:
    """Refuse activation files or pictures that are not those of the training: what others
    hold out may have been trained on."""
    record = read_json(folder / TRAINING)
    section = section_of(record)
    recorded = record.get(section)
    trained_on = recorded.get("content") if isinstance(recorded, dict) else None
    if trained_on not in (None, source.content()):
        kind = "pictures" if section == "images" else "activation files"
        raise Refused(
            f"the {kind} differ from those that {folder} was trained on (their hash in {TRAINING} "
            "differs), so that what is called held out may have been trained on; restore them, or "
            "train on these in another output_dir"
        )
