"""What the scores of cases say together: means beside controls, failures, and whether a judge can
tell a latent's explanation from another's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..evaluation.statistics import Interval
from .asking import ANYTHING, DIRECTION, OWN, SHUFFLED, Result
from .scorers import Scorer
from .scores import weighted_means

MOST_FAILED = 0.05
"""A larger share of failed items leaves no headline."""
_NAN = float("nan")


@dataclass
class Judged:
    """A score of all latents."""

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
    bounds: dict[str, tuple[float, float]]
    """of the headline's own mean, and of its difference: all failed items wrong, all right"""
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
            "bounds": self.bounds,
            "n_unscored": self.n_unscored,
        }


def is_above(low: float, chance: float | None) -> bool:
    """Whether an interval whose lower end is `low` lies above chance, for scores that have one.

    A control below chance is no evidence: there, a score at chance differs from it.
    """
    return chance is None or low > chance


def combined_report(
    scorer: Scorer,
    results: Sequence[Result],
    densities: Mapping[int, float],
    *,
    n_resamples: int,
    seed: int,
) -> Judged:
    """The results of a score, put together.

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
    metric = scorer.metrics[0]
    return Judged(
        scorer.name,
        scorer.about,
        metric,
        scorer.chance,
        means,
        _of_latents(scorer.name, by_control),
        {r.latent: _columns(scorer.name, r) for r in directions},
        sum(r.n_items for r in (*own, *by_control.get(SHUFFLED, []))),
        sum(r.n_failed for r in (*own, *by_control.get(SHUFFLED, []))),
        _bounds(own, by_control.get(SHUFFLED) or directions),
        sum(value != value for value in columns[metric][OWN]),
    )


def _bounds(own: Sequence[Result], others: Sequence[Result]) -> dict[str, tuple[float, float]]:
    low, high = _mean([r.low for r in own]), _mean([r.high for r in own])
    other_low, other_high = _mean([r.low for r in others]), _mean([r.high for r in others])
    return {"own": (low, high), "difference": (low - other_high, high - other_low)}


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if value == value]
    return sum(known) / len(known) if known else _NAN


def _of_latents(name: str, by_control: Mapping[str, Sequence[Result]]) -> dict[int, dict[str, Any]]:
    rows = {result.latent: _columns(name, result) for result in by_control[OWN]}
    for control in (SHUFFLED, ANYTHING):
        for result in by_control.get(control, []):
            metrics = result.metrics.items()
            rows[result.latent] |= {f"{control}_{name}_{metric}": v for metric, v in metrics}
    return rows


def _columns(name: str, result: Result) -> dict[str, Any]:
    columns: dict[str, Any] = {f"{name}_{metric}": v for metric, v in result.metrics.items()}
    return columns | {f"{name}_n_items": result.n_items, f"{name}_n_failed": result.n_failed}
