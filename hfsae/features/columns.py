"""Which latents go with which labels of documents: a table of latents by columns of labels.

    read_labels_table -> label_table: read_units (one pass over activations) -> _association

The use of each latent (its maximum or mean over a document, and the sign) and the best latent are
chosen on one half of the documents and measured on the other, since the best of thousands is
flattered on the documents that it was chosen on; the best raw dimension of the activations is
chosen and measured alike.
"""

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int

from ..activations import ActivationBatch
from ..evaluation.statistics import (
    aucs,
    cluster_interval,
    correlation_p,
    correlations,
    eta_squared,
    false_discovery_rates,
    mid_ranks,
)
from ..io.errors import Refused
from ..io.files import json_safe, printable
from ..io.label_words import association_cells, too_few_to_tell
from ..io.markdown import escaped
from ..models import SAE
from .column_files import ByDocument, Column, LabelColumns
from .draws import hashed

logger = logging.getLogger(__name__)
Measure = Literal["spearman", "auc", "eta_squared"]
_PASSES = 0.05
_SHOWN = 5  # latents of a measure
_LEAST_DOCUMENTS = 8
_LEAST_LABELS, _LEAST_IN_CLASS = 4, 2  # in each half; of a class, and of the others
_AT_ONCE = 2**22  # numbers encoded, or ranked, at a time
_MOST = 2**26  # maxima of units that are held, and as many sums: 256 MiB each
_HEAD = ("column", "measure", "latent", "held out", "raw dimension", "held out", "next latents")


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


@dataclass
class Association:
    """How latents go with a column of labels, or with one of its classes."""

    column: str
    group: str | None
    """The class that is compared with the others; None: the measure is of the whole column."""
    measure: Measure
    """Spearman's correlation with numbers; AUC: the chance that a latent is larger in a unit of the
    class than in another; eta squared: share of a latent's variance that lies between classes."""
    n: int
    """Units (documents, or rows of them) with a label."""
    n_held_out: int
    n_in: int | None
    """Units in the class."""
    latent: Best
    raw: Best
    """The best dimension of the activations that the SAE reads."""
    others: list[Best]
    """The next latents, as chosen."""
    values: Float[np.ndarray, "uses d_sae"] = field(repr=False)
    """The measure of each latent on all units, whatever its sign."""
    p: Float[np.ndarray, "uses d_sae"] | None = field(repr=False)
    """Two-sided p-values of Spearman's correlations, as if units were independent."""
    q: Float[np.ndarray, "uses d_sae"] | None = field(repr=False)
    """Rates of false discoveries over all latents and uses (Benjamini and Hochberg)."""

    @property
    def n_passing(self) -> int | None:
        """Latents with q < 0.05; None for measures without p-values."""
        return None if self.q is None else int((self.q.min(0) < _PASSES).sum())

    def to_dict(self) -> dict[str, Any]:
        """A dict for JSON, without the numbers of each latent."""
        own = {k: v for k, v in asdict(self).items() if k not in ("values", "p", "q")}
        return json_safe({**own, "n_passing": self.n_passing})


@dataclass
class LabelTable:
    """The result of `label_table`."""

    by: Literal["document", "row"]
    """What a label is of, a unit."""
    uses: list[str]
    """The first axis of `Association.values`."""
    n_units: int
    """Units that have a label and were read."""
    n_documents: int
    share: float
    """Of the units that could be used; below 1 if there were more than memory should hold."""
    d_sae: int
    seed: int
    associations: list[Association]

    def to_dict(self) -> dict[str, Any]:
        """A dict for JSON, without the numbers of each latent."""
        return {**self.__dict__, "associations": [a.to_dict() for a in self.associations]}

    def table(self) -> str:
        """Markdown: of each column and measure the best latents, beside the best raw dimension."""

        def cell(text: str) -> str:
            return escaped(printable(text))

        rows: list[Sequence[str]] = [_HEAD, ("---",) * len(_HEAD)]
        for a in self.associations:
            column, measure, latent, *rest = map(cell, association_cells(a.to_dict()))
            passes = a.q is not None and a.q[:, a.latent.index].min() < _PASSES
            rows.append([column, measure, latent + ("\\*" if passes else ""), *rest])
        of = f" of {self.n_documents:,} documents" if self.by == "row" else ""
        share = f" (a random {self.share:.1%} of them)" if self.share < 1 else ""
        sentences = [
            f"Latents, their use and sign are chosen on one half of {self.n_units:,} {self.by}s{of}"
            f"{share} and measured on the other, with 95 % intervals (bootstrap over documents); "
            "raw dimensions alike. Low: smaller in the class."
        ]
        if few := too_few_to_tell(self.n_documents):
            sentences.insert(0, f"{few}.")
        if passing := [
            f"{a.n_passing:,} of {self.d_sae:,} latents for {cell(a.column)}"
            for a in self.associations
            if a.q is not None
        ]:
            sentences.append(
                f"\\*: q < {_PASSES} (Benjamini-Hochberg over all latents, all {self.by}s): "
                f"{', '.join(passing)}."
            )
        lines = "\n".join(f"| {' | '.join(row)} |" for row in rows)
        return f"{lines}\n\n{' '.join(sentences)}\n"


def label_table(
    sae: SAE,
    batches: Iterable[ActivationBatch],
    labels: LabelColumns | Mapping[str, ByDocument],
    *,
    seed: int = 0,
    n_resamples: int = 1000,
) -> LabelTable:
    """How the latents of an SAE, and raw dimensions, go with labels of documents or of rows.

        labels = read_labels_table("labels.csv", documents)
        print(label_table(sae, source.batches("test"), labels).table())

    Texts, booleans and whole numbers with at most 20 values are classes; of two classes the rarer
    is compared with the other. Units without a label are left out. Memory holds 19,000 units of
    3,072 latents and 384 dimensions; of more, a random part is used.

    Args:
        batches: of a source, as `source.batches("test")`; the SAE was not trained on them.
        labels: what `read_labels_table` returns, or columns by name: a label for each document in
            the order of their numbers from 0, or by number.
        seed: of the halves, and of the resampling.
        n_resamples: resamples of the documents behind each interval.

    Raises:
        ValueError: no column can be used, or too few documents with labels are read.
    """
    labels = labels if isinstance(labels, LabelColumns) else LabelColumns.of(labels)
    labels = labels.comparable()
    units = read_units(sae, batches, labels, seed)
    read = labels.at(units.place)
    distinct, document = np.unique(read.document, return_inverse=True)
    refuse_few_documents(n := len(distinct))
    # Halves of equal size, by hashes; of an odd number the held-out one has a document more.
    order = hashed(torch.from_numpy(distinct), seed).argsort().argsort().numpy()
    study = _Study(units, document, (order < n // 2)[document], sae.config.d_sae, n_resamples, seed)
    associations, reasons = [], []
    for column in read.numbered():
        try:
            associations += study.associations(column)
        except Refused as why:
            reasons.append(f"column {column.name!r} is left out: {why}")
            logger.warning("%s", reasons[-1])
    if not associations:
        raise Refused(
            f"too few labels ({'; '.join(reasons)}); give labels to more documents, or hold out "
            "more of them (held_out_fraction)"
        )
    return LabelTable(
        by="document" if labels.position is None else "row",
        uses=list(units.values),
        n_units=len(units.place),
        n_documents=n,
        share=units.share,
        d_sae=sae.config.d_sae,
        seed=seed,
        associations=associations,
    )


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


class Units(NamedTuple):
    """Variables (latents, then raw dimensions) in the units that have labels and were read."""

    place: Int[np.ndarray, " n"]
    """Each unit's place in the labels."""
    values: dict[str, Float[np.ndarray, "n variables"]]
    """"max" and "mean" over the rows of a unit, or "value" where each unit is one row."""
    share: float
    """Of the units that were read: below 1 if there were more than memory should hold."""


@torch.no_grad()
def read_units(
    sae: SAE, batches: Iterable[ActivationBatch], labels: LabelColumns, seed: int
) -> Units:
    """Maxima and means over labelled documents, or rows of them, in one pass over activations; of
    more units than fit, those with the smallest hashes.

    Raises:
        ValueError: labels are those of rows, and the activations come without positions.
    """
    n_variables = sae.config.d_sae + sae.config.d_in
    span = 1 if labels.position is None else int(labels.position.max(initial=0)) + 1
    own = labels.document * span + (0 if labels.position is None else labels.position)
    by_key = own.argsort()
    ordered = own[by_key]
    hashes, limit = hashed(torch.from_numpy(own), seed).numpy(), 2**63 - 1
    most = max(1, _MOST // n_variables)
    size = (min(most, len(own)), n_variables)
    largest, total = (np.empty(size, dtype=np.float32) for _ in range(2))
    count = np.empty(size[0], dtype=np.int64)
    place = np.empty(0, dtype=np.int64)  # of the units that have a slot, by slot
    slot = np.full(len(own), -1)  # of each labelled unit
    for batch in batches:
        keys = batch.document.cpu().numpy() * span
        is_labelled = np.ones(len(keys), dtype=bool)
        if labels.position is not None:
            if batch.position is None:
                raise Refused(
                    "labels are those of rows, but the activations come without positions; give "
                    "labels to documents, or ActivationBatch(activations, document, position)"
                )
            position = batch.position.cpu().numpy()
            is_labelled = (position >= 0) & (position < span)
            keys = keys + position
        at = np.searchsorted(ordered, keys).clip(max=len(ordered) - 1)
        unit = np.where(is_labelled & (ordered[at] == keys), by_key[at], -1)
        while True:  # until the units of the batch have a slot each
            is_used = (unit >= 0) & (hashes[unit] <= limit)
            fresh = np.unique(unit[is_used])
            fresh = fresh[slot[fresh] < 0]
            n = len(place)
            if n + len(fresh) <= most:
                break
            limit //= 2
            stay = hashes[place] <= limit
            for kept in (largest, total, count):
                kept[: stay.sum()] = kept[:n][stay]
            slot[place] = -1
            place = place[stay]
            slot[place] = np.arange(len(place))
        slots = slice(n, n + len(fresh))
        slot[fresh] = np.arange(n, n + len(fresh))
        place = np.concatenate([place, fresh])
        largest[slots], total[slots], count[slots] = -np.inf, 0, 0
        x = sae.config.reads.joined(batch.activations)
        for rows in torch.from_numpy(is_used.nonzero()[0]).split(
            max(1, _AT_ONCE // sae.config.d_sae)
        ):
            part = x[rows.to(x.device)]
            latents = sae.encode(part.to(sae.W_dec))
            values = torch.cat([latents.float().cpu(), part.float().cpu()], dim=1).numpy()
            slots_of = slot[unit[rows.numpy()]]
            order = np.argsort(slots_of, kind="stable")
            of, starts, counts = np.unique(slots_of[order], return_index=True, return_counts=True)
            largest[of] = np.maximum(largest[of], np.maximum.reduceat(values[order], starts))
            total[of] += np.add.reduceat(values[order], starts)
            count[of] += counts
    share = (limit + 1) / 2**63
    if share < 1:
        logger.warning(
            "of the labelled units a random share of %.1f %% is used: %s, which memory holds",
            100 * share,
            f"{len(place):,}",
        )
    order = np.argsort(place)
    largest, count = largest[order], count[order]
    if (count == 1).all():
        return Units(place[order], {"value": largest}, share)
    mean = total[order] / count[:, None].astype(np.float32)
    return Units(place[order], {"max": largest, "mean": mean}, share)


class _Study(NamedTuple):
    """What associations follow from beside the labels."""

    units: Units
    document: Int[np.ndarray, " n"]
    is_choosing: np.ndarray
    """[n] whether the unit's document is on the half that chooses."""
    d_sae: int
    n_resamples: int
    seed: int

    def associations(self, column: Column) -> Iterator[Association]:
        """Those of a column: with its numbers, or with each class and with all of them.

        Raises:
            ValueError: too few units have a label, or none of the classes has enough.
        """
        labels, classes = column.values, column.classes
        known = ~np.isnan(labels)
        parts = [known, known & self.is_choosing, known & ~self.is_choosing]
        if (n := min(int(part.sum()) for part in parts)) < _LEAST_LABELS:
            raise Refused(f"it has {n} labels on one half of the documents, under {_LEAST_LABELS}")
        tested: list[int] = []
        if classes is not None:
            counts = np.array(
                [np.bincount(labels[p].astype(int), minlength=len(classes)) for p in parts]
            )
            least = np.minimum(counts, counts.sum(1, keepdims=True) - counts).min(0)
            tested = np.flatnonzero(least >= _LEAST_IN_CLASS).tolist()
            if not tested:
                raise Refused(
                    f"no class has {_LEAST_IN_CLASS} units on each half of the documents, and as "
                    "many outside it"
                )
            if len(classes) == 2:  # the rarer one
                tested = [int(counts[0].argmin())]
        targets = [*tested, None]  # None: the whole column
        scores = np.stack([self._scores(labels, part, classes, tested) for part in parts])
        for target, number in enumerate(targets):
            measure: Measure = "auc" if number is not None else "eta_squared"
            measure = "spearman" if classes is None else measure
            of_target = labels if number is None else labels == number
            on_all, choosing, held_out = scores[:, :, target]
            own, raw = slice(0, self.d_sae), slice(self.d_sae, None)
            on_all = on_all[:, own]
            p = correlation_p(on_all, int(known.sum())) if measure == "spearman" else None
            latent, *others = self._best(
                measure, of_target, parts[2], choosing, held_out, own, _SHOWN
            )
            (best_raw,) = self._best(measure, of_target, parts[2], choosing, held_out, raw, 1)
            yield Association(
                column=column.name,
                group=None if number is None or classes is None else classes[number],
                measure=measure,
                n=int(known.sum()),
                n_held_out=int(parts[2].sum()),
                n_in=None if number is None else int(of_target.sum()),
                latent=latent,
                raw=best_raw,
                others=others,
                values=(1 + on_all) / 2 if measure == "auc" else on_all,
                p=p,
                q=None if p is None else false_discovery_rates(p),
            )

    def _scores(
        self, labels: np.ndarray, among: np.ndarray, classes: object, tested: Sequence[int]
    ) -> Float[np.ndarray, "uses targets variables"]:
        """The scores of all variables among some units; 0 is chance: of an AUC it is twice the
        distance from 1/2. Memory is that of a block of variables."""
        labels, of_uses = labels[among], []
        for values in self.units.values.values():
            blocks = []
            step = max(1, _AT_ONCE // len(values))
            for first in range(0, values.shape[1], step):
                block = values[among, first : first + step].T
                ranks = mid_ranks(block)
                if classes is None:
                    blocks.append(correlations(ranks, mid_ranks(labels))[None])
                else:
                    is_in, is_tested = (labels[:, None] == e for e in (np.unique(labels), tested))
                    eta = eta_squared(block.astype(float), is_in)
                    blocks.append(np.vstack([2 * aucs(ranks, is_tested) - 1, eta]))
            of_uses.append(np.concatenate(blocks, axis=1))
        return np.stack(of_uses)

    def _best(
        self,
        measure: Measure,
        labels: np.ndarray,
        is_held: np.ndarray,
        choosing: np.ndarray,
        held_out: np.ndarray,
        among: slice,
        k: int,
    ) -> list[Best]:
        """The k best of some variables, as chosen, the first with an interval; their index counts
        from the slice's beginning."""
        choosing, held_out = choosing[:, among], held_out[:, among]
        variables = np.arange(choosing.shape[1])
        uses = np.abs(choosing).argmax(0)
        chosen, tested = choosing[uses, variables], held_out[uses, variables]
        bests = []
        for index in np.argsort(-np.abs(chosen), kind="stable")[:k].tolist():
            sign = -1 if chosen[index] < 0 else 1
            scores = float(chosen[index]), float(tested[index])
            if measure == "auc":
                scores = tuple((1 + sign * score) / 2 for score in scores)
            bests.append(Best(index, list(self.units.values)[uses[index]], sign, *scores))
        best = bests[0]
        variable = self.units.values[best.use][is_held, (among.start or 0) + best.index]
        variable = variable.astype(float) * (best.sign if measure == "auc" else 1)
        labels = labels[is_held]

        def statistic(drawn: np.ndarray) -> float:
            x, y = variable[drawn][None], labels[drawn]
            if measure == "spearman":
                return float(correlations(mid_ranks(x), mid_ranks(y))[0])
            if measure == "auc":
                return float(aucs(mid_ranks(x), y[:, None])[0, 0])
            return float(eta_squared(x, y[:, None] == np.unique(y))[0])

        best.low, best.high = cluster_interval(
            statistic,
            np.unique(self.document[is_held], return_inverse=True)[1],
            n_resamples=self.n_resamples,
            seed=self.seed,
        )
        return bests
