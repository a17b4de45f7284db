"""Break hfsae in one place at a time, and see whether the tests of that room notice.

    python scripts/trials/mutants.py [--rooms ops diffing] [--each 5] [--seed 20261201]
        [--jobs 2] [--list]

A mutant is the package with one expression turned round: `<` for `<=`, `+` for `-`, `and` for `or`,
a number one higher, a condition the other way about, a call left out. They are drawn by seed from
all such places of a room, outside of annotations, default values, constants of a module and texts
of errors. A room's tests (ROOMS) run on a copy of the tree, once as it is and then with each
mutant, until the first test fails. "MISSED" is what needs a look: a test that is not there, or an
expression that makes no difference. Five in each room take some hours of two cores.
"""

import argparse
import ast
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
ROOMS = {
    "ops": "ops",
    "models": "models test_several_sites.py test_weights.py",
    "lm": "lm test_contract.py test_generation.py",
    "activations": "activations test_file_runs.py",
    "training": "training",
    "evaluation": "evaluation test_metrics.py",
    "features": "features test_api.py",
    "explanations": "explanations",
    "steering": "test_steering.py test_generation.py",
    "diffing": "test_diffing.py",
    "comparison": "comparison",
    "attribution": "test_attribution.py",
    "convert": "convert",
    "cards": "test_card.py test_figures.py test_model_cards.py test_foreign.py test_file_runs.py",
    "tuning": "tuning",
    "runs": "test_recipe.py test_file_runs.py test_sizes.py test_causal_recipe.py test_plan.py "
    "test_measurement.py test_presets.py test_presetting.py",
}
"""Which of the tests are those of a room of hfsae/."""
_LONGEST = 600  # seconds after which a mutant's tests are taken to hang
_SWAPS: dict[type, type] = {
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt},
    **{ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is},
    **{ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And},
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult},
    **{ast.FloorDiv: ast.Mult, ast.Mod: ast.Add, ast.Pow: ast.Mult},
}
_NAMES = {"max": "min", "min": "max", "any": "all", "all": "any"}


class Mutant(NamedTuple):
    path: Path
    """relative to the root"""
    start: int
    end: int
    """characters of the file that are replaced"""
    old: str
    new: str

    def __str__(self) -> str:
        before = (ROOT / self.path).read_text()[: self.start]
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        return f"{self.path}:{line}:{column}  {self.old}  ->  {self.new}".replace("\n", " ")


def turned(node: ast.AST) -> ast.expr | ast.stmt | None:
    """The same expression with one thing the other way about; None where there is none."""
    match node:
        case ast.Compare(left, [op], right) if type(op) in _SWAPS:
            return ast.Compare(left, [_SWAPS[type(op)]()], right)
        case ast.BinOp(left, op, right) if type(op) in _SWAPS and not _is_path(node):
            return ast.BinOp(left, _SWAPS[type(op)](), right)
        case ast.BoolOp(op, values):
            return ast.BoolOp(_SWAPS[type(op)](), values)
        case ast.UnaryOp(ast.Not() | ast.USub(), operand):
            return operand
        case ast.IfExp(test, body, orelse):
            return ast.IfExp(test, orelse, body)
        case ast.Constant(bool(value)):
            return ast.Constant(not value)
        case ast.Constant(int(value)):
            return ast.Constant(value + 1)
        case ast.Constant(float(value)):
            return ast.Constant(value * 2 or 1.0)
        case ast.Call(ast.Name(name), args, keywords) if name in _NAMES:
            return ast.Call(ast.Name(_NAMES[name]), args, keywords)
        case ast.Expr(ast.Call(called)) if "logger" not in ast.unparse(called):
            return ast.Pass()
    return None


def _is_path(node: ast.BinOp) -> bool:
    """Whether `/` joins a folder and a name: any change is an error of types."""
    names = ast.unparse(node.right)
    return isinstance(node.op, ast.Div) and (names.isupper() or names[0] in "\"'f")


def places(node: ast.AST) -> Iterator[ast.AST]:
    """What functions do, outside of annotations, default values and texts of errors."""
    in_function = isinstance(node, ast.FunctionDef)
    for name, field in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list") or (in_function and name == "args"):
            continue
        for child in field if isinstance(field, list) else [field]:
            if not isinstance(child, ast.AST) or isinstance(child, ast.Raise | ast.JoinedStr):
                continue
            if isinstance(child, ast.keyword) and child.arg == "strict":
                continue
            if isinstance(node, ast.Module | ast.ClassDef) and isinstance(
                child, ast.Assign | ast.AnnAssign
            ):
                continue
            yield child
            yield from places(child)


def mutants(room: str) -> Iterator[Mutant]:
    for path in sorted((ROOT / "hfsae").rglob("*.py")):
        if path.relative_to(ROOT / "hfsae").parts[0] not in (room, f"{room}.py"):
            continue
        text = path.read_text()
        lines = [0]
        for line in text.splitlines(keepends=True):
            lines.append(lines[-1] + len(line))
        for node in places(ast.parse(text)):
            new = turned(node)
            if new is None or not isinstance(node, ast.expr | ast.stmt):
                continue
            old = ast.get_source_segment(text, node) or ""
            start = (
                lines[node.lineno - 1]
                + len(  # columns are counted in bytes
                    text.splitlines()[node.lineno - 1].encode()[: node.col_offset].decode()
                )
            )
            written = ast.unparse(new)
            written = written if isinstance(new, ast.Pass) else f"({written})"
            yield Mutant(path.relative_to(ROOT), start, start + len(old), old, written)


def tests_of(room: str, tree: Path) -> str:
    """Run a room's tests on a tree. The first that failed; "" where all passed."""
    tests = [f"tests/{name}" for name in ROOMS[room].split()]
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    env = {**os.environ, "PYTHONPATH": str(tree), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command, cwd=tree, env=env, capture_output=True, text=True, timeout=_LONGEST
        )
    except subprocess.TimeoutExpired:
        return "hangs"
    if done.returncode == 0:
        return ""
    told = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return told[0].split(" - ")[0] if told else "the tests do not start"


def copied(folder: Path) -> Path:
    """A copy of what git tracks, for one mutant at a time."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    for name in filter(None, listed.stdout.decode().split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rooms", nargs="+", choices=ROOMS, default=list(ROOMS))
    parser.add_argument("--each", type=int, default=5, help="mutants of a room")
    parser.add_argument("--seed", type=int, default=20261201)
    parser.add_argument("--jobs", type=int, default=2, help="mutants that are tried at once")
    parser.add_argument("--list", action="store_true", help="print the mutants and run nothing")
    options = parser.parse_args()
    drawn = {}
    for room in options.rooms:
        of_room = list(mutants(room))
        rng = random.Random(f"{options.seed} {room}")
        drawn[room] = rng.sample(of_room, min(options.each, len(of_room)))
        print(f"{room}: {len(drawn[room])} of {len(of_room):,} places")
        for mutant in drawn[room] if options.list else ():
            print(f"  {mutant}")
    if options.list:
        return 0
    trees: SimpleQueue[Path] = SimpleQueue()

    def tried(room: str, mutant: Mutant | None) -> str:
        tree, start = trees.get(), time.monotonic()
        try:
            if mutant is None:
                return tests_of(room, tree)
            file = tree / mutant.path
            whole = file.read_text()
            file.write_text(whole[: mutant.start] + mutant.new + whole[mutant.end :])
            by = tests_of(room, tree)
            file.write_text(whole)
            seconds = time.monotonic() - start
            print(f"{'caught' if by else 'MISSED'}  {mutant}  {by}  {seconds:.0f} s", flush=True)
            return by
        finally:
            trees.put(tree)

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.jobs) as pool:
        for job in range(options.jobs):
            trees.put(copied(Path(folder) / str(job)))
        for room, by in zip(drawn, pool.map(lambda room: tried(room, None), drawn), strict=True):
            if by:
                print(f"{room}: its tests fail without a mutant: {by}", file=sys.stderr)
                return 2
        pairs = [(room, mutant) for room, several in drawn.items() for mutant in several]
        n_caught = sum(map(bool, pool.map(lambda pair: tried(*pair), pairs)))
    print(f"{n_caught} of {len(pairs)} mutants caught")
    return 0 if n_caught == len(pairs) else 1


if __name__ == "__main__":
    sys.exit(main())
