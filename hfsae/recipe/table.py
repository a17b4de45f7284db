"""The stages of a run after training, in the order in which they are made.

A further stage is a function in a file of its own, which takes a `Job` and writes a result into the
SAE's folder, and a line of `STAGES`: before that of the card if the result has a line in
`machine.names.RECORDS`, by which it is checked, published and copied. See `tabulating.py`.
"""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from ..machine.names import (
    CARD,
    COLUMNS,
    EVALUATION,
    EXPLANATIONS_RECORD,
    FINGERPRINT,
    META,
    PRESETS,
    PROBING,
)
from .fields import Recipe


def _in(module: str, name: str) -> Callable[..., Any]:
    """A function of this room, whose module, which imports torch, is imported when it is called."""
    return lambda it: getattr(import_module(f".{module}", __package__), name)(it)


def _always(recipe: Recipe) -> int:
    return 1


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
    size: Callable[[Recipe], int | None] = _always
    """tokens, texts or seconds; None: all held-out text; 0: the recipe leaves this stage out"""
    is_finished: Callable[[Path], bool] = Path.exists
    """whether the file is there and complete"""


STAGES = (
    Stage(
        EVALUATION,
        _in("evaluating", "evaluate"),
        sections=("evaluation",),
        setting="evaluation.n_tokens",
        size=lambda recipe: recipe.sizes.evaluation,
    ),
    Stage(
        META,
        _in("collecting", "collect_examples"),
        sections=("collect", "collect_tokens"),
        setting="collect_tokens",
        size=lambda recipe: recipe.sizes.examples,
    ),
    Stage(
        COLUMNS,
        _in("tabulating", "tabulate"),
        sections=("activations.labels", "images.labels"),
        size=lambda recipe: int(recipe.has_labels),
    ),
    Stage(
        EXPLANATIONS_RECORD,
        _in("naming", "name_latents"),
        sections=("explain_tokens",),
        setting="explain_tokens",
        size=lambda recipe: recipe.sizes.names,
        is_finished=_in("naming", "is_named"),
    ),
    Stage(
        PROBING,
        _in("probing", "probe_latents"),
        sections=("probe_texts",),
        setting="probe_texts",
        size=lambda recipe: recipe.sizes.probing,
    ),
    Stage(FINGERPRINT, _in("verifying", "make_fingerprint")),
    # The card shows the results of the stages before it.
    Stage(CARD, lambda job: _in("finishing", "finish")(job.folder)),
    Stage(
        PRESETS,
        _in("presetting", "look_for_presets"),
        sections=("preset_seconds", "collect", "collect_tokens"),
        setting="preset_seconds",
        size=lambda recipe: recipe.sizes.presets,
    ),
)

LEFT_OUT = {s.setting: 0 for s in STAGES if s.setting and s.file != EVALUATION}
"""Fields of a recipe that leave out every stage after evaluation."""


def stage_of(file: str) -> Stage:
    """The stage that makes a result."""
    return next(stage for stage in STAGES if stage.file == file)
