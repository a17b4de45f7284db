"""The table of labels: which latents go with which labels of documents.

It is features/columns.json, which a run with labels writes (`hfsae.features.label_table`): latents
are chosen on one half of the documents and measured on the other.
"""

from typing import Any

from ..io.errors import Refused
from ..io.labels import too_few_to_tell
from . import validate
from .rows import Json, as_rows
from .subject import Subject

MOST = 1000  # rows
MEASURES = {"auc": "AUC", "spearman": "Spearman", "eta_squared": "eta squared"}


def label_rows(columns: dict[str, Any], d_sae: int) -> list[Json]:
    """The rows of the file; an error that `reading` reports as damage, if one is none."""
    rows = []
    for row in columns["associations"]:
        best, raw, group = row["latent"], row.get("raw") or {}, row.get("group")
        intervals = {name: best.get(name) for name in ("low", "high")}
        raw_value = raw.get("value")
        rows.append(
            {
                "column": str(row["column"]),
                "class": None if group is None else str(group),
                "measure": {name: name for name in MEASURES}[row["measure"]],
                "latent": range(d_sae)[best["index"]],
                "value": float(best["value"]),
                **{name: None if end is None else float(end) for name, end in intervals.items()},
                "use": str(best.get("use") or ""),
                "sign": -1 if best.get("sign") == -1 else 1,
                "raw_dimension": raw.get("index"),
                "raw_value": None if raw_value is None else float(raw_value),
            }
        )
    return rows


def labels(subject: Subject, query: str = "") -> Json:
    """Latents that go with labels of the documents, beside the best single number of the
    activations: one for each class of a column of classes, and for each column of numbers.

    Args:
        query: a word of a column or class; empty: all.

    Returns:
        by (str): what a label is of: document or row.
        n_documents (int | None): documents that have labels and were read.
        few (str): why so few documents tell nothing; empty where there are enough.
        n_rows (int): rows of the whole table.
        found (list[Latent]): of each row the latent, with "column", "class" (null: of the whole
            column), "measure" (auc: the chance that it is larger in the class than elsewhere;
            spearman: correlation with numbers; eta_squared: share of its variance that lies between
            classes), "value" on documents that it was not chosen on, with its 95 % interval "low"
            to "high", "use" (max or mean over a document), "sign" (-1: it is smaller in the class),
            and "raw_dimension" with its "raw_value".
    """
    query = validate.text(query, "the search").strip().casefold()
    rows, n = subject.label_rows, subject.columns.get("n_documents")
    if not rows:
        raise Refused("this SAE comes without a table of labels; a run with labels writes one")
    hits = [row for row in rows if query in label_of(row).casefold()]
    return {
        "by": "row" if subject.columns.get("by") == "row" else "document",
        "n_documents": n,
        "few": "" if n is None else too_few_to_tell(n),
        "n_rows": len(rows),
        "found": as_rows(subject, hits[:MOST]),
    }


def best_rows(subject: Subject) -> list[Json]:
    """The rows of the table, those with the largest values first."""
    return sorted(subject.label_rows, key=lambda row: -abs(row["value"]))


def rows_of_latent(subject: Subject, latent: int) -> list[Json]:
    """The rows of the table that a latent is in, the best first."""
    return [row for row in best_rows(subject) if row["latent"] == latent]


def rows_of_label(subject: Subject, word: str) -> list[Json]:
    """The rows whose class, or column, is this word."""
    word = word.strip().casefold()
    names = ((row, (row["class"] or row["column"], label_of(row))) for row in subject.label_rows)
    return [row for row, its in names if word in map(str.casefold, its)]


def label_of(row: Json) -> str:
    """A row's label in words: "kind = cat", or "age"."""
    return row["column"] if row["class"] is None else f"{row['column']} = {row['class']}"


def score_text(row: Json) -> str:
    """The value of a row with the name of its measure: "AUC 0.97"."""
    return f"{MEASURES[row['measure']]} {row['value']:.2f}"
