"""A judge's scores: cases with their controls are put to it, and verdicts sum their scores up.

own        a latent's explanation, on its windows
shuffled   another latent's, never its own, on the same windows
anything   "any text", on the same windows, where a judge may answer differently for each
direction  a random direction that fires as often, by its own explanation, on its own windows

A `Verdict` has means beside controls, failures, and whether the judge can tell a latent's
explanation from another's.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..evaluation.statistics import Interval, around, derangement, interval, resampled_means
from .arguments import ScoreArguments
from .judges.calls import Judge, replies_to
from .prompts import explanation_question
from .scorers import Sample, Scorer
from .windows import Window, WindowText

OWN, SHUFFLED, ANYTHING, DIRECTION = "own", "shuffled", "anything", "direction"
ANY_TEXT = "any text"
MOST_FAILED = 0.05
"""A larger share of failed items leaves no headline."""
_ASK_NOTHING = ("template", "human", "file")  # explainers
_AT_ONCE = 32  # cases put to a judge together


Case = tuple[str, Sample, str | None]
"""OWN, SHUFFLED, ANYTHING or DIRECTION; windows; the explanation that is judged on them."""


class Result(NamedTuple):
    """The score of one case."""

    control: str
    latent: int
    metrics: dict[str, float]
    """of the items that were answered; NaN: too few"""
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


def prompts_hash(scorers: Sequence[Scorer], explainer: str = "lm") -> str:
    """Hash of the prompts for an explanation, unless the explainer asks for none, and for each
    score, on a made-up latent: it changes with their words."""
    words = [f" w{i}" for i in range(12)]
    windows = [Window(i, i + 12, i, 1.0, "quantile_1") for i in range(10)]
    texts = [
        WindowText(words[i:] + words[:i], 0, w, (1.0,) + (0.0,) * 11) for i, w in enumerate(windows)
    ]
    strata = [np.zeros(12, dtype=int)] * 10
    sample = Sample(0, 0, texts[:5], texts[5:], 0.5, strata, np.ones(3))
    asked = [scorer.requests(sample, "a name") for scorer in scorers]
    named = None if explainer in _ASK_NOTHING else explanation_question(texts)
    content = json.dumps([named, asked])
    return hashlib.sha256(content.encode()).hexdigest()


def cases_of(
    scorer: Scorer,
    samples: Sequence[Sample],
    directions: Sequence[Sample],
    texts: Mapping[int, str],
    seed: int,
) -> Iterator[Case]:
    """The cases of a score: each latent's together with its controls, then directions. Where there
    is no explanation, all items fail.

    Args:
        texts: explanations by latent; by a negative number those of directions, of which those
            without are left out.
    """
    if not scorer.needs_explanation:
        yield from ((OWN, sample, None) for sample in samples)
        yield from ((DIRECTION, sample, None) for sample in directions)
        return
    others = derangement(len(samples), seed).tolist()
    for sample, other in zip(samples, others, strict=True):
        yield OWN, sample, texts.get(sample.latent)
        another = texts.get(samples[other].latent) if samples[other] is not sample else None
        yield SHUFFLED, sample, another
        if scorer.asks_any_text:
            yield ANYTHING, sample, ANY_TEXT
    for sample in directions:
        if sample.latent in texts:
            yield DIRECTION, sample, texts[sample.latent]


def results_of(
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
        []
        if explanation is None and scorer.needs_explanation
        else scorer.requests(sample, explanation or "")
        for _, sample, explanation in cases
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
    """The score of a case from its replies."""
    control, sample, explanation = case
    if explanation is None and scorer.needs_explanation:
        values = np.full(len(scorer.truth(sample)), np.nan)
    else:
        values = scorer.values(sample, replies)
    n_failed = int(np.isnan(values).sum())
    metrics = scorer.score(sample, values)
    return Result(control, sample.latent, metrics, len(values), n_failed)


@dataclass
class Verdict:
    """What a score says of all latents."""

    name: str
    about: str
    metric: str
    """the headline's"""
    chance: float | None
    means: dict[str, dict[str, dict[str, Interval]]]
    """[weighting][metric][own, shuffled, anything, direction, difference]"""
    of_latents: dict[int, dict[str, Any]]
    """by latent, columns for the table; they are the same for all"""
    of_directions: dict[int, dict[str, Any]]
    """the same of random directions, by their negative numbers"""
    n_items: int
    n_failed: int
    n_unscored: int
    """latents without a value of the headline"""

    @property
    def failed_share(self) -> float:
        """Of the items of own and shuffled explanations, those without an answer."""
        return self.n_failed / self.n_items if self.n_items else 0.0

    @property
    def has_headline(self) -> bool:
        """Whether few enough items failed for a headline."""
        return self.failed_share <= MOST_FAILED

    @property
    def tells_apart(self) -> bool:
        """Whether the interval of the difference lies above 0 and that of the mean above chance,
        and few enough failed."""
        means = self.means["uniform"][self.metric]
        is_better = means["difference"].low > 0 and is_above(means[OWN].low, self.chance)
        return self.has_headline and is_better

    @property
    def control(self) -> str:
        """The control that the headline's difference is taken from."""
        return SHUFFLED if SHUFFLED in self.means["uniform"][self.metric] else DIRECTION

    def as_plain(self) -> dict[str, Any]:
        """For a record."""
        return {
            **self.means,
            "about": self.about,
            "headline": self.metric if self.has_headline else None,
            "difference_from": self.control,
            "tells_apart": self.tells_apart,
            "chance": self.chance,
            "n_latents": len(self.of_latents),
            "n_items": self.n_items,
            "n_failed": self.n_failed,
            "n_unscored": self.n_unscored,
        }


def is_above(low: float, chance: float | None) -> bool:
    """Whether an interval whose lower end is `low` lies above chance, for scores that have one.

    A control below chance is no evidence: there, a score at chance differs from it.
    """
    return chance is None or low > chance


def verdict_of(
    scorer: Scorer,
    results: Sequence[Result],
    densities: Mapping[int, float],
    *,
    n_resamples: int,
    seed: int,
) -> Verdict:
    """The verdict of a score from its results.

    Args:
        densities: by latent, and by a negative number of directions: shares of tokens.
    """
    by_control: dict[str, list[Result]] = {}
    for result in results:
        by_control.setdefault(result.control, []).append(result)
    own, directions = by_control[OWN], by_control.get(DIRECTION, [])
    columns = {
        metric: {c: [r.metrics[metric] for r in part] for c, part in by_control.items()}
        | {DIRECTION: [r.metrics[metric] for r in directions]}
        for metric in scorer.metrics
    }
    means = weighted_means(
        columns,
        [densities[r.latent] for r in own],
        [densities[r.latent] for r in directions],
        n_resamples=n_resamples,
        seed=seed,
    )
    name, metric = scorer.name, scorer.metrics[0]

    def row_of(result: Result) -> dict[str, Any]:
        row: dict[str, Any] = {f"{name}_{key}": v for key, v in result.metrics.items()}
        return row | {f"{name}_n_items": result.n_items, f"{name}_n_failed": result.n_failed}

    of_latents = {result.latent: row_of(result) for result in own}
    for control in (SHUFFLED, ANYTHING):
        for result in by_control.get(control, []):
            metrics = result.metrics.items()
            of_latents[result.latent] |= {f"{control}_{name}_{key}": v for key, v in metrics}
    return Verdict(
        name,
        scorer.about,
        metric,
        scorer.chance,
        means,
        of_latents,
        {r.latent: row_of(r) for r in directions},
        sum(r.n_items for r in (*own, *by_control.get(SHUFFLED, []))),
        sum(r.n_failed for r in (*own, *by_control.get(SHUFFLED, []))),
        sum(value != value for value in columns[metric][OWN]),
    )


def weighted_means(
    columns: Mapping[str, Mapping[str, Sequence[float]]],
    densities: Sequence[float],
    directions_densities: Sequence[float],
    *,
    n_resamples: int,
    seed: int,
) -> dict[str, dict[str, dict[str, Interval]]]:
    """Means over latents with 95 % intervals: [weighting][score][own, shuffled, difference, ...].

    The weightings are `uniform` and `by_frequency`. `difference` is own minus shuffled, latent by
    latent; without shuffled, own minus random directions, which are resampled on their own.

    Args:
        columns: by score: own and controls, one an entry of `densities`; `direction`, one an entry
            of `directions_densities`.
    """
    weightings = {
        "uniform": ([1.0] * len(densities), [1.0] * len(directions_densities)),
        "by_frequency": (densities, directions_densities),
    }
    how = {"n_resamples": n_resamples, "seed": seed}
    means: dict[str, dict[str, dict[str, Interval]]] = {}
    for weighting, (weights, of_directions) in weightings.items():
        means[weighting] = {}
        for score, of_score in columns.items():
            entry = means[weighting][score] = {
                key: interval(values, of_directions if key == DIRECTION else weights, **how)
                for key, values in of_score.items()
            }
            own = of_score[OWN]
            if SHUFFLED in of_score:
                pairs = zip(own, of_score[SHUFFLED], strict=True)
                entry["difference"] = interval([a - b for a, b in pairs], weights, **how)
            else:
                others = resampled_means(
                    of_score[DIRECTION], of_directions, n_resamples=n_resamples, seed=seed + 1
                )
                draws = resampled_means(own, weights, **how) - others
                value = entry[OWN].value - entry[DIRECTION].value
                entry["difference"] = around(value, draws)
    return means
