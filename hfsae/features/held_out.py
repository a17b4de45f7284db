"""Variables that go with labels: chosen on one half of the documents, measured on the other.

The best of thousands is flattered on the documents that it was chosen on.
"""

import logging
import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from ..machine.label_words import too_few_to_tell
from ..machine.refused import Refused
from .association import (
    Ordered,
    Statistic,
    aucs,
    correlations,
    eta_squared,
    interval,
    mid_ranks,
    weighted_auc,
    weighted_correlation,
    weighted_eta_squared,
)
from .column_files import Column
from .draws import hashed
from .units import Sheet

logger = logging.getLogger(__name__)
Measure = Literal["spearman", "auc", "eta_squared"]
ALL, CHOOSING, HELD_OUT = range(3)
_LEAST_DOCUMENTS = 8
_LEAST_LABELS, _LEAST_IN_CLASS = 4, 2  # in each half; of a class, and of the others
_AT_ONCE = 2**22  # numbers of a block of variables


def refuse_few_documents(n: int, more: str = "") -> None:
    """Check that documents with labels can be halved, and log where they tell little.

    Args:
        more: how there would be more of them.

    Raises:
        ValueError: there are too few.
    """
    if n < _LEAST_DOCUMENTS:
        raise Refused(
            f"{n} documents with labels were read; one half chooses latents and the other "
            f"tests them, so give labels and activations of {_LEAST_DOCUMENTS} or more{more}"
        )
    if few := too_few_to_tell(n):
        logger.warning("%s%s", few, more)


class Halves(NamedTuple):
    """Documents in two halves, by their hashes."""

    cluster: Int[np.ndarray, " n"]
    """The running number of each unit's document."""
    is_choosing: Bool[np.ndarray, " n"]
    n_documents: int

    @classmethod
    def of(cls, document: Int[np.ndarray, " n"], seed: int) -> "Halves":
        """Halves of equal size; of an odd number the held-out one has a document more.

        Raises:
            ValueError: there are too few documents.
        """
        distinct, cluster = np.unique(document, return_inverse=True)
        refuse_few_documents(n := len(distinct))
        place = hashed(torch.from_numpy(distinct), seed).argsort().argsort().numpy()
        return cls(cluster, (place < n // 2)[cluster], n)


class Target(NamedTuple):
    """A measure of how variables go with a column of labels, or with one of its classes."""

    measure: Measure
    group: str | None
    n_in: int | None
    """Units in the class."""
    labels: np.ndarray
    """[n] what `statistic` takes: numbers, whether a unit is in the class, or classes' numbers."""
    statistic: Statistic


class Scored:
    """A column of labels, its measures, and the scores of all variables.

    scores: [part, use, target, variable]; the parts are all units, those that choose, and those
    held out. A score of 0 is chance: of an AUC it is twice the distance from 1/2.

    Raises:
        ValueError: too few units have a label, or none of the classes has enough.
    """

    def __init__(self, column: Column, sheet: Sheet, halves: Halves):
        known = ~np.isnan(column.values)
        self.name, self.values, self.classes = column.name, column.values, column.classes
        self.parts = [known, known & halves.is_choosing, known & ~halves.is_choosing]
        if (n := min(part.sum() for part in self.parts)) < _LEAST_LABELS:
            raise Refused(f"it has {n} labels on one half of the documents, under {_LEAST_LABELS}")
        self.tested = self._tested()
        self.targets = list(self._targets())
        variables = next(iter(sheet.values.values())).shape[1]
        self.scores = np.zeros((3, len(sheet.values), len(self.targets), variables))

    def _tested(self) -> list[int]:
        """The classes that have enough units in each half; of two classes the rarer."""
        if self.classes is None:
            return []
        n_classes = len(self.classes)
        counts = np.array(
            [np.bincount(self.values[p].astype(int), minlength=n_classes) for p in self.parts]
        )
        least = np.minimum(counts, counts.sum(1, keepdims=True) - counts).min(0)
        tested = np.flatnonzero(least >= _LEAST_IN_CLASS).tolist()
        if not tested:
            raise Refused(
                f"no class has {_LEAST_IN_CLASS} units on each half of the documents, and as many "
                "outside it"
            )
        return tested if n_classes > 2 else [int(counts[ALL].argmin())]

    def _targets(self) -> Iterator[Target]:
        if self.classes is None:
            yield Target("spearman", None, None, self.values, weighted_correlation)
            return
        for number in self.tested:
            is_in = self.values == number
            yield Target("auc", self.classes[number], int(is_in.sum()), is_in, weighted_auc)
        yield Target("eta_squared", None, None, self.values, weighted_eta_squared)

    def measured(
        self, ordered: Ordered, ranks: Float[np.ndarray, "m k"], among: Bool[np.ndarray, " n"]
    ) -> Float[np.ndarray, "targets m"]:
        """The scores of a block of variables among k units."""
        labels = self.values[among]
        if self.classes is None:
            return correlations(ranks, mid_ranks(labels))[None]
        is_in, is_tested = (labels[:, None] == each for each in (np.unique(labels), self.tested))
        eta = eta_squared(ordered.values[:, among].astype(float), is_in)
        return np.vstack([2 * aucs(ranks, is_tested) - 1, eta])


def measure_(columns: list[Scored], sheet: Sheet) -> None:
    """Fill in the scores of columns; memory is that of a block of variables."""
    alike = defaultdict(list)  # columns with labels on the same units share ranks
    for column in columns:
        alike[column.parts[ALL].tobytes()].append(column)
    for use, values in enumerate(sheet.values.values()):
        step = max(1, _AT_ONCE // len(values))
        for first in range(0, values.shape[1], step):
            block = slice(first, first + step)
            ordered = Ordered(np.ascontiguousarray(values[:, block].T))
            for group in alike.values():
                for part, among in enumerate(group[0].parts):
                    ranks = ordered.ranks(among)
                    for column in group:
                        scores = column.measured(ordered, ranks, among)
                        column.scores[part, use, :, block] = scores


@dataclass
class Best:
    """A latent or a raw dimension, chosen on one half of the documents."""

    index: int
    use: str
    """"max" or "mean" over the rows of a document; "value" where each unit is one row."""
    sign: int
    """-1: it is smaller where the number is larger, or in units of the class."""
    chosen: float
    """The measure on the half that it was chosen on."""
    value: float
    """The measure on the other half; AUC: of the latent times its sign."""
    low: float = math.nan
    high: float = math.nan
    """95 % interval of `value`, a bootstrap over documents; NaN for those after the best."""


class Picking(NamedTuple):
    """What the best variables follow from beside their scores."""

    sheet: Sheet
    halves: Halves
    n_resamples: int
    seed: int

    def best(self, column: Scored, target: int, among: slice, k: int) -> list[Best]:
        """The k best of some variables, as chosen, the first with an interval; their index counts
        from the slice's beginning."""
        choosing, held_out = column.scores[[CHOOSING, HELD_OUT], :, target, among]
        variables = np.arange(choosing.shape[1])
        uses = np.abs(choosing).argmax(0)
        chosen, tested = choosing[uses, variables], held_out[uses, variables]
        bests = []
        for index in np.argsort(-np.abs(chosen), kind="stable")[:k].tolist():
            sign = -1 if chosen[index] < 0 else 1
            scores = float(chosen[index]), float(tested[index])
            if column.targets[target].measure == "auc":
                scores = tuple((1 + sign * score) / 2 for score in scores)
            bests.append(Best(index, list(self.sheet.values)[uses[index]], sign, *scores))
        bests[0].low, bests[0].high = self._interval(column, target, among, bests[0])
        return bests

    def _interval(
        self, column: Scored, target: int, among: slice, best: Best
    ) -> tuple[float, float]:
        """95 % interval of the best's measure on the held-out half."""
        held, target_ = column.parts[HELD_OUT], column.targets[target]
        variable = self.sheet.values[best.use][held, (among.start or 0) + best.index].astype(float)
        return interval(
            target_.statistic,
            variable * best.sign if target_.measure == "auc" else variable,
            target_.labels[held],
            np.unique(self.halves.cluster[held], return_inverse=True)[1],
            n_resamples=self.n_resamples,
            seed=self.seed,
        )
