"""What sparse steps gain on a GPU: the table that `compiled_kernels.py` predicts, measured.

    python scripts/bench/gpu.py [--sizes 2304x16384] [--l0 20 50 100 200] [--output FILE]

A step is forward, backward, clipping, Adam and the decoder's norms of a JumpReLU SAE. Its first
column is milliseconds of a sparse step with Triton's kernels, and of a dense one with products in
bfloat16; then what was predicted, if the card is one of those of `floors.py`; then a sparse step
with torch's own loops, and a dense one in float32. Sides take turns in one process; figures are
medians of turns. Sparse steps pay below the density that the last row of a size has: that is for
`SPARSE_ON_GPU` of hfsae/training/run.py, which is by plan. The largest size needs 60 GB by plan.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from floors import BATCH, CARDS, L0S, SIZES, even, floors, rows_of
from kept import keep, machine, table
from sides import Problem, jumprelu
from torch import Tensor
from tqdm import tqdm

from hfsae.ops import sparse

RESULT = Path(__file__).parent / "results" / "compiled_kernels.json"
# name: (kind of step, whether with Triton's kernels, whether in bfloat16)
SIDES = {
    "sparse": ("always", True, False),
    "dense": ("never", False, True),
    "sparse, torch's loops": ("always", False, False),
    "dense, float32": ("never", False, False),
}
FIRST, OTHER = ("sparse", "dense"), ("sparse, torch's loops", "dense, float32")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    named = [f"{d_in}x{d_sae}" for d_in, d_sae in SIZES]
    parser.add_argument("--sizes", nargs="+", default=named, help="d_in x latents")
    parser.add_argument("--l0", type=int, nargs="+", default=[*L0S])
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--output", type=Path, help="keep the table in this file")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print(
            "gpu.py: torch sees no CUDA device here, and on no other does it time", file=sys.stderr
        )
        sys.exit(2)
    device = torch.device("cuda", torch.cuda.current_device())
    sizes = [tuple(map(int, size.split("x"))) for size in args.sizes]
    made = measured(sizes, args.l0, args.batch, device, args.rounds)
    rows = rows_of(made)
    print(f"{name_of(device)}, torch {torch.__version__}, {args.batch:,} tokens\n\n{table(rows)}")
    if args.output:
        run = {"device": name_of(device), "torch": torch.__version__, "table": rows}
        keep(args.output, run, ("device",))


def name_of(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else machine()


def measured(
    sizes: Sequence[Sequence[int]],
    l0s: Sequence[int],
    batch: int,
    device: torch.device,
    rounds: int,
    warmup: int = 5,
) -> list[dict[str, Any]]:
    """As `floors.floors`: by size, milliseconds of steps by L0, with the predicted ones beside."""
    name, made = name_of(device), []
    known = {f"{card}, predicted": of for card, of in CARDS.items() if card in name}
    steps = json.loads(RESULT.read_text(encoding="utf-8"))["runs"][0]["steps"]
    predicted = floors(steps, known, sizes, l0s, batch)
    for (d_in, d_sae), plan in zip(sizes, predicted, strict=True):
        ms: dict[str, list[float]] = {side: [] for side in SIDES}
        for l0 in tqdm(l0s, desc=f"{d_in} x {d_sae}", unit="L0", leave=False, disable=None):
            problem = Problem(d_in, d_sae, batch, l0)
            problem.x = [x.to(device) for x in problem.x]
            for side, median in measure(problem, rounds, warmup).items():
                ms[side].append(median)
        cards = {}
        for column, (a, b) in {name: FIRST, "torch's loops / float32": OTHER}.items():
            density = [even(l0s, ms[a], ms[b]) / d_sae]
            cards[column] = {"sparse": ms[a], "dense": ms[b], "even": density}
            cards |= plan["cards"]
        made.append({**plan, "cards": cards})
    return made


def measure(problem: Problem, rounds: int, warmup: int) -> dict[str, float]:
    """Milliseconds of each side."""
    steps = {name: _side(problem, *how) for name, how in SIDES.items()}
    ms: dict[str, list[float]] = {name: [] for name in SIDES}
    for turn in range(warmup + rounds):
        for name, step in steps.items():
            taken = step(problem.x[turn % len(problem.x)])
            if turn >= warmup:
                ms[name].append(1000 * taken)
    return {name: statistics.median(each) for name, each in ms.items()}


def _side(problem: Problem, kind: str, triton: bool, bf16: bool) -> Callable[[Tensor], float]:
    step = jumprelu(problem, kind, bf16)

    def timed(x: Tensor) -> float:
        with patch.object(sparse, "use_triton", triton):
            _wait(x)
            start = time.perf_counter()
            step(x)
            _wait(x)
            return time.perf_counter() - start

    return timed


def _wait(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
