"""The parser of every verb: help on one screen, one sentence for a mistake.

`--help` shows a verb's own options, the recipe's fields that people set most, and examples;
`--help_all` explains every field that the verb takes.
"""

import re
from argparse import SUPPRESS, Action
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from inspect import signature
from textwrap import wrap
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from ..io.bounds import in_words
from ..io.errors import Refused, closest, one_line
from .table import VERBS

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

_WIDTH, _COLUMN = 96, 24
_ALL = "--help_all"
_HELP = {"-h", "--help", _ALL}
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
            print(self.help(everything=_ALL in argv))
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
            lines += ["", f"`hfsae {self.verb} {_ALL}` explains every field."]
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


def with_names(problem: str, name: str, names: list[str]) -> str:
    """The problem of an unknown name, with the nearest names or else all of them."""
    section, dot, field = name.rpartition(".")
    own = {n: n.removeprefix(section + dot) for n in names if n.startswith(section + dot)}
    # as people shorten it: "lr" of "learning_rate"
    if short := [
        n
        for n, own_field in own.items()
        if "".join(part[:1] for part in own_field.split("_")) == field
    ]:
        return f"{problem}; closest: {', '.join(map(repr, short))}"
    if dot and own and not get_close_matches(field, [*own.values()]):
        return f"{problem}; `{_ALL}` lists all"  # the section alone is alike
    every = f"; known: {', '.join(n for n in names if '.' not in n)}"
    return f"{problem}{closest(name, names) or every}"


def help_lines(name: str, text: str, default: object = None) -> list[str]:
    """A name and its explanation, as lines of help."""
    shown = "" if default in (None, SUPPRESS, False, "") else f" (default: {default})"
    text = f"{' '.join(text.split())}{shown}"
    head, rest = f"  {name:<{_COLUMN}}  ", " " * (_COLUMN + 4)
    lines = wrap(text, _WIDTH, initial_indent=head, subsequent_indent=rest, break_on_hyphens=False)
    return lines or [head.rstrip()]
