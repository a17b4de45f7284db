"""What sparse steps gain on a GPU: by L0, against dense ones and against torch's own loops.

    python scripts/bench/gpu.py [--d_in 2304] [--d_sae 16384] [--l0 20 50 100 300 1000 2000]

A step is forward, backward, clipping, Adam and the decoder's norms of a JumpReLU SAE. The sparse
one is timed with Triton's kernels and without, the dense one with float32 and with bfloat16
products. Sides take turns in one process; milliseconds are medians of turns, x are medians of
ratios to the sparse step with kernels. Where dense steps fall below 1 x, sparse ones no longer pay:
the density there is for `_ON_GPU` of hfsae/training/run.py, which is by plan.
"""

import argparse
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable

import torch
from sides import Problem, jumprelu
from tqdm import tqdm

from hfsae.ops import sparse

SIZES = {"d_in": 2304, "d_sae": 16384, "batch": 4096}
# name: (kind of step, whether with Triton's kernels, whether in bfloat16)
SIDES = {
    "sparse": ("always", True, False),
    "sparse, torch's loops": ("always", False, False),
    "dense": ("never", False, False),
    "dense, bf16": ("never", False, True),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, value in SIZES.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--l0", type=int, nargs="+", default=[20, 50, 100, 300, 1000, 2000])
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print(
            "gpu.py: torch sees no CUDA device here, and on no other does it time", file=sys.stderr
        )
        sys.exit(2)
    size = {name: getattr(args, name) for name in SIZES}
    triton = (
        ""
        if importlib.util.find_spec("triton")
        else ", without Triton: the first two sides are the same"
    )
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}{triton}, {size}\n")
    print(f"| L0 | density | {' | '.join(SIDES)} |\n|{' --- |' * (2 + len(SIDES))}")
    for l0 in tqdm(args.l0, unit="L0", leave=False):
        problem = Problem(**size, l0=l0)
        problem.x = [x.cuda() for x in problem.x]
        cells = measure(problem, args.rounds)
        tqdm.write(f"| {l0} | {l0 / args.d_sae:.2g} | {' | '.join(cells)} |")


def measure(problem: Problem, rounds: int, warmup: int = 5) -> list[str]:
    """Milliseconds and ratio of each side."""
    steps = {name: _side(problem, *how) for name, how in SIDES.items()}
    seconds: dict[str, list[float]] = {name: [] for name in SIDES}
    for turn in range(warmup + rounds):
        for name, step in steps.items():
            taken = step(problem.x[turn % len(problem.x)])
            if turn >= warmup:
                seconds[name].append(taken)
    first = seconds["sparse"]
    ratios = ([a / b for a, b in zip(s, first, strict=True)] for s in seconds.values())
    return [
        f"{1000 * statistics.median(s):.3g} ms, {statistics.median(r):.2f} x"
        for s, r in zip(seconds.values(), ratios, strict=True)
    ]


def _side(
    problem: Problem, kind: str, use_triton: bool, bf16: bool
) -> Callable[[torch.Tensor], float]:
    step = jumprelu(problem, kind, bf16)

    def timed(x: torch.Tensor) -> float:
        sparse.use_triton = use_triton
        torch.cuda.synchronize()
        start = time.perf_counter()
        step(x)
        torch.cuda.synchronize()
        return time.perf_counter() - start

    return timed


if __name__ == "__main__":
    main()
