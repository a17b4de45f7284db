"""A recipe as JSON types, where two of them differ, and what of one determines a result."""

import json
import reprlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from typing import Any

from ..training.arguments import FREE
from .fields import TRAINING_SECTIONS, UNUSED, Recipe

RESULT_SECTIONS = (*TRAINING_SECTIONS, "evaluation")
# Settings that do not change the result.
_FREE = {*FREE, "cache", "cache_gb", "prefetch", "labels"}


def differences(
    old: dict[str, Any], new: dict[str, Any], sections: Iterable[str] = RESULT_SECTIONS
) -> Iterator[tuple[str, str, str]]:
    """(dotted key, old value, new value) where recipes differ in ways that change the result.

    Fields that `old` predates count as their defaults.

    Args:
        sections: names of sections, or dotted names of fields in them.
    """
    default = as_plain(Recipe())
    for section in sections:
        name, _, field = section.partition(".")
        values = (r.get(name) for r in (old, new, default))
        if field:
            values = ((value or {}).get(field) for value in values)
        yield from _differences(section, *values)


def _differences(
    key: str, old: object, new: object, default: object
) -> Iterator[tuple[str, str, str]]:
    if isinstance(old, dict) and isinstance(new, dict):
        default = default if isinstance(default, dict) else {}
        for name in sorted({*old, *new} - _FREE):
            fallback = default.get(name)
            yield from _differences(
                f"{key}.{name}", old.get(name, fallback), new.get(name), fallback
            )
    elif old != new:
        yield key, reprlib.repr(old), reprlib.repr(new)


def value_at(plain: object, key: str) -> Any:
    """The value at a dotted key of a recipe as JSON types; 0 if there is none."""
    for name in key.split("."):
        plain = plain.get(name, 0) if isinstance(plain, dict) else 0
    return plain


def with_value(recipe: Recipe, key: str, value: object) -> Recipe:
    """The recipe with another value at a dotted key, "field" or "section.field"."""
    section, _, name = key.rpartition(".")
    if not section:
        return replace(recipe, **{name: value})
    return replace(recipe, **{section: replace(getattr(recipe, section), **{name: value})})


def what_matters(recipe: Recipe, name: str) -> dict[str, Any]:
    """Everything that determines the result of one of a recipe's SAEs."""
    plain = as_plain(recipe)
    plain["saes"] = plain["saes"].get(name)
    return _without_free({key: plain[key] for key in RESULT_SECTIONS if key in plain})


def _without_free(value: object) -> Any:
    if not isinstance(value, dict):
        return value
    return {name: _without_free(part) for name, part in value.items() if name not in _FREE}


def as_plain(recipe: Recipe) -> dict[str, Any]:
    """The recipe as JSON types, as in recipe.yaml, without sections that its inputs do not use."""
    plain = json.loads(json.dumps(asdict(recipe)))
    if recipe.lm.kind is None:
        del plain["lm"]["kind"]
    unused = {*UNUSED[recipe.kind], "lm" if recipe.lms else "lms"}
    return {name: value for name, value in plain.items() if name not in unused}
