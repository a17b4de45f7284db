"""The plan of the house, rooms on floors and who imports whom:  python scripts/house.py FILE.svg

Floors are those that import-linter checks, arrows are imports that grimp finds. An arrow is left
out where others lead the same way through rooms between.
"""

import re
import sys
import textwrap
from collections.abc import Iterable, Sequence
from itertools import accumulate, combinations, pairwise
from pathlib import Path
from statistics import mean

import grimp
from importlinter import api
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

import hfsae

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
ROUNDS = 20
HALF = 0.2  # of a floor's height, where the distance of floors is 1
Lines = set[tuple[str, str]]


def floors() -> list[list[str]]:
    """Rooms by floor, the highest first."""
    (contract,) = api.read_configuration(str(PYPROJECT))["contracts_options"]
    return [re.findall(r"hfsae\.(\w+)", layer) for layer in contract["layers"]]


def descriptions() -> dict[str, str]:
    """{first room of a floor: what the docstring of hfsae says of the floor}."""
    page = (hfsae.__doc__ or "").partition("**Floors.**")[2].partition("**A datum")[0]
    return dict(re.findall(r"^ +(\w+)(?: \| \w+)*  +(\S.*)$", page, re.MULTILINE))


def imports(rooms: Iterable[str]) -> Lines:
    """(room, room that it imports)."""
    graph = grimp.build_graph("hfsae", cache_dir=None)
    names = {f"hfsae.{room}": room for room in rooms}
    for name in names:
        if graph.find_children(name):
            graph.squash_module(name)
    below = {name: graph.find_modules_directly_imported_by(name) for name in names}
    return {(names[a], names[b]) for a in names for b in below[a] if b in names and a != b}


def without_detours(lines: Lines) -> Lines:
    """The lines, but for those whose ends others join through rooms between."""

    def reaches(room: str, end: str) -> bool:
        return any(a == room and (b == end or reaches(b, end)) for a, b in lines)

    return {(a, b) for a, b in lines if not any(reaches(c, b) for d, c in lines if d == a)}


class Plan:
    """Rooms on their floors, in an order in which few lines cross.

    A line bends on each floor that it passes, at a point that has the name of the room where the
    line ends: lines to one room share it.
    """

    def __init__(self, floors: Sequence[Sequence[str]], lines: Lines) -> None:
        self.at = at = {room: i for i, floor in enumerate(floors) for room in floor}
        self.gaps: list[Lines] = [set() for _ in floors[1:]]
        """Lines through each gap between two floors, by their upper and lower ends."""
        for room, other in lines:
            ends = [room, *[other] * (at[other] - at[room])]
            for i, line in enumerate(pairwise(ends), start=at[room]):
                self.gaps[i].add(line)
        points = [set(), *({other for _, other in gap} for gap in self.gaps)]
        self.floors = [[*f, *sorted(p - {*f})] for f, p in zip(floors, points, strict=True)]
        self._sort()

    def is_room(self, i: int, name: str) -> bool:
        """Whether a name on a floor is a room there; else lines pass it."""
        return self.at[name] == i

    def colour(self, room: str) -> tuple[float, ...]:
        """Of all lines to a room."""
        return colormaps["tab10"]([*self.at].index(room) % 10)

    def _sort(self) -> None:
        """Sort floors by where their lines end above and below; keep the best order."""
        best = self.floors
        for _ in range(ROUNDS):
            for i in (*range(len(self.floors)), *reversed(range(len(self.floors)))):
                middles = {name: self._middle(i, name) for name in self.floors[i]}
                floor = sorted(self.floors[i], key=middles.__getitem__)
                self.floors = [*self.floors[:i], floor, *self.floors[i + 1 :]]
                best = min(best, self.floors, key=self._n_crossings)
        self.floors = best

    def _middle(self, i: int, name: str) -> float:
        """The mean place of what a room or a point of a floor is joined with, from 0 to 1."""
        above = self.gaps[i - 1] if i else ()
        below = self.gaps[i] if i < len(self.gaps) else ()
        joined = [self._place(i - 1, a) for a, b in above if b == name]
        return mean(joined + [self._place(i + 1, b) for a, b in below if a == name])

    def _place(self, i: int, name: str) -> float:
        return (self.floors[i].index(name) + 0.5) / len(self.floors[i])

    def _n_crossings(self, floors: Sequence[Sequence[str]]) -> int:
        n = 0
        for gap, (upper, lower) in zip(self.gaps, pairwise(floors), strict=True):
            ends = [(upper.index(a), lower.index(b)) for a, b in gap]
            n += sum((a - c) * (b - d) < 0 for (a, b), (c, d) in combinations(ends, 2))
        return n

    def x(self, i: int) -> dict[str, float]:
        """The middles of the rooms and points of a floor, from 0 to 1."""
        names = self.floors[i]
        widths = [0.02 + 0.0095 * len(name) if self.is_room(i, name) else 0.0 for name in names]
        space = (1 - sum(widths)) / (len(widths) + 1)
        left = accumulate((width + space for width in widths[:-1]), initial=space)
        return {n: start + w / 2 for n, start, w in zip(names, left, widths, strict=True)}


def picture() -> Figure:
    """The plan, with what each floor is for on its right."""
    every = floors()
    plan = Plan(every, without_detours(imports(room for floor in every for room in floor)))
    told = descriptions()
    figure = Figure(figsize=(12, 9.5))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-0.02, 1.3), ylim=(0.5 - len(every), 0.5))
    axes.axis("off")
    for i, floor in enumerate(every):
        axes.add_patch(Rectangle((0, -i - HALF), 1, 2 * HALF, color="#eef2f7", zorder=0))
        if floor[0] in told:
            text = textwrap.fill(told[floor[0]], 32)
            axes.text(1.02, -i, text, va="center", fontsize=10, color="#333333")
        _draw_rooms(axes, plan, i)
    for i, gap in enumerate(plan.gaps):
        _draw_lines(axes, plan, i, gap)
    return figure


def _draw_rooms(axes: Axes, plan: Plan, i: int) -> None:
    box = {"boxstyle": "round,pad=0.45", "facecolor": "white", "edgecolor": "#4a6fa5"}
    for name, x in plan.x(i).items():
        if plan.is_room(i, name):
            axes.text(x, -i, name, ha="center", va="center", fontsize=11, bbox=box)
        else:
            axes.plot([x, x], [HALF - i, -HALF - i], color=plan.colour(name), linewidth=1.2)


def _draw_lines(axes: Axes, plan: Plan, i: int, gap: Lines) -> None:
    above, below = plan.x(i), plan.x(i + 1)
    for name, other in sorted(gap):
        style = "-|>" if plan.is_room(i + 1, other) else "-"
        line = {"arrowstyle": style, "color": plan.colour(other), "linewidth": 1.2}
        start, end = (above[name], -HALF - i), (below[other], HALF - i - 1)
        axes.annotate("", end, start, arrowprops=line | {"shrinkA": 0, "shrinkB": 0})


def draw(path: Path) -> None:
    """Write the picture as an SVG file, the same to the byte each time."""
    with rc_context({"svg.hashsalt": "hfsae"}):
        picture().savefig(path, format="svg", metadata={"Date": None})


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python scripts/house.py FILE.svg")
    draw(Path(sys.argv[1]))
