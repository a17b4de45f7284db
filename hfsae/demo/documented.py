"""An action's docstring and types, as words and as JSON schemas for its callers.

An action's docstring has the sections `Args`, with a line `name: text` for each argument, and
`Returns`, with a line `key (type): text` for each key of the answer; longer texts go on in lines
that are indented deeper. Types are those of `KINDS`, joined by `|`, and `optional` for a key that
an answer may lack. An argument's type may be annotated by a `Range` or by its allowed values.
"""

import inspect
import re
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints

from gradio_client.utils import python_type_to_json_schema

from .rows import Json
from .validate import Range

_LATENT = {
    "latent": ("int", "its index"),
    "value": ("float", "what the list is sorted by"),
    "label": ("str", "a person's name for it; empty if it has none"),
    "auto": ("str", "an automatic explanation; empty if it has none"),
    "source": ("str", "who gave it: template, a program; lm, a language model; file"),
    "doubtful": ("bool", "whether that language model was uncertain, or its evidence weak"),
    "fires_on": ("list[str]", "tokens on which it fires most"),
    "promotes": ("list[str]", "tokens that its direction makes likelier"),
    "density": ("float", "share of tokens that it fires on"),
}
_TOKEN = {
    "text": ("str", "the token"),
    "special": ("bool", "it is a token such as BOS, which the SAE does not read"),
    "l0": ("int", "how many latents fire on it"),
    "activation": ("float", "of the latent, raw units; 0: it does not fire"),
    "share": ("float", "the activation over the latent's largest in the feature store"),
}
_SECTION = re.compile(r"^(Args|Returns):$", re.MULTILINE)
_ENTRY = re.compile(r"^    (\w+)(?: \((.+?)\))?: ", re.MULTILINE)


class Entry(NamedTuple):
    """An argument of an action, or a key of its answer."""

    words: str
    kind: str = ""


class Documented(NamedTuple):
    """A docstring's parts, each in one line."""

    summary: str
    arguments: dict[str, Entry]
    returns: dict[str, Entry]

    @property
    def answer(self) -> str:
        """What the action returns."""
        keys = "; ".join(f"{key}: {entry.words.rstrip('.')}" for key, entry in self.returns.items())
        return f"an object of JSON with {keys}."

    @property
    def in_lines(self) -> str:
        """The docstring as Gradio can read it, which takes a line for a whole entry."""
        arguments = "".join(f"\n    {name}: {e.words}" for name, e in self.arguments.items())
        return f"{self.summary}\n\nArgs:{arguments}\n\nReturns:\n    {self.answer}"


def documented(function: Callable[..., Any]) -> Documented:
    """The parts of a function's docstring."""
    summary, *rest = _SECTION.split(inspect.getdoc(function) or "")
    sections = dict(zip(rest[::2], map(_entries, rest[1::2]), strict=True))
    return Documented(_line(summary), sections.get("Args", {}), sections.get("Returns", {}))


def _entries(section: str) -> dict[str, Entry]:
    _, *rest = _ENTRY.split(section)
    parts = zip(rest[::3], rest[1::3], rest[2::3], strict=True)
    return {name: Entry(_line(words), kind or "") for name, kind, words in parts}


def _line(text: str) -> str:
    return " ".join(text.split())


def input_schema(function: Callable[..., Any], signature: inspect.Signature) -> Json:
    """The schema of the arguments in the signature: types, allowed values, defaults and words."""
    hints, words = get_type_hints(function, include_extras=True), documented(function).arguments
    parameters = signature.parameters.items()
    schemas = {name: _schema(hints[name], p.default, words[name].words) for name, p in parameters}
    required = [name for name, schema in schemas.items() if "default" not in schema]
    return {
        "type": "object",
        "properties": schemas,
        "required": required,
        "additionalProperties": False,
    }


def _schema(hint: object, default: object, words: str) -> Json:
    kind, *notes = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    schema = {**python_type_to_json_schema(kind), "description": words}
    for note in notes:
        if isinstance(note, Range):
            schema |= {"minimum": note.low, "maximum": note.high}
        elif isinstance(note, tuple):
            schema["enum"] = list(note)
    if default is not inspect.Parameter.empty:
        schema["default"] = default
    return schema


def output_schema(function: Callable[..., Any]) -> Json:
    """The schema of the function's answer."""
    returns = documented(function).returns
    keys = {name: (entry.kind, entry.words) for name, entry in returns.items()}
    required = [name for name, (kind, _) in keys.items() if "optional" not in kind]
    return {**_object(keys), "required": required}


def _object(keys: dict[str, tuple[str, str]]) -> Json:
    properties = {
        name: {**_kind(kind), "description": words} for name, (kind, words) in keys.items()
    }
    return {"type": "object", "properties": properties}


def _kind(kind: str) -> Json:
    schemas = [KINDS[one.strip()] for one in kind.removesuffix(", optional").split("|")]
    return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}


KINDS: dict[str, Json] = {
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "str": {"type": "string"},
    "bool": {"type": "boolean"},
    "dict": {"type": "object"},
    "list": {"type": "array", "items": {}},
    "None": {"type": "null"},
}
KINDS["list[int]"] = {"type": "array", "items": KINDS["int"]}
KINDS["list[str]"] = {"type": "array", "items": KINDS["str"]}
KINDS["list[Latent]"] = {"type": "array", "items": _object(_LATENT)}
KINDS["list[Token]"] = {"type": "array", "items": _object(_TOKEN)}
