"""How long steps take on a GPU: the table that kernels.py predicts, measured.

    python scripts/bench/gpu.py [--sizes 2304x16384 ...] [--l0 20 50 100 200] [--all]

A step is forward, backward, clipping, Adam and the decoder's norms of a JumpReLU SAE, with bfloat16
products. Sides take turns in one process; milliseconds are medians of turns. The first table has
the rows and columns of kernels.py: the dense step, the sparse one by L0, and the density at which
both are as fast, by a straight line through the sparse steps. If it is far from the predicted one,
SPARSE_ON_GPU of hfsae/training/run.py should follow the measured one.

With --all, of the first size also what Triton's kernels gain over torch's own loops, and bfloat16
over float32 products of dense steps; x are medians of ratios to the sparse step with kernels.
"""

import argparse
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable, Iterable

import numpy as np
import torch
from kept import table
from kernels import BATCH, L0S, SIZES, head, meeting, row
from sides import Problem, jumprelu
from tqdm import tqdm

from hfsae.ops import sparse

# name: (kind of step, whether with Triton's kernels, whether in bfloat16)
SIDES = {
    "sparse": ("always", True, True),
    "dense, bf16": ("never", False, True),
    "sparse, torch's loops": ("always", False, True),
    "dense": ("never", False, False),
}
OF_TABLE = ["sparse", "dense, bf16"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sizes = ["x".join(map(str, size)) for size in SIZES]
    parser.add_argument("--sizes", nargs="+", default=sizes, metavar="D_INxD_SAE")
    parser.add_argument("--l0", type=int, nargs="+", default=[*L0S], help="two or more")
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--all", action="store_true", help="also the sides that kernels.py lacks")
    parser.add_argument("--device", default="cuda", help="cpu: only to try this script")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("gpu.py: torch sees no CUDA device here; --device cpu only tries this script")
    if len(args.l0) < 2:
        parser.error("--l0 needs two numbers or more: a line goes through their times")
    has_triton = importlib.util.find_spec("triton") is not None
    card = torch.cuda.get_device_name() if args.device == "cuda" else args.device
    print(f"torch {torch.__version__}{'' if has_triton else ', without Triton'}, {vars(args)}\n")
    rows, others = [head(args.l0)], [["L0", "density", *SIDES]]
    for i, size in enumerate(args.sizes):
        d_in, d_sae = map(int, size.split("x"))
        sides = SIDES if args.all and i == 0 else OF_TABLE
        found = {}
        for l0 in tqdm(args.l0, desc=size, leave=False):
            problem = Problem(d_in, d_sae, args.batch, l0)
            problem.x = [x.to(args.device) for x in problem.x]
            found[l0] = measured(problem, sides, args.rounds)
        rows.append(_row(card, (d_in, d_sae), found))
        if sides is SIDES:
            others += [[str(l0), f"{l0 / d_sae:.2g}", *_compared(found[l0])] for l0 in args.l0]
    print(table(rows))
    if len(others) > 1:
        print(f"\n{table(others)}")


def measured(
    problem: Problem, sides: Iterable[str], rounds: int, warmup: int = 3
) -> dict[str, list[float]]:
    """By side, milliseconds of its turns."""
    steps = {name: _side(problem, *SIDES[name]) for name in sides}
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(warmup + rounds):
        for name, step in steps.items():
            taken[name].append(1000 * step(problem.x[turn % len(problem.x)]))
    return {name: each[warmup:] for name, each in taken.items()}


def _side(
    problem: Problem, kind: str, use_triton: bool, bf16: bool
) -> Callable[[torch.Tensor], float]:
    step = jumprelu(problem, kind, bf16)

    def timed(x: torch.Tensor) -> float:
        before, sparse.use_triton = sparse.use_triton, use_triton
        _wait(x.device)
        start = time.perf_counter()
        step(x)
        _wait(x.device)
        sparse.use_triton = before
        return time.perf_counter() - start

    return timed


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.cuda.synchronize(device)


def _row(card: str, size: tuple[int, int], found: dict[int, dict[str, list[float]]]) -> list[str]:
    by_l0 = {l0: statistics.median(sides["sparse"]) for l0, sides in found.items()}
    dense = statistics.median(x for sides in found.values() for x in sides["dense, bf16"])
    slope, start = np.polyfit([*by_l0], [*by_l0.values()], 1)
    l0 = meeting(lambda l0: start + slope * l0, dense, size[1])
    return row(card, size, dense, [f"{each:.3g}" for each in by_l0.values()], l0 / size[1])


def _compared(sides: dict[str, list[float]]) -> list[str]:
    cells = []
    for taken in sides.values():
        ratios = [a / b for a, b in zip(taken, sides["sparse"], strict=True)]
        cells.append(f"{statistics.median(taken):.3g} ms, {statistics.median(ratios):.2f} x")
    return cells


if __name__ == "__main__":
    main()
