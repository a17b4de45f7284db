"""Activations that a recipe trains on, written to files: training elsewhere then needs no model.

    train-00000.safetensors ...   a bucket each, in the order of training
    test-00000.safetensors ...    of held-out documents, for the evaluation
    labels.csv                    of these documents, where pictures have labels
    harvest.json                  how far it came, the hash of each file, and of what was read
    recipe.yaml                   trains the same SAEs on these files

A shard's metadata name its side, and that its rows are in order: they are not shuffled a second
time before the bucket is (`hfsae.activations.files`), so that training takes the same batches.
"""

import json
import logging
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..activations import ActivationArguments, InputSource, Source, Split
from ..activations.files import SHARDS, refuse_other_shards, shard_hash
from ..features import LabelColumns, refuse_few_documents, write_labels_table
from ..io.errors import Refused
from ..io.file_names import HARVEST, LABELS_TABLE, RECIPE, shard_name
from ..io.files import locked, read_json, replacing, sweep, write_whole
from ..lm import widths_of
from ..training.trainer import make_accelerator, sum_products_in_float32
from .checks import check
from .inputs import Inputs, inputs_of, load_inputs, token_bar
from .recipe import (
    LMArguments,
    Recipe,
    as_plain,
    bucket_tokens,
    differences,
    save_recipe,
    sides_of,
)
from .results import LEFT_OUT

logger = logging.getLogger(__name__)
_HELD_OUT_ROWS = 2**17
"""about as many rows of held-out activations in a file"""


def harvest_to(recipe: Recipe, folder: Path) -> Path:
    """Write what training and evaluation of a recipe read; returns the recipe that reads it.

    Called again, it goes on after the last whole file.

    Args:
        folder: a new one, or one with the same harvest.

    Raises:
        ValueError: anything in the recipe that is invalid, or the folder holds something else.
    """
    if recipe.kind == "files":
        raise Refused("activations.files names activations already; give a recipe with a model")
    _, configs = check(recipe)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        sweep(folder)
        plain = as_plain(recipe)
        if (folder / HARVEST).is_file():
            progress = read_json(folder / HARVEST)
            if change := next(differences(progress.get("recipe", {}), plain), None):
                key, old, new = change
                raise Refused(
                    f"the folder {folder} holds the harvest of another recipe ({key} is {old} "
                    f"there and {new} here); give --out another"
                )
        elif others := sorted(p.name for p in folder.iterdir() if not p.name.startswith(".")):
            raise Refused(
                f"the folder {folder} holds something else ({others[0]}); give --out a new folder"
            )
        else:
            start = {"n_shards": 0, "n_batches": 0, "state": None, "limits": {}, SHARDS: {}}
            progress = {"recipe": plain, **start}
        sum_products_in_float32()
        loaded = load_inputs(recipe, str(make_accelerator(recipe.training).device))
        inputs = inputs_of(recipe, loaded)
        inputs.check()
        sites = [*widths_of(*configs.values())]
        source = inputs.source(sites)
        ours = {"content": source.content(), "origin": source.origin()}
        for key, what in (("content", "inputs"), ("origin", "weights of the model")):
            if None not in (ours[key], progress.get(key)) and ours[key] != progress[key]:
                raise Refused(
                    f"the {what} differ from those of the harvest in {folder} (their hash in "
                    f"{HARVEST} differs), so that it would hold rows of both; restore them, or "
                    "give --out another folder"
                )
        progress |= ours
        refuse_other_shards([folder / name for name in progress[SHARDS]])
        _write_training(recipe, source, folder, progress)
        if recipe.sizes.evaluation != 0:
            _write_held_out(recipe, inputs, sites, folder, progress)
        labels = _write_labels(source, folder, sides_of(recipe)[-1])
        held_out = None if recipe.sizes.evaluation != 0 else 0  # tokens: all harvested for it
        evaluation = replace(recipe.evaluation, n_tokens=held_out, texts={})
        fields: dict[str, Any] = {**LEFT_OUT, "collect_tokens": recipe.collect_tokens}
        fields |= {"lm": LMArguments(), "lms": {}, "evaluation": evaluation}
        files = ActivationArguments(files=str(folder), labels=labels)
        if held_out == 0:
            files = replace(files, held_out_fraction=0.0)
        save_recipe(folder, as_plain(replace(recipe, activations=files, **fields)))
    return folder / RECIPE


def _write_training(recipe: Recipe, source: Source, folder: Path, progress: dict[str, Any]) -> None:
    """A file for each bucket that training fills, until it has its batches."""
    t, passes = recipe.training, recipe.shuffle.passes
    if progress["state"] is not None:
        source.load_state_dict(progress["state"])
    total = -(-t.total_steps * t.batch_size // passes)
    with token_bar("harvest", total) as bar:
        bar.update(min(total, progress["n_batches"] * t.batch_size // passes))
        while progress["n_batches"] < t.total_steps:
            filling = source.fill(bucket_tokens(recipe), 0, 1)
            by_site: dict[str, list[Tensor]] = {}
            with closing(filling.parts):
                for part in filling.parts:
                    for site, acts in part.items():
                        by_site.setdefault(site, []).append(acts.cpu())
            tensors = {site: torch.cat(acts) for site, acts in by_site.items()}
            if filling.documents:
                tensors["document"] = torch.cat(filling.documents)
            n = len(next(iter(tensors.values())))
            if n < t.batch_size:
                raise Refused(source.refusals["too_few"].format(n=n, batch_size=t.batch_size))
            _save(tensors, folder / shard_name("train", progress["n_shards"]), "train", progress)
            progress["n_shards"] += 1
            progress["n_batches"] += n // t.batch_size * passes
            progress["state"] = source.state_dict()
            progress["limits"] = source.state_dict().get("norm_limits", {})
            write_whole(folder / HARVEST, json.dumps(progress) + "\n")
            bar.update(n)


def _write_held_out(
    recipe: Recipe, inputs: Inputs, sites: list[str], folder: Path, progress: dict[str, Any]
) -> None:
    side = sides_of(recipe)[-1]
    if (folder / shard_name(side, 0)).is_file() and progress.get("held_out"):
        return
    n, source = recipe.sizes.evaluation, inputs.source(sites, progress["limits"])
    parts: dict[str, list[Tensor]] = {}
    n_rows, number = 0, count()

    def save() -> None:
        tensors = {name: torch.cat(some) for name, some in parts.items()}
        _save(tensors, folder / shard_name(side, next(number)), side, progress)
        bar.update(n_rows)

    with token_bar(f"harvest {side}", n) as bar:
        for batch in source.batches(side, n):
            for name, part in {**batch.activations, "document": batch.document}.items():
                parts.setdefault(name, []).append(part.cpu())
            n_rows += len(batch.document)
            if n_rows >= _HELD_OUT_ROWS:
                save()
                parts, n_rows = {}, 0
        if n_rows:
            save()
    progress["held_out"] = True
    write_whole(folder / HARVEST, json.dumps(progress) + "\n")


def _write_labels(source: Source, folder: Path, side: Split) -> str:
    """Write a table with the labels of the held-out documents; returns its path, or nothing where
    there are none, or too few."""
    labels = source.labels() if isinstance(source, InputSource) else {}
    if not labels:
        return ""
    shards = takewhile(Path.is_file, (folder / shard_name(side, i) for i in count()))
    held_out: set[int] = set()
    for path in shards:
        with safe_open(path, "np") as shard:
            held_out |= {*np.unique(shard.get_tensor("document")).tolist()}
    documents = sorted(held_out)
    columns = {name: [of[number] for number in documents] for name, of in labels.items()}
    try:
        refuse_few_documents(len(documents))
        LabelColumns(columns, np.array(documents)).numbered()
    except Refused as why:
        logger.warning("labels are left out: %s", why)
        return ""
    write_labels_table(folder / LABELS_TABLE, documents, columns)
    return str(folder / LABELS_TABLE)


def _save(tensors: Mapping[str, Tensor], path: Path, side: Split, progress: dict[str, Any]) -> None:
    with replacing(path) as temporary:
        whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
        save_file(whole, temporary, metadata={"side": side, "order": "given"})
    progress[SHARDS][path.name] = shard_hash(path)
