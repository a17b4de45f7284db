"""How long a training step takes: ours sparse and dense, its floor, and the peers' own.

    python scripts/bench/step.py [--peers FOLDER] [--d_in 576] [--d_sae 16384] [--l0 50]
    python scripts/bench/step.py --by l0 20 50 100 300 600      # sweeps: one table a value
    python scripts/bench/step.py --by d_sae 4096 16384 65536

A step is forward, backward, clipping (where the library clips), Adam and the decoder's norms, on
the CPU. Sides run in processes of their own and take turns, A B C A B C, so that what else the
machine does falls on all of them; numbers are medians of their turns, and only ratios within one
run mean anything. The floor is the encoder's product alone.

FOLDER is what `scripts/interop/environments.sh FOLDER saelens dictionary_learning sparsify` made.
`--tuned` lets glibc keep large blocks instead of returning them, for all sides: it shows how much
of a difference is page faults.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from sides import SIDES

OURS, THEIRS = ("hfsae",), ("saelens", "dictionary_learning", "sparsify")
TUNED = {"MALLOC_MMAP_THRESHOLD_": str(2**31 - 1), "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}
DEFAULT = ("jumprelu", "jumprelu_dense", "topk", "product_bf16", "product_float32")


class Side:
    """A process that steps when asked."""

    def __init__(self, library: str, name: str, python: str, sizes: dict[str, int], env: dict):
        self.label, self.seconds = f"{library} {name}", []
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - a pipe that nobody reads fills
        script = Path(__file__).with_name("sides.py")
        options = [f"--{key}={value}" for key, value in sizes.items()]
        self.process = subprocess.Popen(
            [python, str(script), library, name, *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=env,
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
        self.process.kill()
        self.process.wait()


def measure(chosen: list[tuple[str, str]], sizes: dict[str, int], args: Any) -> list[dict]:
    """Rows of the table, in the order of the sides."""
    sides: list[Side] = []
    try:
        for library, name in chosen:
            python = sys.executable
            if library in THEIRS:
                python = str(Path(args.peers, library, "bin", "python"))
            sides.append(Side(library, name, python, sizes, environment(library, args)))
            sides[-1].wait()
        for turn in range(args.warmup + args.rounds):
            for side in sides:
                seconds = side.ask("step")
                if turn >= args.warmup:
                    side.seconds.append(seconds)
        return [row(side, sides[0]) for side in sides]
    finally:
        for side in sides:
            side.close()


def environment(library: str, args: Any) -> dict[str, str]:
    env = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "HF_HUB_OFFLINE": "1"}
    env["SPARSIFY_DISABLE_TRITON"] = "1"  # its kernels do not take CPU tensors
    env |= TUNED if args.tuned else {}
    env.pop("PYTHONPATH", None)
    if library in OURS:
        env["PYTHONPATH"] = str(Path(__file__).parents[2])
    return env


def row(side: Side, first: Side) -> dict[str, Any]:
    """Ratios are medians over turns of this side's time to the first's in the same turn."""
    ratios = [a / b for a, b in zip(side.seconds, first.seconds, strict=True)]
    shown = side.ask("show")
    return {
        "step of": side.label,
        "median ms": round(1000 * statistics.median(side.seconds), 1),
        "least ms": round(1000 * min(side.seconds), 1),
        f"x {first.label}": round(statistics.median(ratios), 2),
        "L0": round(shown["l0"], 1),
        "peak MiB": round(shown["peak_mib"]),
    }


def markdown(rows: list[dict[str, Any]]) -> str:
    head = list(rows[0])
    lines = [head, ["---"] * len(head), *([str(r[key]) for key in head] for r in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def sides_of(args: Any) -> list[tuple[str, str]]:
    if args.sides:
        chosen = [tuple(each.split(".", 1)) for each in args.sides]
        unknown = [f"{a}.{b}" for a, b in chosen if b not in SIDES.get(a, {})]
        if unknown:
            known = [f"{a}.{b}" for a, names in SIDES.items() for b in names]
            raise ValueError(f"no side {', '.join(unknown)}; there are {', '.join(known)}")
        return chosen
    peers = THEIRS if args.peers else ()
    return [("hfsae", n) for n in DEFAULT] + [(peer, n) for peer in peers for n in SIDES[peer]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sizes = {"d_in": 576, "d_sae": 16384, "batch": 2048, "l0": 50}
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--peers", help="folder of the peers' environments")
    parser.add_argument("--sides", nargs="*", help="such as hfsae.jumprelu saelens.topk")
    parser.add_argument("--by", nargs="+", metavar="NAME VALUE", help="d_in, d_sae, batch or l0")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--tuned", action="store_true")
    args = parser.parse_args()
    name, *values = args.by or ["l0", args.l0]
    try:
        chosen = sides_of(args)
        for value in values:
            size = {key: getattr(args, key) for key in sizes} | {name: int(value)}
            allocator = "glibc's allocator keeps large blocks" if args.tuned else "as shipped"
            head = ", ".join(f"{key} {n}" for key, n in size.items())
            print(f"\n{head}, {args.threads} threads, {args.rounds} rounds, {allocator}\n")
            print(markdown(measure(chosen, size, args)), flush=True)
    except (ValueError, OSError) as error:
        print(f"step.py: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
