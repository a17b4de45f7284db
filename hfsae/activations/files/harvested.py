"""The shards of a harvest: harvest.json has the hash of each, so that a mixture is told."""

from collections.abc import Sequence
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

from ...machine.files import read_json
from ...machine.names import HARVEST
from ...machine.refused import Refused
from .arrays import safetensors_shard

SHARDS = "shards"
"""The key of {file name: hash} in harvest.json."""


def shard_hash(path: Path) -> str:
    """Hash of a shard's name, size, headers, and the first and last MiB of each tensor; computed
    once for each state of the file."""
    about = path.stat()
    return _hash_of(path, about.st_size, about.st_mtime_ns, about.st_ino)


@lru_cache(maxsize=2**16)  # a run opens its files several times
def _hash_of(path: Path, *_about: int) -> str:
    shard = safetensors_shard(path)
    digest = sha256(repr(sorted(shard.metadata.items())).encode())
    for part in shard.edges(sorted(shard.names)):
        digest.update(part)
    return digest.hexdigest()


def refuse_other_shards(paths: Sequence[Path]) -> None:
    """Refuse files that are not those of the harvest in whose folder they lie; others pass, as does
    a harvest from before these hashes.

    Raises:
        ValueError: a shard is missing, was changed or swapped, or is none of the harvest's.
    """
    for folder in dict.fromkeys(path.parent for path in paths):
        path = folder / HARVEST
        shards = read_json(path).get(SHARDS) if path.is_file() else None
        if isinstance(shards, dict):
            _refuse_other_shards(folder, shards, [p.name for p in paths if p.parent == folder])


def _refuse_other_shards(folder: Path, shards: dict[str, str], names: Sequence[str]) -> None:
    why, name = "", ""
    for name in sorted({*shards, *names}):
        if not (folder / name).is_file():
            why = "is missing"
        elif name not in shards:
            why = "is none of its shards, such as a copy of one"
        elif name in names and shard_hash(folder / name) != shards[name]:
            why = "is not the file that was written: its hash differs, as of a swapped one"
        if why:
            raise Refused(
                f"{folder / name} {why} ({HARVEST} has {len(shards):,} shards of this harvest with "
                "their hashes); put back what was written, or harvest into another folder"
            )
