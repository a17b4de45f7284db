"""The interface of a score: questions about a latent's windows, and numbers from answers.

A scorer turns a `Case` into requests, each reply into values, one an item (a window, a question or
a token), and values into metrics. A failed item is NaN: it is neither right nor wrong, metrics are
of the others, and bounds take all failed ones as right, or as wrong.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from ...evaluation.statistics import auc
from ..arguments import OURS, ExplainArguments, ScoreArguments
from ..explainers import WindowText, spelt
from ..judges import Answer, Question
from ..reading import TESTED, CorpusActivations
from ..scores import FAR, decided, strata_of
from ..windows import Evidence, Window


class Sample(NamedTuple):
    """The windows of a latent that a score is of; those of its controls, too."""

    latent: int
    """negative: a random direction"""
    seed: int
    active: list[WindowText]
    inactive: list[WindowText]
    share: float
    """of the tested half's windows, those in which the latent fires"""
    strata: list[np.ndarray]
    """of each window, active ones first, what its tokens are: see `scores.strata_of`"""
    population: np.ndarray
    """tokens of the tested half by stratum"""

    @property
    def windows(self) -> list[WindowText]:
        """Active ones, then inactive ones."""
        return [*self.active, *self.inactive]

    @property
    def truth(self) -> np.ndarray:
        """Which of `windows` are active."""
        return np.arange(len(self.windows)) < len(self.active)

    def rng(self) -> np.random.Generator:
        """What is drawn for a latent, the same for its controls."""
        return np.random.default_rng([self.seed, self.latent + 2**32])


def sample_of(
    reading: CorpusActivations,
    evidence: Evidence,
    args: ExplainArguments,
    asked: ScoreArguments,
    tokenizer: PreTrainedTokenizerBase,
    takes_all: bool = False,
) -> Sample:
    """The judged windows of a latent, as text, with the numbers that weight its scores.

    Args:
        takes_all: all that test, not `asked.windows` of them.
    """
    active, inactive = evidence.active, evidence.inactive
    if asked.protocol == OURS and not takes_all:
        # As many active windows, over all quantiles, as inactive ones, half of which are hard.
        n = asked.windows // 2
        active = _spread(active, n)
        hard = _spread([window for window in inactive if window.kind == "hard"], n // 2)
        easy = [window for window in inactive if window.kind != "hard"]
        inactive = hard + _spread(easy, n - len(hard))
    activations = evidence.activations(len(reading.ids))
    fires, at = activations > 0, np.arange(len(reading.ids))
    count = np.concatenate([[0], fires.cumsum()])
    start = np.maximum(reading.start, at - args.window)
    stop = np.minimum(reading.stop, at + args.window + 1)
    near = count[stop] > count[start]
    strata = strata_of(fires, near)
    tested = (reading.half == TESTED) & reading.computed
    return Sample(
        evidence.latent,
        args.seed,
        [spelt(reading, window, tokenizer, activations) for window in active],
        [spelt(reading, window, tokenizer, activations) for window in inactive],
        float(near[tested].mean()),
        [strata[w.start : w.stop] for w in (*active, *inactive)],
        np.bincount(strata[tested], minlength=FAR + 1),
    )


def _spread(windows: Sequence[Window], n: int) -> list[Window]:
    """n windows at equal distances in the sequence; all if there are no more."""
    if len(windows) <= n:
        return list(windows)
    return [windows[i * len(windows) // n] for i in range(n)]


class Case(NamedTuple):
    """Windows, and the explanation that is judged on them."""

    sample: Sample
    control: str
    """own, shuffled, anything or direction"""
    explanation: str | None
    """None: there is none, and all items fail"""


class Scorer:
    """A score; the defaults are for one value a window, above one half where it seems active."""

    name: ClassVar[str]
    metrics: ClassVar[tuple[str, ...]] = ("auc", "balanced_accuracy", "precision", "f1")
    """the first is the headline"""
    about: ClassVar[str]
    """one line for reports"""
    needs_explanation: ClassVar[bool] = True
    takes_all_windows: ClassVar[bool] = False
    """whether it takes all that test, not those that `ScoreArguments.windows` allows"""
    chance: ClassVar[float | None] = 0.5
    """of the headline"""

    def __init__(self, has_probabilities: bool = False) -> None:
        self.has_probabilities = has_probabilities
        """whether the judge gives log-probabilities of answers"""

    @property
    def asks_any_text(self) -> bool:
        """Whether the explanation "any text" is a control: not where it gets one grade for all."""
        return True

    def truth(self, sample: Sample) -> np.ndarray:
        """What the values should be; here which items are active."""
        return sample.truth

    def is_drawn(self, sample: Sample) -> np.ndarray:
        """Which items stand for all of their kind; hard windows do not."""
        return np.array([window.window.kind != "hard" for window in sample.windows], dtype=bool)

    def requests(self, case: Case) -> list[Question]:
        """The questions about a case that has an explanation, or needs none."""
        raise NotImplementedError

    def parse(self, request: Question, answer: Answer) -> Any:
        """What a question's answer means; None: it does not parse, and the question is asked once
        more."""
        raise NotImplementedError

    def values(self, case: Case, replies: Sequence[Any]) -> np.ndarray:
        """One an item; NaN: failed. Replies are those of `parse`."""
        raise NotImplementedError

    def filled(self, sample: Sample, values: np.ndarray, right: bool) -> np.ndarray:
        """The values with the failed ones all right, or all wrong."""
        best = np.where(self.truth(sample) == right, np.inf, -np.inf)
        return np.where(np.isnan(values), best, values)

    def score(self, sample: Sample, values: np.ndarray) -> dict[str, float]:
        """The metrics; NaN where too few items have a value."""
        known = ~np.isnan(values)
        truth, value = self.truth(sample)[known], values[known]
        scores = {"auc": auc(value, truth)}
        if "balanced_accuracy" in self.metrics:
            drawn = self.is_drawn(sample)[known]
            scores |= decided(value > 0.5, truth, drawn, sample.share)
        return {name: scores[name] for name in self.metrics}
