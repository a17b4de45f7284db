"""Texts with two classes.

    packaged            113 binary sets of the Python package sae-probes (MIT), faulty ones left out
    FILE.jsonl          an object with a text and a label on each line
    owner/name          a Hub data set with such columns

Several classes give a task each: one against the rest.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...io.errors import Refused, one_line
from ...io.files import parsed_lines, refuse_special
from ...packaged import probe_rows
from .regression import LEAST_GROUPS

LEAST = 50
"""Texts of each class that a task needs."""
MOST_CLASSES = 10
_LONGEST_LINE = 2**20
FAULTY = {
    "161": "its negatives are source code",
    "162": "its negatives are source code",
    "163": "its negatives are source code",
}
"""Packaged sets that are left out, by number."""


class Task(NamedTuple):
    """Texts, each with a class or without it."""

    name: str
    texts: list[str]
    labels: np.ndarray
    """[n] bool: whether a text has the class"""
    groups: np.ndarray | None = None
    """[n] whole numbers: texts with the same one are on the same side of each split"""


def binary_tasks(
    name: str, texts: Sequence[str], labels: Sequence[Any], groups: Sequence[Any] | None = None
) -> list[Task]:
    """One task, or for several classes one task for each of the ten largest; without duplicate
    texts, which would lie on both sides of a split, and without texts that have two labels.

    Args:
        groups: a group for each text, such as its source; for duplicate texts the first one counts.

    Raises:
        ValueError: there is only one class, or a class has fewer than 50 texts or fewer than five
            groups.
    """
    by_text: dict[str, set[str]] = {}
    first: dict[str, str] = {}
    for text, label, group in zip(texts, labels, groups or [""] * len(texts), strict=True):
        text = " ".join(text.split())
        by_text.setdefault(text, set()).add(str(label))
        first.setdefault(text, str(group))
    kept = [(text, *own) for text, own in by_text.items() if text and len(own) == 1]
    of_text = np.unique([first[text] for text, _ in kept], return_inverse=True)[1]
    numbers = None if groups is None else of_text.reshape(-1)
    counts = Counter(label for _, label in kept)
    if len(counts) < 2:
        raise Refused(
            f"{name} has the one class {next(iter(counts), None)!r} among {len(kept)} different "
            "texts; probing needs two"
        )
    largest = [label for label, _ in counts.most_common(MOST_CLASSES)]
    classes = sorted(counts)[1:] if len(counts) == 2 else largest
    different = [text for text, _ in kept]
    tasks = []
    for each in classes:
        has = np.array([label == each for _, label in kept])
        n_groups = LEAST_GROUPS
        if numbers is not None:
            n_groups = min(len({*numbers[has]}), len({*numbers[~has]}))
        if min(has.sum(), (~has).sum()) >= LEAST and n_groups >= LEAST_GROUPS:
            title = name if len(counts) == 2 else f"{name}: {each}"
            tasks.append(Task(title, different, has, numbers))
    if not tasks:
        largest = ", ".join(f"{n} of {label!r}" for label, n in counts.most_common()[:3])
        needed = "" if groups is None else f" from {LEAST_GROUPS} groups or more"
        raise Refused(
            f"{name} has {largest} after duplicates are dropped; a task needs {LEAST} texts of "
            f"each class{needed}"
        )
    return tasks


def read_tasks(
    source: str,
    *,
    text_column: str = "text",
    label_column: str = "label",
    group_column: str | None = None,
    split: str = "train",
) -> list[Task]:
    """Tasks of a jsonl file or a Hub data set.

    Args:
        text_column: of a file or data set: the column with texts.
        label_column: of a file or data set: the column with labels.
        group_column: of a file or data set: a column such as the text's source; texts of a group
            are all on one side of each split.
        split: of a Hub data set: the part to read.

    Raises:
        ValueError: it cannot be read, lacks a column, or its classes do not fit.
    """
    path, rows = Path(source), list[Any]()
    if path.suffix == ".jsonl":
        refuse_special(path)
        name = path.stem
        try:
            with path.open("rb") as file:
                for where, row in parsed_lines(file, _LONGEST_LINE):
                    if not isinstance(row, dict):
                        raise Refused(f"{where} is not an object; give a text and its label")
                    rows.append(row)
        except OSError as error:
            raise Refused(f"{path} cannot be read ({one_line(error)}); check the path") from error
    elif path.exists() or path.suffix or len(path.parts) != 2:
        raise Refused(
            f"{source} is neither a JSONL file nor a Hub data set; give packaged, FILE.jsonl or "
            "owner/name"
        )
    else:
        from datasets import load_dataset

        name = source
        try:
            rows += load_dataset(name, split=split)  # pyright: ignore
        except Exception as error:  # of many kinds, by what the Hub or a network does
            raise Refused(
                f"the data set {name} cannot be loaded ({one_line(error)}); check its name and "
                "split"
            ) from error
    columns = {"text": text_column, "label": label_column}
    columns |= {} if group_column is None else {"group": group_column}
    values: dict[str, list[Any]] = {kind: [] for kind in columns}
    for number, row in enumerate(rows, 1):
        for kind, column in columns.items():
            where, value = f"row {number} of {source}", row.get(column)
            if value is None or value == "":
                raise Refused(
                    f"{where} has no {column!r}; it has {sorted(row)}: set --text_column and "
                    "--label_column, or leave out rows without"
                )
            is_number = isinstance(value, int) or (
                isinstance(value, float) and math.isfinite(value)
            )
            if not isinstance(value, str) and not is_number:
                raise Refused(
                    f"{where} has {value!r:.40} for {column!r}; give text or a finite number"
                )
            values[kind].append(value)
    texts = [str(text) for text in values["text"]]
    return binary_tasks(name, texts, values["label"], values.get("group"))


def packaged_names() -> list[str]:
    """Names of the packaged sets, in their order, without faulty ones.

    Raises:
        ValueError: the package is not installed; the sentence has the command.
    """
    rows = probe_rows("probing_datasets_MASTER")
    files = [row["Dataset save name"] for row in rows if row["Data type"] == _BINARY]
    names = [Path(file).name.partition(".")[0] for file in files]
    return [name for name in names if name.partition("_")[0] not in FAULTY]


_BINARY = "Binary Classification"


def packaged_tasks(names: Sequence[str]) -> Iterator[Task]:
    """The packaged sets of these names; those with too few texts once duplicates are dropped are
    left out."""
    for name in names:
        rows = probe_rows(f"cleaned_data/{name}")
        try:
            tasks = binary_tasks(name, [r["prompt"] for r in rows], [r["target"] for r in rows])
        except Refused:
            continue
        yield from tasks
