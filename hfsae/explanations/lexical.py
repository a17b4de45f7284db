"""The score that needs no judge: how well its tokens predict a latent's activations.

A token's predicted activation is its mean activation in the
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

from ..evaluation.statistics import Interval, auc, average_precision, derangement, pearson
from .corpus import SHOWN, TESTED, CorpusActivations
from .verdicts import weighted_means
from .windows import Evidence

LEXICAL = ("pearson", "auprc", "auc", "auc_random")


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
        values = evidence.activations(len(self.kind))[tokens].astype(np.float64)
        kinds = self.kind[tokens]
        sums = np.bincount(kinds, weights=values, minlength=self.n_kinds)
        return sums / (np.bincount(kinds, minlength=self.n_kinds) + 1)

    def score(self, prediction: np.ndarray, evidence: Evidence) -> dict[str, float]:
        """How well token identities predict a latent, by name of the score."""
        predicted = prediction[self.kind]
        activations = evidence.activations(len(self.kind))[self.tested].astype(np.float64)
        windows = [*evidence.active, *evidence.inactive]
        largest = np.array([predicted[w.start : w.stop].max() for w in windows], dtype=float)
        is_active = np.arange(len(windows)) < len(evidence.active)
        is_easy = is_active | np.array([window.kind == "random" for window in windows])
        return {
            "pearson": pearson(predicted[self.tested], activations),
            "auprc": average_precision(predicted[self.tested], activations > 0),
            "auc": auc(largest, is_active),
            "auc_random": auc(largest[is_easy], is_active[is_easy]),
        }


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
    """The means of `weighted_means`, by score of LEXICAL, control and weighting."""
    columns: dict[str, dict[str, list[float]]] = {}
    for name in LEXICAL:
        columns[name] = {"own": [row[name] for row in scores]}
        for control in ("shuffled", "anything", "token_ceiling"):
            columns[name][control] = [row[f"{control}_{name}"] for row in scores]
        columns[name]["direction"] = [row[name] for row in of_directions]
    return weighted_means(
        columns, densities, directions_densities, n_resamples=n_resamples, seed=seed
    )
