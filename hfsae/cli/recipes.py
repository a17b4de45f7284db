"""Read a recipe from a YAML file and the command line; the command line wins."""

import re
import shlex
from argparse import SUPPRESS
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar, cast, get_origin

import yaml
from jsonargparse import get_loader, set_loader, set_parsing_settings

from ..activations import HarvestArguments, TextArguments
from ..comparison import Comparison
from ..explanations import ExplainArguments
from ..lm.located import refuse_absent
from ..machine.files import check_yaml, parse_yaml
from ..machine.names import EVALUATION, MADE_BY, META
from ..machine.refused import Refused
from ..recipe import (
    LMArguments,
    Recipe,
    Sections,
    check_sae_fields,
    find_recipe,
    known_variants,
    licence_with,
    read_recipe,
    shipped_recipes,
    stage_of,
)
from ..recipe.declared import DeclaredField, refuse_unknown_fields
from ..recipe.fields import UNUSED
from ..tuning import Tuning
from .files import add_choice, add_site
from .parsing import VerbParser, explained, with_names
from .table import EXAMPLES, VERBS

_USAGE = {
    "train": "[RECIPE.yaml] [--FIELD VALUE ...]",
    "compare": "[COMPARISON.yaml ...] [--FIELD VALUE ...]",
    "tune": "[RECIPE.yaml] [--FIELD VALUE ...]",
    "harvest": "[RECIPE.yaml] --out FOLDER [--FIELD VALUE ...]",
    "evaluate": "SOURCE [--FIELD VALUE ...]",
    "collect": "SOURCE [--FIELD VALUE ...]",
}
# Fields that `--help` explains; the others are for `--help_all`.
_TEXT = ("lm.name", "text.dataset")
_OTHER_INPUTS = ("images.files", "activations.files")
_TRAINING = ("training.output_dir", "training.n_tokens", "training.learning_rate")
_TRAINING += ("evaluation.n_tokens",)
_OFTEN = {
    "train": (*_TEXT, *_OTHER_INPUTS, *_TRAINING, "text.context_size", "collect_tokens"),
    "compare": (*_TEXT, *_TRAINING, "arms", "seeds", "at_l0", "only"),
    "tune": ("training.output_dir", "training.n_tokens", "ranges", "arms", "trials", "rungs"),
    "harvest": (*_TEXT, *_OTHER_INPUTS[:1], "training.n_tokens", "evaluation.n_tokens"),
    "evaluate": (*_TEXT, "evaluation.n_tokens", "evaluation.texts"),
    "collect": (*_TEXT, "collect_tokens", "collect.top", "collect.window"),
}
_OFTEN_OF_SAE = ("site", "target_l0", "k")
_KINDS = {"lm": LMArguments, "text": TextArguments, "harvest": HarvestArguments}
SECTIONS = {MADE_BY[file]: (*_KINDS, *stage_of(file).sections) for file in (EVALUATION, META)}
_ACTIVATIONS = "activations"
_SHORT = {"--activations": "--activations.files", "--site": "--sae.site"}
_SHORT["--labels"] = "--activations.labels"
_SOURCES = ("--images.files", "--images.folder")
_INSTEAD = (
    ("sites", "site"),
    ("sites", "target_site"),
    ("site", "sites"),
    ("site", "target_sites"),
)
_EXPLAIN, _TOGETHER = "--explain", "--together"
_EXPONENT = re.compile(r"(?<![^=])\d+e\d+$", re.IGNORECASE)  # 1e6, or --field=1e6
_load_yaml = get_loader("yaml")
_Recipe = TypeVar("_Recipe", bound=Recipe)


def _load_yaml_with_whole_numbers(text: str) -> Any:
    """YAML in which 1e6 is a number too."""
    check_yaml(text)
    return _whole_as_int(_load_yaml(text))


def _whole_as_int(value: object) -> Any:
    if isinstance(value, dict):
        return {key: _whole_as_int(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_whole_as_int(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def recipe_parser(verb: str, kind: type[Recipe] = Recipe) -> VerbParser:
    """A parser of a recipe's fields."""
    _prepare_parsing()
    every = tuple(section.name for section in fields(kind))
    parser = VerbParser(
        verb,
        _USAGE[verb],
        VERBS[verb].about,
        recipe=every,
        sections=SECTIONS.get(verb, every),
        often=_OFTEN[verb],
        examples=tuple(e for e in EXAMPLES if e.startswith(f"hfsae {verb} ")),
        more=(lambda everything: iter(())) if verb in SECTIONS else _sae_help,
    )
    if verb in SECTIONS:
        parser.add("--revision", type=str | None, help="branch, tag or commit of a repository")
        add_output(parser)
        add_site(parser)
    parser.parser.add_argument("--recipe", action="config")
    parser.parser.add_class_arguments(kind, as_group=False)
    return parser


def _prepare_parsing() -> None:
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    set_loader("yaml", _load_yaml_with_whole_numbers, exceptions=(ValueError, yaml.YAMLError))


def add_sections(parser: VerbParser, sections: Sequence[str]) -> None:
    """Add the fields of sections of a recipe (of lm, text and harvest) to a verb without one."""
    _prepare_parsing()
    for section in sections:
        parser.parser.add_class_arguments(_KINDS[section], section)
    for action in parser.parser._actions:  # fields that are not given are as in the SAE's files
        if action.dest.partition(".")[0] in sections:
            action.default = SUPPRESS
    parser.recipe = parser.sections = tuple(sections)
    parser.often = tuple(n for n in _TEXT if n.partition(".")[0] in sections)


def add_output(parser: VerbParser) -> None:
    """Add --output_dir and the options that choose one SAE of several."""
    add_choice(parser)
    parser.add(
        "--output_dir",
        type=str | None,
        help="folder for an SAE from elsewhere, and its results (default: runs/NAME)",
    )


def train_parser() -> VerbParser:
    """The parser of `hfsae train`."""
    parser = recipe_parser("train")
    parser.add("--dry_run", action="store_true", help="print what would run, its memory and disk")
    return parser


def _sae_help(everything: bool) -> Iterator[str]:
    """Help for the variants and their most used config fields, or all of them."""
    variants, having = known_variants(), dict[tuple[str, DeclaredField], list[str]]()
    for model_type, variant in variants.items():
        for name, about in variant.fields.items():
            having.setdefault((name, about), []).append(model_type)
    yield from ("", "fields of sae:" if everything else "most used fields of sae:")
    yield from explained(
        "--sae.d_sae", "number of latents; usually 8 to 32 times the model's width"
    )
    for (name, about), types in having.items():
        if everything or name in _OFTEN_OF_SAE:
            kind = "" if len(types) == len(variants) else f" ({', '.join(types)})"
            yield from explained(f"--sae.{name}{kind}", about.text, about.default)
    yield from ("", "variants, by --sae.model_type:")
    for model_type, variant in sorted(variants.items()):
        yield from explained(model_type, variant.formula)


def parse_recipe(
    parser: VerbParser, argv: list[str], kind: type[_Recipe] = Recipe
) -> tuple[_Recipe, dict]:
    """The recipe (a file or a name first, then fields), and the verb's own options.

    Raises:
        ValueError: no such recipe, or unknown or invalid arguments, in one sentence.
    """
    path, argv, content = None, with_one_source(with_files(argv)), dict[str, Any]()
    is_shipped = kind is Recipe and argv[:1] != [] and argv[0] in shipped_recipes()
    if argv and not argv[0].startswith("-"):
        path = Path(argv[0]) if kind is Comparison else find_recipe(argv[0])
        content = _readable(path, kind)
        argv = ["--recipe", str(path), *with_own_places(argv[1:], content.get("sae") or {})]
    args = parser.parse(_with_whole_numbers(argv))
    args.pop("recipe")  # already read
    own = {section.name for section in fields(kind)}
    options = {name: value for name, value in args.items() if name not in own}
    recipe = kind(**{name: value for name, value in args.items() if name in own})
    _refuse_unused(recipe, argv)
    if is_shipped and path and not _gives("training.output_dir", argv):
        sites, theirs = recipe.sites, read_recipe(path).sites
        if sites != theirs:  # their folder may hold the SAE of that recipe
            place = re.sub(r"[^\w.]", "-", sites[0] if len(sites) == 1 else f"{sites[0]}-and-more")
            folder = f"{recipe.training.output_dir}-{place}"
            recipe = replace(recipe, training=replace(recipe.training, output_dir=folder))
    if kind is Recipe and path and not _gives("license", argv):
        lm, lms = content.get("lm") or {}, content.get("lms") or {}
        recipe = replace(recipe, license=licence_with(recipe, lm.get("name", LMArguments.name)))
        if recipe.model_names != [given.get("name") for given in lms.values()] and recipe.lms:
            recipe = replace(recipe, license=None)
    if isinstance(recipe, Comparison | Tuning):  # whose arms may be of any variant
        refuse_unknown_fields(recipe)
    else:
        named = (re.match(r"--sae\.(\w+)", part) for part in argv)
        check_sae_fields(recipe, [n[1] for n in named if n and recipe.sae.get(n[1]) is not None])
    return recipe, options


def _gives(field: str, argv: list[str]) -> bool:
    return any(part.partition("=")[0] == f"--{field}" for part in argv)


def refuse_absent_models(recipe: Recipe) -> None:
    """Refuse models that are nowhere before what loads them is imported, which takes seconds. A
    folder with a run may have all that it needs of them."""
    if recipe.kind == "files" or Path(recipe.training.output_dir).exists():
        return
    for model in recipe.models.values():
        refuse_absent(model.name, model.revision, model.source)


def _refuse_unused(recipe: Recipe, argv: list[str]) -> None:
    """Refuse fields of sections that the recipe's inputs do not use: they would have no effect."""
    for part, value in pairwise([*argv, ""]):
        flag, is_joined, joined = part.partition("=")
        section, _, field = flag.removeprefix("--").partition(".")
        is_given = flag.startswith("--") and field and (joined if is_joined else value)
        if is_given and recipe.kind != "text" and section in UNUSED[recipe.kind]:
            raise Refused(f"{flag} has no effect on a recipe of {recipe.kind}; leave it out")


def parse_given(parser: VerbParser, argv: list[str]) -> tuple[dict[str, Any], Sections]:
    """A verb's own options, and the fields of a recipe that are set: those that are not stay as
    they are in the recipe of the SAE.

    Raises:
        ValueError: unknown or invalid arguments, in one sentence.
    """
    argv = _with_whole_numbers(argv)
    options = parser.parse(argv)
    given = parser.given(argv)
    own = {name: value for name, value in options.items() if name not in parser.recipe}
    return own, {name: value for name, value in given.items() if name in parser.recipe}


def _with_whole_numbers(argv: list[str]) -> list[str]:
    """1e6 as 1000000."""
    return [_EXPONENT.sub(lambda n: f"{float(n[0]):.0f}", part) for part in argv]


def parse_comparisons(argv: list[str]) -> tuple[dict[str, Comparison], Path | None]:
    """The comparisons of `hfsae compare`, by the command that makes one alone, and the folder for
    a report on all of them.

    Raises:
        ValueError: as `parse_recipe`; several comparisons without `--together`.
    """
    parser = recipe_parser("compare", Comparison)
    parser.add(
        _TOGETHER,
        type=Path | None,
        help="for several comparisons: folder for one report and verdict on all",
    )
    n = next((i for i, part in enumerate(argv) if part.startswith("-")), len(argv))
    files, flags = argv[:n] or [""], with_explanations(argv[n:])
    comparisons, folder = {}, None
    for file in files:
        given = [part for part in (file, *flags) if part]
        comparison, options = parse_recipe(parser, given, Comparison)
        folder = options["together"]
        alone = shlex.join(["hfsae", "compare", *_without(_TOGETHER, [file, *argv[n:]])])
        comparisons[alone] = comparison
    if len(files) > 1 and folder is None:
        raise Refused(
            f"hfsae compare got {len(files)} comparisons; give {_TOGETHER} FOLDER, where the "
            "report on all of them goes"
        )
    return comparisons, folder


def with_files(argv: list[str]) -> list[str]:
    """The arguments of `hfsae train --activations FILES [--site NAME] [--labels TABLE]` with the
    names of the recipe's fields, and with the recipe for files where none is named."""
    if not any(part.partition("=")[0] == "--activations" for part in argv):
        return argv
    flags = (part.partition("=") for part in argv)
    spelt_out = [f"{_SHORT.get(flag, flag)}{equals}{value}" for flag, equals, value in flags]
    is_named = not spelt_out[0].startswith("-")
    return spelt_out if is_named else [_ACTIVATIONS, *spelt_out]


def with_one_source(argv: list[str]) -> list[str]:
    """The arguments of a recipe whose pictures are others than those in its file: what the
    file names in their place is taken out."""
    given = {part.partition("=")[0] for part in argv} & {*_SOURCES}
    others = [flag for flag in _SOURCES if flag not in given] if given else []
    return [*argv, *(f"{flag}=" for flag in others)]


def with_own_places(argv: list[str], sae: Mapping[str, Any]) -> list[str]:
    """The arguments of a recipe whose site, or sites, take the place of those in its file, where
    the file has the other of the two.

    Args:
        sae: the file's section.
    """
    others = [
        theirs
        for ours, theirs in _INSTEAD
        if _gives(f"sae.{ours}", argv) and sae.get(theirs) and not _gives(f"sae.{theirs}", argv)
    ]
    return [*argv, *(f"--sae.{name}=null" for name in others)]


def _without(flag: str, argv: list[str]) -> list[str]:
    """The arguments without a flag and its value, or empty ones."""
    before = ["", *argv]
    is_of_flag = (part == flag or last == flag for last, part in zip(before, argv, strict=False))
    pairs = zip(argv, is_of_flag, strict=True)
    return [part for part, is_ in pairs if part and not is_ and not part.startswith(f"{flag}=")]


def with_explanations(argv: list[str]) -> list[str]:
    """The arguments of `hfsae compare` with `--explain` alone spelt out: its default latents."""
    count = f"{_EXPLAIN}.n_latents"
    is_counted = any(part.partition("=")[0] == count for part in argv)
    spelt_out = [] if is_counted else [count, str(ExplainArguments().n_latents)]
    return [new for part in argv for new in (spelt_out if part == _EXPLAIN else [part])]


def _readable(path: Path, kind: type[Recipe]) -> dict[str, Any]:
    """The sections of a recipe's file; what is no YAML mapping of known ones is refused, with a
    sentence for each mistake."""
    if not path.is_file():
        raise Refused(
            f"there is no comparison {path}; a clone of hfsae has examples in scripts/comparisons/"
        )
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Refused(f"cannot read the recipe {path}: {error}") from error
    if not isinstance(content, dict):
        raise Refused(
            f"the recipe {path} has no sections, such as lm: and training:; `hfsae recipes` "
            "lists recipes that come with hfsae"
        )
    sections = {field.name: field.type for field in fields(kind)}
    for name, value in content.items():
        if name not in sections:
            raise Refused(with_names(f"a recipe has no section {name!r}", str(name), [*sections]))
        holds_fields = is_dataclass(sections[name]) or get_origin(sections[name]) is dict
        if holds_fields and not isinstance(value, dict):
            raise Refused(f"section {name} of {path} must hold fields, not {value!r}")
        if is_dataclass(sections[name]):
            names = [field.name for field in fields(cast(Any, sections[name]))]
            for key in set(value) - set(names):
                raise Refused(with_names(f"section {name} has no field {key!r}", key, names))
    return content
