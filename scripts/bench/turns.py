"""Sides of a benchmark take turns, A B C A B C, each in a process and an environment of its own.

What else the machine does then falls on all of them, and neither memory nor allocators mix. A
side's process speaks lines: to "step" it does one unit of work and answers its seconds, to "show"
it answers what that amounts to, "quit" ends it. Figures are medians of turns, ratios are medians of
the ratios within a turn; nothing but a ratio within one run means anything. `--output FILE` keeps
a run's rows (`kept.py`).
"""

import argparse
import importlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import children
from tqdm import tqdm

OURS = "hfsae"
TUNED = {"MALLOC_MMAP_THRESHOLD_": str(2**31 - 1), "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}
Step = Callable[[int], Callable[[], dict[str, float]]]
"""One unit of work, by turn; what it gives tells what the work amounts to, out of the timing."""
Row = dict[str, Any]


class Side:
    """A process that works when asked."""

    def __init__(self, script: Path, label: str, options: Iterable[str], args: Any) -> None:
        self.label, self.seconds = label, []
        library, name = label.split(".", 1)
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - a pipe that nobody reads fills
        self.process = children.start(
            [_python(library, args), str(script), library, name, *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=_environment(library, args),
        )

    def wait(self) -> None:
        self._read("ready")

    def _read(self, expected: str | None = None) -> str:
        assert self.process.stdout
        line = self.process.stdout.readline().strip()
        if not line or (expected and line != expected):
            self.errors.seek(0)
            said = [s for s in self.errors.read().splitlines() if "Error" in s or "Exception" in s]
            last = said[-1] if said else "no reason given"
            raise ValueError(f"{self.label} stopped: {last}")
        return line

    def ask(self, what: str) -> Any:
        assert self.process.stdin
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        return json.loads(self._read())

    def close(self) -> None:
        children.end(self.process)


def _python(library: str, args: Any) -> str:
    return sys.executable if library == OURS else str(Path(args.peers, library, "bin", "python"))


def _environment(library: str, args: Any) -> dict[str, str]:
    env = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "HF_HUB_OFFLINE": "1"}
    env["SPARSIFY_DISABLE_TRITON"] = "1"  # its kernels do not take CPU tensors
    env |= TUNED if args.tuned else {}
    env.pop("PYTHONPATH", None)
    if library == OURS:
        env["PYTHONPATH"] = str(Path(__file__).parents[2])
    return env


def measure(script: Path, labels: list[str], options: dict[str, Any], args: Any) -> list[Row]:
    """Rows of the table, in the order of the sides; ratios are to the first, and under "x" to each
    side of hfsae."""
    sides: list[Side] = []
    given = [f"--{key}={value}" for key, value in options.items()]
    children.end_on_signals()
    try:
        for label in tqdm(labels, "starting", unit="side", leave=False):
            sides.append(Side(script, label, given, args))
            sides[-1].wait()
        for turn in tqdm(range(args.warmup + args.rounds), "measuring", unit="turn", leave=False):
            for side in sides:
                seconds = side.ask("step")
                if turn >= args.warmup:
                    side.seconds.append(seconds)
        return [_row(side, sides) for side in sides]
    finally:
        for side in sides:
            side.close()


def _row(side: Side, sides: list[Side]) -> Row:
    first = sides[0]
    return {
        "side": side.label,
        "median ms": 1000 * statistics.median(side.seconds),
        "least ms": 1000 * min(side.seconds),
        f"x {first.label}": _ratio(side, first),
        "x": {other.label: _ratio(side, other) for other in sides if _is_ours(other)},
        **side.ask("show"),
    }


def _ratio(side: Side, other: Side) -> float:
    return statistics.median(a / b for a, b in zip(side.seconds, other.seconds, strict=True))


def _is_ours(side: Side) -> bool:
    return side.label.startswith(f"{OURS}.")


def markdown(rows: list[Row]) -> str:
    head = list(dict.fromkeys(key for row in rows for key in row if key != "x"))
    lines = [head, ["---"] * len(head)]
    lines += [[_shown(row.get(key, "")) for key in head] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _shown(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def add_arguments(parser: argparse.ArgumentParser, rounds: int) -> None:
    parser.add_argument("--peers", help="folder that scripts/interop/environments.sh made")
    parser.add_argument("--sides", nargs="*", help="LIBRARY.NAME of each, the first to compare to")
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--warmup", type=int, default=2, help="turns that do not count")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--tuned", action="store_true", help="let glibc keep large blocks")
    parser.add_argument("--output", type=Path, help="a JSON file that keeps the rows, too")


def chosen(args: Any, known: dict[str, Iterable[str]], default: Iterable[str]) -> list[str]:
    """The sides that were asked for; or the default ones, and every peer's if there are any.

    Raises:
        ValueError: there is no such side.
    """
    every = [f"{library}.{name}" for library, names in known.items() for name in names]
    if args.sides:
        if unknown := [side for side in args.sides if side not in every]:
            raise ValueError(f"no side {', '.join(unknown)}; there are {', '.join(every)}")
        return args.sides
    peers = [side for side in every if args.peers and not side.startswith(f"{OURS}.")]
    return [*(f"{OURS}.{name}" for name in default), *peers]


def serve(make: Callable[[], Step], *modules: str) -> None:
    """Be a side: make the work, then answer what is asked on standard input.

    `modules` are imported first, so that peaks do not count them.
    """
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    sys.stdout = sys.stderr  # libraries print; answers go where they do not
    for module in modules:
        importlib.import_module(module)
    _forget_peak()
    before = _peak_mib()
    step, n_steps = make(), 0
    tell: Callable[[], dict[str, float]] = dict
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        answer: object = None
        if line.strip() == "step":
            start = time.perf_counter()
            tell = step(n_steps)
            answer, n_steps = time.perf_counter() - start, n_steps + 1
        elif line.strip() == "show":
            answer = {"peak MiB": _peak_mib() - before, **tell()}
        else:
            return
        print(json.dumps(answer), file=answers, flush=True)


def _peak_mib() -> float:
    """The most this process has held since `_forget_peak`, or since it began where that fails."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _forget_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return
