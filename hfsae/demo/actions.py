"""Everything that the app can do for one subject, in one table, for pages, programs and agents.

An action is a function of the subject and of a caller's arguments. Its docstring is shown to
callers: it has the sections `Args`, with a line `name: text` for each argument, and `Returns`, with
a line `key (type): text` for each key of the answer; longer texts go on in lines that are indented
deeper. The type has `optional` for a key that an answer may lack; Latent and Token are rows of
`rows`, which `LATENT` explains. An argument's type may be annotated by its allowed texts, or
by its least and largest number.

Gradio's MCP server lists a tool without title and hints, and answers in Python's notation:
`as_tools` gives it these, and JSON.
"""

import functools
import importlib.util
import inspect
import json
import re
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from types import MethodType, SimpleNamespace
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import gradio as gr
from gradio.context import get_blocks_context
from gradio.events import api
from gradio.routes import App
from gradio_client.utils import python_type_to_json_schema

from ..io.units import PATCH
from . import (
    health_actions,
    inspect_actions,
    picture_latents,
    steer_actions,
    table_actions,
    why,
)
from .rows import Json
from .subject import Subject

QUEUES: dict[str, dict[str, Any]] = {
    name: {"concurrency_id": name, "concurrency_limit": n} for name, n in (("look", 8), ("slow", 2))
}
"""options of an event whose calls wait in a queue, of which so many run at once"""
_SECTION = re.compile(r"^(Args|Returns):$", re.MULTILINE)
_ENTRY = re.compile(r"^    (\w+)(?: \((.+?)\))?: ", re.MULTILINE)
_DIGITS = 6  # of a number in an answer: an agent pays for each
Entries = dict[str, tuple[str, str]]
"""words and type, by the name of an argument or of a key of an answer"""


def docstring(function: Callable[..., Any]) -> tuple[str, Entries, Entries]:
    """The parts of a function's docstring, each in one line: summary, arguments, and keys of the
    answer."""

    def line(text: str) -> str:
        return " ".join(text.split())

    summary, *rest = _SECTION.split(inspect.getdoc(function) or "")
    sections: dict[str, Entries] = {}
    for title, section in zip(rest[::2], rest[1::2], strict=True):
        _, *parts = _ENTRY.split(section)
        entries = zip(parts[::3], parts[1::3], parts[2::3], strict=True)
        sections[title] = {name: (line(words), kind or "") for name, kind, words in entries}
    return line(summary), sections.get("Args", {}), sections.get("Returns", {})


@dataclass(frozen=True)
class Endpoint:
    """An action, and how it is offered."""

    function: Callable[..., Any]
    """its docstring is shown to users of the API, and to agents"""
    title: str = ""
    """of the tool for agents"""
    queue: str | None = "look"
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
        (_, arguments, _), schemas = docstring(self.function), {}
        for name, parameter in self.signature.parameters.items():
            hint = hints[name]
            kind, *notes = get_args(hint) if get_origin(hint) is Annotated else (hint,)
            schema = {**python_type_to_json_schema(kind), "description": arguments[name][0]}
            for note in notes:
                if all(isinstance(value, str) for value in note):
                    schema["enum"] = list(note)
                else:
                    schema["minimum"], schema["maximum"] = note
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
    def answer(self) -> str:
        """What it answers, in words: each key with its type."""
        *_, keys = docstring(self.function)
        told = (f"{key} ({kind}): {text.rstrip('.')}" for key, (text, kind) in keys.items())
        return f"an object of JSON with {'; '.join(told)}."


_text = partial(Endpoint, gpu=True, fits=lambda subject: subject.unit.is_text)
_picture = partial(Endpoint, gpu=True, fits=lambda subject: subject.unit == PATCH)
ENDPOINTS = (
    _text(inspect_actions.inspect, "What fires in a text"),
    _text(inspect_actions.compare_prompts, "Two texts compared"),
    _picture(picture_latents.inspect_picture, "What fires in a picture"),
    Endpoint(inspect_actions.feature, "One latent, with examples"),
    _text(inspect_actions.try_text, "One latent on a text"),
    Endpoint(inspect_actions.random_latent, "A latent at random"),
    Endpoint(inspect_actions.search, "Find latents", gpu=True),
    Endpoint(inspect_actions.save_label, "Name a latent", writes=True),
    Endpoint(table_actions.labels, "Latents that go with labels", fits=lambda s: bool(s.columns)),
    Endpoint(table_actions.diff, "Latents of two models", fits=lambda s: bool(s.diff)),
    _text(why.next_tokens, "The likeliest next tokens"),
    Endpoint(health_actions.health, "How good the SAE is"),
    Endpoint(health_actions.compare_saes, "Metrics of two SAEs", reads_hub=True),
    _text(health_actions.side_by_side, "Two SAEs on a text", queue="slow", reads_hub=True),
    Endpoint(health_actions.about, "Which SAE this is"),
    Endpoint(health_actions.card, "The model card"),
    _text(steer_actions.steer, "Steer a text", queue="slow"),
    _text(steer_actions.suggest_strength, "Find a strength for steering", queue="slow"),
    _text(why.why, "Why a next token", queue="slow"),
    _text(why.check_ablation, "Measure a latent's effect on a token", queue="slow"),
    _text(
        why.attribution_graph,
        "Why a next token, as a graph",
        queue="slow",
        fits=lambda subject: bool(subject.graphs or subject.transcoders),
    ),
    _text(health_actions.measure, "How well the SAE explains a text", queue="slow"),
    Endpoint(inspect_actions.find_on_map, "Find latents on the map"),
    Endpoint(inspect_actions.promoted, queue=None, gpu=True),
    Endpoint(steer_actions.write, queue=None, gpu=True),
    Endpoint(steer_actions.sweep, queue=None, gpu=True),
)


class Actions(SimpleNamespace):
    """The functions of `ENDPOINTS` for one subject: `actions.feature(3)`.

    They keep no state of a session. A caller's mistake raises ValueError with one sentence.
    """

    subject: Subject
    apart: bool
    """whether this is a Space that lends a GPU to each call, which then is a process of its own"""

    def __init__(self, subject: Subject):
        apart = importlib.util.find_spec("spaces") is not None
        super().__init__(subject=subject, apart=apart)
        for endpoint in ENDPOINTS:
            action: Any = MethodType(endpoint.function, subject)  # so that only arguments travel
            if apart and endpoint.gpu:
                import spaces  # pyright: ignore[reportMissingImports]

                action = spaces.GPU(action)
            setattr(self, endpoint.name, action)

    def fitting(self) -> list[Endpoint]:
        """Those that are of use for its subject."""
        return [endpoint for endpoint in ENDPOINTS if endpoint.fits(self.subject)]

    def serve(self) -> None:
        """Make each action an endpoint of the current Blocks, and a tool where MCP is on."""
        blocks: Any = get_blocks_context()
        for endpoint in self.fitting():
            if endpoint.queue is None:
                continue
            summary, arguments, _ = docstring(endpoint.function)
            called = _with_gradio_errors(getattr(self, endpoint.name))
            vars(called)["__signature__"] = endpoint.signature
            # as Gradio can read it, which takes a line for a whole entry
            lines = [f"    {name}: {text}" for name, (text, _) in arguments.items()]
            parts = [summary, "", "Args:", *lines, "", "Returns:", f"    {endpoint.answer}"]
            called.__doc__ = "\n".join(parts)
            added = api(called, api_name=endpoint.name, **QUEUES[endpoint.queue])
            # what Gradio's clients show
            event = blocks.fns[added["id"]]
            schemas = endpoint.input_schema["properties"]
            for component, (name, schema) in zip(event.inputs, schemas.items(), strict=True):
                component.label = name
                component._api_info = {**schema, "additional_description": schema["description"]}
            (shown,) = event.outputs
            shown.label = "answer"
            shown._api_info = {"type": "object", "description": endpoint.answer}


def _with_gradio_errors(action: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, whose ValueErrors become gr.Error: shown to the caller, not logged."""

    @contextmanager
    def shown() -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error

    @functools.wraps(action)
    def streamed(*args: object, **kwargs: object) -> Iterator[Any]:
        with shown():
            yield from action(*args, **kwargs)

    @functools.wraps(action)
    def called(*args: object, **kwargs: object) -> Any:
        with shown():
            return action(*args, **kwargs)

    return streamed if inspect.isgeneratorfunction(action) else called


LATENT = """\
In answers a Latent has latent (its index), value (what its list is sorted by), label (empty if it
has none), auto (an automatic explanation), source (who gave that: template, lm or file), doubtful
(its giver was uncertain, its evidence weak, or its test failed), fires_on (where it fires most),
promotes (what it makes likelier) and density (on what share it fires)."""
INSTRUCTIONS = f"""\
A sparse autoencoder (SAE) describes each activation of a language model by a few of its latents.
A latent has an index, and fires on some tokens with an activation above 0.

Begin with about: the SAE, the language model, and how many latents there are. Find latents with
search, or with inspect, which lists those that fire in a text; feature shows what one fires on.
steer continues a prompt with and without changed latents, given by index or by a word: of some, a
strength of 1 to 2 shows in the text, of many none does as one would expect. suggest_strength finds
how strongly is too strongly.
why explains a next token by latents, and next_tokens lists the candidates. health, measure,
compare_saes and side_by_side judge the SAE; card, which is long, tells how it was made.

Most words are tokens that begin with a space: " sea" is another token than "sea", and both are
shown as they are. So a prompt should not end with a space.

{LATENT} A Token has text, special (the SAE does not read it), l0 (how many latents fire on it),
activation (of the latent, raw units) and share (of the latent's largest)."""
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


def instructions(names: Collection[str]) -> str:
    """What agents are told at the start, by the endpoints that there are."""
    if "steer" in names:
        return INSTRUCTIONS
    return f"{_OF_PICTURES if 'inspect_picture' in names else _OF_OTHERS}\n\n{LATENT}"


@asynccontextmanager
async def as_tools(app: App) -> AsyncIterator[None]:
    """While Gradio's app runs, its MCP server, if it has one, describes the actions in full and
    answers in JSON."""
    server: Any = app.get_blocks().mcp_server_obj
    if server is None:
        yield
        return
    import jsonschema
    from mcp import types

    endpoints, handlers = {e.name: e for e in ENDPOINTS}, server.mcp_server.request_handlers
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
    yield


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
