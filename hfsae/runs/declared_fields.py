"""The fields of SAEs' configs, known without importing these, which takes seconds: so that a wrong
option is told at once.

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

from ..io.bounds import check_n_latents, check_type
from ..io.errors import Refused, closest
from .recipe import Recipe

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
    formula: str


def known_variants() -> dict[str, Variant]:
    """The variants by model_type: those of hfsae, and imported ones."""
    known = dict(declared_variants())
    if f"{__name__.partition('.')[0]}.models" in sys.modules:
        from ..models.config import own_fields, variants  # which is there already

        for config in variants():
            if config.model_type not in known:
                every, fields = config.__dataclass_fields__, {}
                for name in sorted(own_fields(config)):
                    kind, default = every[name].type, getattr(config, name, None)
                    fields[name] = DeclaredField(kind, default, "")
                known[config.model_type] = Variant(fields, "a variant of your own")
    return known


def check_sae_fields(recipe: Recipe, given: Iterable[str] = ()) -> None:
    """Check fields of SAEs' configs, as far as that needs neither a model nor torch.

    Args:
        given: fields that the user set explicitly, expecting an effect.

    Raises:
        ValueError: an unknown model_type, a field that no variant has, a given one that no variant
            in the recipe has, one with a value of another type, or an impossible size.
    """
    variants, saes = known_variants(), recipe.sae_fields().values()
    every = {*_EVERY_MODEL, *(name for v in variants.values() for name in v.fields)}
    for fields in saes:
        own = variants[check_model_type(fields)].fields
        for name in fields.keys() - every:
            near = closest(name, [*own]) or closest(name, sorted(every))
            raise Refused(f"sae has no field {name!r}{near or '; `--help_all` lists all'}")
    types = {check_model_type(fields) for fields in saes}
    for name in given:
        having = sorted(t for t, variant in variants.items() if name in variant.fields)
        if having and not types & {*having}:
            raise Refused(
                f"a {' or '.join(sorted(types))} has no field {name!r}; with sae.model_type "
                f"{' or '.join(having)} there is one"
            )
        for fields in saes:
            declared = variants[check_model_type(fields)].fields.get(name)
            if declared and declared.type is not None and name in fields:
                check_type(f"sae.{name}", fields[name], declared.type)
    for fields in saes:
        sizes = [fields.get(name) for name in ("d_sae", "target_l0")]
        if all(isinstance(size, int | float | None) for size in sizes):
            check_n_latents(*sizes, prefix="sae.")


def check_model_type(fields: Mapping[str, Any]) -> str:
    """The model_type of an SAE's fields."""
    given = fields.get("model_type") or default_variant()
    if given not in (known := known_variants()):
        raise Refused(
            f"sae.model_type {given!r} is unknown{closest(str(given), [*known])}; hfsae has "
            f"{', '.join(sorted(known))}; import the module of a variant of your own first (a "
            "command: --import MODULE)"
        )
    return given


@cache
def default_variant() -> str:
    """`models.DEFAULT_VARIANT`, read as text: importing it takes seconds."""
    text = (_ROOM / "__init__.py").read_text(encoding="utf-8")
    nodes = [node for node in ast.parse(text).body if isinstance(node, ast.Assign)]
    values = {ast.unparse(node.targets[0]): ast.literal_eval(node.value) for node in nodes}
    return values["DEFAULT_VARIANT"]


@cache
def declared_variants() -> dict[str, Variant]:
    """The variants of hfsae."""
    modules = [ast.parse(path.read_text(encoding="utf-8")) for path in _ROOM.glob("*.py")]
    statements = [node for module in modules for node in module.body]
    nodes = {node.name: node for node in statements if isinstance(node, ast.ClassDef)}

    def fields_of(name: str) -> dict[str, DeclaredField]:
        bases = [b.id for b in nodes[name].bases if isinstance(b, ast.Name) and b.id in nodes]
        fields = {k: v for base in reversed(bases) for k, v in fields_of(base).items()}
        for node, after in pairwise([*nodes[name].body, ast.Pass()]):
            if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
                continue
            if ast.unparse(node.annotation).startswith("ClassVar"):
                continue
            values = []  # of numbers, texts and built-in types; None of others
            for expression in (node.annotation, node.value):
                try:
                    text = ast.unparse(expression) if expression else "None"
                    values.append(eval(text, dict(_ANNOTATIONS)))
                except NameError:
                    values.append(None)
            under = after.value if isinstance(after, ast.Expr) else None
            text = str(under.value) if isinstance(under, ast.Constant) else ""
            kind, default = values
            fields[node.target.id] = DeclaredField(kind, default, " ".join(text.split()))
        return fields

    variants, given = {}, dict[str, dict[str, Any]]()  # by class, what its body gives a name
    for name, node in nodes.items():
        plain = [n for n in node.body if isinstance(n, ast.Assign)]
        targets = [(n.targets[0], n.value) for n in plain]
        given[name] = {t.id: value for t, value in targets if isinstance(t, ast.Name)}
    for name, node in nodes.items():
        config = getattr(given[name].get("config_class"), "id", None)
        model_type = getattr(given.get(config or "", {}).get("model_type"), "value", None)
        if config and model_type:
            formula = (ast.get_docstring(node) or "").partition("\n")[0]
            variants[model_type] = Variant(fields_of(config), formula)
    return dict(sorted(variants.items()))
