"""Scores of how well a latent's activations are predicted, with controls and intervals.

`lexical` needs no language model: a token's predicted activation is its mean activation in the
windows that explain the latent, shrunk by count, sum / (n + 1). It measures how much of a latent
its tokens' identities explain; it does not judge an explanation's words.

    pearson     over all tokens of the tested half
    auprc       average precision: whether the latent fires there
    auc         of the windows' largest prediction: active against inactive windows, half of which
                hold one of the latent's own peak tokens
    auc_random  the same, against random inactive windows alone

Beside each score stand the same of controls: `shuffled`, the windows of another latent, never its
own; `direction`, random unit directions at the same densities; `anything`, one prediction for
all tokens. `token_ceiling` is fitted on all tokens of the shown half.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from ..evaluation.statistics import (
    Interval,
    around,
    auc,
    average_precision,
    interval,
    pearson,
    resampled_means,
)
from .reading import SHOWN, TESTED, CorpusActivations
from .windows import Evidence, Window

LEXICAL = ("pearson", "auprc", "auc", "auc_random")


def decided(
    is_yes: np.ndarray, truth: np.ndarray, is_drawn: np.ndarray, share: float
) -> dict[str, float]:
    """balanced_accuracy of yes and no; precision and F1 where a `share` of all windows are active.

    There, yeses to active and to inactive windows are weighted as each kind's share of all windows
    demands (Horvitz-Thompson). Only the inactive windows of `is_drawn` stand for all inactive ones.
    NaN where a kind has no window; precision and F1 are 0 without a yes.
    """
    hits, alarms = _share(is_yes[truth]), _share(is_yes[~truth])
    drawn_alarms = _share(is_yes[~truth & is_drawn])
    true, false = share * hits, (1 - share) * drawn_alarms
    precision = true / (true + false) if true + false > 0 else true + false
    harmonic = precision + hits
    f1 = 2 * precision * hits / harmonic if harmonic > 0 else harmonic
    return {"balanced_accuracy": (hits + 1 - alarms) / 2, "precision": precision, "f1": f1}


def _share(flags: np.ndarray) -> float:
    return float(flags.mean()) if len(flags) else float("nan")


FIRING, NEAR, FAR = 0, 1, 2


def strata_of(fires: np.ndarray, near: np.ndarray) -> np.ndarray:
    """FIRING, NEAR (silent, and a firing token is near) or FAR, of each token."""
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


def derangement(n: int, seed: int) -> np.ndarray:
    """A random permutation of one cycle (Sattolo's), in which nothing stays in its place."""
    rng, items = np.random.default_rng(seed), np.arange(n)
    for last in range(n - 1, 0, -1):
        other = int(rng.integers(last))
        items[[last, other]] = items[[other, last]]
    return items


class Lexicon:
    """Predictions by token, and their scores on the tested half."""

    def __init__(self, reading: CorpusActivations) -> None:
        self.reading = reading
        kinds, self.kind = np.unique(reading.ids, return_inverse=True)
        self.n_kinds = len(kinds)
        self.shown = np.flatnonzero((reading.half == SHOWN) & reading.computed)
        self.tested = np.flatnonzero((reading.half == TESTED) & reading.computed)

    def of_windows(self, evidence: Evidence) -> np.ndarray:
        """Predicted activation of each kind of token, from the shown windows."""
        inside = np.zeros(len(self.kind), dtype=bool)
        for window in evidence.shown:
            inside[window.start : window.stop] = True
        return self._fitted(np.flatnonzero(inside & self.reading.computed), evidence)

    def of_half(self, evidence: Evidence) -> np.ndarray:
        """The same, from all tokens of the shown half."""
        return self._fitted(self.shown, evidence)

    def _fitted(self, tokens: np.ndarray, evidence: Evidence) -> np.ndarray:
        values, kinds = self._activations(evidence)[tokens], self.kind[tokens]
        sums = np.bincount(kinds, weights=values, minlength=self.n_kinds)
        return sums / (np.bincount(kinds, minlength=self.n_kinds) + 1)

    def _activations(self, evidence: Evidence) -> np.ndarray:
        activations = np.zeros(len(self.kind), dtype=np.float64)
        activations[evidence.trace.token] = evidence.trace.value
        return activations

    def score(self, prediction: np.ndarray, evidence: Evidence) -> dict[str, float]:
        """How well token identities predict a latent, by name of the score."""
        predicted = prediction[self.kind]
        activations = self._activations(evidence)[self.tested]
        windows = [*evidence.active, *evidence.inactive]
        largest = np.array([self._largest(predicted, window) for window in windows])
        is_active = np.arange(len(windows)) < len(evidence.active)
        is_easy = is_active | np.array([window.kind == "random" for window in windows])
        return {
            "pearson": pearson(predicted[self.tested], activations),
            "auprc": average_precision(predicted[self.tested], activations > 0),
            "auc": auc(largest, is_active),
            "auc_random": auc(largest[is_easy], is_active[is_easy]),
        }

    def _largest(self, predicted: np.ndarray, window: Window) -> float:
        return float(predicted[window.start : window.stop].max())


def lexical(
    reading: CorpusActivations,
    latents: Sequence[Evidence],
    directions: Sequence[Evidence],
    seed: int,
) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """Scores of each latent, with those of its controls; and of each random direction.

    Names are those of LEXICAL, with the control before them: "shuffled_auc", "anything_auc",
    "token_ceiling_auc". `shuffled_latent` is the other latent.
    """
    lexicon = Lexicon(reading)
    tables = [lexicon.of_windows(evidence) for evidence in latents]
    others = derangement(len(latents), seed).tolist()
    anything = np.ones(lexicon.n_kinds)
    scores = []
    for evidence, table, other in zip(latents, tables, others, strict=True):
        own = lexicon.score(table, evidence)
        is_another = latents[other] is not evidence  # but where there is one alone
        row = {**own, "shuffled_latent": latents[other].latent if is_another else None}
        controls = {"shuffled": tables[other], "anything": anything}
        controls["token_ceiling"] = lexicon.of_half(evidence)
        for control, prediction in controls.items():
            for name, value in lexicon.score(prediction, evidence).items():
                row[f"{control}_{name}"] = value
        if not is_another:
            row |= dict.fromkeys((f"shuffled_{name}" for name in LEXICAL), float("nan"))
        scores.append(row)
    return scores, [lexicon.score(lexicon.of_windows(d), d) for d in directions]


def aggregate(
    scores: Sequence[Mapping[str, float]],
    of_directions: Sequence[Mapping[str, float]],
    densities: Sequence[float],
    directions_densities: Sequence[float],
    *,
    n_resamples: int,
    seed: int,
) -> dict[str, dict[str, dict[str, Interval]]]:
    """Means over latents with 95 % intervals: [weighting][score][own, shuffled, difference, ...].

    The weightings are `uniform` and `by_frequency`; `difference` is own minus shuffled, latent by
    latent.
    """
    columns: dict[str, dict[str, list[float]]] = {}
    for name in LEXICAL:
        columns[name] = {"own": [row[name] for row in scores]}
        for control in ("shuffled", "anything", "token_ceiling"):
            columns[name][control] = [row[f"{control}_{name}"] for row in scores]
        columns[name]["direction"] = [row[name] for row in of_directions]
    return weighted_means(
        columns, densities, directions_densities, n_resamples=n_resamples, seed=seed
    )


def weighted_means(
    columns: Mapping[str, Mapping[str, Sequence[float]]],
    densities: Sequence[float],
    directions_densities: Sequence[float],
    *,
    n_resamples: int,
    seed: int,
) -> dict[str, dict[str, dict[str, Interval]]]:
    """Means with intervals by weighting, of columns by score.

    Args:
        columns: by score: own and controls, one an entry of `densities`; `direction`, one an entry
            of `directions_densities`.
    """
    weightings = {
        "uniform": ([1.0] * len(densities), [1.0] * len(directions_densities)),
        "by_frequency": (densities, directions_densities),
    }
    return {
        weighting: {
            name: _means(of_score, weights, of_directions, n_resamples, seed)
            for name, of_score in columns.items()
        }
        for weighting, (weights, of_directions) in weightings.items()
    }


def _means(
    columns: Mapping[str, Sequence[float]],
    weights: Sequence[float],
    weights_of_directions: Sequence[float],
    n_resamples: int,
    seed: int,
) -> dict[str, Interval]:
    """Means of own and its controls, and their difference: from shuffled, latent by latent; without
    it from random directions, which are resampled on their own."""
    how = {"n_resamples": n_resamples, "seed": seed}
    means = {
        key: interval(values, weights_of_directions if key == "direction" else weights, **how)
        for key, values in columns.items()
    }
    if "shuffled" in columns:
        pairs = zip(columns["own"], columns["shuffled"], strict=True)
        means["difference"] = interval([own - other for own, other in pairs], weights, **how)
    else:
        own = resampled_means(columns["own"], weights, **how)
        of_directions = resampled_means(
            columns["direction"], weights_of_directions, n_resamples=n_resamples, seed=seed + 1
        )
        value = means["own"].value - means["direction"].value
        means["difference"] = around(value, own - of_directions)
    return means
