"""Harvested activations on disk: a language model reads each text only once.

An entry holds the activations of one batch of token rows at one site: kept positions, in the
model's dtype. Its key is the input (language model, tokens, mask), so it serves every run with the
same rows: another dictionary, seed or bucket size, more processes, or the same run resumed. Cached
activations equal harvested ones to the bit.

    FOLDER/<language model>/<name>.safetensors

A shard holds a tensor for each site, as the files of a harvest do; its metadata hold the entries'
places and checksums. It appears whole: a killed process loses at most one shard of work. A damaged
shard is deleted, and its part harvested again. The key covers the language model's weights,
settings and input. Use another folder for anything else that changes a forward pass, such as a
hook.
"""

import json
import logging
import time
import uuid
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..io.errors import Damaged, Refused
from ..io.files import reading, write_tensors
from .shards import ArrayShard, safetensors_shard

logger = logging.getLogger(__name__)
SHARD_BYTES = 2**27
_ABANDONED_SECONDS = 3600  # no process still writes a temporary file older than this
_SAMPLED = 1024  # numbers of each weight in a language model's digest


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
        model: Any = lm
        settings = model.config.to_dict() | {"attention": model.config._attn_implementation}
        for unimportant in ("_name_or_path", "transformers_version", "_commit_hash", "use_cache"):
            settings.pop(unimportant, None)
        digest = lm_digest(lm, json.dumps(settings, sort_keys=True, default=str))
        name = Path(model.config._name_or_path or type(lm).__name__).name
        self.folder = Path(folder).expanduser() / f"{name}-{digest}"
        self.max_bytes, self.is_full = max_bytes, False
        self.hits = self.misses = 0
        self._places: dict[tuple[str, str], tuple[ArrayShard, int, int, int]] = {}
        """By key and site: the shard, the first row in it, the number of rows, their checksum."""
        self._pending: dict[str, list[tuple[str, Tensor]]] = {}
        self._pending_bytes = 0
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Refused(
                f"harvest.cache {folder} cannot be made ({error.strerror}); give another folder"
            ) from error
        for stray in self.folder.glob("*.tmp*"):  # from a killed process
            with suppress(FileNotFoundError):  # renamed or deleted meanwhile
                if time.time() - stray.stat().st_mtime > _ABANDONED_SECONDS:
                    stray.unlink()
        for path in sorted(self.folder.glob("*.safetensors")):
            try:
                self._note(path)
            except Refused as error:
                self._forget(path, error)

    def get(self, key: str, sites: Sequence[str]) -> dict[str, Float[Tensor, "n _"]] | None:
        """A batch's activations at all sites, on the CPU; None if one is missing or damaged."""
        found: dict[str, Tensor] = {}
        for site in sites:
            if (key, site) not in self._places:
                break
            shard, start, length, checksum = self._places[key, site]
            try:
                acts = shard.reader([site])(start, start + length)[site]
                if zlib.crc32(_bytes(acts)) != checksum:
                    raise Damaged("a checksum does not match")
            except Refused as error:
                self._forget(shard.path, error)
                break
            found[site] = acts
        is_hit = len(found) == len(sites)
        self.hits, self.misses = self.hits + is_hit, self.misses + (not is_hit)
        return found if is_hit else None

    def put(self, key: str, activations: Mapping[str, Float[Tensor, "n _"]]) -> None:
        """Store a batch's activations; they reach the disk at `flush`, or when a shard is full."""
        if self.is_full:
            return
        for site, acts in activations.items():
            if (key, site) not in self._places:
                self._pending.setdefault(site, []).append((key, acts.cpu()))
                self._pending_bytes += acts.nbytes
        if self._pending_bytes >= SHARD_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write pending activations. A full disk ends the caching, not the run."""
        pending, size = self._pending, self._pending_bytes
        self._pending, self._pending_bytes = {}, 0
        if not size:
            return
        for shard in self.folder.glob("*.safetensors"):  # from all processes that write here
            with suppress(FileNotFoundError):
                size += shard.stat().st_size
        if size > self.max_bytes:
            self._stop(f"it has reached harvest.cache_gb ({self.max_bytes / 1e9:g} GB)")
            return
        tensors, places = {}, []
        for site, entries in pending.items():
            tensors[site], start = torch.cat([acts for _, acts in entries]), 0
            for key, acts in entries:
                places.append([key, site, start, len(acts), zlib.crc32(_bytes(acts))])
                start += len(acts)
        path = self.folder / f"{uuid.uuid4().hex}.safetensors"
        try:
            write_tensors(path, tensors, {"entries": json.dumps(places)})
            self._note(path)
        except (OSError, Refused) as error:
            self._stop(f"it cannot be written to ({error})")

    def _stop(self, why: str) -> None:
        self.is_full = True
        logger.warning("the activation cache %s keeps nothing more: %s", self.folder, why)

    def _note(self, path: Path) -> None:
        """Add the entries of a shard.

        Raises:
            ValueError: it is damaged, or cannot be read.
        """
        shard = safetensors_shard(path)
        with reading(path):
            for key, site, start, length, checksum in json.loads(shard.metadata["entries"]):
                self._places[key, site] = shard, start, length, checksum

    def _forget(self, path: Path, why: Refused) -> None:
        """Leave out a shard, and delete it where it is damaged. One that cannot be read may be
        undamaged: another user's, or on a disk that does not answer."""
        if isinstance(why, Damaged):
            logger.warning("%s is damaged; it is deleted, and harvested again", path)
            path.unlink(missing_ok=True)
        else:
            logger.warning("%s; it is left out, and harvested again", why)
        self._places = {k: place for k, place in self._places.items() if place[0].path != path}


def batch_key(inputs: Mapping[str, Tensor], keep: Tensor, rows: int, way: str = "") -> str:
    """Hash of inputs, mask and rows per forward pass; `way` names a computation that rounds
    differently, such as compiled code."""
    names = " ".join(name for name in inputs if name != "input_ids")
    shapes = " ".join(str(tuple(x.shape)) for x in inputs.values())
    digest = blake2b(f"{names}{shapes} {rows}{way}".encode(), digest_size=16)
    for part in (*inputs.values(), keep):
        digest.update(part.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def lm_digest(lm: nn.Module, settings: str = "") -> str:
    """A hash of some numbers of each weight; it identifies a language model's weights, and the
    settings that are given with it."""
    digest = blake2b(settings.encode(), digest_size=8)
    for name, weight in lm.state_dict().items():
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        if not weight.is_meta:
            sample = weight.flatten()[:: max(1, weight.numel() // _SAMPLED)]
            digest.update(_bytes(sample.cpu()))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().data
