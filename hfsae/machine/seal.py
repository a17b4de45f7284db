"""Seals: hashes with which a record shows that it, and the files written with it, are unchanged.

    content_sha256   of the record's other content, as canonical JSON
    files_sha256     {name: hash} of files beside it that were written with it

The records that `names.RECORDS` calls sealed have one, some with tables that were written with them
(the feature store's, and those of names and windows); so has each line of features/calls.jsonl. A
change since then is told where results are only shown (`hfsae show`, the app), and refused where
they are published (cards, `push`, `space`) or computed with. Code that changes a record on purpose
seals it again. A record without a seal is older than seals,
and accepted: seals guard against mistakes, not against forgers.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .files import damaged, json_lines, read_json
from .names import CALLS, RECORDS
from .refused import Damaged
from .weights import file_hash

CONTENT, FILES = "content_sha256", "files_sha256"
SEALED = tuple(record.file for record in RECORDS if record.is_sealed)
CHANGED = f"it was changed after it was written: its {CONTENT} differs"


class Change(NamedTuple):
    """A difference between a file and its seal."""

    record: str
    """the sealed record, as a path below the SAE's folder"""
    path: Path
    """the changed file: the record, or a file written with it"""
    why: str


def content_hash(content: object) -> str:
    """SHA-256 of plain content as canonical JSON: the same before it is written and when it is read
    again."""
    plain = json.loads(json.dumps(content))  # keys become text, tuples lists
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()


def sealed(record: Mapping[str, Any], files: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The record with its seal, in the place of an older one.

    Args:
        files: {name: hash} of the files beside the record that are written with it; None: those of
            the older seal.
    """
    plain = {key: value for key, value in record.items() if key != CONTENT}
    plain |= {} if files is None else {FILES: dict(files)}
    return {**plain, CONTENT: content_hash(plain)}


def resealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record that was changed on purpose: with a new seal, if it has one."""
    return sealed(record) if CONTENT in record else dict(record)


def unsealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record without its seal."""
    return {key: value for key, value in record.items() if key not in (CONTENT, FILES)}


def is_changed(record: Mapping[str, Any]) -> bool:
    """Whether a record has a seal that does not fit its content."""
    return CONTENT in record and sealed(record)[CONTENT] != record[CONTENT]


def changes(folder: Path, records: Sequence[str] = SEALED) -> Iterator[Change]:
    """What was changed in an SAE's folder since these records were written; what is missing, or
    cannot be read, is left to the code that uses it."""
    for name in records:
        path = folder / name
        if path.is_file():
            parts = _changed_lines(path) if name == CALLS else _changed_parts(path)
            yield from (Change(name, *part) for part in parts)


def refuse_changed(folder: Path, records: Sequence[str] = SEALED) -> None:
    """Refuse a folder in which one of these records, or a file written with it, was changed.

    Raises:
        ValueError: the sentence names the file and the remedy.
    """
    for change in changes(folder, records):
        raise Damaged(damaged(change.path, change.why))


def sealed_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a file whose lines are sealed.

    Raises:
        ValueError: a line was changed; the sentence has its number.
    """
    for number, line in json_lines(path):
        if is_changed(line):
            raise Damaged(damaged(path, _about_line(number)))
        yield line


def _changed_lines(path: Path) -> Iterator[tuple[Path, str]]:
    numbered = (number for number, line in json_lines(path) if is_changed(line))
    yield from ((path, _about_line(number)) for number in numbered)


def _about_line(number: int) -> str:
    return f"line {number} was changed after it was written: its {CONTENT} differs"


def _changed_parts(path: Path) -> Iterable[tuple[Path, str]]:
    try:
        record = read_json(path)
    except (ValueError, OSError):
        return
    if is_changed(record):
        yield path, CHANGED
    files = record.get(FILES)
    for name, theirs in files.items() if isinstance(files, dict) else ():
        other = path.parent / Path(name).name  # a file beside it, whatever the record names
        if other.is_file() and file_hash(other) != theirs:
            yield other, f"it is not the file that was written with {path.name}: its hash differs"
