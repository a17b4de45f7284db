"""The package's shape in numbers: how large it is, what has a docstring, who imports whom.

    python scripts/shape.py               the figures, and what is outside its limit
    python scripts/shape.py --missing     the public functions without a docstring, too
    python scripts/shape.py --first_step  and how many functions, in how many files, run until the
                                          first step of a small quickstart has ended: two minutes

A function that overrides one with a docstring counts as documented, as does one whose name a base
class from another package has. A script is private where it imports from hfsae anything but
`hfsae.X` and names of a room's `__init__`. Exit code 1 where a figure is outside its limit.
"""

import ast
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from inspect import getdoc
from pathlib import Path
from typing import NamedTuple

import grimp

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "hfsae"
RECORDS = {"NamedTuple", "TypedDict", "Protocol", "dataclass"}
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
        value = f"{self.value:,}" if isinstance(self.value, int) else f"{self.value:.4g}"
        sign = "at most" if self.is_upper else "at least"
        mark = "" if self.holds else "   <- outside"
        return f"{self.name:<46}{value:>7}   {sign} {self.limit:,g}{mark}"


def figures() -> list[Figure]:
    """What `tests/test_project.py` holds the package to."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in files()]
    lengths = [length(n) for t in trees for n in ast.walk(t) if isinstance(n, Function)]
    public = list(public_functions())
    n_documented = sum(has_docstring for _, has_docstring in public)
    return [
        Figure("lines of a function, most", max(lengths), 80),
        Figure("public functions with a docstring, %", 100 * n_documented / len(public), 95, False),
        Figure("modules in the largest circle of imports", largest_circle(), 0),
        Figure("files over 800 lines", sum(n_lines(path) > 800 for path in files()), 0),
        Figure("loose files at the package's root", len(list(PACKAGE.glob("*.py"))), 5),
        Figure("files", len(files()), 240),
        Figure("rooms", len(list(PACKAGE.glob("*/__init__.py"))), 20),
        Figure("private functions with one caller", sum(map(n_with_one_caller, trees)), 350),
        Figure("files whose one importer is a neighbour", n_of_one_neighbour(), 45),
    ]


def goals() -> list[Figure]:
    """How large the package is to be at most, so that a reader can hold it in one head."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in files()]
    scripts = [path for path in (ROOT / "scripts").rglob("*.py") if [*private_imports(path)]]
    return [
        Figure("lines", sum(map(n_lines, files())), 47_000),
        Figure("records and protocols", sum(map(n_records, trees)), 150),
        Figure("scripts that import private names", len(scripts), 0),
    ]


def files() -> list[Path]:
    """The package's modules."""
    return sorted(PACKAGE.rglob("*.py"))


def n_lines(path: Path) -> int:
    """Lines of a file."""
    return path.read_text(encoding="utf-8").count("\n")


def n_with_one_caller(tree: ast.Module) -> int:
    """Private functions of a module, methods apart, whose name stands once outside themselves."""
    private = [n for n in tree.body if isinstance(n, Function) and n.name[0] == "_"]
    counts = Counter(_names(tree))
    return sum(counts[n.name] - Counter(_names(n))[n.name] == 1 for n in private)


def _names(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        if isinstance(node, ast.Attribute):
            yield node.attr


def n_records(tree: ast.Module) -> int:
    """Classes that are a NamedTuple, a TypedDict, a Protocol or a dataclass."""
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    kinds = ({*_names(ast.Tuple([*c.bases, *c.decorator_list]))} for c in classes)
    return sum(bool(kind & RECORDS) for kind in kinds)


def n_of_one_neighbour() -> int:
    """Files that one module imports, which lies in their own folder."""
    graph, n = grimp.build_graph("hfsae"), 0
    for path in files():
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if module in graph.modules:  # `__init__` has its folder's name there
            folder = module.rpartition(".")[0]
            importers = graph.find_modules_that_directly_import(module)
            n += len(importers) == 1 and {*importers} <= graph.find_children(folder) | {folder}
    return n


def private_imports(path: Path) -> Iterator[str]:
    """What a file imports from hfsae, functions' imports too, that is neither `hfsae.X` nor a name
    of a room's `__init__`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.startswith("hfsae.")]
            yield from (name for name in names if face(name) is None)
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "hfsae":
            public = face(str(node.module)) or set()
            if node.module == "hfsae":
                public |= {room.parent.name for room in PACKAGE.glob("*/__init__.py")}
            for alias in node.names:
                if alias.name not in public or alias.name[0] == "_":
                    yield f"{node.module}.{alias.name}"


def face(module: str) -> set[str] | None:
    """Names that a package's `__init__` lists; None of a module that is no package."""
    folder = ROOT.joinpath(*module.split("."))
    paths = [path for path in folder.glob("__init__.py*") if path.suffix in (".py", ".pyi")]
    if not paths:
        return None
    names: set[str] = set()
    nodes = [node for path in paths for node in ast.parse(path.read_text("utf-8")).body]
    nodes += [part for node in nodes if isinstance(node, ast.If) for part in node.body]
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, Function | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


_FIRST_STEP = """
import collections, os, pathlib, sys, threading
import hfsae
from hfsae.cli import main
from hfsae.training import Run
root = str(pathlib.Path(hfsae.__file__).parent) + os.sep
called, step = set(), Run.step
def note(frame, event, arg):
    code = frame.f_code
    if event == "call" and code.co_flags & 1 and code.co_filename.startswith(root):  # no class body
        if not code.co_name.startswith("<"):
            called.add((code.co_filename, code.co_name))
def first(*args, **kwargs):
    step(*args, **kwargs)
    sys.setprofile(None)
    print(f"first_step={len(called)},{len({file for file, _ in called})}", flush=True)
    os._exit(0)
Run.step = first
threading.setprofile(note)
sys.setprofile(note)
main(["train", "quickstart", *sys.argv[1:]])
"""


def first_step() -> list[Figure]:
    """Functions of hfsae that run until the first step of a small quickstart has ended."""
    fields = {"training.n_tokens": 8192, "sae.d_sae": 512, "evaluation.n_tokens": 2000}
    fields |= {"collect_tokens": 0, "explain_tokens": 0, "preset_seconds": 0}
    with tempfile.TemporaryDirectory() as folder:
        fields["training.output_dir"] = folder
        argv = [str(x) for name, value in fields.items() for x in (f"--{name}", value)]
        done = subprocess.run(
            [sys.executable, "-c", _FIRST_STEP, *argv],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    _, found, numbers = done.stdout.rpartition("first_step=")
    if not found:
        raise SystemExit(f"no first step: {done.stderr.strip()[-2000:]}")
    n_functions, n_files = map(int, numbers.split(","))
    return [
        Figure("functions run until the first step has ended", n_functions, 250),
        Figure("files that these stand in", n_files, 40),
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
    table = [*figures(), *goals()]
    if "--first_step" in sys.argv:
        table += first_step()
    print(*table, sep="\n")
    if "--missing" in sys.argv:
        print(*(name for name, has_docstring in public_functions() if not has_docstring), sep="\n")
    return 0 if all(figure.holds for figure in table) else 1


if __name__ == "__main__":
    sys.exit(main())
