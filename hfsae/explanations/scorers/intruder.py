"""Which of five windows does not belong with the others? It needs no explanation."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..explainers import WindowText
from ..judges import Answer, Question
from ..judges.forms import choice_in
from ..prompts import choice_question, quoted, text_of
from .base import Case, Sample, Scorer

N_TOGETHER = 4
"""Active windows of a question, next to each other by strength: of one quantile where all 20 are
there."""
_SYSTEM = (
    "You get five numbered texts. Four of them have something in common, often a word, its use, or "
    "a subject; one of them is an intruder. Find the intruder. Answer with its number alone."
)
_NUMBERS = tuple("12345")


class Intruder(Scorer):
    """The share of questions in which the inactive window is found; by chance 0.2."""

    name = "intruder"
    metrics = ("accuracy",)
    about = (
        "which one of five windows is the inactive one; it needs no explanation, and its control "
        "are random directions"
    )
    needs_explanation = False
    takes_all_windows = True
    chance = 0.2

    def truth(self, sample: Sample) -> np.ndarray:
        return np.ones(len(self.groups(sample)), dtype=bool)

    def groups(self, sample: Sample) -> list[tuple[list[WindowText], int]]:
        """Five windows each, and the place of the inactive one."""
        rng, groups = sample.rng(), []
        active = sorted(sample.active, key=lambda w: -w.window.activation)
        easy = [w for w in sample.inactive if w.window.kind != "hard"]
        n = min(len(active) // N_TOGETHER, len(easy))
        for number, intruder in zip(range(n), easy, strict=False):
            together = active[N_TOGETHER * number : N_TOGETHER * (number + 1)]
            windows = [together[i] for i in rng.permutation(N_TOGETHER)]
            at = int(rng.integers(N_TOGETHER + 1))
            groups.append(([*windows[:at], intruder, *windows[at:]], at))
        return groups

    def requests(self, case: Case) -> list[Question]:
        return [_question(windows) for windows, _ in self.groups(case.sample)]

    def parse(self, request: Question, answer: Answer) -> Any:
        told = answer.log_probabilities
        if told:
            return _NUMBERS.index(max(_NUMBERS, key=lambda n: told.get(n, -np.inf)))
        word = choice_in(answer.text or "", _NUMBERS)
        return None if word is None else _NUMBERS.index(word)

    def values(self, case: Case, replies: Sequence[Any]) -> np.ndarray:
        places = [at for _, at in self.groups(case.sample)]
        pairs = zip(replies, places, strict=True)
        return np.array([np.nan if r is None else float(r == at) for r, at in pairs])

    def filled(self, sample: Sample, values: np.ndarray, right: bool) -> np.ndarray:
        return np.where(np.isnan(values), float(right), values)

    def score(self, sample: Sample, values: np.ndarray) -> dict[str, float]:
        known = values[~np.isnan(values)]
        return {"accuracy": float(known.mean()) if len(known) else float("nan")}


def _question(windows: Sequence[WindowText]) -> Question:
    texts = [f"Text {n}: {quoted(text_of(w))}" for n, w in zip(_NUMBERS, windows, strict=True)]
    return choice_question(_SYSTEM, "\n".join(texts), _NUMBERS)
