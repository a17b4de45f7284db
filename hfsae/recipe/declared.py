"""The fields of SAEs' configs, known without importing these, which takes seconds.

They are read from the source of hfsae/models: a field is an annotated name in the body of a class,
with its default and the text under it, and a class also has its bases' fields. Variants in users'
own modules are known by their classes, once these are imported.
"""

import ast
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ..machine.bounds import check_type
from ..machine.refused import Refused, closest
from .fields import Recipe

_ROOM = Path(__file__).parents[1] / "models"
_ANNOTATIONS = {"Literal": Literal, "Number": int | float}
_EVERY_MODEL = ("model_type", "dtype", "torch_dtype")  # fields beside the declared ones


class DeclaredField(NamedTuple):
    type: Any
    """None: it is only known by importing"""
    default: Any
    """None without one, too"""
    text: str


class Variant(NamedTuple):
    """A variant as its classes declare it."""

    fields: dict[str, DeclaredField]
    """those of its bases first"""
    formula: str


def known_variants() -> dict[str, Variant]:
    """The variants by model_type: those of hfsae, and imported ones."""
    if f"{__name__.partition('.')[0]}.models" not in sys.modules:
        return declared_variants()
    from ..models.config import variants  # which is there already

    others = (config for config in variants() if config.model_type not in declared_variants())
    return declared_variants() | {config.model_type: imported_variant(config) for config in others}


def check_sae_fields(recipe: Recipe, given: Iterable[str]) -> None:
    """Check fields of SAEs' configs, as far as that needs neither a model nor torch.

    Args:
        given: fields that the user set explicitly, expecting an effect.

    Raises:
        ValueError: an unknown model_type, a field that no variant has, a given one that no variant
            in the recipe has, or one with a value of another type.
    """
    refuse_unknown_fields(recipe)
    refuse_fields_of_others(recipe, given)
    for fields in recipe.sae_fields().values():
        declared = known_variants()[check_model_type(fields)].fields
        for name in declared.keys() & fields.keys() & {*given}:
            if declared[name].type is not None:
                check_type(f"sae.{name}", fields[name], declared[name].type)


def refuse_unknown_fields(recipe: Recipe) -> None:
    """Refuse fields that no variant has.

    Raises:
        ValueError: there is such a field, or an unknown model_type.
    """
    variants = known_variants()
    every = {*_EVERY_MODEL, *(name for v in variants.values() for name in v.fields)}
    for fields in recipe.sae_fields().values():
        own = variants[check_model_type(fields)].fields
        for name in fields.keys() - every:
            near = closest(name, [*own]) or closest(name, sorted(every))
            raise Refused(f"sae has no field {name!r}{near or '; `--help_all` lists all'}")


def check_model_type(fields: Mapping[str, Any]) -> str:
    """The model_type of an SAE's fields.

    Raises:
        ValueError: no variant has it.
    """
    given = fields.get("model_type", _default_variant())
    if given not in (known := known_variants()):
        raise Refused(
            f"sae.model_type {given!r} is unknown{closest(str(given), [*known])}; hfsae has "
            f"{', '.join(sorted(known))}; import the module of a variant of your own first (a "
            "command: --import MODULE)"
        )
    return given


def refuse_fields_of_others(recipe: Recipe, names: Iterable[str]) -> None:
    """Refuse fields that no variant in the recipe has.

    Args:
        names: fields of sae that the user set explicitly, expecting an effect.

    Raises:
        ValueError: other variants have such a field, but none in the recipe does.
    """
    variants = known_variants()
    types = {check_model_type(fields) for fields in recipe.sae_fields().values()}
    for name in names:
        having = sorted(t for t, variant in variants.items() if name in variant.fields)
        if having and not types & {*having}:
            raise Refused(
                f"a {' or '.join(sorted(types))} has no field {name!r}; with sae.model_type "
                f"{' or '.join(having)} there is one"
            )


def imported_variant(config: Any) -> Variant:
    """A variant of a user's own, by its config's class."""
    from dataclasses import fields

    from docstring_parser import parse_from_object
    from transformers import MODEL_MAPPING

    from ..models.config import own_fields

    bases = (base for base in reversed(config.mro()) if "__annotations__" in vars(base))
    texts = {p.arg_name: p.description for b in bases for p in parse_from_object(b).params}
    declared = {
        field.name: DeclaredField(
            field.type, getattr(config, field.name, None), _in_one_line(texts.get(field.name))
        )
        for field in fields(config)
        if field.name in own_fields(config)
    }
    model = MODEL_MAPPING.get(config, None)  # a config may come without its class of SAEs
    return Variant(declared, (getattr(model, "__doc__", None) or "").partition("\n")[0])


@cache
def declared_variants() -> dict[str, Variant]:
    """The variants of hfsae."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in _ROOM.glob("*.py")]
    nodes = {n.name: n for tree in trees for n in tree.body if isinstance(n, ast.ClassDef)}
    shells: dict[str, type] = {}

    def shell(name: str) -> type:
        """An empty class with the bases of the class: Python orders them."""
        bases = [b.id for b in nodes[name].bases if isinstance(b, ast.Name) and b.id in nodes]
        if name not in shells:
            shells[name] = type(name, tuple(map(shell, bases)), {})
        return shells[name]

    variants = {}
    for node in nodes.values():
        config = _names(node.body).get("config_class")
        model_type = config and _names(nodes[config].body).get("model_type")
        if config and model_type:
            mro = [base.__name__ for base in reversed(shell(config).mro()[:-1])]
            fields = {k: v for name in mro for k, v in _own_fields(nodes[name]).items()}
            formula = (ast.get_docstring(node) or "").partition("\n")[0]
            variants[model_type] = Variant(fields, formula)
    return dict(sorted(variants.items()))


@cache
def _default_variant() -> str:
    tree = ast.parse((_ROOM / "__init__.py").read_text(encoding="utf-8"))
    return _names(tree.body)["DEFAULT_VARIANT"]


def _names(body: list[ast.stmt]) -> dict[str, str]:
    """The names that statements set to a text, or to another name."""
    names = {}
    for node in body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            if isinstance(node.value, ast.Name):
                names[node.targets[0].id] = node.value.id
            elif isinstance(node.value, ast.Constant):
                names[node.targets[0].id] = node.value.value
    return names


def _own_fields(node: ast.ClassDef) -> dict[str, DeclaredField]:
    fields = {}
    for statement, after in pairwise([*node.body, ast.Pass()]):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        annotation = ast.unparse(statement.annotation)
        if annotation.startswith("ClassVar"):
            continue
        told = after.value if isinstance(after, ast.Expr) else None
        text = told.value if isinstance(told, ast.Constant) else ""
        default = statement.value and _evaluated(statement.value)
        kind = _evaluated(statement.annotation)
        fields[statement.target.id] = DeclaredField(kind, default, _in_one_line(text))
    return fields


def _evaluated(node: ast.expr) -> Any:
    """The value of an expression of numbers, texts and built-in types; None for another."""
    try:
        return eval(ast.unparse(node), dict(_ANNOTATIONS))
    except NameError:
        return None


def _in_one_line(text: object) -> str:
    return " ".join(str(text or "").split())
