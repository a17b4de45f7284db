"""An action's docstring and types as words and JSON schemas, for programs and agents.

An action's docstring has the sections `Args`, with a line `name: text` for each argument, and
`Returns`, with a line `key (type): text` for each key of the answer; longer texts go on in lines
that are indented deeper. Types are those of `KINDS`, joined by `|`, and `optional` for a key that
an answer may lack. An argument's type may be annotated by a `Range` or by its allowed values.

Gradio's MCP server lists a tool without title, hints and a schema of the answer, and answers in
Python's notation: `as_tools` gives it these, and JSON.
"""

import inspect
import json
import re
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints

from gradio.routes import App
from gradio_client.utils import python_type_to_json_schema

from .rows import Json
from .subject import Subject
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


class Docstring(NamedTuple):
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


def docstring(function: Callable[..., Any]) -> Docstring:
    """The parts of a function's docstring."""
    summary, *rest = _SECTION.split(inspect.getdoc(function) or "")
    sections: dict[str, dict[str, Entry]] = {}
    for title, section in zip(rest[::2], rest[1::2], strict=True):
        _, *parts = _ENTRY.split(section)
        entries = zip(parts[::3], parts[1::3], parts[2::3], strict=True)
        sections[title] = {name: Entry(_line(words), kind or "") for name, kind, words in entries}
    return Docstring(_line(summary), sections.get("Args", {}), sections.get("Returns", {}))


def _line(text: str) -> str:
    return " ".join(text.split())


@dataclass(frozen=True)
class Endpoint:
    """An action: a function of the subject and of a caller's arguments."""

    function: Callable[..., Any]
    """its docstring is shown to users of the API, and to agents"""
    title: str = ""
    """of the tool for agents"""
    queue: str | None = None
    """of the API; None: only pages call it"""
    gpu: bool = False
    """whether it runs a model: on ZeroGPU each such call is a process with a GPU"""
    writes: bool = False
    """whether it changes anything that stays"""
    reads_hub: bool = False
    """whether it may read from the Hub"""
    fits: Callable[[Subject], bool] = lambda subject: True
    """the subjects that have it"""

    @property
    def name(self) -> str:
        """Of the endpoint, and of the method of `Actions`."""
        return self.function.__name__

    @property
    def signature(self) -> inspect.Signature:
        """A caller's parameters: all but the subject."""
        whole = inspect.signature(self.function)
        return whole.replace(parameters=list(whole.parameters.values())[1:])

    @cached_property
    def input_schema(self) -> Json:
        """Of a caller's arguments, as one object: types, allowed values, defaults and words."""
        hints = get_type_hints(self.function, include_extras=True)
        words, schemas = docstring(self.function).arguments, {}
        for name, parameter in self.signature.parameters.items():
            hint = hints[name]
            kind, *notes = get_args(hint) if get_origin(hint) is Annotated else (hint,)
            schema = {**python_type_to_json_schema(kind), "description": words[name].words}
            for note in notes:
                if isinstance(note, Range):
                    schema |= {"minimum": note.low, "maximum": note.high}
                elif isinstance(note, tuple):
                    schema["enum"] = list(note)
            if parameter.default is not inspect.Parameter.empty:
                schema["default"] = parameter.default
            schemas[name] = schema
        return {
            "type": "object",
            "properties": schemas,
            "required": [name for name, schema in schemas.items() if "default" not in schema],
            "additionalProperties": False,
        }

    @cached_property
    def output_schema(self) -> Json:
        """Of the answer."""
        return output_schema(self.function)


def output_schema(function: Callable[..., Any]) -> Json:
    """The schema of the function's answer."""
    returns = docstring(function).returns
    keys = {name: (entry.kind, entry.words) for name, entry in returns.items()}
    required = [name for name, (kind, _) in keys.items() if "optional" not in kind]
    return {**_object(keys), "required": required}


def _object(keys: dict[str, tuple[str, str]]) -> Json:
    properties = {}
    for name, (kind, words) in keys.items():
        schemas = [KINDS[one.strip()] for one in kind.removesuffix(", optional").split("|")]
        schema = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
        properties[name] = {**schema, "description": words}
    return {"type": "object", "properties": properties}


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

INSTRUCTIONS = """\
A sparse autoencoder (SAE) describes each activation of a language model by a few of its latents.
A latent has an index, and fires on some tokens with an activation above 0.

Begin with about: the SAE, the language model, and how many latents there are. Find latents with
search, or with inspect, which lists those that fire in a text; feature shows what one fires on.
steer continues a prompt with and without changed latents, given by index or by a word; strengths
of 1 to 2 show in the text, and suggest_strength finds how strongly is too strongly.
why explains a next token by latents, and next_tokens lists the candidates. health, measure,
compare_saes and side_by_side judge the SAE; card, which is long, tells how it was made.

Most words are tokens that begin with a space: " sea" is another token than "sea", and both are
shown as they are. So a prompt should not end with a space."""
_OF_PICTURES = """\
A sparse autoencoder (SAE) describes each activation of a model of pictures, one for each patch, by
a few of its latents. A latent has an index, and fires on some patches with an activation above 0.

Begin with about: the SAE, the model, and how many latents there are. Find latents with search, or
with inspect_picture, which lists those that fire in a picture; feature shows what one fires on.
health and compare_saes judge the SAE."""
_OF_OTHERS = """\
A sparse autoencoder (SAE) describes each of many lists of numbers, its activations, by a few of its
latents. A latent has an index, and fires on some activations with a number above 0.

Begin with about: the SAE, what it reads, and how many latents there are. Find latents with search;
feature shows what one fires on. health and compare_saes judge the SAE."""
_DIGITS = 6  # of a number in an answer: an agent pays for each


@asynccontextmanager
async def as_tools(app: App, endpoints: Iterable[Endpoint]) -> AsyncIterator[None]:
    """While Gradio's app runs, its MCP server, if it has one, describes the actions in full and
    answers in JSON."""
    server: Any = app.get_blocks().mcp_server_obj
    if server is not None:
        _describe(server, {endpoint.name: endpoint for endpoint in endpoints})
    yield


def _describe(server: Any, endpoints: dict[str, Endpoint]) -> None:
    import jsonschema
    from mcp import types

    handlers = server.mcp_server.request_handlers
    list_request, call_request = types.ListToolsRequest, types.CallToolRequest
    gradio_list, gradio_call = handlers[list_request], handlers[call_request]

    def endpoint_of(tool: str) -> Endpoint | None:
        return endpoints.get(server.tool_to_endpoint.get(tool, "").lstrip("/"))

    async def list_tools(request: types.ListToolsRequest) -> types.ServerResult:
        answer = await gradio_list(request)
        for tool in answer.root.tools:
            if (endpoint := endpoint_of(tool.name)) is not None:
                tool.title = endpoint.title
                tool.annotations = types.ToolAnnotations(
                    title=endpoint.title,
                    readOnlyHint=not endpoint.writes,
                    destructiveHint=endpoint.writes,
                    idempotentHint=True,
                    openWorldHint=endpoint.reads_hub,
                )
                tool.inputSchema = endpoint.input_schema
                tool.outputSchema = endpoint.output_schema
        return answer

    async def call_tool(request: types.CallToolRequest) -> types.ServerResult:
        if (endpoint := endpoint_of(request.params.name)) is None:
            return await gradio_call(request)
        schema = jsonschema.Draft202012Validator(endpoint.input_schema)
        errors = schema.iter_errors(request.params.arguments or {})
        if wrong := [": ".join([*map(str, error.path), error.message]) for error in errors]:
            content: list[types.ContentBlock] = [
                types.TextContent(type="text", text="; ".join(wrong))
            ]
            return types.ServerResult(types.CallToolResult(content=content, isError=True))
        answer = await gradio_call(request)
        if not answer.root.isError:
            answer.root.structuredContent = json.loads(answer.root.content[0].text)
        return answer

    def as_json(answers: Iterable[Any], root_url: str) -> list[Any]:
        texts = (json.dumps(_short(answer), ensure_ascii=False) for answer in answers)
        return [types.TextContent(type="text", text=text) for text in texts]

    handlers[list_request], handlers[call_request] = list_tools, call_tool
    server.postprocess_output_data = as_json
    names = {path.lstrip("/") for path in server.tool_to_endpoint.values()}
    server.mcp_server.instructions = instructions(names)


def instructions(names: Collection[str]) -> str:
    """What agents are told at the start, by the endpoints that there are."""
    if "steer" in names:
        return INSTRUCTIONS
    return _OF_PICTURES if "inspect_picture" in names else _OF_OTHERS


def _short(answer: object) -> Any:
    """The same with short numbers; of an example's tokens only those on which the latent fires: its
    text has them all, and there are hundreds."""
    if isinstance(answer, dict):
        return {key: _short(value) for key, value in answer.items()}
    if isinstance(answer, list):
        silent = {"firing": False, "activation": 0}
        return [
            _short(value)
            for value in answer
            if not (isinstance(value, dict) and silent.items() <= value.items())
        ]
    return float(f"{answer:.{_DIGITS}g}") + 0.0 if isinstance(answer, float) else answer  # no -0.0
