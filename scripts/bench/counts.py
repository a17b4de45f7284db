"""What a training step needs, counted on a CPU that takes the GPU's path: bytes and products.

Each operation reads what it is given and writes its result once, whatever it does inside: a sort
needs more, and views nothing. Of a product the multiply-adds count, not its bytes. The kernels of
hfsae/ops/fused.py are replaced by torch's loops, and their rows counted one by one.
"""

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from sides import Problem, jumprelu
from torch import Tensor
from torch.nn.functional import embedding_bag
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from hfsae.ops import sparse

NOTHING_IS_DONE = {"detach", "_unsafe_view", "lift_fresh", "_local_scalar_dense"}
IS_WRITTEN_ALONE = {"copy_", "fill_", "zero_"}


class Counts(TorchDispatchMode):
    """Bytes by what tensors are made of, and multiply-adds, of the operations inside."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.problem = problem
        self.bytes: Counter[str] = Counter()
        self.products = 0
        self.rows: Counter[str] = Counter()
        """that kernels look up: of x and of W in any order, and of W in its own"""
        self.tables: Counter[str] = Counter()
        """how often they read one, by the same names"""
        self.is_inside = False

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = op(*args, **kwargs)
        schema, name = op._schema, op._schema.name.removeprefix("aten::")
        writes = {a.name for a in schema.arguments if a.alias_info and a.alias_info.is_write}
        is_view = not writes and any(r.alias_info is not None for r in schema.returns)
        if self.is_inside or is_view or name in NOTHING_IS_DONE or "empty" in name:
            return result
        if name in ("mm", "addmm"):
            left, right = args[-2:]
            assert left.dtype == right.dtype == torch.bfloat16
            self.products += left.shape[0] * left.shape[1] * right.shape[1]
            return result
        values = dict(zip((a.name for a in schema.arguments), args, strict=False)) | kwargs
        for a in schema.arguments:
            if a.name in writes:
                self._add(values.get(a.name))
            if not (a.name in writes and (a.kwarg_only or name in IS_WRITTEN_ALONE)):
                self._add(values.get(a.name))
        if not writes:
            self._add(result)
        return result

    def _add(self, values: Any) -> None:
        for x in pytree.tree_leaves(values):
            if isinstance(x, Tensor):
                sizes = zip(x.shape, x.stride(), strict=True)  # what is expanded is read once
                n = math.prod(size for size, step in sizes if step)
                self.bytes[self._kind(x)] += n * x.element_size()

    def _kind(self, x: Tensor) -> str:
        p = self.problem
        widths = {p.d_in, -(-(p.d_in + 4) // 8) * 8}  # the screen's has four columns more, padded
        if {p.batch, p.d_sae} <= {*x.shape}:
            return "pairs"
        if len(x.shape) == 2 and widths & {*x.shape}:
            return "inputs" if p.batch in x.shape else "weights"
        is_vector = x.numel() in (1, p.batch, p.d_sae, p.batch + 1, p.d_sae + 1)
        return "latents" if is_vector or not x.numel() else "entries"

    def dots(self, x: Tensor, W: Tensor, tokens: Tensor, latents: Tensor) -> Tensor:
        """In place of the kernel: W's rows are read in order, x's in any."""
        with self._kernel(["x", "W in order"], len(tokens), 16 + 4):
            parts = zip(tokens.split(2**12), latents.split(2**12), strict=True)
            return torch.cat([(x[of] * W[at]).sum(1) for of, at in parts])

    def sums(
        self,
        rows: Tensor,
        table: Tensor,
        offsets: Tensor,
        weights: Tensor,
        out: Tensor | None = None,
    ) -> Tensor:
        """In place of the kernel: the table's rows are read in any order."""
        name = "x" if len(table) == self.problem.batch else "W"
        with self._kernel([name] if table.shape[1] > 1 else [], len(rows), 8 + 4):
            summed = embedding_bag(
                *(rows, table.detach(), offsets),
                mode="sum",
                per_sample_weights=weights.detach(),
                include_last_offset=True,
            )
            summed = summed if out is None else out.copy_(summed)
        self._add(summed)
        return summed

    @contextmanager
    def _kernel(self, tables: list[str], n: int, bytes_each: int) -> Iterator[None]:
        self.tables.update(tables)
        for name in tables:
            self.rows[name] += n
        self.bytes["entries"] += n * bytes_each
        self.is_inside = True
        yield
        self.is_inside = False


def counted(size: dict[str, int], kind: str) -> dict[str, Any]:
    """Of a JumpReLU step in bfloat16, "always" sparse or "never": multiply-adds as multiples of
    those of the encoder's product, bytes for each pair, weight of one matrix, number of the inputs,
    latent and entry; entries for each firing, the rows of each table that kernels look up for an
    entry, and how often they read it."""
    problem = Problem(**size)
    step, counts = jumprelu(problem, kind, bf16=True), Counts(problem)
    step(problem.x[0])  # the first makes Adam's moments
    if kind == "never":
        with counts:
            step(problem.x[1])
    else:
        with kernels() as fused:
            before = fused.dots, fused.sums
            fused.dots, fused.sums = counts.dots, counts.sums
            try:
                with counts:
                    step(problem.x[1])
            finally:
                fused.dots, fused.sums = before
    n_pairs, n_firings = problem.batch * problem.d_sae, problem.batch * problem.l0
    n_entries = counts.rows["W"] or n_firings  # the decoder's loop has those that fire
    of = {"pairs": n_pairs, "weights": problem.d_sae * problem.d_in, "latents": problem.d_sae}
    of |= {"inputs": problem.batch * problem.d_in, "entries": n_entries}
    return {
        "products": round(counts.products / (n_pairs * problem.d_in), 2),
        "bytes": {name: round(counts.bytes[name] / n) for name, n in of.items()},
        "entries": round(n_entries / n_firings, 2),
        "rows": {name: round(n / n_entries, 2) for name, n in sorted(counts.rows.items())},
        "tables": dict(sorted(counts.tables.items())),
    }


@contextmanager
def kernels() -> Iterator[Any]:
    """`hfsae.ops.fused`; inside, tensors on the CPU take the path of those on a GPU."""
    before = sparse.as_if_on_gpu, sparse.use_triton
    sparse.as_if_on_gpu = sparse.use_triton = True
    try:
        yield sparse.kernels(torch.zeros(1))
    finally:
        sparse.as_if_on_gpu, sparse.use_triton = before
