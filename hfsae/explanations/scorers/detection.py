"""Does a text hold what the explanation names? Of each window, active or not."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..judges import Answer, Question
from ..prompts import (
    choice_in,
    choice_question,
    list_in,
    list_question,
    quoted,
    text_of,
)
from .base import Case, Request, Scorer

YES_NO = ("yes", "no")
BATCH = 5
"""Windows of one question, where the judge has no log-probabilities."""
_KEY = "matches"


class Detection(Scorer):
    """Where the judge has log-probabilities, a yes or no a window: p(yes) / (p(yes) + p(no)); else
    lists of 0 and 1 for five windows at a time."""

    name = "detection"
    about = "does a window hold what the explanation names, yes or no"
    system = (
        "You get the description of a pattern in text, and a text. Decide whether the pattern "
        "occurs in the text. Answer yes or no."
    )
    many = (
        "You get the description of a pattern in text, and numbered texts. Decide for each text "
        "whether the pattern occurs in it: 1 if it does, 0 if it does not."
    )
    example = (
        'Description: "words about ships and harbours"\nText 1: "The boat left at dawn."\n'
        'Text 2: "He counted the votes."',
        [1, 0],
    )

    def texts(self, case: Case) -> list[str]:
        """How each item stands in a prompt."""
        return [quoted(text_of(window)) for window in case.sample.windows]

    def requests(self, case: Case) -> list[Request]:
        described, texts = f"Description: {quoted(case.explanation or '')}", self.texts(case)
        if self.has_probabilities:
            asked = [f"{described}\nText: {text}" for text in texts]
            return [choice_question(self.system, text, YES_NO) for text in asked]
        requests: list[Request] = []
        for part in self._parts(case, len(texts)):
            numbered = [f"Text {n}: {texts[item]}" for n, item in enumerate(part.tolist(), 1)]
            text = "\n".join([described, *numbered])
            requests.append(list_question(self.many, self.example, text, _KEY, len(part), 1))
        return requests

    def _parts(self, case: Case, n: int) -> list[np.ndarray]:
        """The items of each question: at random, so that places tell nothing."""
        return np.split(case.sample.rng().permutation(n), range(BATCH, n, BATCH))

    def parse(self, request: Question, answer: Answer) -> Any:
        if not request.choices:
            assert request.schema is not None
            n = request.schema["properties"][_KEY]["minItems"]
            return list_in(answer.text or "", _KEY, n, 1)
        if answer.log_probabilities is not None:
            return probability(answer.log_probabilities)
        word = choice_in(answer.text or "", YES_NO)
        return None if word is None else float(word == "yes")

    def values(self, case: Case, replies: Sequence[Any]) -> np.ndarray:
        if self.has_probabilities:
            return np.array([np.nan if reply is None else reply for reply in replies], dtype=float)
        values = np.full(len(self.truth(case.sample)), np.nan)
        for part, reply in zip(self._parts(case, len(values)), replies, strict=True):
            if reply is not None:
                values[part] = reply
        return values


def probability(log_probabilities: dict[str, float]) -> float | None:
    """p(yes) / (p(yes) + p(no)); None where both are missing or 0."""
    yes, no = (log_probabilities.get(choice, -np.inf) for choice in YES_NO)
    most = max(yes, no)
    if not np.isfinite(most):
        return None
    return float(np.exp(yes - most) / (np.exp(yes - most) + np.exp(no - most)))
