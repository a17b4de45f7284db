"""Recipes that come with hfsae, by name; and a recipe from a file, without a command line."""

from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, cast, get_type_hints

from ..machine.files import parse_yaml
from ..machine.refused import Refused, closest
from .fields import Recipe

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
