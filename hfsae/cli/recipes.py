"""A recipe from a YAML file and the command line, which wins; and the options that name an SAE.

`add_sae` adds those of a verb that takes any SAE, with its language model, text and folder.

**The parser of every verb**: help on one screen, one sentence for a mistake. `--help` shows a
verb's own options, the recipe's fields that people set most, and examples; `--help_all` explains
every field that the verb takes.
"""

import re
from argparse import SUPPRESS, Action
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from inspect import signature
from itertools import pairwise
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import get_loader, set_loader, set_parsing_settings

from ..activations import HarvestArguments, TextArguments, is_hub, local_files
from ..comparison import Comparison
from ..io.bounds import in_words
from ..io.errors import Refused, one_line, refuse_absent_source
from ..io.file_names import EVALUATION, MADE_BY, META
from ..io.files import parse_yaml
from ..lm.located import refuse_absent
from ..packaged import SEPARATE_SAES, packaged_names, text_folder
from ..runs import LMArguments, Recipe, Sections, find_recipe, read_recipe
from ..runs.recipe import (
    UNUSED,
    DeclaredField,
    check_sae_fields,
    known_variants,
    read_sections,
)
from ..runs.results import stage_of
from ..tuning import Tuning
from .table import EXAMPLES, HELP_ALL, VERBS, with_names

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

_WIDTH, _COLUMN = 96, 24
_HELP = {"-h", "--help", HELP_ALL}
_OPTION = re.compile(r"-[^\d.]")  # -3 is a number


@dataclass
class VerbParser:
    """The arguments of `hfsae VERB`."""

    verb: str
    usage: str
    """what follows the verb: "FOLDER [LATENT ...]" """
    what: str
    """what the verb does"""
    recipe: tuple[str, ...] = ()
    """the recipe's sections, if the verb reads one"""
    sections: tuple[str, ...] = ()
    """those of them that the verb can set"""
    often: tuple[str, ...] = ()
    """fields of these that `--help` explains"""
    examples: tuple[str, ...] = ()
    more: Callable[[bool], Iterator[str]] = lambda everything: iter(())
    """further lines of `--help_all`, or of `--help`"""
    fields: dict[str, tuple[Callable[..., Any], str, object]] = field(default_factory=dict)
    """by option, what `add_fields` says that it sets: a class or function, the name there, and its
    default"""
    checks: dict[str, Callable[[Any], None]] = field(default_factory=dict)
    """by argument, what refuses a value of it, before anything else is imported"""
    parser: "ArgumentParser" = field(init=False)

    def __post_init__(self) -> None:
        from jsonargparse import ArgumentParser  # of an extra

        self.parser = ArgumentParser(
            prog=f"hfsae {self.verb}",
            exit_on_error=False,
            allow_abbrev=False,  # --training.learning_rat 1 must not train at 1
            add_help=False,
        )
        self.add = self.parser.add_argument
        self.add(
            "--import",
            type=str | None,
            metavar="MODULE",
            help="your own module, here or installed, that defines variants",
        )

    def add_fields(
        self,
        owner: Callable[..., Any],
        *names: str,
        renamed: Mapping[str, str] | None = None,
        choices: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """Add options for fields of a class, or for arguments of a function: their types, defaults
        and explanations are the owner's. `parse` leaves out options that are not given.

        Args:
            renamed: the option's name, for a field that has another one.
            choices: values to choose from, for a field whose type does not list them.
        """
        from docstring_parser import parse_from_object  # of an extra

        hints, parameters = get_type_hints(owner), signature(owner).parameters
        texts = {p.arg_name: p.description or "" for p in parse_from_object(owner).params}
        for name in names:
            option = (renamed or {}).get(name, name)
            self.fields[option] = owner, name, parameters[name].default
            kind = hints[name]
            takes: dict[str, Any] = {}
            for part in (kind, *get_args(kind)):
                if get_origin(part) in (Sequence, tuple):  # several values, one after another
                    kind, takes = get_args(part)[0], {"nargs": "+"}
            known = get_args(kind) if get_origin(kind) is Literal else (choices or {}).get(name)
            takes |= {"choices": list(known)} if known else {"type": kind}
            takes = {"action": "store_true"} if kind is bool else takes
            self.add(f"--{option}", help=texts[name].removesuffix("."), default=SUPPRESS, **takes)

    def take(self, owner: Callable[..., Any], options: dict[str, Any]) -> dict[str, Any]:
        """The options of a class or function that are given, by its own names, taken out of all."""
        own = {option: name for option, (of, name, _) in self.fields.items() if of is owner}
        return {name: options.pop(option) for option, name in own.items() if option in options}

    def parse(self, argv: list[str]) -> dict[str, Any]:
        """The arguments' values by name.

        Raises:
            ValueError: unknown or invalid arguments, in one sentence.
            SystemExit: after printing help.
        """
        from jsonargparse import ArgumentError

        if _HELP.intersection(argv):
            print(self.help(everything=HELP_ALL in argv))
            raise SystemExit(0)
        argv = self._options_last(argv)
        try:
            args = self.parser.instantiate(self.parser.parse_args(argv)).as_dict()
        except ArgumentError as error:
            raise Refused(self._sentence(one_line(error))) from error
        args.pop("import")  # already imported
        for name, check in self.checks.items():
            values = args[name] if isinstance(args[name], list) else [args[name]]
            for value in values:
                check(value)
        return args

    def given(self, argv: list[str]) -> dict[str, Any]:
        """The arguments that `argv` sets, and of a section only the fields that it sets; `parse` it
        first."""
        return self.parser.parse_args(self._options_last(argv), defaults=False).as_dict()

    def _options_last(self, argv: list[str]) -> list[str]:
        """The same arguments, with options behind positional ones: argparse takes a list of these
        (SOURCE ..., [LATENT ...]) as complete at the first option. Unchanged where one is unknown.
        """
        options = {o: a.nargs for a in self.parser._actions for o in a.option_strings}
        first, last, rest = [], [], list(argv)
        while rest:
            part = rest.pop(0)
            if not _OPTION.match(part):
                first.append(part)
                continue
            name, is_joined, _ = part.partition("=")
            if name not in options:
                return argv
            last.append(part)
            most = {0: 0, "+": len(rest), "*": len(rest)}.get(options[name], 1)
            while most and not is_joined and rest and not _OPTION.match(rest[0]):
                last.append(rest.pop(0))
                most -= 1
        return [*first, *last]

    def help(self, everything: bool = False) -> str:
        """The text of `--help`, or of `--help_all`."""
        lines = [f"usage: hfsae {self.verb} {self.usage}".rstrip(), "", *wrap(self.what, _WIDTH)]
        own = [a for a in self._actions() if a.dest.partition(".")[0] not in self.recipe]
        lines += ["", *(line for action in own for line in self._help_of(action))]
        if everything:
            for section in self.sections:
                group = self.parser.groups.get(section) if self.parser.groups else None
                lines += ["", f"{section}: {group.title}" if group else f"{section}:"]
                for action in self._actions():
                    if action.dest.partition(".")[0] == section:
                        lines += self._help_of(action)
        elif self.often:
            lines += ["", "most used fields:"]
            named = {action.dest: action for action in self._actions()}
            for name in self.often:
                lines += self._help_of(named[name], brief=True) if name in named else []
        lines += self.more(everything)
        if self.examples:
            lines += ["", "examples:", *(f"  {example}" for example in self.examples)]
        if self.sections and not everything:
            lines += ["", f"`hfsae {self.verb} {HELP_ALL}` explains every field."]
        return "\n".join(lines)

    def _help_of(self, action: Action, brief: bool = False) -> list[str]:
        names = [name for name in action.option_strings if not name.endswith("+")]
        name = ", ".join(names) or action.dest.upper()
        default = self.fields[action.dest][2] if action.dest in self.fields else action.default
        if isinstance(default, tuple):
            default = " ".join(map(str, default))  # as they are typed
        text = re.split(r"(?<=\.)\s", action.help or "", maxsplit=1)[0] if brief else action.help
        choices = [*(action.choices or ())]
        if not all(f'"{choice}"' in (action.help or "") for choice in choices):
            text = f"{text}: {', '.join(choices)}"
        return help_lines(name, text or "", default)

    def _actions(self) -> list[Action]:
        """Arguments with an explanation, without what jsonargparse adds: a file for a section."""
        return [
            action
            for action in self.parser._actions
            if action.help not in (None, SUPPRESS)
            and action.metavar != "CONFIG"
            and action.dest not in ("print_config", "recipe")
        ]

    def _sentence(self, text: str) -> str:
        """jsonargparse's message reworded, with the nearest known name."""
        here = f"hfsae {self.verb}"
        if lacks := re.match(r"the following arguments are required: (.*)", text):
            dashed = {a.dest for a in self.parser._actions if a.option_strings}
            names = [f"--{n}" if n in dashed else n.upper() for n in lacks[1].split(", ")]
            return f"{here} needs {' and '.join(names)}; usage: {here} {self.usage}"
        if unknown := re.match(r"unrecognized arguments: (\S+)", text):
            name = unknown[1].partition("=")[0]
            if not name.startswith("-"):
                return f"{here} takes no argument {name!r}; usage: {here} {self.usage}"
            if not name.startswith("--"):
                return f"{here} has no option {name!r}; options have two dashes, as '-{name}'"
            options = [o for a in self._actions() for o in a.option_strings if not o.endswith("+")]
            return with_names(f"{here} has no option {name!r}", name, options)
        if unknown := re.search(r"(?:[Kk]ey '|option ')([\w.]+)", text):
            names = [action.dest for action in self._actions()]
            return with_names(f"a recipe has no field {unknown[1]!r}", unknown[1], names)
        if bare := re.match(r"argument (\S+): expected", text):
            return f"{bare[1]} needs a value"
        if wrong := re.match(r"argument (\S+): invalid choice: (.*) \(choose from (.*)\)", text):
            choices = (choice.strip("'") for choice in wrong[3].split(", "))  # bare in Python 3.13
            return f"{wrong[1]} must be one of {', '.join(map(repr, choices))}, got {wrong[2]}"
        wrong = re.match(r'Parser key "([\w.]+)".*?:.*(?:Got|Given) value: (.*)$', text)
        kinds = {a.dest: getattr(a, "_typehint", a.type) for a in self.parser._actions}
        if wrong and wrong[1] in kinds:
            action = next(a for a in self.parser._actions if a.dest == wrong[1])
            name = wrong[1] if wrong[1].partition(".")[0] in self.recipe else f"--{wrong[1]}"
            name = name if action.option_strings else wrong[1].upper()
            many = "; leave spaces between several" if action.nargs and "," in wrong[2] else ""
            return f"{name} must be {in_words(kinds[wrong[1]])}, got {wrong[2]!r:.60}{many}"
        return f"{here}: invalid arguments: {text}"


def verb_parser(verb: str, usage: str) -> VerbParser:
    """The parser of a verb without a recipe."""
    return VerbParser(verb, usage, VERBS[verb].about)


def help_lines(name: str, text: str, default: object = None) -> list[str]:
    """A name and its explanation, as lines of help."""
    shown = "" if default in (None, SUPPRESS, False, "") else f" (default: {default})"
    text = f"{' '.join(text.split())}{shown}"
    head, rest = f"  {name:<{_COLUMN}}  ", " " * (_COLUMN + 4)
    lines = wrap(text, _WIDTH, initial_indent=head, subsequent_indent=rest, break_on_hyphens=False)
    return lines or [head.rstrip()]


SOURCE = "folder, or repository on the Hub as name/repository"
_USAGE = {
    "train": "[RECIPE.yaml] [--FIELD VALUE ...]",
    "compare": "COMPARISON.yaml [--FIELD VALUE ...]",
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
_EXPONENT = re.compile(r"(?<![^=])\d+e\d+$", re.IGNORECASE)  # 1e6, or --field=1e6
_load_yaml = get_loader("yaml")
_Recipe = TypeVar("_Recipe", bound=Recipe)


def _prepare_parsing() -> None:
    """Fields are explained by the strings under them; in YAML, 1e6 is a number too."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)

    def load(text: str) -> Any:
        parse_yaml(text)  # refuses a key that stands twice
        return whole(_load_yaml(text))

    def whole(value: object) -> Any:
        if isinstance(value, dict):
            return {key: whole(item) for key, item in value.items()}
        if isinstance(value, list):
            return [whole(item) for item in value]
        return int(value) if isinstance(value, float) and value.is_integer() else value

    set_loader("yaml", load, exceptions=(ValueError, yaml.YAMLError))


def recipe_parser(verb: str, kind: type[Recipe] = Recipe) -> VerbParser:
    """The parser of a verb that takes a recipe's fields."""
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
    if verb == "train":
        parser.add(
            "--dry_run", action="store_true", help="print what would run, its memory and disk"
        )
    if verb == "harvest":
        parser.add("--out", type=Path | None, help="the folder to write to")
    return parser


def add_sae(parser: VerbParser, *sections: str) -> None:
    """Add SOURCE, the options that choose one of its SAEs, the folder of results, and the fields of
    sections of a recipe."""
    add_source(parser)
    add_output(parser)
    add_site(parser)
    add_sections(parser, sections)


def check_source(source: str) -> None:
    """Refuse a source that is neither here nor a repository's name.

    Raises:
        ValueError: as `refuse_absent_source`, or it is the name of an SAE that `hfsae demo` knows.
    """
    if (sae := SEPARATE_SAES.get(source.lower())) is not None and not Path(source).exists():
        raise Refused(
            f"there is no folder {source}; `hfsae demo {source.lower()}` opens the SAE of that "
            f"name, and its folder is {sae.path}"
        )
    refuse_absent_source(source)


def add_source(parser: VerbParser) -> None:
    """Add SOURCE and --revision."""
    parser.add("source", type=str, help=SOURCE)
    parser.checks["source"] = check_source
    parser.add("--revision", type=str | None, help="branch, tag or commit")


def add_output(parser: VerbParser) -> None:
    """Add --output_dir and the options that choose one SAE of several."""
    add_choice(parser)
    parser.add(
        "--output_dir",
        type=str | None,
        help="folder for an SAE from elsewhere, and its results (default: runs/NAME)",
    )


def add_choice(parser: VerbParser) -> None:
    """Add the options that choose one SAE of several."""
    parser.add(
        "--subfolder", type=str, default="", help="folder of the SAE, or of several to choose from"
    )
    add_meaning(parser)


def add_meaning(parser: VerbParser) -> None:
    """Add the options that choose one SAE of several by what it is."""
    parser.add("--layer", type=int | None, help="block of the language model")
    parser.add("--width", type=str | None, help="number of latents: 16k or 16384")
    parser.add("--l0", type=float | str | None, help="take the SAE with the nearest L0")


def add_site(parser: VerbParser) -> None:
    """Add --site."""
    parser.add(
        "--site", type=str | None, help="site of an SAE whose config names none, such as layers.12"
    )


def add_model(parser: VerbParser) -> None:
    """Add --model and --lm.name; `with_model` makes one of them."""
    parser.add("--model", type=str | None, help="language model to use instead of the SAE's own")
    parser.add(
        "--lm.name", type=str | None, help="the same as --model, under its name in other commands"
    )


def with_model(options: dict[str, Any]) -> dict[str, Any]:
    """The options that have a value, with one name for the language model."""
    name = options.pop("lm")["name"]
    return with_value(options) | ({"model": name} if name else {})


def with_value(options: dict[str, Any]) -> dict[str, Any]:
    """The options that have a value."""
    return {name: value for name, value in options.items() if value is not None}


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


def _sae_help(everything: bool) -> Iterator[str]:
    """Help for the variants and their most used config fields, or all of them."""
    variants, having = known_variants(), dict[tuple[str, DeclaredField], list[str]]()
    for model_type, variant in variants.items():
        for name, about in variant.fields.items():
            having.setdefault((name, about), []).append(model_type)
    yield from ("", "fields of sae:" if everything else "most used fields of sae:")
    yield from help_lines(
        "--sae.d_sae", "number of latents; usually 8 to 32 times the model's width"
    )
    for (name, about), types in having.items():
        if everything or name in _OFTEN_OF_SAE:
            kind = "" if len(types) == len(variants) else f" ({', '.join(types)})"
            yield from help_lines(f"--sae.{name}{kind}", about.text, about.default)
    yield from ("", "variants, by --sae.model_type:")
    for model_type, variant in sorted(variants.items()):
        yield from help_lines(model_type, variant.formula)


def parse_recipe(
    parser: VerbParser, argv: list[str], kind: type[_Recipe] = Recipe
) -> tuple[_Recipe, dict]:
    """The recipe (a file or a name first, then fields), and the verb's own options.

    Raises:
        ValueError: no such recipe, or unknown or invalid arguments, in one sentence.
    """
    parts = [part.partition("=") for part in argv]
    if any(flag == "--activations" for flag, _, _ in parts):
        argv = [f"{_SHORT.get(flag, flag)}{equals}{value}" for flag, equals, value in parts]
        argv = argv if not argv[0].startswith("-") else [_ACTIVATIONS, *argv]
    flags = {part.partition("=")[0] for part in argv}
    if sources := [flag for flag in _SOURCES if flag in flags]:  # in place of the file's
        argv = [*argv, *(f"{flag}=" for flag in _SOURCES if flag not in sources)]
    path, content, is_shipped = None, dict[str, Any](), False
    if argv and not argv[0].startswith("-"):
        path = Path(argv[0]) if issubclass(kind, Comparison) else find_recipe(argv[0])
        is_shipped = kind is Recipe and path != Path(argv[0])  # found by its name alone
        if not path.is_file():
            raise Refused(
                f"there is no comparison {path}; a clone of hfsae has examples in "
                "scripts/comparisons/"
            )
        content, argv = read_sections(path, kind), argv[1:]
        sae = content.get("sae") or {}
        others = [  # a site takes the place of sites, and the other way round
            f"--sae.{theirs}=null"
            for ours, theirs in _INSTEAD
            if f"--sae.{ours}" in flags and f"--sae.{theirs}" not in flags and sae.get(theirs)
        ]
        argv = ["--recipe", str(path), *argv, *others]
    args = parser.parse(_with_whole_numbers(argv))
    args.pop("recipe")  # already read
    own = {section.name for section in fields(kind)}
    options = {name: value for name, value in args.items() if name not in own}
    recipe = kind(**{name: value for name, value in args.items() if name in own})
    for part, value in pairwise([*argv, ""]):
        flag, is_joined, joined = part.partition("=")
        section, _, field = flag.removeprefix("--").partition(".")
        is_given = flag.startswith("--") and field and (joined if is_joined else value)
        if is_given and recipe.kind != "text" and section in UNUSED[recipe.kind]:
            raise Refused(f"{flag} has no effect on a recipe of {recipe.kind}; leave it out")
    if path and is_shipped and "--training.output_dir" not in flags:
        sites, theirs = recipe.sites, read_recipe(path).sites
        if sites != theirs:  # their folder may hold the SAE of that recipe
            place = re.sub(r"[^\w.]", "-", sites[0] if len(sites) == 1 else f"{sites[0]}-and-more")
            folder = f"{recipe.training.output_dir}-{place}"
            recipe = replace(recipe, training=replace(recipe.training, output_dir=folder))
    if kind is Recipe and path and "--license" not in flags:
        lm, lms = content.get("lm") or {}, content.get("lms") or {}
        others = [given.get("name") for given in lms.values()]
        is_other = recipe.lm.name != lm.get("name", LMArguments.name)
        if is_other or (recipe.lms and recipe.model_names != others):
            recipe = replace(recipe, license=None)  # models that may come under other terms
    if isinstance(recipe, Comparison | Tuning):  # whose arms may be of any variant
        check_sae_fields(recipe)
    else:
        named = (re.match(r"--sae\.(\w+)", part) for part in argv)
        check_sae_fields(recipe, [n[1] for n in named if n and recipe.sae.get(n[1]) is not None])
    return recipe, options


def refuse_absent_inputs(recipe: Recipe) -> None:
    """Refuse models and text files that are nowhere before what loads them is imported, which takes
    seconds. A folder with a run may have all that it needs of them."""
    if recipe.kind == "files" or Path(recipe.training.output_dir).exists():
        return
    for model in recipe.models.values():
        refuse_absent(model.name, model.revision, model.source)
    text = recipe.text.dataset
    if recipe.kind == "text" and isinstance(text, str):
        names = packaged_names(text)
        for name in names:
            text_folder(name)
        if not names and not is_hub(text):
            local_files(text)


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
