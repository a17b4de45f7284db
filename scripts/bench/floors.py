"""What a training step of a JumpReLU SAE takes at least on GPUs that are not here, by plan.

A dense and a sparse step are taken on the CPU at a small size, in the way of a GPU, and counted:
products over all pairs of a token and a latent, and the bytes that each operation of torch reads
and writes. The floor of a step is the time of its products at a card's published rate in bfloat16,
and of its bytes at the published bandwidth of its memory. An entry of a sparse step reads a row in
each of five loops: from memory, or from a cache, which is assumed to be twice as fast. Assumed too:
all entries fire; finding the few that do not, sorting entries and starting operations take no time.
"""

import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from sides import Problem, jumprelu
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hfsae.ops import sparse


class Card(NamedTuple):
    backend: str
    architecture: int | str
    lanes: int
    """threads of a warp"""
    bandwidth: float
    """bytes a second, of its memory"""
    rate: float
    """operations a second in bfloat16, matrices without zeros"""


# From the makers' data sheets: A100 80GB SXM, H100 SXM, HGX B200, Instinct MI300X. Where a sheet
# gives the rate "with sparsity", that is half of it.
CARDS = {
    "A100": Card("cuda", 80, 32, 2.039e12, 312e12),
    "H100": Card("cuda", 90, 32, 3.35e12, 989e12),
    "B200": Card("cuda", 100, 32, 8.0e12, 2250e12),
    "MI300X": Card("hip", "gfx942", 64, 5.3e12, 1307.4e12),
}
SIZES, L0S, BATCH = ((2304, 16384), (2304, 131072), (3584, 16384)), (20, 50, 100, 200), 4096
CACHE = 2.0  # times the memory's bandwidth, by assumption
# Operations that do not read what their first argument holds.
WRITES = ("aten::zero_", "aten::fill_.Scalar", "aten::copy_", "aten::new_zeros")


class Count(TorchDispatchMode):
    """Counts products over all pairs, and bytes of what operations read and write by what a tensor
    is: a number for each pair of a token and a latent, for each weight, or for each coordinate of
    the activations."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        d, n, latents = problem.d_in, problem.batch, problem.d_sae
        self.kinds = {n * latents: "pair", d * latents: "weight", n * d: "activation"}
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = op(*args, **(kwargs or {}))
        if "mm" in op.name():
            self.found["products"] += 1  # their bytes take less time than their operations
        elif not (op.is_view or "empty" in op.name()):
            for x in (*_tensors(args[op.name() in WRITES :]), *_tensors(out)):
                self.found[self.kinds.get(x.numel(), "")] += x.element_size()
        return out


def _tensors(of: Any) -> list[Tensor]:
    if isinstance(of, Tensor):
        return [of]
    return [x for part in of for x in _tensors(part)] if isinstance(of, (list, tuple)) else []


def triton_loops() -> Any:
    """hfsae/ops/fused.py, where Triton is installed."""
    with patch.object(sparse, "as_if_on_gpu", True):
        fused = sparse.kernels_for(torch.zeros(1))
    return fused or sys.exit("this needs Triton: pip install 'hfsae[gpu]'")


def counted(kind: str, *, bf16: bool) -> dict[str, int]:
    """Of a training step: its products, bytes by what `Count` tells apart, and rows an entry reads.

    Loops over entries are the kernels': each reads a row an entry, one matrix once, and writes one.
    """
    fused = triton_loops()
    problem = Problem(d_in=40, d_sae=1024, batch=96, l0=8)
    step, count = jumprelu(problem, kind, bf16), Count(problem)

    def loop(once: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        before, what = count.found.copy(), count.kinds.get(once.numel())
        values, count.found = compute(), before
        if what:  # else a loop over single numbers, not rows
            count.found.update({what: once.element_size(), "rows": 1})
        return values

    def dots(x: Tensor, W: Tensor, tokens: Tensor, latents: Tensor) -> Tensor:
        return loop(W, lambda: (x[tokens] * W[latents]).sum(1))

    def sums(
        rows: Tensor, table: Tensor, offsets: Tensor, weights: Tensor, out: Tensor | None = None
    ) -> Tensor:
        out = table.new_empty(len(offsets) - 1, table.shape[1]) if out is None else out
        bags = torch.arange(len(out)).repeat_interleave(offsets.diff())
        return loop(out, lambda: out.zero_().index_add_(0, bags, weights[:, None] * table[rows]))

    with (
        patch.object(sparse, "as_if_on_gpu", True),
        patch("hfsae.ops.screening.multiplies_bfloat16", lambda device: True),
        patch.object(fused, "dots", dots),
        patch.object(fused, "sums", sums),
    ):
        step(problem.x[0])  # Adam makes its moments
        count.found.clear()
        with count:
            step(problem.x[1])
    return {
        name: count.found[name] for name in ("products", "pair", "weight", "activation", "rows")
    }


def floor(
    step: Mapping[str, int],
    card: Card,
    d_in: int,
    d_sae: int,
    batch: int,
    n_entries: int,
    cache: float = 1.0,
) -> float:
    """Milliseconds of a step at least, where `cache` times the memory's bandwidth reads rows."""
    of = {"pair": batch * d_sae, "weight": d_in * d_sae, "activation": batch * d_in}
    moved = sum(step[name] * n for name, n in of.items())
    gathered = 4 * d_in * n_entries * step["rows"] / cache
    seconds = 2 * batch * d_in * d_sae * step["products"] / card.rate
    return 1000 * (seconds + (moved + gathered) / card.bandwidth)


def even(l0s: Sequence[int], sparse_ms: Sequence[float], dense_ms: Sequence[float]) -> float:
    """The L0 at which a sparse step takes as long as a dense one, by a line through the others."""
    slope, start = np.polyfit(l0s, sparse_ms, 1)
    return float((np.median(dense_ms) - start) / slope)


def floors(
    steps: Mapping[str, Mapping[str, int]],
    cards: Mapping[str, Card] = CARDS,
    sizes: Sequence[Sequence[int]] = SIZES,
    l0s: Sequence[int] = L0S,
    batch: int = BATCH,
) -> list[dict[str, Any]]:
    """For each size: milliseconds of steps by card and L0, and the densities at which a sparse step
    takes as long as a dense one: with rows from memory, and from a cache."""
    made = []
    for d_in, d_sae in sizes:
        by_card = {}
        for name, card in cards.items():
            dense, memory, cache = (
                [floor(steps[kind], card, d_in, d_sae, batch, batch * l0, faster) for l0 in l0s]
                for kind, faster in (("dense", 1.0), ("sparse", 1.0), ("sparse", CACHE))
            )
            density = [round(even(l0s, ms, dense) / d_sae, 5) for ms in (memory, cache)]
            by_card[name] = {"sparse": memory, "dense": dense, "even": density}
        made.append({"d_in": d_in, "d_sae": d_sae, "l0": [*l0s], "cards": by_card})
    return made


def rows_of(made: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The table of milliseconds, and of the densities below which sparse steps are faster."""
    rows = [["ms, sparse / dense", *made[0]["cards"]]]
    for size in made:
        label, cards = f"{size['d_in']:,} x {size['d_sae']:,}", size["cards"].values()
        for i, l0 in enumerate(size["l0"]):
            cells = [f"{card['sparse'][i]:.3g} / {card['dense'][i]:.3g}" for card in cards]
            rows.append([f"{label}, L0 {l0}", *cells])
        density = [" to ".join(f"{d:.4f}".replace("0.", ".", 1) for d in c["even"]) for c in cards]
        rows.append([f"{label}, even at a density of", *density])
    return rows
