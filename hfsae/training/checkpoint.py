"""Checkpoints that are either complete or absent, and restore every bit.

A checkpoint is one file, `checkpoints/step-00001234.pt`: written under a temporary name, flushed to
disk, then renamed, so a process killed at any moment leaves earlier checkpoints untouched and at
worst a stray temporary file, which the next save removes. Read with `weights_only=True`: it holds
tensors, numbers and strings, and nothing in it is executed. It is a zip archive, in which torch
writes a checksum of each tensor; torch does not compare it when it reads, so `load` does. It also
holds the run's `identity`, by which another run does not continue from it.
"""

import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ..io.errors import Damaged, Refused, one_line
from ..io.file_names import STEPS
from ..io.files import free_space
from ..models import SAE
from ..models.config import own_fields
from .arguments import FREE, TrainingArguments

FORMAT = 1  # format of the trainer's state; a checkpoint without a number has the first
_SHOWN = 120  # characters of another library's error
_TEXT = "the text in text.dataset"  # as a sentence names it
_OF_THE_STREAM = {"model_weights"}  # fields of an SAE that the stream's own state covers better


def save(folder: Path, step: int, state: dict[str, Any], *, keep: int | None = None) -> Path:
    """Write the checkpoint of `step`, then remove all but the newest `keep` (None: remove none).

    Raises:
        OSError: it cannot be written (disk full, for one); older checkpoints are untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:08d}.pt"
    temporary = path.with_suffix(f".tmp-{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        temporary.unlink(missing_ok=True)
        raise OSError(
            f"could not write the checkpoint {path} ({error}; {free_space(folder)}): free space "
            "there and run the same command to resume from the last checkpoint, which is "
            "untouched, or give another output_dir"
        ) from error
    for stray in folder.glob("step-*.tmp-*"):
        stray.unlink(missing_ok=True)
    if keep is not None:
        for old in sorted(folder.glob(STEPS))[:-keep]:
            old.unlink()
    return path


def load(path: Path) -> dict[str, Any]:
    """The state that `save` was given, on the CPU.

    Raises:
        ValueError: the file is damaged, or a later version of hfsae wrote it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"the checksum of {damaged} differs")
        state = dict(torch.load(path, map_location="cpu", weights_only=True))
    except (PermissionError, MemoryError):
        raise
    except Exception as error:
        why = one_line(error)[:_SHOWN]
        raise Damaged(
            f"the checkpoint {path} is damaged ({why}); restore a copy of it, or delete it to go "
            "on from the one before, or from the start where there is none"
        ) from error
    version = state.get("format", FORMAT)
    if version != FORMAT:
        raise Refused(
            f"a later version of hfsae wrote the checkpoint {path} (format {version}; this version "
            f"reads {FORMAT}); resume with that version, or give another output_dir"
        )
    return state


def identity(
    args: TrainingArguments,
    saes: Mapping[str, SAE],
    text: str | None = None,
    own: Mapping[str, TrainingArguments] | None = None,
) -> dict[str, Any]:
    """The settings that a checkpoint must share for training to resume from it, by key: all that
    the result of training depends on. A field of an SAE's config has the key "name.field".

    Args:
        text: digest of the text; None, here or in the checkpoint, counts as the same text.
        own: by name, the arguments of SAEs that are not trained by `args`. Where these differ, they
            have the key "name.training.field".
    """
    values = {key: value for key, value in asdict(args).items() if key not in FREE}
    if text is not None:
        values[_TEXT] = text
    for name, other in (own or {}).items():
        differing = {k: v for k, v in asdict(other).items() if v != getattr(args, k)}
        values |= {f"{name}.training.{key}": value for key, value in differing.items()}
    for name, sae in saes.items():
        for key in ("model_type", *sorted(own_fields(type(sae.config)) - _OF_THE_STREAM)):
            values[f"{name}.{key}".lstrip(".")] = getattr(sae.config, key)
    return json.loads(json.dumps(values, default=str))  # as a checkpoint keeps them


def refuse_another_run(ours: Mapping[str, Any], theirs: Mapping[str, Any], path: Path) -> None:
    """Refuse a checkpoint whose `identity` differs.

    Raises:
        ValueError: the one at `path` belongs to another run.
    """
    may_differ = {_TEXT} if not (_TEXT in ours and _TEXT in theirs) else set[str]()
    pairs = {
        key: (theirs.get(key, "absent"), ours.get(key, "absent"))
        for key in sorted({*ours, *theirs} - may_differ)
    }
    differing = [key for key, (there, here) in pairs.items() if there != here]
    if differing:
        there, here = pairs[differing[0]]
        raise Refused(
            f"{path} belongs to another run: {differing[0]} is {there!r} there and {here!r} here "
            f"(differing: {', '.join(differing)}); give another output_dir or delete that folder"
        )
