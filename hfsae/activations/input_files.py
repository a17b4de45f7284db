"""Files of pictures and sound: which there are, what identifies them, and their labels."""

import csv
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from glob import glob
from pathlib import Path
from typing import Generic, TypeVar

from ..machine.checksums import file_hash
from ..machine.files import refuse_special
from ..machine.refused import Refused, closest

logger = logging.getLogger(__name__)
_SHOWN = 10  # names of files that are not read
_HELD = 2**28  # bytes of decoded documents
_COLUMN = "file"  # of a table of labels
T = TypeVar("T")


def check_files(section: str, files: object) -> str | list[str]:
    """Names of files as text.

    Raises:
        ValueError: they are neither a name nor a list of names.
    """
    if isinstance(files, str | os.PathLike):
        return os.fspath(files)
    if isinstance(files, Sequence) and files and all(isinstance(f, str | Path) for f in files):
        return [str(file) for file in files]
    raise Refused(f"{section}.files is {files!r}; name a file, a folder, a glob, or a list of them")


def paths_of(field: str, files: str | Iterable[str], suffixes: Sequence[str]) -> list[Path]:
    """The files that paths, folders and globs name, each once, in natural order.

    Args:
        field: the recipe's, for errors.
        suffixes: those of files that are read; others in a folder are left out.

    Raises:
        ValueError: a name leads to no file, or a named file has another suffix.
    """
    named = [files] if isinstance(files, str) else list(files)
    found = {path for one in named for path in _at(field, one, suffixes)}
    from .files.containers import natural  # imports torch

    return sorted(found, key=natural)


def _at(field: str, name: str, suffixes: Sequence[str]) -> list[Path]:
    path = Path(name).expanduser()
    if path.is_dir():
        every = sorted(file for file in path.rglob("*") if not file.is_dir())
        files = [file for file in every if file.suffix.lower() in suffixes]
        _log_others(path, len(files), [file for file in every if file not in {*files}])
    else:
        files = [path] if path.exists() else [Path(one) for one in glob(str(path), recursive=True)]
    if not files:
        raise Refused(f"{field}: no file with {_listed(suffixes)} is at {name!r}; check the path")
    for file in files:
        if file.suffix.lower() not in suffixes:
            raise Refused(f"{field}: {file} is none of {_listed(suffixes)}; convert it")
        refuse_special(file)
    return files


def _listed(suffixes: Sequence[str]) -> str:
    return f"{', '.join(suffixes[:-1])} or {suffixes[-1]}"


def _log_others(folder: Path, n_read: int, others: list[Path]) -> None:
    names = [str(file.relative_to(folder)) for file in others[:_SHOWN]]
    more = f" and {len(others) - _SHOWN} more" if others[_SHOWN:] else ""
    if names:
        listed = ", ".join(names) + more
        logger.info("%s: %d files are read; not read: %s", folder, n_read, listed)


def short_names(paths: Sequence[Path]) -> list[str]:
    """Each path below the folder that all have in common."""
    if not paths:
        return []
    common = os.path.commonpath([path.absolute().parent for path in paths])
    return [path.absolute().relative_to(common).as_posix() for path in paths]


def ids_of(paths: Sequence[Path]) -> list[str]:
    """16 hexadecimal digits of a hash of each file's content.

    Raises:
        ValueError: a file cannot be read.
    """
    return [_id(path, *state(path)) for path in paths]


def state(path: Path) -> tuple[int, int]:
    """What changes when a file does: its size and time.

    Raises:
        ValueError: the file cannot be read.
    """
    try:
        about = path.stat()
    except OSError as error:
        raise Refused(f"{path} cannot be read ({error}); check it") from error
    return about.st_size, about.st_mtime_ns


@lru_cache(maxsize=2**20)  # a run opens its files several times
def _id(path: Path, size: int, changed: int) -> str:
    try:
        return file_hash(path)[:16]
    except OSError as error:
        raise Refused(f"{path} cannot be read ({error}); check it") from error


class Recent(Generic[T]):
    """What was read last, up to 256 MiB: crops or pieces of one document come at random times.

    Args:
        read: a document by its number.
        size: its bytes.
    """

    def __init__(self, read: Callable[[int], T], size: Callable[[T], int]) -> None:
        self.read, self.size = read, size
        self._held: OrderedDict[int, T] = OrderedDict()
        self._n_bytes = 0
        self._lock = threading.Lock()  # a bucket may be filled by a thread of its own

    def __call__(self, document: int) -> T:
        with self._lock:
            if document in self._held:
                self._held.move_to_end(document)
                return self._held[document]
            one = self._held[document] = self.read(document)
            self._n_bytes += self.size(one)
            while self._n_bytes > _HELD and len(self._held) > 1:
                self._n_bytes -= self.size(self._held.popitem(last=False)[1])
            return one


def read_labels(field: str, given: str, names: Sequence[str]) -> dict[str, list[str | None]]:
    """By column the label of each document; None for those that the table lacks.

    Args:
        field: the recipe's, for errors.
        given: a csv or parquet table whose column "file" has the documents' names; "folders": the
            label is the name of the folder that a document lies in; "": there are no labels.

    Raises:
        ValueError: the table cannot be read, has no such column, or names none of the documents.
    """
    if not given:
        return {}
    if given == "folders":
        return {"folder": [Path(name).parent.name or None for name in names]}
    path = Path(given).expanduser()
    rows = _table(field, path)
    by_name: dict[str, dict[str, str]] = {}
    for number, row in enumerate(rows, 1):
        if not row.get(_COLUMN):
            raise Refused(
                f"{field}: row {number} of {path} names no file in a column {_COLUMN!r}; add it, "
                "with names such as " + repr(next(iter(names), "a.png"))
            )
        by_name[str(row[_COLUMN])] = row
    if by_name.keys().isdisjoint(names):
        raise Refused(
            f"{field}: {path} names none of the {len(names)} files; its column {_COLUMN!r} needs "
            "names such as " + repr(next(iter(names), "a.png"))
        )
    if unknown := [name for name in by_name if name not in {*names}]:
        near = closest(unknown[0], names)
        logger.warning("%s: no file is called %r, as in %s%s", field, unknown[0], path, near)
    columns = dict.fromkeys(column for row in rows for column in row if column != _COLUMN)
    empty: dict[str, str] = {}
    return {
        column: [by_name.get(name, empty).get(column) or None for name in names]
        for column in columns
    }


def _table(field: str, path: Path) -> list[dict[str, str]]:
    """A table's rows; what they hold is text."""
    if path.suffix in (".parquet", ".csv"):
        refuse_special(path)
    try:
        if path.suffix == ".parquet":
            from pyarrow import parquet

            rows = parquet.read_table(path).to_pylist()
            return [{k: "" if v is None else str(v) for k, v in row.items()} for row in rows]
        if path.suffix == ".csv":
            with path.open(encoding="utf-8-sig", newline="") as file:
                rows = list(csv.DictReader(file, restkey="", restval=""))
            return [{k: v for k, v in row.items() if k} for row in rows]
    except (OSError, ValueError, csv.Error) as error:  # pyarrow's errors are one of the first two
        raise Refused(f"{field}: {path} cannot be read ({error}); check it") from error
    raise Refused(f"{field} is {str(path)!r}; name a .csv or .parquet table, or 'folders'")
