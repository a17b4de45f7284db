"""The files beside an SAE's weights: read with a sentence for damage, written whole."""

import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

_MADE_BY = {
    "evaluation.json": "evaluate",
    "meta.json": "collect",
    "latents.parquet": "collect",
    "examples.parquet": "collect",
}
_MADE_BY_COMPARISON = ("documents.safetensors", "causes.safetensors")
_KEPT_BY_COMPARISON = ("results.json", "results.safetensors")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ValueError: it holds none; the sentence names the file and what to do.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # bad UTF-8 is one too
        raise ValueError(damaged(path, error)) from error
    if not isinstance(found, dict):
        raise ValueError(damaged(path, "no JSON object"))
    return found


def damaged(path: Path, why: object) -> str:
    """The sentence for a file that cannot be read: why, and what puts it right."""
    verb = _MADE_BY.get(path.name)
    home = path.parent.parent if path.parent.name == "features" else path.parent
    remedy = f"`hfsae {verb} {home}` makes it anew" if verb else "put back a sound copy"
    if path.name in _MADE_BY_COMPARISON:
        remedy = "delete it, and the comparison's command makes it anew"
    if path.name in _KEPT_BY_COMPARISON:
        remedy = "put back a sound copy; without one, delete it: what has no weights is made anew"
    return f"{path} is damaged ({why}); {remedy}"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name to write to, that becomes `path` where the block ends well: nobody sees half a file,
    and of several that write it at once one wins.

    Raises:
        OSError: it cannot be written (disk full, for one); what was there is untouched.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        open_to_readers(temporary)
        os.replace(temporary, path)
    except SafetensorError as error:
        why = f"{error}; {free_space(path.parent)}"
        raise OSError(f"{path} cannot be written ({why})") from error
    finally:
        temporary.unlink(missing_ok=True)


def free_space(folder: Path) -> str:
    """What a sentence about a failed write needs: libraries hide a full disk behind other words."""
    return f"the disk has {shutil.disk_usage(folder).free / 1e6:,.0f} MB free"


def write_whole(path: Path, text: str) -> None:
    """Write a file that is never seen half-written."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What a safetensors file holds, and its metadata.

    Raises:
        ValueError: it is none; the sentence names the file and what to do.
    """
    try:
        with safe_open(path, "pt") as file:
            return load_file(path), file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise ValueError(damaged(path, error)) from error


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file that is never seen half-written."""
    with replacing(path) as temporary:
        save_file({name: t.contiguous() for name, t in tensors.items()}, temporary, metadata)


def open_to_readers(path: Path) -> None:
    """Give a file the rights that files of this user have: safetensors and mkstemp let nobody else
    read what they write."""
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    beside.touch()
    try:
        path.chmod(beside.stat().st_mode)
    finally:
        beside.unlink()
