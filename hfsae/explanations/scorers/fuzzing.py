"""Are the marked tokens those that the explanation names? True tokens against others."""

from typing import NamedTuple

import numpy as np

from ..explainers import WindowText
from ..prompts import marked
from .base import Case, Sample
from .detection import GRADES, Detection


class Marked(NamedTuple):
    """A window with marks, and whether they are where the latent fires."""

    window: WindowText
    is_marked: list[bool]
    is_true: bool


class Fuzzing(Detection):
    """Active windows with the firing tokens marked, against as many marks on random tokens of
    inactive windows, and on silent tokens of active ones, in turn."""

    name = "fuzzing"
    metrics = ("auc", "balanced_accuracy")
    about = (
        "are the marked tokens of a window those that the explanation names: how likely yes is, or "
        "a grade from 0 to 10; above half is a yes"
    )
    system = (
        "You get the description of a kind of token, and a text in which some tokens are between "
        "<< and >>. Decide whether the description fits the marked tokens. Answer yes or no."
    )
    many = (
        "You get the description of a kind of token, and numbered texts in which some tokens are "
        f"between << and >>. Does the description fit the marked tokens of a text?{GRADES}"
    )
    example = (
        'Description: "words about ships and harbours"\nText 1: "The<< boat>> left at dawn."\n'
        'Text 2: "The boat left<< at>> dawn."',
        [9, 0],
    )

    def marks(self, sample: Sample) -> list[Marked]:
        """The items; wrong ones have as many marks as the true one in the same place."""
        rng, items = sample.rng(), []
        for window in sample.active:
            items.append(Marked(window, [value > 0 for value in window.activations], True))
        for number, window in enumerate(sample.active):
            is_inside = number % 2 == 1 or number >= len(sample.inactive)
            other = window if is_inside else sample.inactive[number]
            n = sum(value > 0 for value in window.activations)
            items.append(Marked(other, _random_marks(other, n, rng), False))
        return [item for item in items if any(item.is_marked)]

    def texts(self, case: Case) -> list[str]:
        return [marked(item.window.tokens, item.is_marked) for item in self.marks(case.sample)]

    def truth(self, sample: Sample) -> np.ndarray:
        return np.array([item.is_true for item in self.marks(sample)], dtype=bool)

    def is_drawn(self, sample: Sample) -> np.ndarray:
        return np.ones(len(self.marks(sample)), dtype=bool)


def _random_marks(window: WindowText, n: int, rng: np.random.Generator) -> list[bool]:
    """Marks on n of a window's silent tokens, or on all of these."""
    silent = [at for at, value in enumerate(window.activations) if not value > 0]
    chosen = {*rng.permutation(silent)[:n].tolist()}
    return [at in chosen for at in range(len(window.tokens))]
