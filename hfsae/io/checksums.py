"""Hashes by which a record shows whose it is, and that it is unchanged.

    weights_sha256   in records, tables of names and windows, people's labels, and each preset that
                     was searched for: of the file model.safetensors, as shown on the Hub
    content_sha256   in records: of their other content, as canonical JSON
    files_sha256     in records: {name: hash} of files beside it that were written with it

Which records have which says `names.RECORDS`; so have a closed study's closed.json and each line of
features/calls.jsonl a hash of their content. A difference is told where results are only shown
(`hfsae show`, the app), and refused where they are published (cards, `push`, `space`) or computed
with. Code that changes a record on purpose seals it again. A record without a hash is accepted:
people write labels and presets, and hashes guard against mistakes, not against forgers.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from safetensors import SafetensorError

from .errors import Damaged, Refused
from .file_names import CALLS, LABELS, MADE_BY, PRESETS, RECORDS, SHARDS, WEIGHTS
from .files import damaged, json_lines, opened_tensors, parse_json, read_json, table_metadata

T = TypeVar("T")
KEY, CONTENT, FILES = "weights_sha256", "content_sha256", "files_sha256"
STAMPED = tuple(record.file for record in RECORDS if record.is_stamped)
SEALED = tuple(record.file for record in RECORDS if record.is_sealed)
PUBLISHED = (*STAMPED, PRESETS)
"""Those that have to be of the folder's weights before it is published; the app leaves out presets
of others."""
CHANGED = f"it was changed after it was written: its {CONTENT} differs"
_BLOCK = 2**24


def weights_hash(folder: Path) -> str | None:
    """Hash of the weights in a folder, or of the hashes of several files; None without weights."""
    files = [folder / WEIGHTS]
    if not files[0].is_file():
        files = sorted(folder.glob(SHARDS))
    hashes = [file_hash(path) for path in files]
    if len(hashes) > 1:
        return hashlib.sha256("\n".join(hashes).encode()).hexdigest()
    return hashes[0] if hashes else None


def stamp(folder: Path) -> dict[str, str]:
    """The entry with the weights' hash for a record in a folder; empty without weights."""
    value = weights_hash(folder)
    return {} if value is None else {KEY: value}


def of_others(
    folder: Path, records: Sequence[str] = STAMPED, weights: Path | None = None
) -> Iterator[str]:
    """Names of the records in a folder that belong to other weights than the folder's.

    Args:
        weights: folder of the weights, if they lie elsewhere.
    """
    paths = {name: folder / name for name in records}
    recorded = {name: _recorded(path) for name, path in paths.items() if path.is_file()}
    if not any(map(any, recorded.values())):
        return
    ours = weights_hash(weights or folder)
    for name, theirs in recorded.items():
        if ours is not None and any(one not in (None, ours) for one in theirs):
            yield name


def refuse_mixture(
    folder: Path, records: Sequence[str] = STAMPED, weights: Path | None = None
) -> None:
    """Refuse a folder with records of other weights.

    Args:
        weights: folder of the weights, if they lie elsewhere.

    Raises:
        ValueError: a record belongs to other weights than the folder's; the sentence names the
            record and the command that makes it again.
    """
    for name in of_others(folder, records, weights):
        remedy = "put back its weights, or delete it"
        if name == LABELS:
            remedy = f"if its labels fit these weights, too, delete {KEY} in it"
        if name == PRESETS:
            remedy = f"`hfsae presets {folder}` puts others in their place"
        if verb := MADE_BY.get(name):
            remedy = f"`hfsae {verb} {folder}` makes it again"
        raise Refused(
            f"{folder / name} was made with other weights than those in "
            f"{weights or folder} now (its {KEY} differs); {remedy}"
        )


def _recorded(record: Path) -> list[Any]:
    """The hashes in a record: each preset has its own, or none if a person wrote it."""
    try:
        if record.name == PRESETS:
            return [preset.get(KEY) for preset in parse_json(record)]
        if record.suffix == ".json":
            return [read_json(record).get(KEY)]
        if record.suffix == ".parquet":
            return [table_metadata(record).get(KEY)]
        with opened_tensors(record) as file:
            return [(file.metadata() or {}).get(KEY)]
    except (ValueError, TypeError, AttributeError, SafetensorError, OSError):
        return []  # damaged: code that uses it reports that


def once_a_state(function: Callable[[Path], T]) -> Callable[[Path], T]:
    """The function of a file, computed once for each state of it: a run opens files several times,
    and one may hold a hundred gigabytes."""
    kept = lru_cache(maxsize=2**20)(lambda path, *state: function(path))

    @wraps(function)
    def of(path: Path) -> T:
        about = path.stat()
        return kept(path, about.st_size, about.st_mtime_ns, about.st_ino)

    return of


@once_a_state
def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


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
        if name == CALLS and path.is_file():
            for number, line in json_lines(path):
                if is_changed(line):
                    yield Change(name, path, _about_line(number))
            continue
        try:
            record = read_json(path)
        except (ValueError, OSError):
            continue
        if is_changed(record):
            yield Change(name, path, CHANGED)
        files = record.get(FILES)
        for beside, theirs in files.items() if isinstance(files, dict) else ():
            other = path.parent / Path(beside).name  # a file beside it, whatever the record names
            if other.is_file() and file_hash(other) != theirs:
                why = f"it is not the file that was written with {path.name}: its hash differs"
                yield Change(name, other, why)


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


def _about_line(number: int) -> str:
    return f"line {number} was changed after it was written: its {CONTENT} differs"
