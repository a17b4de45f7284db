"""Scores that ask a judge: questions about a latent's windows, and numbers from answers.

detection    does a window hold what the explanation names
fuzzing      are the marked tokens those that it names
simulation   how strongly does each token activate the latent
intruder     which of five windows is the odd one; no explanation

A scorer turns a latent's windows and an explanation into requests, each reply into values, one an
item (a window, a question or a token), and values into metrics. A failed item is NaN: it is neither
right nor wrong, and metrics are of the others.

Another score is another `Scorer` here, listed in SCORERS; its name stands in `arguments.SCORES`,
and `tests/explanations/oracle.py` answers its questions.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from ..evaluation.statistics import auc, weighted_pearson
from ..io.errors import Refused
from .arguments import OURS, ExplainArguments, ScoreArguments
from .corpus import TESTED, CorpusActivations
from .judges.base import Answer, JudgeArguments, Question, choice_in
from .judges.calls import Judge
from .prompts import (
    DETECT,
    DETECT_EXAMPLE,
    DETECT_MANY,
    FIND_INTRUDER,
    FUZZ,
    FUZZ_EXAMPLE,
    FUZZ_MANY,
    N_LEVELS,
    SIMULATE,
    SIMULATE_EXAMPLE,
    choice_question,
    json_string,
    list_in,
    list_question,
    marked_string,
)
from .windows import Evidence, Window, WindowText, window_text

FIRING, NEAR, FAR = 0, 1, 2
"""What a token is to a latent: it fires there; it is silent, and fires near; or neither."""


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
    """of each window, active ones first, what its tokens are: see `FIRING`"""
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
        [window_text(reading, window, tokenizer, activations) for window in active],
        [window_text(reading, window, tokenizer, activations) for window in inactive],
        float(near[tested].mean()),
        [strata[w.start : w.stop] for w in (*active, *inactive)],
        np.bincount(strata[tested], minlength=FAR + 1),
    )


def _spread(windows: Sequence[Window], n: int) -> list[Window]:
    """n windows at equal distances in the sequence; all if there are no more."""
    if len(windows) <= n:
        return list(windows)
    return [windows[i * len(windows) // n] for i in range(n)]


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

    def requests(self, sample: Sample, explanation: str) -> list[Question]:
        """The questions about an explanation; "" where none is needed."""
        raise NotImplementedError

    def parse(self, request: Question, answer: Answer) -> Any:
        """What a question's answer means; None: it does not parse, and the question is asked once
        more."""
        raise NotImplementedError

    def values(self, sample: Sample, replies: Sequence[Any]) -> np.ndarray:
        """One an item; NaN: failed. Replies are those of `parse`."""
        raise NotImplementedError

    def score(self, sample: Sample, values: np.ndarray) -> dict[str, float]:
        """The metrics; NaN where too few items have a value."""
        known = ~np.isnan(values)
        truth, value = self.truth(sample)[known], values[known]
        scores = {"auc": auc(value, truth)}
        if "balanced_accuracy" in self.metrics:
            drawn = self.is_drawn(sample)[known]
            scores |= decisions(value > 0.5, truth, drawn, sample.share)
        return {name: scores[name] for name in self.metrics}


def decisions(
    is_yes: np.ndarray, truth: np.ndarray, is_drawn: np.ndarray, share: float
) -> dict[str, float]:
    """balanced_accuracy of yes and no; precision and F1 where a `share` of all windows are active.

    There, yeses to active and to inactive windows are weighted as each kind's share of all windows
    demands (Horvitz-Thompson). Only the inactive windows of `is_drawn` stand for all inactive ones.
    NaN where a kind has no window; precision and F1 are 0 without a yes.
    """
    parts = is_yes[truth], is_yes[~truth], is_yes[~truth & is_drawn]
    hits, alarms, drawn_alarms = (float(p.mean()) if len(p) else float("nan") for p in parts)
    true, false = share * hits, (1 - share) * drawn_alarms
    precision = true / (true + false) if true + false > 0 else true + false
    harmonic = precision + hits
    f1 = 2 * precision * hits / harmonic if harmonic > 0 else harmonic
    return {"balanced_accuracy": (hits + 1 - alarms) / 2, "precision": precision, "f1": f1}


YES_NO = ("yes", "no")


class Detection(Scorer):
    """Where the judge has log-probabilities, a yes or no a window: p(yes) / (p(yes) + p(no)); else
    one question with all windows, answered with a grade for each, 0 to 10. Above half is a yes."""

    name = "detection"
    about = (
        "does a window hold what the explanation names: how likely yes is, or a grade from 0 to "
        "10; auc is of these, balanced accuracy of yes and no, where above half is a yes"
    )
    system = DETECT
    many = DETECT_MANY
    example = DETECT_EXAMPLE

    @property
    def asks_any_text(self) -> bool:
        return self.has_probabilities

    def texts(self, sample: Sample) -> list[str]:
        """How each item stands in a prompt."""
        return [json_string(window.text) for window in sample.windows]

    def requests(self, sample: Sample, explanation: str) -> list[Question]:
        described, texts = f"Description: {json_string(explanation)}", self.texts(sample)
        if self.has_probabilities:
            asked = [f"{described}\nText: {text}" for text in texts]
            return [choice_question(self.system, text, YES_NO) for text in asked]
        order = self._order(sample, len(texts))
        if not order:
            return []
        numbered = [f"Text {n}: {texts[item]}" for n, item in enumerate(order, 1)]
        text = "\n".join([described, *numbered])
        return [list_question(self.many, self.example, text, "grades", len(texts), N_LEVELS)]

    def _order(self, sample: Sample, n: int) -> list[int]:
        """At random, so that places tell nothing."""
        return sample.rng().permutation(n).tolist()

    def parse(self, request: Question, answer: Answer) -> Any:
        if not request.choices:
            return list_in(answer.text or "", request)
        if answer.log_probabilities is not None:
            yes, no = (answer.log_probabilities.get(choice, -np.inf) for choice in YES_NO)
            most = max(yes, no)
            if not np.isfinite(most):  # both are missing, or 0
                return None
            return float(np.exp(yes - most) / (np.exp(yes - most) + np.exp(no - most)))
        word = choice_in(answer.text or "", YES_NO)
        return None if word is None else float(word == "yes")

    def values(self, sample: Sample, replies: Sequence[Any]) -> np.ndarray:
        if self.has_probabilities:
            return np.array([np.nan if reply is None else reply for reply in replies], dtype=float)
        order = self._order(sample, len(self.truth(sample)))
        if not replies or replies[0] is None:
            return np.full(len(order), np.nan)
        values = np.zeros(len(order))
        values[order] = np.array(replies[0]) / N_LEVELS
        return values


class Fuzzing(Detection):
    """Active windows with the firing tokens marked, against as many marks on random tokens of
    inactive windows, and on silent tokens of active ones, in turn."""

    name = "fuzzing"
    metrics = ("auc", "balanced_accuracy")
    about = (
        "are the marked tokens of a window those that the explanation names: how likely yes is, or "
        "a grade from 0 to 10; above half is a yes"
    )
    system = FUZZ
    many = FUZZ_MANY
    example = FUZZ_EXAMPLE

    def marks(self, sample: Sample) -> list[tuple[WindowText, list[bool], bool]]:
        """The items: a window, which of its tokens are marked, and whether these are where the
        latent fires; wrong ones have as many marks as the true one in the same place."""
        rng, items = sample.rng(), []
        for window in sample.active:
            items.append((window, [value > 0 for value in window.activations], True))
        for number, window in enumerate(sample.active):
            is_inside = number % 2 == 1 or number >= len(sample.inactive)
            other = window if is_inside else sample.inactive[number]
            n = sum(value > 0 for value in window.activations)
            silent = [at for at, value in enumerate(other.activations) if not value > 0]
            at_random = {*rng.permutation(silent)[:n].tolist()}
            items.append((other, [at in at_random for at in range(len(other.tokens))], False))
        return [item for item in items if any(item[1])]

    def texts(self, sample: Sample) -> list[str]:
        return [marked_string(window.tokens, at) for window, at, _ in self.marks(sample)]

    def truth(self, sample: Sample) -> np.ndarray:
        return np.array([is_true for *_, is_true in self.marks(sample)], dtype=bool)

    def is_drawn(self, sample: Sample) -> np.ndarray:
        return np.ones(len(self.marks(sample)), dtype=bool)


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

    def requests(self, sample: Sample, explanation: str) -> list[Question]:
        described = f"Description: {json_string(explanation)}"
        requests: list[Question] = []
        for window in sample.windows:
            tokens = ", ".join(map(json_string, window.tokens))
            n = len(window.tokens)
            text = f"{described}\nTokens ({n}): [{tokens}]"
            asked = SIMULATE, SIMULATE_EXAMPLE, text, "activations", n, N_LEVELS
            requests.append(list_question(*asked))
        return requests

    def parse(self, request: Question, answer: Answer) -> Any:
        return list_in(answer.text or "", request)

    def values(self, sample: Sample, replies: Sequence[Any]) -> np.ndarray:
        pairs = zip(sample.windows, replies, strict=True)
        parts = [np.full(len(w.tokens), np.nan) if r is None else np.array(r) for w, r in pairs]
        return np.concatenate(parts).astype(float)

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


def strata_of(fires: np.ndarray, near: np.ndarray) -> np.ndarray:
    """FIRING, NEAR or FAR, of each token."""
    return np.where(fires, FIRING, np.where(near, NEAR, FAR))


def stratum_weights(strata: np.ndarray, population: np.ndarray) -> np.ndarray:
    """What each token of a sample stands for: its stratum's tokens over those that were sampled.

    Args:
        strata: of the sampled tokens; -1: left out, with weight 0.
        population: tokens by stratum.
    """
    sampled = np.bincount(strata[strata >= 0], minlength=len(population))
    each = population / np.maximum(sampled, 1)
    return np.where(strata >= 0, each[strata], 0.0)


N_TOGETHER = 4
"""Active windows of a question, next to each other by strength: of one quantile where all 20 are
there."""
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

    def requests(self, sample: Sample, explanation: str) -> list[Question]:
        requests = []
        for windows, _ in self.groups(sample):
            pairs = zip(_NUMBERS, windows, strict=True)
            texts = [f"Text {n}: {json_string(window.text)}" for n, window in pairs]
            requests.append(choice_question(FIND_INTRUDER, "\n".join(texts), _NUMBERS))
        return requests

    def parse(self, request: Question, answer: Answer) -> Any:
        log_probabilities = answer.log_probabilities
        if log_probabilities:
            return _NUMBERS.index(max(_NUMBERS, key=lambda n: log_probabilities.get(n, -np.inf)))
        word = choice_in(answer.text or "", _NUMBERS)
        return None if word is None else _NUMBERS.index(word)

    def values(self, sample: Sample, replies: Sequence[Any]) -> np.ndarray:
        places = [at for _, at in self.groups(sample)]
        pairs = zip(replies, places, strict=True)
        return np.array([np.nan if r is None else float(r == at) for r, at in pairs])

    def score(self, sample: Sample, values: np.ndarray) -> dict[str, float]:
        known = values[~np.isnan(values)]
        return {"accuracy": float(known.mean()) if len(known) else float("nan")}


SCORERS: dict[str, type[Scorer]] = {
    scorer.name: scorer for scorer in (Detection, Fuzzing, Simulation, Intruder)
}


def scorers_of(args: ScoreArguments, judge: Judge | JudgeArguments | None) -> list[Scorer]:
    """The scorers of these scores, for this judge.

    Raises:
        ValueError: there are scores, and no judge.
    """
    if args.scores and judge is None:
        raise Refused(f"scores need a judge ({', '.join(args.scores)}); give one, or no scores")
    has_probabilities = judge is not None and judge.has_probabilities
    return [SCORERS[name](has_probabilities) for name in args.scores]
