"""Break hfsae in one place at a time, and see whether the tests of that room notice.

    python scripts/trials/mutants.py [--rooms ops diffing] [--each 5] [--seed 20261201 7] [--list]

A mutant is the package with one expression turned round: `<` for `<=`, `+` for `-`, `and` for `or`,
a number one higher, a condition the other way about, a call left out. They are drawn by seed from
all such places of a room, outside of annotations, default values, constants of a module and texts
of errors; each seed is a draw. A room's tests (ROOMS) run once on a copy of the tree, while
`coverage` notes which of them execute the place of each mutant. Then those run with the mutant, of
the nearest file first, until one fails; tests that start processes come last, since what these
execute is not noted. "MISSED" is what needs a look: a test that is not there, a place that is
executed by imports alone, or an expression that makes no difference.

One process imports hfsae and its tests. It forks for each mutant, and puts its code into the
functions that are there; in the copy the file has it, too, for processes that tests start. Linux
and macOS; coverage is in the extra `dev`. Three draws of six rooms took eleven minutes of a core.
"""

import argparse
import ast
import contextlib
import gc
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType
from typing import NamedTuple

import coverage
import pytest

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
    "steering": "test_steering.py test_generation.py test_several_sites.py",
    "diffing": "test_diffing.py",
    "comparison": "comparison",
    "attribution": "test_attribution.py",
    "circuits": "circuits",
    "convert": "convert",
    "cards": "test_card.py test_figures.py test_model_cards.py test_foreign.py test_file_runs.py",
    "tuning": "tuning",
    "runs": "test_recipe.py test_file_runs.py test_sizes.py test_causal_recipe.py test_plan.py "
    "test_measurement.py test_presets.py test_presetting.py test_results.py",
}
"""Which of the tests are those of a room of hfsae/; by default the first eleven are tried."""
_LONGEST = 120  # seconds of the processor after which a test is taken to hang
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
    lines: range
    column: int
    start: int
    end: int
    """bytes of the file that are replaced"""
    old: str
    new: str

    def __str__(self) -> str:
        place = f"{self.path}:{self.lines[0]}:{self.column}"
        return f"{place}  {self.old}  ->  {self.new}".replace("\n", " ")


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
        text, starts = path.read_bytes(), [0]
        for line in text.splitlines(keepends=True):
            starts.append(starts[-1] + len(line))
        for node in places(ast.parse(text)):
            new = turned(node)
            if new is None or not isinstance(node, ast.expr | ast.stmt):
                continue
            start = starts[node.lineno - 1] + node.col_offset
            end = starts[node.end_lineno - 1] + node.end_col_offset
            old = text[start:end].decode()
            # the lines below keep their numbers, and a call that is left out its names
            new = ast.unparse(new) + "\n" * old.count("\n")
            new = f"0 and {old}" if isinstance(node, ast.stmt) else f"({new})"
            lines = range(node.lineno, node.end_lineno + 1)
            yield Mutant(path.relative_to(ROOT), lines, node.col_offset + 1, start, end, old, new)


def swap(file: Path) -> None:
    """Give the functions that were imported from a file the code that it holds by now."""
    gc.unfreeze()  # conftest freezes what is imported, which get_objects() then leaves out
    # not isinstance, for which some objects of other libraries warn
    functions = [one for one in gc.get_objects() if type(one) is FunctionType]
    assert main in functions, "functions that could take a mutant are not found"
    for module in [m for m in sys.modules.values() if vars(m).get("__file__") == str(file)]:
        codes: dict[tuple[str, int], CodeType] = {}
        nested = [module.__spec__.loader.source_to_code(file.read_bytes(), str(file))]
        while nested:
            code = nested.pop()
            codes[code.co_name, code.co_firstlineno] = code
            nested += [part for part in code.co_consts if isinstance(part, CodeType)]
        for function in functions:
            if (code := function.__code__).co_filename == str(file):
                function.__code__ = codes[code.co_name, code.co_firstlineno]


def forked(work: Callable[[], str]) -> tuple[int, str]:
    """Exit status of a process (below 0 a signal that ended it), and what work returned there."""
    with tempfile.TemporaryFile("w+") as answer:
        pid, status = os.fork(), 0
        if pid == 0:
            os.setpgid(0, 0)
            for stream in (1, 2):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
            try:
                answer.write(work())
            except BaseException:
                answer.write(traceback.format_exc())
                status = 1
            answer.flush()
            os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)  # what tests have started
        answer.seek(0)
        return status, answer.read()


class Trials:
    """A plugin of pytest: instead of the tests that it collects, those of each mutant run."""

    def __init__(self, drawn: dict[str, list[tuple[int, Mutant]]]) -> None:
        self.drawn = drawn
        self.n_caught: Counter[int] = Counter()
        """by seed"""
        self.failed: list[str] = []
        self.coverage: coverage.Coverage | None = None
        self.context = ""
        """the test that runs, or the fixture that is made for several"""

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        if session.testsfailed:  # to import one, say
            return None
        sys.dont_write_bytecode = True
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        for room, of_room in self.drawn.items():
            paths = {Path("tests", name).resolve() for name in ROOMS[room].split()}
            tests = [test for test in session.items if paths & {test.path, *test.path.parents}]
            status, notes = forked(partial(self.noted, tests, of_room))
            if status:
                raise RuntimeError(f"{room}: its tests do not run: {notes}")
            executing, starting, failed = json.loads(notes)
            for name in failed:
                print(f"{room}: left out, as it fails without a mutant: {name}", flush=True)
            tests = [test for test in tests if test.nodeid not in failed]
            for (seed, mutant), names in zip(of_room, executing, strict=True):
                file, whole = mutant.path.resolve(), mutant.path.read_bytes()
                first, last = [], []
                for test in tests:
                    contexts = {test.nodeid, *test.fixturenames}
                    if not contexts.isdisjoint(names):
                        first.append(test)
                    elif not contexts.isdisjoint(starting):
                        last.append(test)
                first.sort(key=lambda test: (file.stem not in test.path.stem, test.path))
                file.write_bytes(whole[: mutant.start] + mutant.new.encode() + whole[mutant.end :])
                status, by = forked(partial(self.tried, [*first, *last], file))
                file.write_bytes(whole)
                if status > 0:
                    raise RuntimeError(f"{mutant}: {by}")
                by = f"hangs or dies: {signal.Signals(-status).name}" if status else by
                ran = f"{len(first)} + {len(last)} tests" if first else "executed by no test"
                print("caught" if by else "MISSED", seed, mutant, f" {by or ran}", flush=True)
                self.n_caught[seed] += bool(by)
        return True

    def noted(self, tests: list[pytest.Item], of_room: list[tuple[int, Mutant]]) -> str:
        """Run a room's tests: the contexts that execute each mutant's place, those that start
        processes, and tests that fail."""
        starting = set[str]()

        def watch(event: str, arguments: tuple) -> None:
            is_local = event == "socket.connect" and isinstance(arguments[1], str | bytes)
            if event in ("subprocess.Popen", "os.posix_spawn", "os.fork") or is_local:
                starting.add(self.context)

        sys.addaudithook(watch)
        self.coverage = coverage.Coverage(data_file=None, include=["hfsae/*"], config_file=False)
        self.coverage.start()
        for test, following in zip(tests, [*tests[1:], None], strict=True):
            self.enter(test.nodeid)
            test.config.hook.pytest_runtest_protocol(item=test, nextitem=following)
        self.coverage.stop()
        executing = []
        for _, mutant in of_room:
            by_line = self.coverage.get_data().contexts_by_lineno(str(mutant.path.resolve()))
            executing.append([name for line in mutant.lines for name in by_line.get(line, ())])
        return json.dumps([executing, [*starting], self.failed])

    def enter(self, context: str) -> None:
        self.context = context
        if self.coverage:
            self.coverage.switch_context(context)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef) -> Iterator[None]:
        outer = self.context
        if fixturedef.scope != "function":
            self.enter(fixturedef.argname)
        try:
            return (yield)
        finally:
            self.enter(outer)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.append(report.nodeid)

    def tried(self, tests: list[pytest.Item], file: Path) -> str:
        """The first test that fails; "" where all pass."""
        swap(file)
        for test, following in zip(tests, [*tests[1:], None], strict=bool(tests)):
            signal.setitimer(signal.ITIMER_PROF, _LONGEST)
            signal.alarm(15 * _LONGEST)  # by the clock, for one that waits
            test.config.hook.pytest_runtest_protocol(item=test, nextitem=following)
            if self.failed:
                return self.failed[0]
        return ""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rooms", nargs="+", choices=ROOMS, default=list(ROOMS)[:11])
    parser.add_argument("--each", type=int, default=5, help="mutants of a room")
    parser.add_argument("--seed", type=int, nargs="+", default=[20261201], help="one for each draw")
    parser.add_argument("--list", action="store_true", help="print the mutants and run nothing")
    options = parser.parse_args()
    drawn: dict[str, list[tuple[int, Mutant]]] = {}
    for room in options.rooms:
        of_room = list(mutants(room))
        n = min(options.each, len(of_room))
        draws = [
            (seed, random.Random(f"{seed} {room}").sample(of_room, n)) for seed in options.seed
        ]
        drawn[room] = [(seed, mutant) for seed, several in draws for mutant in several]
        print(f"{room}: {n} of {len(of_room):,} places")
        for seed, mutant in drawn[room] if options.list else ():
            print(f"  {seed} {mutant}")
    if options.list:
        return 0
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder).resolve() / "tree"
        listed = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True
        )
        for name in filter(None, listed.stdout.decode().split("\0")):
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, tree / name)
        os.chdir(tree)
        sys.path[0] = str(tree)
        os.environ |= {"PYTHONPATH": str(tree), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        tests = {f"tests/{name}": None for room in drawn for name in ROOMS[room].split()}
        switches = [
            "-s",
            "-q",
            "-p",
            "no:cacheprovider",
            "-m",
            "not pages",
            "--basetemp",
            "../tests",
        ]
        trials = Trials(drawn)
        code = pytest.main([*switches, *tests], plugins=[trials])
        os.chdir(ROOT)
    if code:
        return int(code)
    n_missed = 0
    for seed in options.seed:
        n = sum(of == seed for several in drawn.values() for of, _ in several)
        print(f"{seed}: {trials.n_caught[seed]} of {n} mutants caught")
        n_missed += n - trials.n_caught[seed]
    return int(n_missed > 0)


if __name__ == "__main__":
    sys.exit(main())
