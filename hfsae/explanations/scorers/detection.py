"""Does a text hold what the explanation names? Of each window, active or not."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..judges import Answer, Question
from ..judges.forms import choice_in
from ..prompts import N_LEVELS, choice_question, list_in, list_question, quoted, text_of
from .base import Case, Scorer

YES_NO = ("yes", "no")
_KEY = "grades"
GRADES = (
    " Grade each text in its order by how sure you are, with a whole number: 0, surely not; 5, as "
    "likely as not; 10, surely."
)


class Detection(Scorer):
    """Where the judge has log-probabilities, a yes or no a window: p(yes) / (p(yes) + p(no)); else
    one question with all windows, answered with a grade for each, 0 to 10. Above half is a yes."""

    name = "detection"
    about = (
        "does a window hold what the explanation names: how likely yes is, or a grade from 0 to "
        "10; auc is of these, balanced accuracy of yes and no, where above half is a yes"
    )
    system = (
        "You get the description of a pattern in text, and a text. Decide whether the pattern "
        "occurs in the text. Answer yes or no."
    )
    many = (
        "You get the description of a pattern in text, and numbered texts. Does the pattern occur "
        f"in a text?{GRADES}"
    )
    example = (
        'Description: "words about ships and harbours"\nText 1: "The boat left at dawn."\n'
        'Text 2: "He counted the votes."',
        [9, 0],
    )

    @property
    def asks_any_text(self) -> bool:
        return self.has_probabilities

    def texts(self, case: Case) -> list[str]:
        """How each item stands in a prompt."""
        return [quoted(text_of(window)) for window in case.sample.windows]

    def requests(self, case: Case) -> list[Question]:
        described, texts = f"Description: {quoted(case.explanation or '')}", self.texts(case)
        if self.has_probabilities:
            asked = [f"{described}\nText: {text}" for text in texts]
            return [choice_question(self.system, text, YES_NO) for text in asked]
        order = self._order(case, len(texts))
        if not order:
            return []
        numbered = [f"Text {n}: {texts[item]}" for n, item in enumerate(order, 1)]
        text = "\n".join([described, *numbered])
        return [list_question(self.many, self.example, text, _KEY, len(texts), N_LEVELS)]

    def _order(self, case: Case, n: int) -> list[int]:
        """At random, so that places tell nothing."""
        return case.sample.rng().permutation(n).tolist()

    def parse(self, request: Question, answer: Answer) -> Any:
        if not request.choices:
            return list_in(answer.text or "", request)
        if answer.log_probabilities is not None:
            return probability(answer.log_probabilities)
        word = choice_in(answer.text or "", YES_NO)
        return None if word is None else float(word == "yes")

    def values(self, case: Case, replies: Sequence[Any]) -> np.ndarray:
        if self.has_probabilities:
            return np.array([np.nan if reply is None else reply for reply in replies], dtype=float)
        order = self._order(case, len(self.truth(case.sample)))
        if not replies or replies[0] is None:
            return np.full(len(order), np.nan)
        values = np.zeros(len(order))
        values[order] = np.array(replies[0]) / N_LEVELS
        return values


def probability(log_probabilities: dict[str, float]) -> float | None:
    """p(yes) / (p(yes) + p(no)); None where both are missing or 0."""
    yes, no = (log_probabilities.get(choice, -np.inf) for choice in YES_NO)
    most = max(yes, no)
    if not np.isfinite(most):
        return None
    return float(np.exp(yes - most) / (np.exp(yes - most) + np.exp(no - most)))
