"""The results that a run makes after its training, and which of them `hfsae train` makes (again).

A result in JSON has `made_from_sha256`, the hash of what it was made from (the weights, and the
sections of the recipe that its stage reads), and those of `io.checksums`: `content_sha256` of its
own content and `files_sha256` of the tables beside it show an edit, and `weights_sha256`, which the
fingerprint has too, shows whose a file is that was copied here. A result is made where it or a file
beside it is missing, or a hash differs; nothing else is kept about it. The card shows the others,
and has no hash, since people write into it: it is written where one of them has a later time.

    the output folder has                          `hfsae train`
    nothing, or recipe.yaml and no training yet    takes it, whatever recipe.yaml says
    something else, and no recipe.yaml             refuses it
    a training with other settings                 refuses it, and tells which differ
    a training that was interrupted                goes on from its last checkpoint
    a stage that was interrupted                   makes its result: it is missing, or its tables
                                                   are not those of its record
    results of a section that was edited           makes these, for every SAE, and tells why
    ... of which an interrupted run made some      makes those that are not of this recipe
    a result, or a table of it, that was edited    makes it, and warns that the edit is lost
    a result without a file that belongs to it     makes it, and tells which
    another license                                writes it into training.json and the card
    results of other weights                       makes them, and warns; refuses training.json
    a result that cannot be read                   refuses it, and names the verb that makes it
    a number, where the recipe has "auto"          leaves the result: nobody gave another number
    a result whose size is 0 in the recipe         leaves it
    one that `explain`, `probe` or `presets` made  leaves it: no section says how it was made
    a process that works there                     refuses: the folder is locked
    all of it                                      has nothing to do

A further stage is a function that takes a `Job` and writes a result with the entries of `Job.more`
into the SAE's folder, and a line of `STAGES`: before that of the card if the result has a line in
`io.file_names.RECORDS`, by which it is checked, published and copied. See `stages.stage_labels`.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..io.checksums import FILES, changes, content_hash, of_others, refuse_mixture, weights_hash
from ..io.errors import Refused
from ..io.file_names import (
    CARD,
    COLUMNS,
    COLUMNS_REPORT,
    CONFIG,
    EVALUATION,
    EXPLANATIONS_RECORD,
    EXPLANATIONS_REPORT,
    FIGURES,
    FINGERPRINT,
    META,
    PRESETS,
    PRESETS_SEARCH,
    PROBING,
    PROBING_REPORT,
    RECIPE,
    STEPS,
    TRAINING,
)
from ..io.files import is_first_process, locked, passes, read_json, sweep
from .recipe import (
    AUTO,
    TAKEN_FOLDERS,
    TRAINING_SECTIONS,
    Recipe,
    as_plain,
    differences,
    load_plain,
    value_at,
    what_is_set,
    with_value,
)

if TYPE_CHECKING:
    from .inputs import Job

MADE_FROM = "made_from_sha256"
_N_SHOWN = 3


def _call(module: str, name: str, it: Any) -> Any:
    """Call a function of this room, whose module, which imports torch, is imported only here."""
    return getattr(import_module(f".{module}", __package__), name)(it)


class Stage(NamedTuple):
    """A result in an SAE's folder, and how it is made."""

    file: str
    """the result; a path below the SAE's folder"""
    make: Callable[..., None]
    """makes it of a `Job`"""
    sections: tuple[str, ...] = ()
    """keys of a recipe, or dotted ones: if one changes, the result is out of date"""
    setting: str = ""
    """the recipe's field for the size, as "evaluation.n_tokens"; empty without one"""
    size: Callable[[Recipe], int | None] = lambda recipe: 1
    """tokens, texts or seconds; None: all held-out text; 0: the recipe leaves this stage out"""
    is_finished: Callable[[Path], bool] = Path.exists
    """whether the file is there and complete"""
    beside: tuple[str, ...] = ()
    """what it writes beside the file, apart from tables whose hashes the file has"""


_EXAMPLES = ("collect", "collect_tokens")

STAGES = (
    Stage(
        EVALUATION,
        partial(_call, "stages", "stage_evaluation"),
        sections=("evaluation",),
        setting="evaluation.n_tokens",
        size=lambda recipe: recipe.sizes.evaluation,
    ),
    Stage(
        META,
        partial(_call, "stages", "stage_examples"),
        sections=_EXAMPLES,
        setting="collect_tokens",
        size=lambda recipe: recipe.sizes.examples,
    ),
    Stage(
        COLUMNS,
        partial(_call, "stages", "stage_labels"),
        sections=("activations.labels", "images.labels"),
        size=lambda recipe: int(recipe.has_labels),
        beside=(COLUMNS_REPORT,),
    ),
    Stage(
        EXPLANATIONS_RECORD,
        partial(_call, "stage_explain", "stage_names"),
        sections=("explain_tokens", *_EXAMPLES),  # most names are made from examples
        setting="explain_tokens",
        size=lambda recipe: recipe.sizes.names,
        is_finished=partial(_call, "stage_explain", "is_named"),
        beside=(EXPLANATIONS_REPORT,),
    ),
    Stage(
        PROBING,
        partial(_call, "stage_probe", "stage_probing"),
        sections=("probe_texts",),
        setting="probe_texts",
        size=lambda recipe: recipe.sizes.probing,
        beside=(PROBING_REPORT,),
    ),
    Stage(FINGERPRINT, partial(_call, "stages", "stage_fingerprint")),
    # The card shows the results of the stages before it.
    Stage(CARD, lambda job: _call("folder", "finish", job.folder), beside=(FIGURES,)),
    Stage(
        PRESETS_SEARCH,
        partial(_call, "preset_search", "stage_presets"),
        sections=("preset_seconds", *_EXAMPLES),
        setting="preset_seconds",
        size=lambda recipe: recipe.sizes.presets,
        beside=(PRESETS,),
    ),
)

LEFT_OUT = {s.setting: 0 for s in STAGES if s.setting and s.file != EVALUATION}
"""Fields of a recipe that leave out every stage after evaluation."""


def stage_of(file: str) -> Stage:
    """The stage that makes a result."""
    return next(stage for stage in STAGES if stage.file == file)


def make(stage: Stage, job: "Job") -> None:
    """Make a stage's result, with the hash of what it is made from."""
    key = {MADE_FROM: made_from(stage, job.recipe, weights_hash(job.folder))}
    stage.make(job._replace(more={**(job.more or {}), **key}))


def made_from(stage: Stage, recipe: Recipe, weights: str | None) -> str:
    """The hash of what a stage makes its result from. Fields with their default do not count, so
    that a field that is added later leaves older results as they are; another version here would
    make every result again."""
    read = what_is_set(recipe, stage.sections)
    return content_hash({"weights": weights, "recipe": read, "version": 1})


def licence_in(record: Mapping[str, Any]) -> str | None:
    """The recipe's licence, in a training.json."""
    return record.get("card", {}).get("license")


def outdated(folder: Path, recipe: Recipe, again: Collection[str] = ()) -> dict[str, str]:
    """{result: why it has to be made}, in the order in which results are made.

    Args:
        folder: of an SAE of the run.
        again: results to be made whatever the folder has, and for no further reason.

    Raises:
        ValueError: training.json is of other weights; or it, or a result that would be kept, cannot
            be read.
    """
    refuse_mixture(folder, [TRAINING])  # no stage makes it
    licence = licence_in(read_json(folder / TRAINING))
    weights, why = weights_hash(folder), dict[str, str]()
    included = [stage for stage in STAGES if stage.size(recipe) != 0]
    on_card = [stage.file for stage in included]
    on_card = on_card[: on_card.index(CARD)]
    foreign, edited = {*of_others(folder, on_card)}, {c.record: c for c in changes(folder, on_card)}
    for stage in included:
        name, path = stage.file, folder / stage.file
        if name in again:
            why[name] = ""
        elif name in edited:
            why[name] = f"{edited[name].path}: {edited[name].why}; it is overwritten"
        elif not stage.is_finished(path):
            why[name] = f"{path} is {'unfinished' if path.exists() else 'missing'}"
        elif name in foreign:
            why[name] = f"{path} is of other weights"
        if name in why:
            continue
        record = read_json(path) if path.suffix == ".json" else {}
        beside = [path.with_name(Path(file).name) for file in record.get(FILES) or ()]
        if name == CARD or MADE_FROM in record:  # a verb's result is not lost for its report
            beside += [folder / file for file in stage.beside]
        if absent := [at for at in beside if not at.exists()]:
            why[name] = f"{absent[0]} is missing"
        elif record.get(MADE_FROM) not in (None, made_from(stage, recipe, weights)):
            how = _listed(_changed(recipe, stage.sections)) or ", ".join(stage.sections)
            why[name] = f"{path} was made with other settings ({how})"
        elif name == CARD:
            data = [folder / file for file in (TRAINING, *on_card) if (folder / file).exists()]
            newer = [at for at in data if at.stat().st_mtime > path.stat().st_mtime]
            if why or newer:
                why[name] = f"{[*why, *newer][0]} is newer"
            elif licence != recipe.license:
                why[name] = f"license is {licence!r} there and {recipe.license!r} here"
    return why


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


def refuse_another_training(recipe: Recipe) -> None:
    """Refuse an output folder with something else than this recipe's training.

    Raises:
        ValueError: the folder holds something else, or a training with other settings.
    """
    root = Path(recipe.training.output_dir)
    held = sorted(p.name for p in root.iterdir() if not passes(p)) if root.is_dir() else []
    if not held:
        return
    if not (root / RECIPE).is_file():
        raise Refused(
            f"the folder {root} holds something else ({held[0]}, and no recipe.yaml); give another "
            "training.output_dir"
        )
    if not any(next(root.rglob(made), None) for made in (STEPS, CONFIG)):
        return  # no training yet: another recipe may take it
    changed = _changed(recipe, TRAINING_SECTIONS)
    if not changed:
        return
    key, old, _ = changed[0]
    is_one_word = len(changed) == 1 and re.fullmatch(r"'?[\w./:-]+'?", old) and old != "None"
    same = f"give --{key} {old} to go on with it, or " if is_one_word else "give "
    raise Refused(
        f"the folder {root} holds a run of another recipe ({_listed(changed)}); {same}"
        "another training.output_dir, or delete the folder"
    )


def _changed(recipe: Recipe, sections: Iterable[str]) -> list[tuple[str, str, str]]:
    """(dotted key, value in the output folder's recipe.yaml, the recipe's) of those that differ."""
    root = Path(recipe.training.output_dir)
    held = load_plain(root) if (root / RECIPE).is_file() else as_plain(recipe)
    return list(differences(held, as_plain(recipe), sections))


def _listed(changed: Sequence[tuple[str, str, str]]) -> str:
    listed = [f"{key} is {old} there and {new} here" for key, old, new in changed[:_N_SHOWN]]
    more = [f"{len(changed) - _N_SHOWN} more"] if len(changed) > _N_SHOWN else []
    return "; ".join(listed + more)


def resolve_auto_sizes(recipe: Recipe) -> Recipe:
    """The recipe with numbers of tokens for "auto". Results that the output folder has from this
    training stand, whatever their number: nobody gave another."""
    root, plain = Path(recipe.training.output_dir), as_plain(recipe)
    held = load_plain(root) if (root / RECIPE).is_file() else {}
    if next(differences(held, plain, TRAINING_SECTIONS), None):
        held = {}
    for stage in STAGES:
        if value_at(plain, stage.setting) == AUTO:
            ours, theirs = stage.size(recipe), value_at(held, stage.setting)
            stands = isinstance(theirs, int | None) and 0 not in (ours, theirs)
            recipe = with_value(recipe, stage.setting, theirs if stands else ours)
    return recipe
