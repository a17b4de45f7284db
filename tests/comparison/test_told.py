"""What scripts/comparisons/README.md says of reports is what the reports say."""

import re
from pathlib import Path

import pytest

HOME = Path(__file__).parents[2] / "scripts/comparisons"
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


def section(title: str) -> str:
    text = (HOME / "README.md").read_text(encoding="utf-8")
    return text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def of_report(name: str) -> str:
    return (HOME / name / "report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("title, report", [("The frontier", "frontier"), ("Tuned alike", "equal")])
def test_values_are_the_reports(title, report):
    told = rows(section(title), "FVU / delta LM loss")
    values = of_report(report).partition("\n## Values\n")[2]
    fvu, loss = (rows(values, head) for head in ("FVU", "delta LM loss"))
    assert len(told) > 3
    for arm, cells in told.items():
        name = TITLES.get(arm, arm)
        for l0, cell in cells.items():
            if cell == "-":
                assert fvu[name][l0] == "-"
                continue
            measured = [float(table[name][l0].split(" ")[0]) for table in (fvu, loss)]
            assert [*map(float, cell.split(" / "))] == pytest.approx(measured, abs=6e-4), (arm, l0)


@pytest.mark.parametrize(
    "title, report, arm, words",
    [
        ("The frontier", "frontier", "TopK", "5 to 18 %"),
        ("The frontier", "frontier", "Gated (RI-L1)", "4 to 23 %"),
        ("The frontier", "frontier", "JumpReLU (from scratch)", "3 to 6 %"),
        ("Tuned alike", "equal", "TopK", "3 to 11 %"),
        ("Tuned alike", "equal", "Gated (RI-L1)", "4 to 24 %"),
        ("Tuned alike", "equal", "JumpReLU (from scratch)", "1 to 4 %"),
        ("Tuned alike", "equal", "BatchTopK", "0.7 %"),
        ("Tuned alike", "equal", "dictionary_learning's BatchTopK", "9 to 12 %"),
    ],
)
def test_differences_that_are_told_are_those_that_count_as_shown(title, report, arm, words):
    cells = rows(of_report(report).partition("\n## Differences\n")[2], "FVU")[arm]
    cells.pop("area")
    counted = [float(c) for cell in cells.values() for c in re.findall(r"^\*\*([+-].*?) %", cell)]
    numbers = [float(n) for n in re.findall(r"[\d.]+", words)]
    assert words in " ".join(section(title).split())
    assert numbers == pytest.approx([min(counted), max(counted)][: len(numbers)], abs=0.55)
