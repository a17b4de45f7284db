"""The package's shape in numbers: how long functions are, what has a docstring, who imports whom.

    python scripts/shape.py            the figures, and what is outside its limit
    python scripts/shape.py --missing  the public functions without a docstring, too

A function that overrides one with a docstring counts as documented, as does one whose name a base
class from another package has. Exit code 1 where a figure is outside its limit.
"""

import ast
import statistics
import sys
from collections.abc import Iterator
from importlib import import_module
from inspect import getdoc
from pathlib import Path
from typing import NamedTuple

import grimp

PACKAGE = Path(__file__).resolve().parent.parent / "hfsae"
Function = ast.FunctionDef | ast.AsyncFunctionDef


class Figure(NamedTuple):
    name: str
    value: float
    limit: float
    is_upper: bool = True

    @property
    def holds(self) -> bool:
        return self.value <= self.limit if self.is_upper else self.value >= self.limit

    def __str__(self) -> str:
        sign = "at most" if self.is_upper else "at least"
        mark = "" if self.holds else "   <- outside"
        return f"{self.name:<46}{self.value:>7,.4g}   {sign} {self.limit:g}{mark}"


def figures() -> list[Figure]:
    """All of them, in the order of the printed table."""
    files = {path: path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py"))}
    trees = [ast.parse(text) for text in files.values()]
    lengths = sorted(length(n) for t in trees for n in ast.walk(t) if isinstance(n, Function))
    public = list(public_functions())
    n_documented = sum(has_docstring for _, has_docstring in public)
    return [
        Figure("lines of a function, median", statistics.median(lengths), 6),
        Figure("lines of a function, 90th percentile", lengths[int(0.9 * len(lengths))], 20),
        Figure("lines of a function, most", lengths[-1], 80),
        Figure("public functions with a docstring, %", 100 * n_documented / len(public), 95, False),
        Figure("modules in the largest circle of imports", largest_circle(), 0),
        Figure("files over 800 lines", sum(t.count("\n") > 800 for t in files.values()), 0),
        Figure("loose files at the package's root", len(list(PACKAGE.glob("*.py"))), 5),
    ]


def length(function: Function) -> int:
    """Lines of a function's body, its docstring apart."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def public_functions() -> Iterator[tuple[str, bool]]:
    """(dotted name, whether it has a docstring): top-level functions and methods of classes."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        module = import_module(".".join(part for part in parts if part != "__init__"))
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, Function) and node.name[0] != "_":
                yield f"{module.__name__}.{node.name}", ast.get_docstring(node) is not None
            if isinstance(node, ast.ClassDef) and node.name[0] != "_":
                owner = getattr(module, node.name)
                for part in node.body:
                    if isinstance(part, Function) and part.name[0] != "_":
                        # getdoc() looks at base classes, too
                        has_docstring = bool(getdoc(getattr(owner, part.name)))
                        yield f"{module.__name__}.{node.name}.{part.name}", has_docstring


def largest_circle() -> int:
    """Modules of the largest set whose members all import each other, over others or not; or 0."""
    graph = grimp.build_graph("hfsae")
    above = {m: graph.find_upstream_modules(m) for m in graph.modules}
    return max((sum(m in above[u] for u in above[m]) for m in graph.modules), default=0)


def main() -> int:
    table = figures()
    print(*table, sep="\n")
    if "--missing" in sys.argv:
        print(*(name for name, has_docstring in public_functions() if not has_docstring), sep="\n")
    return 0 if all(figure.holds for figure in table) else 1


if __name__ == "__main__":
    sys.exit(main())
