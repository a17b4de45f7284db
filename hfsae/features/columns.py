"""Which latents go with which labels of documents: a table of latents by columns of labels.

    read_labels_table -> label_table: read_units (one pass over activations) -> _Study.associations

Labels here are known facts about inputs, such as a class or an age, a column of them by document,
or by row of a document, from csv, parquet or Python; `labels.py` has the names that people give to
latents.

The use of each latent (its maximum or mean over a document, and the sign) and the best latent are
chosen on one half of the documents and measured on the other, since the best of thousands is
flattered on the documents that it was chosen on; the best raw dimension of the activations is
chosen and measured alike.
"""

import csv
import logging
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Int, Int64

from ..activations import ActivationBatch
from ..evaluation.statistics import (
    aucs,
    cluster_interval,
    correlation_p,
    correlations,
    eta_squared,
    mid_ranks,
)
from ..io.errors import Damaged, Refused, closest
from ..io.files import damaged, json_safe, printable, replacing
from ..io.labels import association_cells, too_few_to_tell
from ..io.markdown import escaped
from ..models import SAE
from .summary import hashed

if TYPE_CHECKING:
    import pyarrow

logger = logging.getLogger(__name__)
IDS = "document"
"""The name of a column of document ids."""
_MOST_WHOLE, _MOST_TEXTS = 20, 100  # classes in a column of whole numbers, and of texts
ByDocument: TypeAlias = Sequence[object] | Mapping[int, object] | np.ndarray
Measure = Literal["spearman", "auc", "eta_squared"]
_PASSES = 0.05
_SHOWN = 5  # latents of a measure
_LEAST_DOCUMENTS = 8
_LEAST_LABELS, _LEAST_IN_CLASS = 4, 2  # in each half; of a class, and of the others
_AT_ONCE = 2**22  # numbers encoded, or ranked, at a time
_MOST = 2**26  # maxima of units that are held, and as many sums: 256 MiB each
_HEAD = ("column", "measure", "latent", "held out", "raw dimension", "held out", "next latents")


def numbers_of(labels: Sequence[object]) -> tuple[Float[np.ndarray, " n"], list[str] | None]:
    """Labels as numbers, NaN where there is none; and the sorted names of classes, whose places
    these numbers are then. Texts, booleans, and whole numbers with at most 20 values are classes.

    Raises:
        ValueError: there are less than two different values, too many texts, or values that are
            neither texts nor numbers.
    """
    is_missing = (x is None or x == "" or x != x for x in labels)  # NaN is unlike itself
    known = ~np.fromiter(map(bool, is_missing), bool, len(labels))
    given = [label for label, is_known in zip(labels, known, strict=True) if is_known]
    are_numbers = all(isinstance(x, Real) and not isinstance(x, bool) for x in given)
    numbers = np.array(given, dtype=float) if given and are_numbers else None
    kinds = (str, bool | np.bool_)
    if numbers is None and not any(all(isinstance(x, kind) for x in given) for kind in kinds):
        names = sorted({type(label).__name__ for label in given})
        raise Refused(f"it holds values of type {' and '.join(names)}")
    keys = np.array([str(label) for label in given]) if numbers is None else numbers
    distinct, which = np.unique(keys, return_inverse=True)
    if len(distinct) < 2:
        raise Refused(f"its only value is {given[0]!r}" if given else "it has no value")
    is_whole = numbers is not None and bool((distinct == np.floor(distinct)).all())
    values = np.full(len(labels), np.nan)
    if numbers is not None and not (is_whole and len(distinct) <= _MOST_WHOLE):
        values[known] = numbers
        return values, None
    if len(distinct) > _MOST_TEXTS:
        raise Refused(f"it has {len(distinct):,} different texts, over {_MOST_TEXTS}")
    values[known] = which
    return values, [f"{d:.0f}" if is_whole else str(d) for d in distinct]


@dataclass(frozen=True)
class LabelColumns:
    """Columns of labels, each with a value for each document, or for each row of one."""

    columns: Mapping[str, Sequence[object]]
    """Values by name; None, NaN or "" where there is none."""
    document: Int64[np.ndarray, " n"]
    """The number of the document whose labels these are."""
    position: Int64[np.ndarray, " n"] | None = None
    """The row's place in it; None: labels are those of whole documents."""

    @classmethod
    def of(cls, labels: Mapping[str, ByDocument]) -> "LabelColumns":
        """Of a value for each document, in the order of their numbers from 0, or by number.

        Raises:
            ValueError: sequences differ in length.
        """
        lengths = {name: len(c) for name, c in labels.items() if not isinstance(c, Mapping)}
        if len(set(lengths.values())) > 1:
            listed = ", ".join(f"{name} {n:,}" for name, n in lengths.items())
            raise Refused(f"columns of labels differ in length ({listed}); give one to a document")
        by_number = {
            name: c if isinstance(c, Mapping) else dict(enumerate(np.asarray(c).tolist()))
            for name, c in labels.items()
        }
        numbers = sorted({number for column in by_number.values() for number in column})
        columns = {name: [c.get(i) for i in numbers] for name, c in by_number.items()}
        return cls(columns, np.array(numbers, dtype=np.int64))

    def numbered(self) -> dict[str, tuple[np.ndarray, list[str] | None]]:
        """The columns that can be compared with latents, as numbers and names of classes
        (`numbers_of`); others are logged, with the reason.

        Raises:
            ValueError: there is none.
        """
        numbered, reasons = {}, []
        for name, labels in self.columns.items():
            try:
                numbered[name] = numbers_of(labels)
            except Refused as why:
                reasons.append(f"column {name!r} is left out: {why}")
                logger.warning("%s", reasons[-1])
        if not numbered:
            why = "; ".join(reasons) or "there is none"
            raise Refused(f"no column of labels can be used ({why}); give numbers or classes")
        return numbered

    def comparable(self) -> "LabelColumns":
        """The same without columns that cannot be compared with latents; see `numbered`."""
        return replace(self, columns={name: self.columns[name] for name in self.numbered()})

    def at(self, places: Int64[np.ndarray, " k"]) -> "LabelColumns":
        """Some of the labels."""
        columns = {name: [labels[i] for i in places] for name, labels in self.columns.items()}
        position = None if self.position is None else self.position[places]
        return LabelColumns(columns, self.document[places], position)


def read_labels_table(
    path: str | Path,
    documents: Sequence[int] | Sequence[str] | np.ndarray,
    ids: Sequence[object] | None = None,
) -> LabelColumns:
    """The labels in a csv or parquet file.

    A column named "document" holds ids of documents; without it the table has a row for each
    document, or one for each row of the documents, in their order. A column that holds their ids
    under another name, or spelt otherwise, is refused: 007, 7.0 and doc7 are spellings of 7.

    Args:
        documents: each row's document, in order; or each document once. Its number, or a name;
            names are numbered in the order of their first rows.
        ids: of the documents by number, such as `FileSource.documents`; None: they are the numbers,
            or the names.

    Raises:
        ValueError: the file is damaged or of another kind, has another length, an unknown document,
            one twice, ids in another column, or no column that can be used.
    """
    path, rows = Path(path), np.asarray(documents)
    if rows.dtype.kind in "US":
        names, first, which = np.unique(rows, return_index=True, return_inverse=True)
        order = first.argsort()
        ids, rows = names[order].tolist(), order.argsort()[which]
    number = rows.astype(np.int64)
    numbers, first = np.unique(number, return_index=True)
    by_id = {str(n if ids is None else ids[n]): n for n in numbers.tolist()}
    table = _table_of(path, ids_are_texts=ids is not None)
    columns = {name: table[name].to_pylist() for name in table.column_names if name != IDS}
    if not columns:
        raise Refused(f"{path} has no column of labels; give a column to each label")
    if IDS in table.column_names:
        rows_of: dict[str, int] = {}
        for row, name in enumerate(map(str, table[IDS].to_pylist()), 1):
            if name not in by_id:
                raise Refused(
                    f"{path}, row {row}: there is no document {name!r} among the "
                    f"{len(by_id):,} of the activations{closest(name, list(by_id))}"
                )
            if name in rows_of:
                raise Refused(
                    f"{path}, row {row}: document {name!r} is in row {rows_of[name]} already; give "
                    "each document one row"
                )
            rows_of[name] = row
        document = np.array([by_id[name] for name in rows_of], dtype=np.int64)
        return LabelColumns(columns, document).comparable()
    document, position = number[np.sort(first)], None
    if len(table) == len(number) > len(document):
        document, order = number, np.argsort(number, kind="stable")
        starts = np.flatnonzero(np.diff(number[order], prepend=-1))
        position = np.empty(len(table), dtype=np.int64)
        sizes = np.diff(starts, append=len(table))
        position[order] = np.arange(len(table)) - np.repeat(starts, sizes)
    elif len(table) != len(document):
        n_rows = f" or their {len(number):,} rows" if len(number) > len(document) else ""
        raise Refused(
            f"{path} has {len(table):,} rows; give one to each of the {len(document):,} documents"
            f"{n_rows}, or a column {IDS!r} with their ids"
        )
    names = {n: name for name, n in by_id.items()}
    in_order = [names[n] for n in document.tolist()]
    columns = {k: v for k, v in columns.items() if not _are_ids(path, k, v, in_order)}
    logger.info("the rows of %s were matched in order: it has no column %r", path, IDS)
    return LabelColumns(columns, document, position).comparable()


def write_labels_table(
    path: Path, documents: Sequence[int], columns: Mapping[str, Sequence[object]]
) -> None:
    """Write a csv file that `read_labels_table` reads; None is a document without a label."""
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(
            [(IDS, *columns), *zip(documents, *columns.values(), strict=True)]
        )


def _are_ids(path: Path, name: str, values: list[Any], in_order: list[str]) -> bool:
    """Whether a column holds the ids of the documents, perhaps in another spelling, in the order in
    which its rows are matched.

    Args:
        in_order: the id of each of the table's rows, if they are matched in order.

    Raises:
        ValueError: it holds most of them, in another order.
    """
    ours, theirs = map(_plain_id, in_order), map(_plain_id, values)
    ours, theirs = [*ours], [*theirs]
    n, n_common = len({*theirs}), len({*theirs} & {*ours})
    are_distinct = n == len(ours) or n > _MOST_WHOLE  # or else they may be classes of rows
    if n == 1 or None in theirs or n != len({*ours}) or n_common <= n / 2 or not are_distinct:
        return False
    if theirs == ours:
        logger.info("column %r is left out: it holds the ids of the documents, in order", name)
        return True
    row = next(i for i, pair in enumerate(zip(theirs, ours, strict=True)) if len({*pair}) > 1)
    raise Refused(
        f"column {name!r} of {path} holds the ids of the documents in another order than the "
        f"activations have them (row {row + 1} is {values[row]!r}, and the document there "
        f"{in_order[row]!r}); call it {IDS!r}, spelt as the activations spell them, so that rows "
        "are matched by it"
    )


def _plain_id(value: object) -> str | None:
    """What spellings of an id have in common: its last whole number, or else its letters; None of
    what is none, such as 0.12."""
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else None
    text = str(value).strip().casefold()
    number = re.search(r"(\d+)(?:\.0+)?$", text)
    return str(int(number[1])) if number else text


def _table_of(path: Path, *, ids_are_texts: bool) -> "pyarrow.Table":
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet as pq

    if (kind := path.suffix.lower()) not in (".csv", ".parquet"):
        raise Refused(f"{path} is not a table of labels; give a .csv or .parquet file")
    if not path.is_file():
        raise Refused(f"there is no file {path}; give a table of labels, .csv or .parquet")
    types = {IDS: pa.string()} if ids_are_texts else {}
    options = pyarrow.csv.ConvertOptions(column_types=types)
    try:
        if kind == ".csv":
            table = pyarrow.csv.read_csv(path, convert_options=options)
        else:
            table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise Damaged(damaged(path, error)) from error
    names = table.column_names
    if repeated := {name for name in names if names.count(name) > 1}:
        raise Refused(f"{path} has two columns {min(repeated)!r}; give each a name of its own")
    return table


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
    place, values, share = read_units(sae, batches, labels, seed)
    read = labels.at(place)
    distinct, document = np.unique(read.document, return_inverse=True)
    refuse_few_documents(n := len(distinct))
    # Halves of equal size, by hashes; of an odd number the held-out one has a document more.
    order = hashed(torch.from_numpy(distinct), seed).argsort().argsort().numpy()
    is_choosing, d_sae = (order < n // 2)[document], sae.config.d_sae

    def interval(statistic: Callable, x: np.ndarray, y: np.ndarray, among: np.ndarray) -> Any:
        x, y = x[among], y[among]
        groups = np.unique(document[among], return_inverse=True)[1]
        drawn = {"n_resamples": n_resamples, "seed": seed}
        return cluster_interval(lambda places: statistic(x[places], y[places]), groups, **drawn)

    associations, reasons = [], []
    for name, (numbers, classes) in read.numbered().items():
        try:
            associations += _associations(
                values, d_sae, is_choosing, interval, name, numbers, classes
            )
        except Refused as why:
            reasons.append(f"column {name!r} is left out: {why}")
            logger.warning("%s", reasons[-1])
    if not associations:
        raise Refused(
            f"too few labels ({'; '.join(reasons)}); give labels to more documents, or hold out "
            "more of them (held_out_fraction)"
        )
    return LabelTable(
        by="document" if labels.position is None else "row",
        uses=list(values),
        n_units=len(place),
        n_documents=n,
        share=share,
        d_sae=d_sae,
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


@torch.no_grad()
def read_units(
    sae: SAE, batches: Iterable[ActivationBatch], labels: LabelColumns, seed: int
) -> tuple[Int[np.ndarray, " n"], dict[str, Float[np.ndarray, "n variables"]], float]:
    """Variables (latents, then raw dimensions) in the units, labelled documents or rows of them, in
    one pass over activations: the place in the labels of each unit that was read; "max" and "mean"
    over its rows, or "value" where each has one; and the share of these units among all that were
    read: of more than memory should hold, those with the smallest hashes.

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
        return place[order], {"value": largest}, share
    mean = total[order] / count[:, None].astype(np.float32)
    return place[order], {"max": largest, "mean": mean}, share


def _associations(
    values: Mapping[str, Float[np.ndarray, "n variables"]],
    d_sae: int,
    is_choosing: np.ndarray,
    interval: Callable[..., tuple[float, float]],
    name: str,
    labels: Float[np.ndarray, " n"],
    classes: list[str] | None,
) -> Iterator[Association]:
    """Those of a column: with its numbers, or with each class and with all of them.

    Args:
        values: by use; see `read_units`.
        is_choosing: [n] whether the unit's document is on the half that chooses.
        interval: of a statistic of units [n], over their documents.

    Raises:
        ValueError: too few units have a label, or none of the classes has enough.
    """
    from scipy.stats import false_discovery_control

    known = ~np.isnan(labels)
    parts = [known, known & is_choosing, known & ~is_choosing]
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
    scores = np.stack([_scores(values, labels, part, classes, tested) for part in parts])
    for target, number in enumerate([*tested, None]):  # None: the whole column
        measure: Measure = "auc" if number is not None else "eta_squared"
        measure = "spearman" if classes is None else measure
        of_target = labels if number is None else labels == number
        on_all, *halves = scores[:, :, target]
        on_all = on_all[:, :d_sae]
        p = correlation_p(on_all, int(known.sum())) if measure == "spearman" else None
        bests = []
        for first, end, k in ((0, d_sae, _SHOWN), (d_sae, None, 1)):  # latents, raw dimensions
            choosing, held_out = (half[:, first:end] for half in halves)
            own = _best(measure, [*values], choosing, held_out, k)
            variable = values[own[0].use][:, first + own[0].index].astype(float)
            variable *= own[0].sign if measure == "auc" else 1
            ends = interval(_STATISTICS[measure], variable, of_target, parts[2])
            own[0].low, own[0].high = ends
            bests.append(own)
        (latent, *others), (raw,) = bests
        yield Association(
            column=name,
            group=None if number is None or classes is None else classes[number],
            measure=measure,
            n=int(known.sum()),
            n_held_out=int(parts[2].sum()),
            n_in=None if number is None else int(of_target.sum()),
            latent=latent,
            raw=raw,
            others=others,
            values=(1 + on_all) / 2 if measure == "auc" else on_all,
            p=p,
            q=None if p is None else false_discovery_control(p.ravel()).reshape(p.shape),
        )


_STATISTICS: dict[Measure, Callable[[np.ndarray, np.ndarray], float]] = {
    "spearman": lambda x, y: float(correlations(mid_ranks(x[None]), mid_ranks(y))[0]),
    "auc": lambda x, y: float(aucs(mid_ranks(x[None]), y[:, None])[0, 0]),
    "eta_squared": lambda x, y: float(eta_squared(x[None], y[:, None] == np.unique(y))[0]),
}
"""Of a variable and labels, or membership in the class, of the same units."""


def _scores(
    values: Mapping[str, np.ndarray],
    labels: np.ndarray,
    among: np.ndarray,
    classes: object,
    tested: Sequence[int],
) -> Float[np.ndarray, "uses targets variables"]:
    """The scores of all variables among some units; 0 is chance: of an AUC it is twice the
    distance from 1/2. Memory is that of a block of variables."""
    labels, of_uses = labels[among], []
    for of_use in values.values():
        blocks = []
        step = max(1, _AT_ONCE // len(of_use))
        for first in range(0, of_use.shape[1], step):
            block = of_use[among, first : first + step].T
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
    measure: Measure, uses: Sequence[str], choosing: np.ndarray, held_out: np.ndarray, k: int
) -> list[Best]:
    """The k best of some variables by their scores [uses, variables] on the half that chooses,
    with those on the other."""
    use = np.abs(choosing).argmax(0)
    chosen, tested = (half[use, np.arange(len(use))] for half in (choosing, held_out))
    bests = []
    for index in np.argsort(-np.abs(chosen), kind="stable")[:k].tolist():
        sign = -1 if chosen[index] < 0 else 1
        ours, theirs = float(chosen[index]), float(tested[index])
        if measure == "auc":
            ours, theirs = (1 + sign * ours) / 2, (1 + sign * theirs) / 2
        bests.append(Best(index, uses[int(use[index])], sign, ours, theirs))
    return bests
