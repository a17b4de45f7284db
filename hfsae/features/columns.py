"""Which latents go with which labels of documents: a table of latents by columns of labels.

    read_labels_table -> label_table: sheet_of (one pass over activations) -> measure_ -> Picking

The use of each latent (its maximum or mean over a document, and the sign) and the best latent are
chosen on one half of the documents and measured on the other (`held_out`); the best raw dimension
of the activations is chosen and measured alike.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from ..activations import ActivationBatch
from ..machine.files import printable
from ..machine.label_words import association_cells, too_few_to_tell
from ..machine.markdown import escaped
from ..machine.plain import finite
from ..machine.refused import Refused
from ..models import SAE
from .association import correlation_p, false_discovery_rates
from .column_files import ByDocument, LabelColumns
from .held_out import ALL, Best, Halves, Measure, Picking, Scored, measure_
from .units import Sheet, sheet_of

logger = logging.getLogger(__name__)
_PASSES = 0.05
_SHOWN = 5  # latents of a measure
_HEAD = ("column", "measure", "latent", "held out", "raw dimension", "held out", "next latents")


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
        return finite({**own, "n_passing": self.n_passing})


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
        rows = [_HEAD, ("---",) * len(_HEAD), *map(_cells, self.associations)]
        return "\n".join(f"| {' | '.join(row)} |" for row in rows) + f"\n\n{self._notes()}\n"

    def _notes(self) -> str:
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
            f"{a.n_passing:,} of {self.d_sae:,} latents for {_cell(a.column)}"
            for a in self.associations
            if a.q is not None
        ]:
            sentences.append(
                f"\\*: q < {_PASSES} (Benjamini-Hochberg over all latents, all {self.by}s): "
                f"{', '.join(passing)}."
            )
        return " ".join(sentences)


def _cells(a: Association) -> list[str]:
    column, measure, latent, *rest = map(_cell, association_cells(a.to_dict()))
    passes = a.q is not None and a.q[:, a.latent.index].min() < _PASSES
    return [column, measure, latent + ("\\*" if passes else ""), *rest]


def _cell(text: str) -> str:
    return escaped(printable(text))


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
    sheet = sheet_of(sae, batches, labels, seed)
    read = labels.at(sheet.unit)
    halves = Halves.of(read.document, seed)
    columns = _scored(read, sheet, halves)
    measure_(columns, sheet)
    picking = Picking(sheet, halves, n_resamples, seed)
    return LabelTable(
        by="document" if labels.position is None else "row",
        uses=list(sheet.values),
        n_units=len(sheet.unit),
        n_documents=halves.n_documents,
        share=sheet.share,
        d_sae=sae.config.d_sae,
        seed=seed,
        associations=[
            _association(column, target, picking, sae.config.d_sae)
            for column in columns
            for target in range(len(column.targets))
        ],
    )


def _scored(labels: LabelColumns, sheet: Sheet, halves: Halves) -> list[Scored]:
    """The columns with enough labels among the units that were read; others are logged."""
    scored, reasons = [], []
    for column in labels.numbered():
        try:
            scored.append(Scored(column, sheet, halves))
        except Refused as why:
            reasons.append(f"column {column.name!r} is left out: {why}")
            logger.warning("%s", reasons[-1])
    if not scored:
        raise Refused(
            f"too few labels ({'; '.join(reasons)}); give labels to more documents, or hold out "
            "more of them (held_out_fraction)"
        )
    return scored


def _association(column: Scored, target: int, picking: Picking, d_sae: int) -> Association:
    about, values = column.targets[target], column.scores[ALL, :, target, :d_sae]
    n, _, n_held_out = (int(part.sum()) for part in column.parts)
    latent, *others = picking.best(column, target, slice(0, d_sae), _SHOWN)
    (raw,) = picking.best(column, target, slice(d_sae, None), 1)
    p = correlation_p(values, n) if about.measure == "spearman" else None
    return Association(
        column=column.name,
        group=about.group,
        measure=about.measure,
        n=n,
        n_held_out=n_held_out,
        n_in=about.n_in,
        latent=latent,
        raw=raw,
        others=others,
        values=(1 + values) / 2 if about.measure == "auc" else values,
        p=p,
        q=None if p is None else false_discovery_rates(p),
    )
