"""Recipes in files: those that come with hfsae, and recipe.yaml of a run; where two recipes differ.

A *plain* recipe is one as JSON types, as in recipe.yaml.
"""

import json
import reprlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, cast, get_type_hints

import yaml

from ..io.files import damaged, parse_yaml, write_whole
from ..io.file_names import RECIPE
from ..io.errors import Damaged, Refused, closest
from ..training.arguments import FREE
from .fields import TRAINING_SECTIONS, UNUSED, Recipe

RESULT_SECTIONS = (*TRAINING_SECTIONS, "evaluation")
SOURCE = "source"
"""The first key of the recipe of an SAE from elsewhere: where it is from."""
# Settings that do not change the result.
_FREE = {*FREE, "cache", "cache_gb", "prefetch", "labels"}
# The wheel has them inside the package, a clone beside its scripts.
_INSIDE = Path(__file__).with_name("shipped")
_FOLDER = _INSIDE if _INSIDE.is_dir() else Path(__file__).parents[2] / "scripts" / "recipes"


def shipped_recipes() -> dict[str, str]:
    """{name: what it trains}, sorted by name; the description is the first line of each file."""
    paths = sorted(_FOLDER.glob("*.yaml"))
    first = (path.read_text(encoding="utf-8").partition("\n")[0] for path in paths)
    return {path.stem: line.lstrip("# ") for path, line in zip(paths, first, strict=True)}


def find_recipe(name: str | Path) -> Path:
    """The file of a recipe: a path, or else the name of a recipe that comes with hfsae.

    Raises:
        ValueError: there is neither.
    """
    for path in (Path(name), _FOLDER / f"{name}.yaml"):  # a folder of that name is in nobody's way
        if path.is_file():
            return path
    names = list(shipped_recipes())
    near = closest(str(name), names)
    raise Refused(
        f"there is no recipe {str(name)!r}{near}; give a YAML file's path, or one that comes with "
        f"hfsae: {', '.join(names)}"
    )


def licence_with(recipe: Recipe, lm_name: str) -> str | None:
    """A recipe's licence where it is used with another language model: none, since that one may
    come under other terms."""
    return recipe.license if lm_name == recipe.lm.name else None


def read_recipe(name: str | Path) -> Recipe:
    """A recipe from a file, or one that comes with hfsae: "quickstart", "gemma2_2b_16k".

    Raises:
        ValueError: there is no such recipe, or it has an unknown section or field.
    """
    path = find_recipe(name)
    plain = parse_yaml(path.read_text(encoding="utf-8"))
    if not isinstance(plain, dict):
        raise Refused(f"the recipe {path} has no sections")
    kinds: dict[str, Any] = get_type_hints(Recipe)
    sections: dict[str, Any] = {}
    for section, value in plain.items():
        kind = kinds.get(section)
        names = {field.name for field in fields(kind)} if is_dataclass(kind) else None
        if kind is None or (names is not None and not names.issuperset(value)):
            what = f"section {section}" if kind is None else f"a field of {section}"
            raise Refused(
                f"the recipe {path}: {what} is unknown; `hfsae train --help_all` lists all"
            )
        sections[section] = value if names is None else cast(Any, kind)(**value)
    return Recipe(**sections)


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


def is_of_training(path: Path) -> bool:
    """Whether a recipe.yaml is of a training, and not of an SAE from elsewhere."""
    with open(path, encoding="utf-8") as file:
        return not file.readline().startswith(f"{SOURCE}:")


def save_recipe(root: Path, plain: dict[str, Any]) -> None:
    """Write the folder's recipe.yaml."""
    text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
    write_whole(root / RECIPE, text)


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


def what_is_set(recipe: Recipe, sections: Iterable[str]) -> dict[str, Any]:
    """The values of sections, or of fields with dotted names, without those that are the default
    and those that do not change a result."""
    plain, default = as_plain(recipe), as_plain(Recipe())
    return {key: _set_in(value_at(plain, key), value_at(default, key)) for key in sections}


def _set_in(value: object, default: object) -> object:
    if not isinstance(value, dict):
        return value
    usual = default if isinstance(default, dict) else {}
    differing = {k: v for k, v in value.items() if k not in _FREE and v != usual.get(k)}
    return {key: _set_in(part, usual.get(key)) for key, part in differing.items()}


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
