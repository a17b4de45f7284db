"""Documents in memory: a list, or a column of a `datasets.Dataset`."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from ..io.errors import Refused

_GIVE = "give a file, a folder, a Hub data set's name, a list of texts, or a datasets.Dataset"


@runtime_checkable
class Columns(Protocol):
    """A `datasets.Dataset`, or anything like it."""

    @property
    def column_names(self) -> Any:
        """Names of the columns."""

    def __getitem__(self, column: str, /) -> Any:
        """The values of a column."""


def in_memory_texts(given: object, column: str) -> str | list[str]:
    """Documents as a list; the name or path of a data set is returned as it is.

    Args:
        given: text, a path, a sequence of texts, or a data set in memory.
        column: the data set's column that holds the documents.

    Raises:
        ValueError: the data set lacks the column, has splits or is a stream; or `given` is neither
            text nor a data set.
    """
    if isinstance(given, str):
        return given
    if isinstance(given, os.PathLike):
        return os.fspath(given)
    if hasattr(given, "column_names"):
        return _column_of(given, column)
    if not isinstance(given, Sequence) or not all(isinstance(text, str) for text in given):
        raise Refused(f"the data set is {_kind(given)}; {_GIVE}")
    return list(given)


def text_list(given: object) -> list[str]:
    """One text or several, as a list; of a data set, its column "text".

    Raises:
        ValueError: as for `in_memory_texts`; or a path is given, which would be read as a text.
    """
    if isinstance(given, os.PathLike):
        raise Refused(f"{given} is a path; hfsae.TextArguments(dataset={str(given)!r}) reads it")
    texts = in_memory_texts(given, "text")
    return [texts] if isinstance(texts, str) else texts


def _column_of(data: Any, column: str) -> list[str]:
    names = data.column_names
    if isinstance(names, Mapping):
        first = next(iter(names), "train")
        raise Refused(
            f"the data set has splits: {', '.join(names)}; give one, such as data[{first!r}]"
        )
    if not isinstance(data, Columns) or names is None:
        raise Refused(
            f"the data set is a stream ({type(data).__name__}), which may have no end; give its "
            "name on the Hub, which is streamed too, or a list of texts"
        )
    if column not in names:
        raise Refused(
            f"the data set has no column {column!r}; its columns: {', '.join(names)}; "
            f"data.rename_column({names[0]!r}, {column!r}) makes one, or set text_column"
        )
    return [text_in({column: value}, column, "the data set") for value in data[column]]


def _kind(given: object) -> str:
    if isinstance(given, Sequence) and len(given):
        return f"a list of {type(next(t for t in given if not isinstance(t, str))).__name__}"
    return f"a {type(given).__name__}"


def text_in(row: dict[str, Any], column: str, where: Path | str) -> str:
    """The document in a row of a data set.

    Raises:
        ValueError: the row has no such column, or no text there.
    """
    if column not in row:
        raise Refused(no_column(column, row, where))
    if not isinstance(row[column], str | None):
        kind = type(row[column]).__name__
        raise Refused(f"column {column!r} of {where} holds {kind}, not text; set text_column")
    # Lone surrogates, which JSON can spell, make tokenizers fail.
    return (row[column] or "").encode("utf-8", "replace").decode("utf-8")


def no_column(column: str, columns: Iterable[str], where: Path | str) -> str:
    """The error sentence for a missing column."""
    return f"{where} has no column {column!r}; set text_column to one of {sorted(columns)}"
