"""Everything that the app can do for one subject, and its endpoints for programs and agents."""

import functools
import importlib.util
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import MethodType, SimpleNamespace
from typing import Any

import gradio as gr
from gradio.events import api

from . import act, beside, judge, latent_map, look, why
from .subject import Subject

QUEUES = {"look": 8, "run": 2, "search": 1}
"""how many calls of a queue run at once"""


@dataclass(frozen=True)
class Endpoint:
    """An action: a function of the subject and of a caller's arguments."""

    function: Callable[..., Any]
    """its docstring is shown to users of the API, and to agents"""
    queue: str | None = None
    """of the API; None: only pages call it"""
    gpu: bool = False
    """whether it runs a model: on ZeroGPU each such call is a process with a GPU"""

    @property
    def name(self) -> str:
        """Of the endpoint, and of the method of `Actions`."""
        return self.function.__name__

    @property
    def signature(self) -> inspect.Signature:
        """A caller's parameters: all but the subject."""
        whole = inspect.signature(self.function)
        return whole.replace(parameters=list(whole.parameters.values())[1:])


ENDPOINTS = (
    Endpoint(look.inspect, queue="look", gpu=True),
    Endpoint(look.compare_prompts, queue="look", gpu=True),
    Endpoint(look.feature, queue="look"),
    Endpoint(look.try_text, queue="look", gpu=True),
    Endpoint(look.random_latent, queue="look"),
    Endpoint(look.search, queue="look", gpu=True),
    Endpoint(look.save_label, queue="look"),
    Endpoint(why.next_tokens, queue="look", gpu=True),
    Endpoint(judge.health, queue="look"),
    Endpoint(judge.compare_saes, queue="look"),
    Endpoint(beside.side_by_side, queue="run", gpu=True),
    Endpoint(judge.about, queue="look"),
    Endpoint(act.steer, queue="run", gpu=True),
    Endpoint(act.suggest_strength, queue="run", gpu=True),
    Endpoint(why.why, queue="run", gpu=True),
    Endpoint(why.check_ablation, queue="run", gpu=True),
    Endpoint(judge.measure, queue="run", gpu=True),
    Endpoint(latent_map.find_on_map, queue="look"),
    Endpoint(look.promoted, gpu=True),
    Endpoint(act.write, gpu=True),
    Endpoint(act.sweep, gpu=True),
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

    def serve(self) -> None:
        """Make each action an endpoint of the current Blocks, and a tool where MCP is on."""
        for endpoint in ENDPOINTS:
            if endpoint.queue is not None:
                action = _in_a_sentence(getattr(self, endpoint.name), endpoint.signature)
                api(action, api_name=endpoint.name, **in_queue(endpoint.queue))


def in_queue(name: str) -> dict[str, Any]:
    """Options of an event whose calls wait in this queue."""
    return {"concurrency_id": name, "concurrency_limit": QUEUES[name]}


def _in_a_sentence(action: Callable[..., Any], signature: inspect.Signature) -> Callable[..., Any]:
    """The same function, whose ValueErrors become gr.Error: shown to the caller, not logged."""

    @functools.wraps(action)
    def streamed(*args: Any, **kwargs: Any) -> Iterator[Any]:
        try:
            yield from action(*args, **kwargs)
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error

    @functools.wraps(action)
    def called(*args: Any, **kwargs: Any) -> Any:
        try:
            return action(*args, **kwargs)
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error

    wrapper = streamed if inspect.isgeneratorfunction(action) else called
    vars(wrapper)["__signature__"] = signature
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
