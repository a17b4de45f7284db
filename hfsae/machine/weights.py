"""The hash of a folder's weights, and the records there that belong to other weights.

Each record holds the SHA-256 of its weights: training.json, evaluation.json, probing.json,
features/meta.json and the probe. It is the hash of the file model.safetensors, as shown on the Hub.
A record without one is older than these hashes, and accepted.
"""

import hashlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from .files import opened_tensors, read_json
from .names import EVALUATION, MADE_BY, META, PROBE, PROBING, SHARDS, TRAINING, WEIGHTS
from .refused import Refused

KEY = "weights_sha256"
STAMPED = (TRAINING, EVALUATION, META, PROBE, PROBING)
_BLOCK = 2**24


def weights_hash(folder: Path) -> str | None:
    """Hash of the weights in a folder, or of the hashes of several files; None without weights."""
    files = [folder / WEIGHTS]
    if not files[0].is_file():
        files = sorted(folder.glob(SHARDS))
    hashes = [_hash_of(path) for path in files]
    return hashes[0] if len(hashes) == 1 else _hash("\n".join(hashes).encode()) if hashes else None


def stamp(folder: Path) -> dict[str, str]:
    """The entry with the weights' hash for a record in a folder; empty without weights."""
    value = weights_hash(folder)
    return {} if value is None else {KEY: value}


def of_others(folder: Path, records: Sequence[str] = STAMPED) -> Iterator[str]:
    """Names of the records in a folder that belong to other weights than the folder's."""
    recorded = {name: _recorded(folder / name) for name in records if (folder / name).is_file()}
    if not any(recorded.values()):
        return
    ours = weights_hash(folder)
    for name, theirs in recorded.items():
        if ours is not None and theirs is not None and theirs != ours:
            yield name


def refuse_mixture(folder: Path, records: Sequence[str] = STAMPED) -> None:
    """Refuse a folder with records of other weights.

    Raises:
        ValueError: a record belongs to other weights than the folder's; the sentence names the
            record and the command that makes it again.
    """
    for name in of_others(folder, records):
        remedy = "put back its weights, or delete it"
        if verb := MADE_BY.get(name):
            remedy = f"`hfsae {verb} {folder}` makes it again"
        raise Refused(
            f"{folder / name} was made with other weights than those in {folder} now (its {KEY} "
            f"differs); {remedy}"
        )


def _recorded(record: Path) -> Any:
    try:
        if record.suffix == ".json":
            return read_json(record).get(KEY)
        with opened_tensors(record) as file:
            return (file.metadata() or {}).get(KEY)
    except (ValueError, SafetensorError, OSError):
        return None  # damaged: code that uses it reports that


def _hash_of(path: Path) -> str:
    about = path.stat()
    return _hash_of_file(path, about.st_size, about.st_mtime_ns, about.st_ino)


@lru_cache(maxsize=1024)
def _hash_of_file(path: Path, *_about: int) -> str:
    """Computed once for each state of a file: it may hold a hundred gigabytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
