"""Everything that the app can do for one subject, and its endpoints for programs and agents."""

import functools
import importlib.util
import inspect
from collections.abc import Callable, Iterator
from functools import partial
from types import MethodType, SimpleNamespace
from typing import Any

import gradio as gr
from gradio.context import get_blocks_context
from gradio.events import api

from ..io.units import PATCH
from . import (
    compare_saes,
    diff_actions,
    health_actions,
    inspect_actions,
    label_actions,
    latent_map,
    picture_latents,
    steer_actions,
    why,
)
from .schemas import Endpoint, docstring
from .subject import Subject

QUEUES = {"look": 8, "run": 2, "search": 1}
"""how many calls of a queue run at once"""
_text = partial(Endpoint, gpu=True, fits=lambda subject: subject.unit.is_text)
ENDPOINTS = (
    _text(inspect_actions.inspect, "What fires in a text", queue="look"),
    _text(inspect_actions.compare_prompts, "Two texts compared", queue="look"),
    Endpoint(
        picture_latents.inspect_picture,
        "What fires in a picture",
        queue="look",
        gpu=True,
        fits=lambda subject: subject.unit == PATCH,
    ),
    Endpoint(inspect_actions.feature, "One latent, with examples", queue="look"),
    _text(inspect_actions.try_text, "One latent on a text", queue="look"),
    Endpoint(inspect_actions.random_latent, "A latent at random", queue="look"),
    Endpoint(inspect_actions.search, "Find latents", queue="look", gpu=True),
    Endpoint(inspect_actions.save_label, "Name a latent", queue="look", writes=True),
    Endpoint(
        label_actions.labels,
        "Latents that go with labels",
        queue="look",
        fits=lambda subject: bool(subject.columns),
    ),
    Endpoint(
        diff_actions.diff,
        "Latents of two models",
        queue="look",
        fits=lambda subject: bool(subject.diff),
    ),
    _text(why.next_tokens, "The likeliest next tokens", queue="look"),
    Endpoint(health_actions.health, "How good the SAE is", queue="look"),
    Endpoint(compare_saes.compare_saes, "Metrics of two SAEs", queue="look", reads_hub=True),
    _text(compare_saes.side_by_side, "Two SAEs on a text", queue="run", reads_hub=True),
    Endpoint(health_actions.about, "Which SAE this is", queue="look"),
    Endpoint(health_actions.card, "The model card", queue="look"),
    _text(steer_actions.steer, "Steer a text", queue="run"),
    _text(steer_actions.suggest_strength, "Find a strength for steering", queue="run"),
    _text(why.why, "Why a next token", queue="run"),
    _text(why.check_ablation, "Measure a latent's effect on a token", queue="run"),
    _text(health_actions.measure, "How well the SAE explains a text", queue="run"),
    Endpoint(latent_map.find_on_map, "Find latents on the map", queue="look"),
    Endpoint(inspect_actions.promoted, gpu=True),
    Endpoint(steer_actions.write, gpu=True),
    Endpoint(steer_actions.sweep, gpu=True),
)


class Actions(SimpleNamespace):
    """The functions of `ENDPOINTS` for one subject: `actions.feature(3)`.

    They keep no state of a session. A caller's mistake raises ValueError with one sentence.
    """

    subject: Subject

    def __init__(self, subject: Subject):
        super().__init__(subject=subject)
        for endpoint in ENDPOINTS:
            action = MethodType(endpoint.function, subject)  # so that only arguments travel
            setattr(self, endpoint.name, on_gpu(action) if endpoint.gpu else action)

    def fitting(self) -> list[Endpoint]:
        """Those that are of use for its subject."""
        return [endpoint for endpoint in ENDPOINTS if endpoint.fits(self.subject)]

    def serve(self) -> None:
        """Make each action an endpoint of the current Blocks, and a tool where MCP is on."""
        blocks: Any = get_blocks_context()
        for endpoint in self.fitting():
            if endpoint.queue is None:
                continue
            action = _in_a_sentence(getattr(self, endpoint.name), endpoint)
            added = api(action, api_name=endpoint.name, **in_queue(endpoint.queue))
            # parameters and answer get the schemas that Gradio's clients show
            event = blocks.fns[added["id"]]
            schemas = endpoint.input_schema["properties"]
            for component, (name, schema) in zip(event.inputs, schemas.items(), strict=True):
                component.label = name
                component._api_info = {**schema, "additional_description": schema["description"]}
            (answer,) = event.outputs
            answer.label, words = "answer", docstring(endpoint.function).answer
            answer._api_info = {**endpoint.output_schema, "description": words}


def in_queue(name: str) -> dict[str, Any]:
    """Options of an event whose calls wait in this queue."""
    return {"concurrency_id": name, "concurrency_limit": QUEUES[name]}


def _in_a_sentence(action: Callable[..., Any], endpoint: Endpoint) -> Callable[..., Any]:
    """The same function, whose ValueErrors become gr.Error: shown to the caller, not logged."""

    @functools.wraps(action)
    def streamed(*args: object, **kwargs: object) -> Iterator[Any]:
        try:
            yield from action(*args, **kwargs)
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error

    @functools.wraps(action)
    def called(*args: object, **kwargs: object) -> Any:
        try:
            return action(*args, **kwargs)
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error

    wrapper = streamed if inspect.isgeneratorfunction(action) else called
    vars(wrapper)["__signature__"] = endpoint.signature
    wrapper.__doc__ = docstring(endpoint.function).in_lines
    return wrapper


def on_gpu(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function decorated with spaces.GPU on ZeroGPU Spaces, unchanged elsewhere."""
    if not on_zero_gpu():
        return function
    import spaces  # pyright: ignore[reportMissingImports]

    return spaces.GPU(function)


def on_zero_gpu() -> bool:
    """Whether this is a Space that lends a GPU to each call."""
    return importlib.util.find_spec("spaces") is not None
