"""Which weights lie in a folder, and which records beside them were made with others.

Each record carries the SHA-256 of the weights that it belongs to: training.json, evaluation.json,
features/meta.json and the probe. It is that of the file model.safetensors, as the Hub shows it. A
record without one is older than these hashes, and taken as it is.
"""

import hashlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from .files import opened_tensors, read_json
from .refused import Refused

KEY = "weights_sha256"
RECORDS = ("training.json", "evaluation.json", "features/meta.json", "probe.safetensors")
_MADE_BY = {"evaluation.json": "evaluate", "features/meta.json": "collect"}
_BLOCK = 2**24


def weights_hash(folder: Path) -> str | None:
    """Of the weights in a folder; None where there are none. Of several files it is the hash of
    their hashes."""
    files = [folder / "model.safetensors"]
    if not files[0].is_file():
        files = sorted(folder.glob("model-*.safetensors"))
    hashes = [_hash_of(path) for path in files]
    return hashes[0] if len(hashes) == 1 else _hash("\n".join(hashes).encode()) if hashes else None


def stamp(folder: Path) -> dict[str, str]:
    """What a record of the weights in a folder is to hold besides its own."""
    found = weights_hash(folder)
    return {} if found is None else {KEY: found}


def of_others(folder: Path, records: Sequence[str] = RECORDS) -> Iterator[str]:
    """Those of a folder's records that were made with other weights than lie there."""
    kept = {name: _kept(folder / name) for name in records if (folder / name).is_file()}
    if not any(kept.values()):
        return
    here = weights_hash(folder)
    for name, there in kept.items():
        if here is not None and there is not None and there != here:
            yield name


def refuse_mixture(folder: Path, records: Sequence[str] = RECORDS) -> None:
    """Refuse a folder with records of other weights.

    Raises:
        ValueError: a record in the folder was made with other weights than lie there; the sentence
            names the record and the command that makes it again.
    """
    for name in of_others(folder, records):
        remedy = "put back the weights that it belongs to, or delete it"
        if verb := _MADE_BY.get(name):
            remedy = f"`hfsae {verb} {folder}` makes it anew"
        raise Refused(
            f"{folder / name} was made with other weights than those that lie in {folder} now (its "
            f"{KEY} is not theirs); {remedy}"
        )


def _kept(record: Path) -> Any:
    try:
        if record.suffix == ".json":
            return read_json(record).get(KEY)
        with opened_tensors(record) as file:
            return (file.metadata() or {}).get(KEY)
    except (ValueError, SafetensorError, OSError):
        return None  # whoever uses it says that it is damaged


def _hash_of(path: Path) -> str:
    about = path.stat()
    return _hash_of_file(path, about.st_size, about.st_mtime_ns, about.st_ino)


@lru_cache(maxsize=1024)
def _hash_of_file(path: Path, *_about: int) -> str:
    """Once for each state of a file, which may hold a hundred gigabytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
