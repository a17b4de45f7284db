"""The hash of a folder's weights, and the records there that belong to other weights.

The records that `names.RECORDS` calls stamped hold the SHA-256 of their weights; so do the tables
of names and their windows, people's labels, and each preset that was searched for. It is the hash
of the file model.safetensors, as shown on the Hub. A record without one is older than these hashes,
and accepted.
"""

import hashlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from .files import opened_tensors, parse_json, read_json, table_metadata
from .names import (
    LABELS,
    MADE_BY,
    PRESETS,
    RECORDS,
    SHARDS,
    WEIGHTS,
)
from .refused import Refused

KEY = "weights_sha256"
STAMPED = tuple(record.file for record in RECORDS if record.is_stamped)
PUBLISHED = (*STAMPED, PRESETS)
"""Those that have to be of the folder's weights before it is published; the app leaves out presets
of others."""
_BLOCK = 2**24


def weights_hash(folder: Path) -> str | None:
    """Hash of the weights in a folder, or of the hashes of several files; None without weights."""
    files = [folder / WEIGHTS]
    if not files[0].is_file():
        files = sorted(folder.glob(SHARDS))
    hashes = [file_hash(path) for path in files]
    return hashes[0] if len(hashes) == 1 else _hash("\n".join(hashes).encode()) if hashes else None


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


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, computed once for each state of the file."""
    about = path.stat()
    return _hash_of_file(path, about.st_size, about.st_mtime_ns, about.st_ino)


@lru_cache(maxsize=1024)
def _hash_of_file(path: Path, *_about: int) -> str:
    # it may hold a hundred gigabytes
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
