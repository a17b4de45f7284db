"""Harvested activations on disk: a language model reads each text only once.

An entry holds the activations of one batch of token rows at one site: kept positions, in the
model's dtype. Its key is the input (language model, tokens, mask), so it serves every run with the
same rows: another dictionary, seed or bucket size, more processes, or the same run resumed. Cached
activations equal harvested ones to the bit.

    FOLDER/<language model>/<name>.safetensors

A shard holds a tensor for each site; its header holds the entries' places and checksums. It is
written under another name, flushed and renamed: a killed process leaves whole shards and loses at
most one shard of work. A damaged shard is deleted, and its part harvested again. The key covers the
language model's weights, settings and input. Use another folder for anything else that changes a
forward pass, such as a hook.
"""

import json
import logging
import os
import time
import uuid
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..io.errors import Refused
from ..io.files import open_to_readers

logger = logging.getLogger(__name__)
SHARD_BYTES = 2**27
_ABANDONED_SECONDS = 3600  # no process still writes a temporary file older than this
_SAMPLED = 1024  # numbers of each weight in a language model's digest


class _Place(NamedTuple):
    shard: Path
    start: int
    length: int
    checksum: int


class ActivationCache:
    """Activations by batch and site, in the language model's own subfolder of `folder`.

    Memory: one shard, 128 MiB, and twice that while it is written. Several processes may use a
    folder at once; each reads the shards from before its start, and its own.

    Args:
        max_bytes: limit for this subfolder; at the limit, nothing more is stored.

    Raises:
        ValueError: the folder cannot be made.
    """

    def __init__(self, folder: str | Path, lm: nn.Module, *, max_bytes: float) -> None:
        self.folder = Path(folder).expanduser() / _name(lm)
        self.max_bytes, self.is_full = max_bytes, False
        self.hits = self.misses = 0
        self._places: dict[tuple[str, str], _Place] = {}
        self._pending: dict[str, list[tuple[str, Tensor]]] = {}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Refused(
                f"harvest.cache {folder} cannot be made ({error.strerror}); give another folder"
            ) from error
        for stray in self.folder.glob("*.tmp-*"):  # from a killed process
            with suppress(FileNotFoundError):  # renamed or deleted meanwhile
                if time.time() - stray.stat().st_mtime > _ABANDONED_SECONDS:
                    stray.unlink()
        for shard in sorted(self.folder.glob("*.safetensors")):
            self._read_header(shard)

    def get(self, key: str, sites: Sequence[str]) -> dict[str, Float[Tensor, "n _"]] | None:
        """A batch's activations at all sites, on the CPU; None if one is missing or damaged."""
        loaded = {site: self._load(self._places.get((key, site)), site) for site in sites}
        whole = {site: acts for site, acts in loaded.items() if acts is not None}
        if len(whole) < len(sites):
            self.misses += 1
            return None
        self.hits += 1
        return whole

    def put(self, key: str, activations: Mapping[str, Float[Tensor, "n _"]]) -> None:
        """Store a batch's activations; they reach the disk at `flush`, or when a shard is full."""
        if self.is_full:
            return
        for site, acts in activations.items():
            if (key, site) not in self._places:
                self._pending.setdefault(site, []).append((key, acts.cpu()))
        if self._pending_bytes() >= SHARD_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write pending activations. A full disk ends the caching, not the run."""
        pending, size = self._pending, self._pending_bytes()
        self._pending = {}
        if not size:
            return
        if self._bytes_on_disk() + size > self.max_bytes:
            self._stop(f"it has reached harvest.cache_gb ({self.max_bytes / 1e9:g} GB)")
            return
        try:
            self._write(pending)
        except (OSError, SafetensorError) as error:
            self._stop(f"it cannot be written to ({error})")

    def _bytes_on_disk(self) -> int:
        """Bytes from all processes that write to this folder."""
        n = 0
        for shard in self.folder.glob("*.safetensors"):
            with suppress(FileNotFoundError):
                n += shard.stat().st_size
        return n

    def _pending_bytes(self) -> int:
        return sum(acts.nbytes for entries in self._pending.values() for _, acts in entries)

    def _stop(self, why: str) -> None:
        self.is_full = True
        logger.warning("the activation cache %s keeps nothing more: %s", self.folder, why)

    def _write(self, pending: dict[str, list[tuple[str, Tensor]]]) -> None:
        shard = self.folder / f"{uuid.uuid4().hex}.safetensors"
        temporary = shard.with_suffix(f".tmp-{os.getpid()}")
        tensors, places = {}, []
        for site, entries in pending.items():
            tensors[site], start = torch.cat([acts for _, acts in entries]), 0
            for key, acts in entries:
                places.append([key, site, start, len(acts), _checksum(acts)])
                start += len(acts)
        try:
            save_file(tensors, temporary, metadata={"entries": json.dumps(places)})
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            open_to_readers(temporary)
            os.replace(temporary, shard)
        finally:
            temporary.unlink(missing_ok=True)
        self._note(shard, places)

    def _read_header(self, shard: Path) -> None:
        try:
            with safe_open(shard, "pt") as file:
                self._note(shard, json.loads(file.metadata()["entries"]))
        except OSError as error:
            self._leave_out(shard, error)
        except (SafetensorError, ValueError, TypeError, KeyError) as error:
            self._discard(shard, error)

    def _note(self, shard: Path, places: list[list[Any]]) -> None:
        for key, site, *place in places:
            self._places[key, site] = _Place(shard, *place)

    def _load(self, place: _Place | None, site: str) -> Tensor | None:
        if place is None:
            return None
        try:
            with safe_open(place.shard, "pt") as file:
                acts = file.get_slice(site)[place.start : place.start + place.length]
        except OSError as error:
            self._leave_out(place.shard, error)
            return None
        except SafetensorError as error:
            self._discard(place.shard, error)
            return None
        if _checksum(acts) != place.checksum:
            self._discard(place.shard, "a checksum does not match")
            return None
        return acts

    def _discard(self, shard: Path, why: object) -> None:
        logger.warning("%s is damaged (%s); it is deleted, and harvested again", shard, why)
        shard.unlink(missing_ok=True)
        self._forget(shard)

    def _leave_out(self, shard: Path, why: OSError) -> None:
        """The file may be undamaged: another user's, or on a disk that does not answer."""
        logger.warning("%s cannot be read (%s); it is left out, and harvested again", shard, why)
        self._forget(shard)

    def _forget(self, shard: Path) -> None:
        self._places = {k: place for k, place in self._places.items() if place.shard != shard}


def batch_key(inputs: Mapping[str, Tensor], keep: Tensor, rows: int, way: str = "") -> str:
    """Hash of inputs, mask and rows per forward pass; `way` names a computation that rounds
    differently, such as compiled code."""
    names = " ".join(name for name in inputs if name != "input_ids")
    shapes = " ".join(str(tuple(x.shape)) for x in inputs.values())
    digest = blake2b(f"{names}{shapes} {rows}{way}".encode(), digest_size=16)
    for part in (*inputs.values(), keep):
        digest.update(part.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def lm_digest(lm: nn.Module) -> str:
    """A hash of some numbers of each weight; it identifies a language model's weights."""
    digest = blake2b(digest_size=8)
    for part in _weights(lm):
        digest.update(part)
    return digest.hexdigest()


def _weights(lm: nn.Module) -> Iterator[bytes | memoryview]:
    for name, weight in lm.state_dict().items():
        yield f"{name} {tuple(weight.shape)} {weight.dtype}".encode()
        if not weight.is_meta:
            yield _bytes(weight.flatten()[:: max(1, weight.numel() // _SAMPLED)].cpu())


def _name(lm: Any) -> str:
    """The folder of a language model: its name, and a hash of its settings and weights."""
    settings = lm.config.to_dict() | {"attention": lm.config._attn_implementation}
    unimportant = ("_name_or_path", "transformers_version", "_commit_hash", "use_cache")
    relevant = {key: value for key, value in settings.items() if key not in unimportant}
    digest = blake2b(json.dumps(relevant, sort_keys=True, default=str).encode(), digest_size=8)
    for part in _weights(lm):
        digest.update(part)
    return f"{Path(lm.config._name_or_path or type(lm).__name__).name}-{digest.hexdigest()}"


def _checksum(acts: Tensor) -> int:
    return zlib.crc32(_bytes(acts))


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().data
