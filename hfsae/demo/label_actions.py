"""The table of labels: which latents tell documents of one label from the others.

It is features/columns.json, which a run with labels writes; damaged rows are left out.
"""

from collections.abc import Iterator
from math import isfinite
from typing import Any

from ..machine.refused import Refused
from . import validate
from .rows import Json, as_rows
from .subject import Subject

MOST = 1000  # rows


def labels(subject: Subject, query: str = "") -> Json:
    """Latents that tell labels of the documents apart, beside the best single number of the
    activations: one for each class of a column of classes, and for each column of numbers.

    Args:
        query: a word of a column or class; empty: all.

    Returns:
        n_documents (int | None): documents that were measured.
        n_rows (int): rows of the whole table.
        found (list[Latent]): of each row the latent, with "column", "class" (null for a column of
            numbers), "use" (max or mean over the document), "statistic" (AUC or spearman), "value"
            with its 95 % interval "low" to "high", and "raw_dimension" with its "raw_value".
    """
    query = validate.text(query, "the search").strip().casefold()
    every = [*_rows(subject)]
    if not every:
        raise Refused("this SAE comes without a table of labels; a run with labels writes one")
    hits = [row for row in every if query in _title(row).casefold()]
    n = subject.columns.get("n_documents")
    return {
        "n_documents": n if isinstance(n, int) else None,
        "n_rows": len(every),
        "found": as_rows(subject, hits[:MOST]),
    }


def told_apart(subject: Subject, latent: int) -> list[Json]:
    """The rows of the table that a latent is in, the best first."""
    return [row for row in best_rows(subject) if row["latent"] == latent]


def best_rows(subject: Subject) -> list[Json]:
    """The rows of the table, those with the largest values first."""
    return sorted(_rows(subject), key=lambda row: -abs(row["value"]))


def best_of(subject: Subject, word: str) -> list[Json]:
    """The rows whose class, or column of numbers, is this word."""
    names = ((row, {_name(row).casefold(), _title(row).casefold()}) for row in _rows(subject))
    return [row for row, its in names if word.strip().casefold() in its]


def label_of(row: Json) -> str:
    """A row's label in words: "kind = cat", or "age"."""
    return _title(row)


def _name(row: Json) -> str:
    return row["column"] if row["class"] is None else row["class"]


def _title(row: Json) -> str:
    return row["column"] if row["class"] is None else f"{row['column']} = {row['class']}"


def _rows(subject: Subject) -> Iterator[Json]:
    """The valid rows of the file."""
    listed = subject.columns.get("columns")
    for row in listed if isinstance(listed, list) else ():
        if isinstance(row, dict) and _is_valid(row, subject.d_sae):
            of_class = row.get("class")
            yield {
                "column": row["name"],
                "class": None if of_class is None else str(of_class),
                "latent": row["latent"],
                "value": float(row["value"]),
                **{name: _number(row.get(name)) for name in ("low", "high", "raw_value")},
                **{name: str(row.get(name) or "") for name in ("use", "statistic")},
                "raw_dimension": row.get("raw_dimension"),
            }


def _is_valid(row: dict[str, Any], d_sae: int) -> bool:
    latent, dimension = row.get("latent"), row.get("raw_dimension")
    is_latent = type(latent) is int and 0 <= latent < d_sae
    is_dimension = dimension is None or type(dimension) is int
    named = isinstance(row.get("name"), str) and _number(row.get("value")) is not None
    return is_latent and is_dimension and named


def _number(value: object) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and isfinite(value) else None
