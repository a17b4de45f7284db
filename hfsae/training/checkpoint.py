"""Checkpoints that are whole or absent, and give back every bit.

A checkpoint is one file, `checkpoints/step-00001234.pt`: written under a temporary name, flushed to
disk, then renamed, so a process killed at any moment leaves earlier checkpoints untouched and at
worst a stray temporary file, which the next save removes. Read with `weights_only=True`: it holds
tensors, numbers and strings, and nothing in it is executed.
"""

import os
from pathlib import Path
from typing import Any

import torch

from ..records import free_space


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
            f"could not write the checkpoint {path} ({error}; {free_space(folder)}): make room "
            "there or give another output_dir. Earlier checkpoints are untouched, and the same "
            "command resumes from them"
        ) from error
    for stray in folder.glob("step-*.tmp-*"):
        stray.unlink(missing_ok=True)
    if keep is not None:
        for old in _all(folder)[:-keep]:
            old.unlink()
    return path


def latest(folder: Path) -> Path | None:
    """The newest checkpoint in `folder`, if there is any."""
    return max(_all(folder), default=None)


def load(path: Path) -> dict[str, Any]:
    """What `save` was given, on the CPU."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read as a checkpoint ({type(error).__name__}); delete it to resume "
            "from the one before"
        ) from error


def _all(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.pt"))
