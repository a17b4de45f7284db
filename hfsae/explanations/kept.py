"""What a pass over the text found, kept while a judge's answers are awaited: it is read once.

A safetensors file with the tokens, their halves, and the windows and firings of the chosen latents
and directions. Its head has the hash of what all this was made from, and that of the content: of
anything else, or damaged, it is made again.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ..io.checksums import content_hash
from ..io.files import replacing
from .reading import CorpusActivations, Firings
from .windows import Evidence, Selection, Window

_FORMAT = 1
_FACTS = ("ids", "half", "start", "stop", "computed", "n_firings", "order")
_GROUPS = ("shown", "active", "inactive")
Arrays = dict[str, np.ndarray]


class Found(NamedTuple):
    """The text as it was read, and the windows of latents and directions."""

    reading: CorpusActivations
    selection: Selection


class Kept:
    """A file with what was found.

    Args:
        made_from: plain values that decide what is found: weights, text, settings.
    """

    def __init__(self, path: Path, made_from: Mapping[str, Any]) -> None:
        self.path = path
        self._made_from = content_hash({**made_from, "format": _FORMAT})

    @cached_property
    def found(self) -> Found | None:
        """What the file holds; None: there is none, it is damaged, or of something else."""
        try:
            with safe_open(self.path, "np") as file:
                about = file.metadata() or {}
                if about.get("made_from") != self._made_from:
                    return None
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError):
            return None
        return _found(arrays, about) if about.get("content") == _hash(arrays, about) else None

    def save(self, found: Found) -> None:
        """Write the file."""
        reading, selection = found
        evidence = [*selection.latents, *selection.directions]
        groups = [getattr(e, group) for e in evidence for group in _GROUPS]
        windows: list[Window] = [window for group in groups for window in group]
        kinds = sorted({window.kind for window in windows})
        arrays = {name: getattr(reading, name) for name in _FACTS} | {
            "latent": np.array([e.latent for e in evidence]),
            "density": np.array([e.density for e in evidence]),
            "n_trace": np.array([len(e.trace.token) for e in evidence]),
            "token": np.concatenate([e.trace.token for e in evidence]).astype(np.int32),
            "value": np.concatenate([e.trace.value for e in evidence]),
            "n_windows": np.array([len(group) for group in groups]),
            "windows": np.array([w[:3] for w in windows]),
            "peaks": np.array([w.activation for w in windows]),
            "kinds": np.array([kinds.index(w.kind) for w in windows]),
        }
        about = {
            "made_from": self._made_from,
            "kinds": json.dumps(kinds),
            "left_out": json.dumps(selection.left_out),
            "n_latents": str(len(selection.latents)),
            "n_documents": json.dumps(reading.n_documents),
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self.path) as path:
            save_file(arrays, path, {**about, "content": _hash(arrays, about)})


def _hash(arrays: Arrays, about: Mapping[str, str]) -> str:
    plain = {key: value for key, value in about.items() if key != "content"}
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode())
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()


def _found(arrays: Arrays, about: Mapping[str, str]) -> Found:
    """What `Kept.save` was given; without the projections, from which directions were chosen."""
    kinds = json.loads(about["kinds"])
    columns: Any = [arrays[name].tolist() for name in ("windows", "peaks", "kinds")]
    places = zip(*columns, strict=True)
    windows = [Window._make([*at, peak, kinds[kind]]) for at, peak, kind in places]
    groups = _cut(windows, arrays["n_windows"])
    ends = arrays["n_trace"].cumsum()[:-1]
    pairs = (np.split(arrays["token"].astype(np.int64), ends), np.split(arrays["value"], ends))
    traces = [Firings(*pair) for pair in zip(*pairs, strict=True)]
    facts = zip(arrays["latent"].tolist(), arrays["density"].tolist(), traces, strict=True)
    evidence = [Evidence(*of, *groups[3 * i : 3 * i + 3]) for i, of in enumerate(facts)]
    n_latents = int(about["n_latents"])
    latents, directions = evidence[:n_latents], evidence[n_latents:]
    reading = CorpusActivations(
        **{name: arrays[name] for name in _FACTS},
        n_documents=tuple(json.loads(about["n_documents"])),
        projections=np.zeros((len(arrays["ids"]), 0), np.float32),
        _traces={e.latent: e.trace for e in latents},
    )
    return Found(reading, Selection(latents, directions, json.loads(about["left_out"])))


def _cut(windows: Sequence[Window], lengths: np.ndarray) -> list[list[Window]]:
    ends = lengths.cumsum().tolist()
    return [list(windows[end - n : end]) for end, n in zip(ends, lengths.tolist(), strict=True)]
