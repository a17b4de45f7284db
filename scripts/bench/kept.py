"""Results of a benchmark in a file: those that a page tells lie in results/, beside it.

    {"runs": [{"command": ..., "machine": ..., ...}, ...]}

A run takes the place of an earlier one with the same settings; others stay. Pages are written from
these files by `scripts/pages/write.py`.
"""

import json
import platform
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from hfsae.io import without_local_paths


def keep(path: Path, run: Mapping[str, Any], settings: Sequence[str]) -> None:
    """Put a run into a file, with the command and the machine that made it.

    Args:
        settings: keys whose values tell runs apart.
    """
    runs = json.loads(path.read_text(encoding="utf-8"))["runs"] if path.is_file() else []
    others = [old for old in runs if any(old.get(key) != run[key] for key in settings)]
    about = {"command": _command(), "machine": machine()}
    kept = {"runs": [*others, without_local_paths({**about, **run})]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def machine() -> str:
    """The processor, such as "AMD EPYC 9R14 (AVX512, 2 threads)"."""
    about, name = Path("/proc/cpuinfo"), platform.processor() or platform.machine()
    if about.is_file() and (match := re.search(r"model name\s*: (.+)", about.read_text())):
        name = match[1].strip()
    n = torch.get_num_threads()
    return f"{name} ({torch.backends.cpu.get_cpu_capability()}, {n} thread{'s' if n > 1 else ''})"


def table(rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; the first row is its head, and all columns but the first are
    right-aligned."""
    head, *body = rows
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *body))


def _command() -> str:
    script = Path(sys.argv[0]).resolve()
    return shlex.join(["python", f"scripts/{script.parent.name}/{script.name}", *sys.argv[1:]])
