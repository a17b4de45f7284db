"""The run that a recipe describes, from its inputs to a folder.

    train -> evaluate on other documents -> collect what latents fire on -> name them -> probe
    them -> figures and card -> look for presets

Each stage's result lies in the run's folder, so a second run of the same recipe resumes what was
interrupted and keeps what was finished (`results`).
"""

import json
import logging
import platform
import shutil
from collections.abc import Collection
from contextlib import closing, suppress
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import cast

import torch
from accelerate import Accelerator
from transformers import AutoModel

from .. import cards
from ..activations import ShuffledActivations, Source
from ..activations.arguments import OF_RUN
from ..activations.held_out import DIGEST
from ..cards import figures
from ..lm import widths_of
from ..io import processor
from ..io.checksums import refuse_changed, refuse_mixture, sealed, stamp
from ..io.files import read_json, write_whole
from ..io.lock import is_first_process
from ..io.file_names import (
    CARD,
    CHECKPOINTS,
    COLUMNS,
    COLUMNS_REPORT,
    CONFIG,
    EVALUATION,
    FEATURES,
    FINGERPRINT,
    TRAINING,
)
from ..io.errors import Refused
from ..io.units import section_of
from ..models import SAE, SAEConfig
from ..models.fingerprint import N_TOKENS, write_fingerprint
from ..packaged import licence_conflict
from ..training import Trainer
from ..training.trainer import make_accelerator, sum_products_in_float32
from . import results
from .fields import Recipe, bucket_tokens, sides_of
from .folder import load_trained, locked_run, norm_limits, own_output_dir
from .job import Job, Loaded
from .opening import CheckCost, check, inputs_of, load_inputs, with_lone_site
from .stage_probe import evaluation_text
from .recipe_files import as_plain, save_recipe

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
    folders = [root / name for name in recipe.sae_fields()]
    with locked_run(root, folders):
        try:
            recipe = results.resolve_auto_sizes(recipe)
            results.refuse_another_training(recipe)
        except ValueError:
            check(recipe)  # what is invalid anywhere, before what clashes with this folder
            raise
        is_trained = all((f / file).exists() for f in folders for file in (TRAINING, CONFIG))
        if is_trained and not any(results.outdated(folder, recipe) for folder in folders):
            if is_first_process():  # checkpoints of a run that was killed just before its end
                shutil.rmtree(root / CHECKPOINTS, ignore_errors=True)
            logger.info("%s is complete: nothing to do", root)
            return folders
        sum_products_in_float32()
        accelerator = make_accelerator(recipe.training)
        recipe.shuffle.check_device()  # by now a process has its GPU
        lm, configs = check(recipe)
        if check_cost is not None and not is_trained:
            check_cost(recipe, lm, configs, accelerator.device)
        loaded = loaded or load_inputs(recipe, str(accelerator.device))
        inputs_of(recipe, loaded).check()
        if accelerator.is_main_process:
            save_recipe(root, as_plain(recipe))
        if not is_trained:
            _warn_of_licence(recipe)
            _train(recipe, loaded, configs, accelerator, command)
        if accelerator.is_main_process:
            for folder in folders:
                make_results(_with_cache(recipe), loaded, load_trained(folder), folder)
            shutil.rmtree(root / CHECKPOINTS, ignore_errors=True)  # which the Hub should not get
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
    versions = {"python": platform.python_version()}
    for name in ("hfsae", "torch", "transformers", "accelerate", "datasets", "huggingface_hub"):
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    trainer = Trainer(
        saes,
        stream,
        recipe.training,
        accelerator=accelerator,
        provenance={
            **inputs.about(),
            **about,
            "shuffle": asdict(recipe.shuffle),
            "seed": recipe.seed,
            "card": {"license": recipe.license},
            "command": command,
            "versions": versions,
            "machine": processor.name_of(inputs.device),
        },
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
            logger.warning("%s; " + remedy, *conflict)


def make_results(
    recipe: Recipe, loaded: Loaded, sae: SAE, folder: Path, again: Collection[str] = ()
) -> None:
    """Make the results that the folder lacks or that are out of date, and `again`; draw, and write
    the card.

    Raises:
        ValueError: a result that is kept is damaged, or of other weights; or the recipe's
            files are others than those of the training.
    """
    refuse_mixture(folder, [TRAINING])  # no later stage remakes it
    why = results.outdated(folder, recipe, again)
    for name, reason in why.items():
        if (folder / name).exists() and name not in (*again, CARD):
            logger.warning("%s; %s is made again", reason, name)
    inputs = inputs_of(recipe, loaded)
    if recipe.kind != "text":
        _refuse_replaced_files(inputs.source(recipe.sites), folder)
    sae.to(cast(torch.device, inputs.device))
    job = Job(recipe, inputs, loaded, sae, folder, norm_limits(sae, folder))
    for stage in results.STAGES:
        if stage.file in {*why, CARD}:
            results.make(stage, job)


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


def stage_evaluation(job: Job) -> None:
    """Evaluate by the recipe's evaluation section, and write evaluation.json."""
    result = job.inputs.evaluate({"": job.sae}, job.limits)[""]
    write_whole(job.folder / EVALUATION, evaluation_text(result, job.folder, job.more))


def stage_examples(job: Job) -> None:
    """Collect by the recipe's collect section, and write the files of a feature store; a collection
    of text that was interrupted goes on."""
    store = job.inputs.collect(job)
    store.meta |= {**stamp(job.folder), **(job.more or {})}
    store.save(job.folder)
    job.inputs.illustrate(job)


def stage_labels(job: Job) -> None:
    """Write features/columns.json, how latents go with labels of documents, and, to read,
    columns.md."""
    table = job.inputs.tabulate(job)
    (job.folder / FEATURES).mkdir(exist_ok=True)  # there may be no examples
    record = sealed({**table.to_dict(), **stamp(job.folder), **(job.more or {})})
    write_whole(job.folder / COLUMNS_REPORT, table.table())
    write_whole(job.folder / COLUMNS, json.dumps(record, indent=1) + "\n")


def stage_fingerprint(job: Job) -> None:
    """Write fingerprint.safetensors, with which copies of the SAE are verified: activations of some
    tokens, of held-out text if there is any, and the latents and reconstructions they give.

    Raises:
        ValueError: all activations are above the norm limits.
    """
    reads = job.sae.config.reads
    source = job.inputs.source(reads.names, job.limits)
    for batch in source.batches(sides_of(job.recipe)[-1]):
        activations = reads.joined(batch.activations)
        if n := len(activations):
            some = activations[torch.linspace(0, n - 1, N_TOKENS).long()].float()
            write_fingerprint(job.sae, some, job.folder)
            return
    raise Refused(
        f"no activation is left for {FINGERPRINT}: all positions are above the norm limits of the "
        "training; give other text"
    )


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
