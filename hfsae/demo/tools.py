"""The actions as tools for agents, with what Gradio's MCP server leaves out.

It lists a tool without title, hints and a schema of the answer, and answers in Python's notation.
"""

import json
from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from gradio.routes import App

from .actions import ENDPOINTS, Endpoint

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
async def as_tools(app: App) -> AsyncIterator[None]:
    """While Gradio's app runs, its MCP server, if it has one, describes the actions in full and
    answers in JSON."""
    server = app.get_blocks().mcp_server_obj
    if server is not None:
        _describe(server, {endpoint.name: endpoint for endpoint in ENDPOINTS})
    yield


def _describe(server: Any, endpoints: Mapping[str, Endpoint]) -> None:
    from mcp import types

    handlers = server.mcp_server.request_handlers
    listed, called = handlers[types.ListToolsRequest], handlers[types.CallToolRequest]

    async def list_tools(request: types.ListToolsRequest) -> types.ServerResult:
        answer = await listed(request)
        for tool in answer.root.tools:
            endpoint = endpoints.get(server.tool_to_endpoint[tool.name].lstrip("/"))
            if endpoint is not None:
                tool.title, tool.annotations = endpoint.title, _hints(endpoint)
                tool.inputSchema = endpoint.input_schema
                tool.outputSchema = endpoint.output_schema
        return answer

    async def call_tool(request: types.CallToolRequest) -> types.ServerResult:
        path = server.tool_to_endpoint.get(request.params.name, "")
        endpoint = endpoints.get(path.lstrip("/"))
        if endpoint is None:
            return await called(request)
        if wrong := _wrong(endpoint, request.params.arguments or {}):
            content: list[types.ContentBlock] = [types.TextContent(type="text", text=wrong)]
            return types.ServerResult(types.CallToolResult(content=content, isError=True))
        answer = await called(request)
        if not answer.root.isError:
            answer.root.structuredContent = json.loads(answer.root.content[0].text)
        return answer

    handlers[types.ListToolsRequest], handlers[types.CallToolRequest] = list_tools, call_tool
    server.postprocess_output_data = _as_json
    names = {path.lstrip("/") for path in server.tool_to_endpoint.values()}
    server.mcp_server.instructions = instructions(names)


def instructions(names: Collection[str]) -> str:
    """What agents are told at the start, by the endpoints that there are."""
    if "steer" in names:
        return INSTRUCTIONS
    return _OF_PICTURES if "inspect_picture" in names else _OF_OTHERS


def _wrong(endpoint: Endpoint, arguments: Mapping[str, Any]) -> str:
    """What is wrong with the arguments, and with which of them; empty if nothing is."""
    import jsonschema

    errors = jsonschema.Draft202012Validator(endpoint.input_schema).iter_errors(arguments)
    return "; ".join(": ".join([*map(str, error.path), error.message]) for error in errors)


def _hints(endpoint: Endpoint) -> Any:
    from mcp.types import ToolAnnotations

    return ToolAnnotations(
        title=endpoint.title,
        readOnlyHint=not endpoint.writes,
        destructiveHint=endpoint.writes,
        idempotentHint=True,
        openWorldHint=endpoint.reads_hub,
    )


def _as_json(answers: Iterable[Any], root_url: str) -> list[Any]:
    from mcp.types import TextContent

    texts = (json.dumps(_short(answer), ensure_ascii=False) for answer in answers)
    return [TextContent(type="text", text=text) for text in texts]


def _short(answer: object) -> Any:
    """The same with short numbers, and of examples only the tokens that the latent fires on."""
    if isinstance(answer, dict):
        return {key: _short(value) for key, value in answer.items()}
    if isinstance(answer, list):
        return [_short(value) for value in answer if not _is_silent(value)]
    return float(f"{answer:.{_DIGITS}g}") + 0.0 if isinstance(answer, float) else answer  # no -0.0


def _is_silent(answer: object) -> bool:
    """Whether it is a token of an example on which the latent does not fire: the example's text has
    it, and there are hundreds."""
    return isinstance(answer, dict) and answer.get("firing") is False and not answer["activation"]
