"""The run that a recipe describes, from its inputs to a folder; and results made again.

    train -> evaluate on other documents -> collect what latents fire on -> name them -> probe
    them -> figures and card -> look for presets

Each stage's result lies in the run's folder, so a second run of the same recipe resumes what was
interrupted and keeps what was finished (`results`). An SAE from elsewhere is measured by the same
stages, in a folder of its own.
"""

import json
import logging
import os
import platform
import shutil
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import cast

import torch
from accelerate import Accelerator
from transformers import AutoModel

from ..activations import ShuffledActivations, check_text, text_origin, text_record
from ..activations.arguments import OF_RUN
from ..activations.held_out import DIGEST
from ..features import write_labels
from ..io import processor
from ..io.checksums import SEALED, refuse_changed, refuse_mixture, sealed, stamp
from ..io.errors import Refused
from ..io.file_names import (
    CARD,
    CHECKPOINTS,
    COLUMNS,
    COLUMNS_REPORT,
    CONFIG,
    EVALUATION,
    FEATURES,
    FINGERPRINT,
    MADE_BY,
    TRAINING,
)
from ..io.files import is_first_process, read_json, reading, write_whole
from ..io.local_paths import without_local_paths
from ..io.units import section_of
from ..lm import widths_of
from ..models import SAE, SAEConfig
from ..models.fingerprint import N_TOKENS, write_fingerprint
from ..packaged import licence_conflict
from ..training import Trainer
from ..training.directions import DIRECTIONS
from ..training.trainer import make_accelerator, sum_products_in_float32
from . import results
from .checks import CheckCost, check, with_lone_site
from .folder import finish, load_trained, norm_limits
from .inputs import Inputs, Job, Loaded, check_foreign, inputs_of, load_inputs
from .recipe import (
    Recipe,
    as_plain,
    bucket_tokens,
    differences,
    load_plain,
    save_recipe,
    sides_of,
)
from .sae_source import SAEInContext, limits_of, load_lm_for, refuse_without_text
from .stage_probe import evaluation_text

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
    root = Path(recipe.training.output_dir)
    for path in (root, *root.parents):
        if path.exists() and not path.is_dir():
            raise Refused(f"training.output_dir {root}: {path} is a file; name a folder")
    if not os.access(next(f for f in (root, *root.absolute().parents) if f.is_dir()), os.W_OK):
        raise Refused(f"training.output_dir {root} cannot be written to; give another")
    recipe = with_lone_site(recipe)
    folders = [root / name for name in recipe.sae_fields()]
    with results.locked_run(root, folders):
        try:
            recipe = results.resolve_auto_sizes(recipe)
            results.refuse_another_training(recipe)
        except ValueError:
            check(recipe)  # what is invalid anywhere, before what clashes with this folder
            raise
        is_trained = all((f / file).exists() for f in folders for file in (TRAINING, CONFIG))
        why = {f: results.outdated(f, recipe) for f in folders} if is_trained else {}
        if is_trained and not any({*reasons} - {CARD} for reasons in why.values()):
            if is_first_process():  # checkpoints of a run that was killed just before its end
                shutil.rmtree(root / CHECKPOINTS, ignore_errors=True)
            if not any(why.values()):
                logger.info("%s is complete: nothing to do", root)
            elif is_first_process():  # cards alone need no language model
                save_recipe(root, as_plain(recipe))
                for folder in filter(why.get, folders):
                    logger.info("%s; %s is written again", why[folder][CARD], folder / CARD)
                    note_licence(recipe, folder)
                    finish(folder)
            return folders
        for folder in why:  # before the language model loads
            norm_limits(load_trained(folder), folder)
        sum_products_in_float32()
        accelerator = make_accelerator(recipe.training)
        processor.refuse_absent(recipe.shuffle.device, "shuffle.")  # by now a process has its GPU
        lm, configs = check(recipe)
        if check_cost is not None and not is_trained:
            check_cost(recipe, lm, configs, accelerator.device)
        loaded = loaded or load_inputs(recipe, str(accelerator.device))
        inputs_of(recipe, loaded).check()
        if accelerator.is_main_process:
            save_recipe(root, as_plain(recipe))
        caching = recipe
        if recipe.harvest.cache == OF_RUN:  # a folder for the activations kept while it runs
            own = str(root / CHECKPOINTS / "activations")
            caching = replace(recipe, harvest=replace(recipe.harvest, cache=own))
        if not is_trained:
            warn_of_licence(recipe)
            _train(recipe, inputs_of(caching, loaded), configs, accelerator, command)
            for folder in folders if accelerator.is_main_process else ():
                names = read_json(folder / TRAINING).get(DIRECTIONS, {}).get("names")
                if names:  # of training.init_decoder
                    write_labels(folder, dict(enumerate(names)))
        if accelerator.is_main_process:
            for folder in folders:
                make_results(caching, loaded, load_trained(folder), folder, why.get(folder))
            shutil.rmtree(root / CHECKPOINTS, ignore_errors=True)  # which the Hub should not get
        return folders


def _train(
    recipe: Recipe,
    inputs: Inputs,
    configs: dict[str, SAEConfig],
    accelerator: Accelerator,
    command: str,
) -> None:
    """From the activations' source over a stream and new SAEs to a Trainer, which trains."""
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
        about["harvest"]["cache"] = recipe.harvest.cache
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


def warn_of_licence(recipe: Recipe) -> None:
    """Say where the SAEs' cards would leave out terms of the language model."""
    remedy = "before you publish it, set license (--license %s)"
    for name in recipe.model_names if is_first_process() else ():
        if conflict := licence_conflict(recipe.license, name):
            logger.warning("%s; " + remedy, *conflict)


def note_licence(recipe: Recipe, folder: Path) -> None:
    """Write the recipe's licence into training.json, from where the card has it. One that a person
    wrote into the card stays."""
    record, path = read_json(folder / TRAINING), folder / CARD
    if (before := results.licence_in(record)) == recipe.license:
        return
    warn_of_licence(recipe)
    if path.is_file():
        front, mark, rest = path.read_text(encoding="utf-8").partition("\n---\n")
        front = f"{front}\n".replace(f"\nlicense: {before}\n", "\n")
        write_whole(path, front.removesuffix("\n") + mark + rest)
    record["card"] = {"license": recipe.license}
    write_whole(folder / TRAINING, json.dumps(record, indent=1) + "\n")


def make_results(
    recipe: Recipe,
    loaded: Loaded,
    sae: SAE,
    folder: Path,
    why: Mapping[str, str] | None = None,
) -> None:
    """Make the results that the folder lacks or that are out of date; draw, and write the card.

    Args:
        why: of `outdated`; None: it is asked.

    Raises:
        ValueError: a result that is kept is damaged, or of other weights; or the recipe's
            files are others than those of the training.
    """
    why = results.outdated(folder, recipe) if why is None else why
    for name, reason in why.items():
        if reason and (folder / name).exists() and name != CARD:
            verb = f" ({MADE_BY[name]})" if name in MADE_BY else ""
            logger.warning("%s; %s is made again%s", reason, name, verb)
    note_licence(recipe, folder)
    inputs = inputs_of(recipe, loaded)
    if recipe.kind != "text":  # what other files hold out may have been trained on
        record = read_json(folder / TRAINING)
        section = section_of(record)
        recorded = record.get(section)
        trained_on = recorded.get("content") if isinstance(recorded, dict) else None
        if trained_on not in (None, inputs.source(recipe.sites).content()):
            kind = "pictures" if section == "images" else "activation files"
            raise Refused(
                f"the {kind} differ from those that {folder} was trained on (their hash in "
                f"{TRAINING} differs), so that what is called held out may have been trained on; "
                "restore them, or train on these in another output_dir"
            )
    sae.to(cast(torch.device, inputs.device))
    job = Job(recipe, inputs, loaded, sae, folder, norm_limits(sae, folder))
    for stage in results.STAGES:
        if stage.file in {*why, CARD}:
            results.make(stage, job)


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
    for batch in source.batches(sides_of(job.recipe)[-1], N_TOKENS):  # no row more than it takes
        activations = reads.joined(batch.activations)
        if n := len(activations):
            some = activations[torch.linspace(0, n - 1, N_TOKENS).long()].float()
            write_fingerprint(job.sae, some, job.folder)
            return
    raise Refused(
        f"no activation is left for {FINGERPRINT}: all positions are above the norm limits of the "
        "training; give other text"
    )


def refuse_unmeasurable(placed: SAEInContext, result: str) -> None:
    """Check a result of an SAE from elsewhere, before a model is loaded.

    Raises:
        ValueError: its recipe gives this result 0 tokens; its text cannot be read; or a foreign
            text of the evaluation cannot, or is a part of the training text.
    """
    is_evaluated = result == EVALUATION
    _refuse_no_tokens(placed.recipe, result)
    refuse_without_text(placed)
    check_text(placed.recipe.text, placed.recipe.evaluation.side if is_evaluated else "test")
    path = placed.origin / TRAINING if placed.origin is not None else None
    trained_on = None
    if path is not None and path.is_file():
        with reading(path):
            trained_on = read_json(path).get("text", {}).get("dataset")
    if is_evaluated:
        check_foreign(placed.recipe.evaluation, placed.recipe.text, trained_on)


def _refuse_no_tokens(recipe: Recipe, result: str) -> None:
    stage = results.stage_of(result)
    if stage.size(recipe) == 0:
        raise Refused(
            f"{stage.setting} is 0, so `hfsae {MADE_BY[result]}` would do nothing; give 1 or more"
        )


def remake(recipe: Recipe, folder: Path, home: Path, result: str) -> None:
    """Make one result of a finished run again, with its figures and card. Lock the run's folder
    first (`hfsae.runs.locked_run`).

    Where the recipe's sections for this result changed, it is made again for all SAEs of the run:
    one recipe.yaml describes them all.

    Args:
        recipe: the run's recipe, with changed fields in the sections that affect this result.
        folder: the SAE's folder.
        home: the run's folder, with its recipe.yaml.
        result: "evaluation.json" or "features/meta.json".

    Raises:
        ValueError: another section differs from the run's recipe; or 0 tokens.
    """
    sections, verb = results.stage_of(result).sections, MADE_BY[result]
    old, new = as_plain(Recipe()) | load_plain(home), as_plain(recipe)
    for key, _, _ in differences(old, new, set(new) - set(sections)):
        raise Refused(
            f"`hfsae {verb}` cannot change {key}, only {' and '.join(sections)}: the rest "
            "describes how this SAE was trained"
        )
    _refuse_no_tokens(recipe, result)
    if result == EVALUATION:
        check_foreign(recipe.evaluation, recipe.text, recipe.text.dataset)
    siblings = (home / name for name in recipe.sae_fields())
    others = [f for f in siblings if (f / CONFIG).is_file() and not f.samefile(folder)]
    others = [other for other in others if result in results.outdated(other, recipe)]
    sum_products_in_float32()
    accelerator = make_accelerator(recipe.training)
    sae = load_trained(folder)  # first: a damaged file fails before the language model loads
    norm_limits(sae, folder)
    refuse_changed(folder, [name for name in SEALED if name != result])  # else: no card
    why = {f: results.outdated(f, recipe, again=[result]) for f in (folder, *others)}
    loaded = load_inputs(recipe, str(accelerator.device))
    if others:
        print(f"{verb}: all {1 + len(others)} SAEs of {home}, since they share one recipe.yaml")
    for each, reasons in why.items():
        make_results(recipe, loaded, sae if each == folder else load_trained(each), each, reasons)
    save_recipe(home, new)


def measure(placed: SAEInContext, result: str) -> None:
    """Make one result of an SAE from elsewhere in its folder, and its figures and card again.

    Only the test side of the text is read; evaluation may be set to another. The result has under
    `measured_with` the model, the text and the norm limits.

    Args:
        placed: with its weights in the folder, see `open_folder`.
        result: "evaluation.json" or "features/meta.json".
    """
    recipe, sae, folder = placed.recipe, placed.sae, placed.folder
    refuse_mixture(folder, [TRAINING, FINGERPRINT])  # no measurement remakes these
    refuse_changed(folder, [name for name in SEALED if name != result])  # else: no card
    loaded = load_lm_for(placed)
    limits, inputs = limits_of(placed, loaded), inputs_of(recipe, loaded)
    note = {
        "source": placed.source,
        **inputs.about(),
        "text": {**text_record(recipe.text), "origin": text_origin(recipe.text)},
        "norm_limits": limits,
    }
    more = without_local_paths({"measured_with": note})
    job = Job(recipe, inputs, loaded, sae, folder, limits, side="test", more=more)
    results.make(results.stage_of(result), job)
    finish(folder)
