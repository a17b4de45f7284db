"""All that the app can do, in one object, and its endpoints for programs and agents."""

import functools
import importlib.util
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr
from gradio.events import api

from .judge import Judge
from .subject import Subject


class Actions(Judge):
    """Look, act, judge: see the classes this one is made of."""

    LOOKING = (
        "inspect",
        "compare_prompts",
        "feature",
        "try_text",
        "random_latent",
        "search",
        "save_label",
        "next_tokens",
        "health",
        "compare_saes",
        "about",
    )
    RUNNING = ("steer", "suggest_strength", "why", "check_ablation", "measure")
    # What runs a model. None of them calls another: on ZeroGPU each is a process with a GPU.
    ON_GPU = (
        "inspect",
        "compare_prompts",
        "try_text",
        "search",
        "next_tokens",
        "write",
        "sweep",
        "why",
        "check_ablation",
        "measure",
    )

    def __init__(self, subject: Subject):
        super().__init__(subject)
        for name in self.ON_GPU:
            setattr(self, name, on_gpu(getattr(self, name)))  # bound: only arguments travel

    def serve(self) -> None:
        """Make each action an endpoint of the Blocks under way, and a tool where MCP is on."""
        for name in self.LOOKING:
            _serve(getattr(self, name), concurrency_id="look")
        for name in self.RUNNING:
            _serve(getattr(self, name), concurrency_id="run")


def _serve(action: Callable[..., Any], concurrency_id: str) -> None:
    api(
        _in_a_sentence(action),
        api_name=action.__name__,
        concurrency_id=concurrency_id,
        concurrency_limit=8 if concurrency_id == "look" else 2,
    )


def _in_a_sentence(action: Callable[..., Any]) -> Callable[..., Any]:
    """The same, with what the caller got wrong told to the caller, and not in the server's log."""
    if inspect.isgeneratorfunction(action):

        @functools.wraps(action)
        def streamed(*args: Any, **kwargs: Any) -> Iterator[Any]:
            try:
                yield from action(*args, **kwargs)
            except ValueError as error:
                raise gr.Error(str(error), print_exception=False) from error

        return streamed

    @functools.wraps(action)
    def called(*args: Any, **kwargs: Any) -> Any:
        try:
            return action(*args, **kwargs)
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error

    return called


def on_gpu(function: Callable[..., Any]) -> Callable[..., Any]:
    """On ZeroGPU Spaces, where the package `spaces` is, with a GPU for its time; else as it is."""
    if not on_zero_gpu():
        return function
    import spaces  # pyright: ignore[reportMissingImports]

    return spaces.GPU(function)


def on_zero_gpu() -> bool:
    return importlib.util.find_spec("spaces") is not None
