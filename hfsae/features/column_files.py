"""Tables of labels: a column by document, or by row of a document, from csv, parquet or Python.

Labels here are known facts about inputs, such as a class or an age; `labels.py` has the names that
people give to latents.
"""

import csv
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from jaxtyping import Float, Int64

from ..io.errors import Damaged, Refused, closest
from ..io.files import damaged, replacing

if TYPE_CHECKING:
    import pyarrow

logger = logging.getLogger(__name__)
IDS = "document"
"""The name of a column of document ids."""
_MOST_WHOLE, _MOST_TEXTS = 20, 100  # classes in a column of whole numbers, and of texts
ByDocument: TypeAlias = Sequence[object] | Mapping[int, object] | np.ndarray


class Column:
    """A column of labels as numbers.

    values: float64 [n], NaN where there is no label; of classes their places in `classes`.
    classes: the names of classes, sorted; None: the labels are numbers.
    """

    def __init__(
        self, name: str, values: Float[np.ndarray, " n"], classes: list[str] | None = None
    ):
        self.name, self.values, self.classes = name, values, classes

    @classmethod
    def of(cls, name: str, labels: Sequence[object]) -> "Column":
        """Texts, booleans, and whole numbers with at most 20 values are classes.

        Raises:
            ValueError: there are less than two different values, too many texts, or values that are
                neither texts nor numbers.
        """
        known = np.array([not _is_missing(label) for label in labels], dtype=bool)
        given = [label for label, is_known in zip(labels, known, strict=True) if is_known]
        numbers = _numbers(given)
        if numbers is None and not _are_classes(given):
            kinds = sorted({type(label).__name__ for label in given})
            raise Refused(f"it holds values of type {' and '.join(kinds)}")
        keys = np.array([str(label) for label in given]) if numbers is None else numbers
        distinct, which = np.unique(keys, return_inverse=True)
        if len(distinct) < 2:
            raise Refused(f"its only value is {given[0]!r}" if given else "it has no value")
        is_whole = numbers is not None and bool((distinct == np.floor(distinct)).all())
        values = np.full(len(labels), np.nan)
        if numbers is not None and not (is_whole and len(distinct) <= _MOST_WHOLE):
            values[known] = numbers
            return cls(name, values)
        if len(distinct) > _MOST_TEXTS:
            raise Refused(f"it has {len(distinct):,} different texts, over {_MOST_TEXTS}")
        values[known] = which
        return cls(name, values, [f"{d:.0f}" if is_whole else str(d) for d in distinct])


def _is_missing(label: object) -> bool:
    return bool(label is None or label == "" or label != label)  # NaN is unlike itself


def _are_classes(labels: list[object]) -> bool:
    return any(all(isinstance(x, kind) for x in labels) for kind in (str, bool | np.bool_))


def _numbers(labels: list[object]) -> Float[np.ndarray, " n"] | None:
    """None: not all are numbers."""
    is_number = [isinstance(x, Real) and not isinstance(x, bool) for x in labels]
    return np.array(labels, dtype=float) if labels and all(is_number) else None


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

    def numbered(self) -> list[Column]:
        """The columns that can be compared with latents; others are logged, with the reason.

        Raises:
            ValueError: there is none.
        """
        numbered, reasons = [], []
        for name, labels in self.columns.items():
            try:
                numbered.append(Column.of(name, labels))
            except Refused as why:
                reasons.append(f"column {name!r} is left out: {why}")
                logger.warning("%s", reasons[-1])
        if not numbered:
            why = "; ".join(reasons) or "there is none"
            raise Refused(f"no column of labels can be used ({why}); give numbers or classes")
        return numbered

    def comparable(self) -> "LabelColumns":
        """The same without columns that cannot be compared with latents; see `numbered`."""
        names = [column.name for column in self.numbered()]
        return replace(self, columns={name: self.columns[name] for name in names})

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
    table = _read(path, ids_are_texts=ids is not None)
    has_ids = IDS in table.column_names
    columns = {name: table[name].to_pylist() for name in table.column_names if name != IDS}
    if not columns:
        raise Refused(f"{path} has no column of labels; give a column to each label")
    if has_ids:
        given = [str(name) for name in table[IDS].to_pylist()]
        labels = LabelColumns(columns, _numbers_of(path, given, by_id))
    else:
        labels = LabelColumns(columns, *_places(path, len(table), number, np.sort(first)))
        names = {n: name for name, n in by_id.items()}
        in_order = [names[n] for n in labels.document.tolist()]
        of_labels = {k: v for k, v in columns.items() if not _are_ids(path, k, v, in_order)}
        labels = replace(labels, columns=of_labels)
        logger.info("the rows of %s were matched in order: it has no column %r", path, IDS)
    return labels.comparable()


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


def _read(path: Path, *, ids_are_texts: bool) -> "pyarrow.Table":
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet as pq

    kind = path.suffix.lower()
    if kind not in (".csv", ".parquet"):
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
    repeated = {name for name in table.column_names if table.column_names.count(name) > 1}
    if repeated:
        raise Refused(f"{path} has two columns {min(repeated)!r}; give each a name of its own")
    return table


def _numbers_of(path: Path, given: list[str], by_id: Mapping[str, int]) -> Int64[np.ndarray, " n"]:
    """The numbers of documents by their ids."""
    seen: dict[str, int] = {}
    for row, name in enumerate(given, 1):
        if name not in by_id:
            raise Refused(
                f"{path}, row {row}: there is no document {name!r} among the "
                f"{len(by_id):,} of the activations{closest(name, list(by_id))}"
            )
        if name in seen:
            raise Refused(
                f"{path}, row {row}: document {name!r} is in row {seen[name]} already; give each "
                "document one row"
            )
        seen[name] = row
    return np.array([by_id[name] for name in given], dtype=np.int64)


def _places(
    path: Path, length: int, number: Int64[np.ndarray, " n"], first: Int64[np.ndarray, " k"]
) -> tuple[np.ndarray, np.ndarray | None]:
    """The document, and the position in it, of each row of a table without ids.

    Args:
        first: the rows at which documents begin, in order.
    """
    if length == len(first):
        return number[first], None
    if length != len(number):
        n_rows = f" or their {len(number):,} rows" if len(number) > len(first) else ""
        raise Refused(
            f"{path} has {length:,} rows; give one to each of the {len(first):,} documents"
            f"{n_rows}, or a column {IDS!r} with their ids"
        )
    order = np.argsort(number, kind="stable")
    starts = np.flatnonzero(np.diff(number[order], prepend=-1))
    position = np.empty(length, dtype=np.int64)
    sizes = np.diff(starts, append=length)
    position[order] = np.arange(length) - np.repeat(starts, sizes)
    return number, position
