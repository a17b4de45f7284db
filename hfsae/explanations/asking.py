"""Cases with their controls, put to a judge and scored; explanations by a judge.

own        a latent's explanation, on its windows
shuffled   another latent's, never its own, on the same windows
anything   "any text", on the same windows, where a judge may answer differently for each
direction  a random direction that fires as often, by its own explanation, on its own windows
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from .arguments import ScoreArguments
from .explainers import Explainer, Material, Name, WindowText
from .judges import Answer, Judge, Question
from .prompts import explanation_in, explanation_question
from .scorers import Case, Sample, Scorer
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


class ScoringRequest(NamedTuple):
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
        WindowText(words[i:] + words[:i], 0, w, (1.0,) + (0.0,) * 11) for i, w in enumerate(windows)
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
    judge: Judge,
    on_progress: OnProgress | None = None,
) -> list[Result]:
    """The scores of cases, in their order.

    Raises:
        ValueError: the judge refuses the request.
    """
    requests = [
        scorer.requests(case)
        if case.explanation is not None or not scorer.needs_explanation
        else []
        for case in cases
    ]
    n_in_all, n_done, mean = sum(map(len, requests)), 0, float("nan")

    def note(n: int) -> None:
        if on_progress is not None:
            on_progress(scorer.name, n_done + n, n_in_all, mean)

    results: list[Result] = []
    for first in range(0, len(cases), _AT_ONCE):
        block = slice(first, first + _AT_ONCE)
        asked = [question for part in requests[block] for question in part]
        replies = iter(replies_to(judge, asked, scorer.parse, note) if asked else [])
        n_done += len(asked)
        for case, part in zip(cases[block], requests[block], strict=True):
            results.append(result_of(scorer, case, [next(replies) for _ in part]))
        own = [r.metrics[scorer.metrics[0]] for r in results if r.control == OWN]
        known = [value for value in own if not np.isnan(value)]
        mean = float(np.mean(known)) if known else float("nan")
        note(0)
    return results


def result_of(scorer: Scorer, case: Case, replies: Sequence[Any]) -> Result:
    """The score of a case from its replies, with bounds for the failed items."""
    sample = case.sample
    if case.explanation is None and scorer.needs_explanation:
        values = np.full(len(scorer.truth(sample)), np.nan)
    else:
        values = scorer.values(case, replies)
    low, high = (
        scorer.score(sample, scorer.filled(sample, values, right))[scorer.metrics[0]]
        for right in (False, True)
    )
    n_failed = int(np.isnan(values).sum())
    metrics = scorer.score(sample, values)
    return Result(case.control, sample.latent, metrics, low, high, len(values), n_failed)


def replies_to(
    judge: Judge,
    questions: Sequence[Question],
    parse: Callable[[Question, Answer], T | None],
    note: Callable[[int], object],
) -> list[T | None]:
    """The parsed answers; None where there was none. A question whose answer does not parse is
    asked once more, with another seed; a call that failed is not repeated."""

    def parsed(question: Question, answer: Answer) -> T | None:
        return None if answer.text is None else parse(question, answer)

    answers = judge.answer(questions, lambda n, _: note(n))
    replies = [parsed(*pair) for pair in zip(questions, answers, strict=True)]
    again = [i for i, r in enumerate(replies) if r is None and answers[i].text is not None]
    seconds = [questions[i]._replace(seed=questions[i].seed + 1) for i in again]
    if seconds:
        for i, answer in zip(again, judge.answer(seconds), strict=True):
            replies[i] = parsed(questions[i], answer)
    return replies
