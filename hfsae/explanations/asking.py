"""Cases with their controls, put to a judge and scored; explanations by a judge.

own        a latent's explanation, on its windows
shuffled   another latent's, never its own, on the same windows
anything   "any text", on the same windows, where a judge may answer differently for each
direction  a random direction that fires as often, by its own explanation, on its own windows
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import numpy as np

from .arguments import ScoreArguments
from .explainers import Explainer, Material, Name, Spelt
from .judges import Answer, Judge, Question
from .prompts import explanation_in, explanation_question
from .scorers import Case, Sample, Scorer
from .scorers.base import nothing
from .scores import derangement
from .windows import Window

OWN, SHUFFLED, ANYTHING, DIRECTION = "own", "shuffled", "anything", "direction"
ANY_TEXT = "any text"
_AT_ONCE = 32  # cases put to a judge together
T = TypeVar("T")


class Result(NamedTuple):
    """The score of one case."""

    control: str
    latent: int
    metrics: dict[str, float]
    """of the items that were answered; NaN: too few"""
    low: float
    """the headline metric with all failed items wrong"""
    high: float
    """with all of them right"""
    n_items: int
    n_failed: int


OnProgress = Callable[[str, int, int, float], object]
"""Called with a score's name, the numbers of answers so far and in all, and the running mean."""


class Inquiry(NamedTuple):
    """The scores to compute, and the judge who answers."""

    args: ScoreArguments = ScoreArguments()
    judge: Judge | None = None
    """None: no score needs one"""
    on_progress: OnProgress | None = None


def prompts_hash(scorers: Sequence[Scorer]) -> str:
    """Hash of the prompts for an explanation and for each score, on a made-up latent: it changes
    with their words."""
    words = [f" w{i}" for i in range(12)]
    windows = [Window(i, i + 12, i, 1.0, "quantile_1") for i in range(10)]
    spelt = [
        Spelt(words[i:] + words[:i], 0, w, (1.0,) + (0.0,) * 11) for i, w in enumerate(windows)
    ]
    strata = [np.zeros(12, dtype=int)] * 10
    sample = Sample(0, 0, spelt[:5], spelt[5:], 0.5, strata, np.ones(3))
    asked = [scorer.requests(Case(sample, OWN, "a name")) for scorer in scorers]
    content = json.dumps([explanation_question(Material(0, spelt)), asked])
    return hashlib.sha256(content.encode()).hexdigest()


def lm_explainer(judge: Judge, progress: Callable[[int, int], object] | None = None) -> Explainer:
    """An explainer that asks a judge for one line; a latent without a usable answer is absent."""

    def explain(materials: Sequence[Material]) -> dict[int, Name]:
        questions = [explanation_question(material) for material in materials]
        answers = replies_to(
            judge,
            questions,
            lambda _, answer: explanation_in(answer.text or ""),
            lambda n: progress and progress(n, len(questions)),
        )
        pairs = zip(materials, answers, strict=True)
        return {material.latent: name for material, name in pairs if name}

    return explain


def cases_of(
    scorer: Scorer,
    samples: Sequence[Sample],
    directions: Sequence[Sample],
    texts: Mapping[int, str],
    seed: int,
) -> Iterator[Case]:
    """The cases of a score: each latent's together with its controls, then directions.

    Args:
        texts: explanations by latent; by a negative number those of directions, of which those
            without are left out.
    """
    if not scorer.needs_explanation:
        yield from (Case(sample, OWN, None) for sample in samples)
        yield from (Case(sample, DIRECTION, None) for sample in directions)
        return
    others = derangement(len(samples), seed).tolist()
    for sample, other in zip(samples, others, strict=True):
        yield Case(sample, OWN, texts.get(sample.latent))
        another = texts.get(samples[other].latent) if samples[other] is not sample else None
        yield Case(sample, SHUFFLED, another)
        if scorer.asks_any_text:
            yield Case(sample, ANYTHING, ANY_TEXT)
    for sample in directions:
        if sample.latent in texts:
            yield Case(sample, DIRECTION, texts[sample.latent])


def judged(
    scorer: Scorer,
    cases: Sequence[Case],
    judge: Judge | None,
    on_progress: OnProgress | None = None,
) -> list[Result]:
    """The scores of cases, in their order.

    Raises:
        ValueError: the judge refuses the request.
    """
    requests = [_requests(scorer, case) for case in cases]
    asking = _Asking(scorer, judge, sum(map(len, requests)), on_progress)
    results: list[Result] = []
    for first in range(0, len(cases), _AT_ONCE):
        block = slice(first, first + _AT_ONCE)
        replies = iter(asking.replies([one for part in requests[block] for one in part]))
        for case, part in zip(cases[block], requests[block], strict=True):
            results.append(result_of(scorer, case, [next(replies) for _ in part]))
        asking.note_mean(results)
    return results


def _requests(scorer: Scorer, case: Case) -> list[Any]:
    is_asked = case.explanation is not None or not scorer.needs_explanation
    return scorer.requests(case) if is_asked else []


def result_of(scorer: Scorer, case: Case, replies: Sequence[Any]) -> Result:
    """The score of a case from its replies, with bounds for the failed items."""
    sample = case.sample
    if case.explanation is None and scorer.needs_explanation:
        values = nothing(scorer, sample)
    else:
        values = scorer.values(case, replies)
    low, high = (
        scorer.score(sample, scorer.filled(sample, values, right))[scorer.metrics[0]]
        for right in (False, True)
    )
    n_failed = int(np.isnan(values).sum())
    metrics = scorer.score(sample, values)
    return Result(case.control, sample.latent, metrics, low, high, len(values), n_failed)


@dataclass
class _Asking:
    """Requests of a score put to a judge, with their progress."""

    scorer: Scorer
    judge: Judge | None
    n_in_all: int
    on_progress: OnProgress | None
    n_done: int = 0
    mean: float = float("nan")
    likelihoods: dict[tuple[str, str], float] = field(default_factory=dict)

    def replies(self, requests: Sequence[Any]) -> list[Any]:
        """Parsed answers, and log-likelihoods: each pair is asked for once."""
        if not requests or self.judge is None:
            return []
        questions = [request for request in requests if isinstance(request, Question)]
        pairs = [request for request in requests if not isinstance(request, Question)]
        self._ask_pairs(pairs)
        scorer = self.scorer
        parsed = replies_to(self.judge, questions, scorer.parse, self._note, scorer.asks_again)
        answers = iter(parsed)
        self.n_done += len(requests)
        self._note(0)
        return [
            next(answers) if isinstance(request, Question) else self.likelihoods[request]
            for request in requests
        ]

    def _ask_pairs(self, pairs: Sequence[tuple[str, str]]) -> None:
        assert self.judge is not None
        missing = list(dict.fromkeys(pair for pair in pairs if pair not in self.likelihoods))
        if missing:
            n = len(pairs) / len(missing)
            values = self.judge.log_likelihood(missing, lambda k, _: self._note(int(k * n)))
            self.likelihoods |= zip(missing, values, strict=True)

    def _note(self, n: int) -> None:
        if self.on_progress is not None:
            self.on_progress(self.scorer.name, self.n_done + n, self.n_in_all, self.mean)

    def note_mean(self, results: Sequence[Result]) -> None:
        """The running mean of the headline over latents."""
        own = [r.metrics[self.scorer.metrics[0]] for r in results if r.control == OWN]
        known = [value for value in own if not np.isnan(value)]
        self.mean = float(np.mean(known)) if known else float("nan")
        self._note(0)


def replies_to(
    judge: Judge,
    questions: Sequence[Question],
    parse: Callable[[Question, Answer], T | None],
    note: Callable[[int], object],
    asks_again: bool = True,
) -> list[T | None]:
    """The parsed answers; None where there was none. A question whose answer does not parse is
    asked once more, with another seed; a call that failed is not repeated."""
    answers = judge.answer(questions, lambda n, _: note(n))
    replies = [_parsed(parse, *pair) for pair in zip(questions, answers, strict=True)]
    again = [i for i, r in enumerate(replies) if r is None and answers[i].text is not None]
    seconds = [questions[i]._replace(seed=questions[i].seed + 1) for i in again]
    if seconds and asks_again:
        for i, answer in zip(again, judge.answer(seconds), strict=True):
            replies[i] = _parsed(parse, questions[i], answer)
    return replies


def _parsed(
    parse: Callable[[Question, Answer], T | None], question: Question, answer: Answer
) -> T | None:
    return None if answer.text is None else parse(question, answer)
