"""Readers of the comparisons' reports, and of the pages that tell what they say."""

import atexit
import math
import re
import shlex
import shutil
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from comparisons.__main__ import main as make_reports

from hfsae.io.files import read_json

HOME = Path(__file__).parents[2] / "scripts/comparisons"
PAGES = sorted({*HOME.glob("*.md")} - {HOME / "threshold_gradients.md"})  # which a script makes
FVU, LOSS = "FVU", "delta LM loss"
# the README's names of arms, where they are longer than the report's
TITLES = {
    "JumpReLU, warm for three quarters of the steps": "JumpReLU (warm start)",
    "JumpReLU from scratch": "JumpReLU (from scratch)",
    "Gated": "Gated (RI-L1)",
}


def rows(text: str, head: str) -> dict[str, dict[str, str]]:
    """The first table whose head begins so: {row: {column: cell}}."""
    lines = text.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith(f"| {head} |"))
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines[at:]]
    columns, body = cells[0][1:], []
    for line in cells[2:]:
        if len(line) < 2:
            break
        body.append(line)
    return {row[0]: dict(zip(columns, row[1:], strict=True)) for row in body}


def lines(report: str, head: str) -> list[list[str]]:
    """The cells of each line of a report's table whose head begins so."""
    text = of_report(report).partition(f"| {head} |")[2].partition("\n\n")[0]
    return [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines()[2:]]


def section(title: str) -> str:
    """The only section of this title on the pages of comparisons and recipes and in the README."""
    pages = (*PAGES, *(HOME.parent / "recipes").glob("*.md"), HOME.parents[1] / "README.md")
    texts = (path.read_text(encoding="utf-8") for path in pages)
    (found,) = filter(None, (text.partition(f"\n## {title}\n")[2] for text in texts))
    return found.partition("\n## ")[0]


@cache
def of_report(name: str) -> str:
    """A report: the kept one, or what its command makes of the kept results."""
    kept = HOME / name
    if (kept / "report.md").is_file():
        return (kept / "report.md").read_text(encoding="utf-8")
    folder = Path(tempfile.mkdtemp(prefix="hfsae-reports-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    results = ("results.json", "results.safetensors")
    for path in kept.rglob("results.*"):
        if path.name in results:
            copy = folder / "report" / path.relative_to(HOME / name.partition("/")[0])
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
    whole = HOME / f"{name}.yaml"
    if (kept / "results.json").is_file():
        command = shlex.split(read_json(kept / "results.json")["command"])
        argv = command[next(i for i, word in enumerate(command) if word.endswith(".yaml")) :]
    else:
        argv = [str(whole)]
    argv[0] = str(HOME.parents[1] / argv[0])
    argv += ["--report", str(folder / "report"), "--training.output_dir", str(folder / "runs")]
    make_reports(argv)
    (made,) = (folder / "report" / name.partition("/")[2]).glob("report.md")
    return made.read_text(encoding="utf-8")


PLACES = {
    "block 5": "layers.5",
    "block 15": "layers.15",
    "block 25": "layers.25",
    "MLP": "layers.15.mlp",
    "attention": "layers.15.self_attn",
}


def percents(cells: Mapping[Any, str], only: str = r"") -> list[float]:
    """The numbers of a row of differences whose cells begin with this mark; over +1000 is inf."""
    found = (re.match(rf"{only}\**(over )?([+-][\d.]+) %", cell) for cell in cells.values())
    return [math.inf if m[1] else float(m[2]) for m in found if m]


def of_differences(report: str, metric: str) -> dict[str, dict[str, str]]:
    """{arm: {column: cell}} of a report's table of differences."""
    return rows(of_report(report).partition("\n## Differences\n")[2], metric)


def number(text: str) -> float:
    return math.inf if text == "over +1000" else float(text)


def agrees(told: str, cells: list[str]) -> bool:
    """Whether whole per cents ("+3", "0 to +1", "over +1000", "-" for none) are those of cells."""
    values = percents(dict(enumerate(cells)))
    ends = [number(part) for part in told.split(" to ")] if told != "-" else []
    measured = [min(values), max(values)] if values else []
    return [*ends, *ends[:1]][:2] == pytest.approx(measured, abs=0.55)
