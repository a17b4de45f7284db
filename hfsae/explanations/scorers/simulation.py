"""How strongly does each token of a window activate the latent, 0 to 10, by its explanation?"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...evaluation.statistics import weighted_pearson
from ..judges import Answer, Question
from ..prompts import N_LEVELS, list_in, list_question, quoted
from ..scores import stratum_weights
from .base import Case, Sample, Scorer

_KEY = "activations"
_SYSTEM = (
    "A unit of a language model activates on some tokens, and you get a description of them. You "
    "get a text as a JSON list of tokens. Foretell for each token in its order how strongly it "
    "activates the unit: a whole number, 0 to 10; most are 0."
)
_EXAMPLE = (
    'Description: "words about ships and harbours"\nTokens (6): ["The", " boat", " left", " at", '
    '" dawn", "."]',
    [0, 7, 0, 0, 0, 0],
)


class Simulation(Scorer):
    """Pearson's correlation of predicted and true activations over tokens: as of a uniform sample
    of the tested half's tokens (post-stratified: firing ones, silent ones near to a firing one, and
    others; hard windows are left out), and with each token of all windows counting the same."""

    name = "simulation"
    metrics = ("pearson", "pearson_equal")
    about = (
        "a judge's activation of each token, 0 to 10; pearson is reweighted to a uniform sample of "
        "tokens, pearson_equal counts each token of the windows the same"
    )
    chance = 0.0

    def truth(self, sample: Sample) -> np.ndarray:
        return np.concatenate([np.asarray(w.activations, dtype=float) for w in sample.windows])

    def requests(self, case: Case) -> list[Question]:
        described = f"Description: {quoted(case.explanation or '')}"
        requests: list[Question] = []
        for window in case.sample.windows:
            tokens = ", ".join(map(quoted, window.tokens))
            n = len(window.tokens)
            text = f"{described}\nTokens ({n}): [{tokens}]"
            requests.append(list_question(_SYSTEM, _EXAMPLE, text, _KEY, n, N_LEVELS))
        return requests

    def parse(self, request: Question, answer: Answer) -> Any:
        return list_in(answer.text or "", request)

    def values(self, case: Case, replies: Sequence[Any]) -> np.ndarray:
        pairs = zip(case.sample.windows, replies, strict=True)
        parts = [np.full(len(w.tokens), np.nan) if r is None else np.array(r) for w, r in pairs]
        return np.concatenate(parts).astype(float)

    def filled(self, sample: Sample, values: np.ndarray, right: bool) -> np.ndarray:
        truth = self.truth(sample)
        level = N_LEVELS * truth / (truth.max() or 1.0)
        return np.where(np.isnan(values), level if right else N_LEVELS - level, values)

    def score(self, sample: Sample, values: np.ndarray) -> dict[str, float]:
        known = ~np.isnan(values)
        value, truth = values[known], self.truth(sample)[known]
        if not len(value):
            return dict.fromkeys(self.metrics, float("nan"))
        hard = [w.window.kind == "hard" for w in sample.windows]
        is_hard = np.repeat(hard, [len(w.tokens) for w in sample.windows])[known]
        strata = np.concatenate(sample.strata)[known]
        weights = stratum_weights(np.where(is_hard, -1, strata), sample.population)
        return {
            "pearson": weighted_pearson(value, truth, weights),
            "pearson_equal": weighted_pearson(value, truth, np.ones(len(value))),
        }
