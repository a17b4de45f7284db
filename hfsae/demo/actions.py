"""All that the app can do, in one object, and its endpoints for programs and agents."""

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr
from gradio.events import api

from .judge import Judge


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

    def serve(self) -> None:
        """Make each action an endpoint of the Blocks under way, and a tool where MCP is on."""
        for name in self.LOOKING:
            _serve(getattr(self, name), concurrency_id="look")
        for name in self.RUNNING:
            _serve(getattr(self, name), concurrency_id="run")


def _serve(action: Callable[..., Any], concurrency_id: str) -> None:
    api(
        on_gpu(_in_a_sentence(action)),
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
    try:
        import spaces  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        return function
    return spaces.GPU(function)
