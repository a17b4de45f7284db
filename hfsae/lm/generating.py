"""The prompt of a call of `generate`, for hooks in the forward passes inside it.

Assisted and prompt-lookup decoding check several new tokens in one forward pass, the first of them
behind the prompt, so that a pass alone does not show where the prompt ends.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from .sites import unwrapped

_prompt: ContextVar[int | None] = ContextVar("tokens in the prompt of generate", default=None)
_blocks: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()  # that are open, by model
_own: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()  # a `generate` that the model had
_counting = threading.Lock()


def prompt_length() -> int | None:
    """Tokens in each row of the prompt, padding and cached ones included, of the call of `generate`
    that this forward pass belongs to; None outside of one, or of `noting_prompts`."""
    return _prompt.get()


@contextmanager
def noting_prompts(lm: nn.Module) -> Iterator[None]:
    """Inside the block `prompt_length` is known in calls of the model's `generate`."""
    model: Any = unwrapped(lm)
    with _counting:
        if not _blocks.get(model):
            _own[model] = vars(model).get("generate")
            model.generate = partial(_noting, model.generate)
        _blocks[model] = _blocks.get(model, 0) + 1
    try:
        yield
    finally:
        with _counting:
            _blocks[model] -= 1
            if not _blocks[model]:
                del model.generate
                if (own := _own.pop(model)) is not None:
                    model.generate = own


def _noting(generate: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if _prompt.get() is not None:  # a draft of the model itself, for the call around this one
        return generate(*args, **kwargs)
    token = _prompt.set(_length(*args, **kwargs))
    try:
        return generate(*args, **kwargs)
    finally:
        _prompt.reset(token)


def _length(inputs: Tensor | None = None, *_: object, **kwargs: object) -> int:
    names = ("input_ids", "inputs_embeds", "attention_mask")
    given = [inputs, *(kwargs.get(name) for name in ("inputs", *names))]
    # the mask is longer than the ids if only those that are not in the cache are given
    return max((part.shape[1] for part in given if isinstance(part, Tensor)), default=1)
