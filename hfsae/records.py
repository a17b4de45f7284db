"""The JSON and text files beside an SAE: read with a sentence for damage, written whole."""

import json
import os
from pathlib import Path
from typing import Any

_MADE_BY = {
    "evaluation.json": "evaluate",
    "meta.json": "collect",
    "latents.parquet": "collect",
    "examples.parquet": "collect",
}


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
    return f"{path} is damaged ({why}); {remedy}"


def write_whole(path: Path, text: str) -> None:
    """Write a file that is never seen half-written."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8", newline="\n")
    os.replace(temporary, path)
