"""Probing of SAEs in their folders, side by side on one language model."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import cards
from ..evaluation.probing import ProbeArguments, Probing, Task, read_tasks
from ..machine.names import CARD, EVALUATION, TRAINING
from ..machine.refused import Refused
from ..machine.seal import refuse_changed
from ..machine.weights import refuse_mixture
from ..training.trainer import sum_products_in_float32
from .fields import LMArguments
from .folder import locked_run, names_apart, norm_limits
from .opening import load
from .placed import PlacedSAE, refuse_without_text
from .probing import LM_FIELDS, PackagedTasks, lm_of, probe_loaded, save_probing

PACKAGED = "packaged"


def probe_saes(
    placed: Sequence[PlacedSAE],
    args: ProbeArguments,
    tasks: str = PACKAGED,
    **columns: str | None,
) -> Probing:
    """Probe SAEs side by side; write probing.json and probing.md into the folder of each, its means
    into evaluation.json, where there is one, and a section into its card.

    Args:
        tasks: "packaged", a jsonl file, or a Hub data set.
        columns: `text_column`, `label_column`, `group_column` and `split` of these.

    Raises:
        ValueError: SAEs of different language models, unusable tasks, or a package that is missing.
    """
    by_folder = {one.folder.resolve(): one for one in placed}  # one that is named twice, once
    folders, placed = [*by_folder], [*by_folder.values()]
    for one in placed:
        refuse_without_text(one)
    names = names_apart(folders)
    saes = {name: one.sae for name, one in zip(names, placed, strict=True)}
    lm = _common_lm(dict(zip(names, placed, strict=True)))
    for folder in folders:
        refuse_mixture(folder, [TRAINING])
        refuse_changed(folder, [EVALUATION])  # into which the means go, and which is sealed again
    read, n_texts, source = _tasks(tasks, args, columns)
    limits: dict[str, float] = {}
    for sae, folder in zip(saes.values(), folders, strict=True):
        if (folder / TRAINING).is_file():
            limits |= norm_limits(sae, folder)
    sum_products_in_float32()
    args_of_lm = {LM_FIELDS[key]: value for key, value in lm.items() if value}
    loaded = load(LMArguments(**args_of_lm))
    for sae in saes.values():
        sae.to(loaded.lm.device)
    result = probe_loaded(loaded, saes, read, n_texts, args, limits)
    about = {"tasks_of": source, "saes": [*saes], "lm": lm}
    for (name, sae), folder in zip(saes.items(), folders, strict=True):
        with locked_run(folder, [folder]):
            own = {"sae": name, "site": sae.config.reads.only_site}
            save_probing(result, folder, about | own)
            if (folder / CARD).is_file():
                cards.write_card(folder)
    return result


def _common_lm(placed: Mapping[str, PlacedSAE]) -> dict[str, Any]:
    """The language model of all the SAEs, by the names in a config; what one of them leaves open,
    another may tell."""
    each = {n: lm_of(p.sae, p.recipe, of_a_run=p.home is not None) for n, p in placed.items()}
    (first, common), *others = each.items()
    for name, theirs in others:
        for key, value in theirs.items():
            if None not in (value, common[key]) and value != common[key]:
                raise Refused(
                    f"{name} belongs to {theirs['model_name']} and {first} to "
                    f"{common['model_name']}, or in another precision; probe SAEs of "
                    "one model together"
                )
        common |= {key: value for key, value in theirs.items() if value is not None}
    left_open = vars(placed[first].recipe.lm)
    return {key: common[key] or left_open[field] for key, field in LM_FIELDS.items()}


def _tasks(
    tasks: str, args: ProbeArguments, columns: Mapping[str, Any]
) -> tuple[Iterable[Task], int, str]:
    """The tasks, how many texts will be read, and where they are from, for a record."""
    if tasks == PACKAGED:
        if columns.get("group_column"):
            raise Refused("packaged sets have no groups; give --tasks with --group_column")
        try:
            packaged = PackagedTasks(args)
        except Refused as error:
            raise Refused(f"{error}; or give --tasks FILE.jsonl") from error
        return packaged, len(packaged), packaged.source
    own = read_tasks(tasks, **columns)
    n_texts = sum(min(args.n_texts, len(task.texts)) for task in own)
    return own, n_texts, Path(tasks).name if Path(tasks).exists() else tasks
