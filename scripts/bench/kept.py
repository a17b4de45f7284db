"""Results of a benchmark in a file: those that a page tells lie in results/, beside it.

    {"runs": [{"command": ..., "machine": ..., ...}, ...]}

A run takes the place of an earlier one with the same settings; others stay. Pages are written from
these files by `scripts/pages/write.py`.
"""

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from hfsae.machine.files import read_json, write_whole
from hfsae.machine.processor import name_of
from hfsae.machine.visible import public_record


def keep(path: Path, run: Mapping[str, Any], settings: Sequence[str]) -> None:
    """Put a run into a file, with the command and the machine that made it.

    Args:
        settings: keys whose values tell runs apart.
    """
    runs = read_json(path)["runs"] if path.is_file() else []
    others = [old for old in runs if any(old.get(key) != run[key] for key in settings)]
    about = {"command": _command(), "machine": name_of(torch.device("cpu"))}
    kept = {"runs": [*others, public_record({**about, **run})]}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(kept, indent=1) + "\n")


def _command() -> str:
    script = Path(sys.argv[0]).resolve()
    return shlex.join(["python", f"scripts/{script.parent.name}/{script.name}", *sys.argv[1:]])
