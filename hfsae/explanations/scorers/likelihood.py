"""How much more likely does the explanation make a window's text?"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..prompts import text_of
from .base import Case, Request, Scorer


class Likelihood(Scorer):
    """log p(window | explanation) - log p(window), in nats: nothing has to be parsed, and a base
    model will do."""

    name = "likelihood"
    about = (
        "log p(window after the explanation) - log p(window after the same words without it), in "
        "nats; above 0 counts as a yes"
    )
    needs_likelihood = True
    threshold = 0.0

    def requests(self, case: Case) -> list[Request]:
        given, plain = contexts(case.explanation or "")
        texts = [text_of(window) for window in case.sample.windows]
        return [*((given, text) for text in texts), *((plain, text) for text in texts)]

    def values(self, case: Case, replies: Sequence[Any]) -> np.ndarray:
        given, plain = np.array(replies, dtype=np.float64).reshape(2, -1)
        return given - plain


def contexts(explanation: str) -> tuple[str, str]:
    """What stands before a window: with the explanation, and without."""
    return f"A text about this: {explanation}\n\nText:", "A text.\n\nText:"
