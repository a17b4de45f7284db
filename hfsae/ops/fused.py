"""The loops over entries as Triton kernels, for GPUs.

    dots(x, W, tokens, latents)            x[token] . W[latent] at each entry
    sums(rows, table, offsets, weights)    for each bag of entries, the sum of weight * table[row]

A bag is the entries of a token or of a latent, so these two make the three loops of
`hfsae.ops.sparse`, which chooses between them and torch's own.

One program sums each number, in an order that depends only on sizes: there are no atomic additions,
and results repeat to the bit. Inputs are float32 or bfloat16; products and sums are float32,
without tensor cores and so without TF32. Memory offsets have 64 bits: a million rows of 4,096
numbers are too many for 32.

Only this file needs Triton, so it is imported at first use. With TRITON_INTERPRET=1 in the
environment the kernels run on CPU tensors, slowly; tests use this.
"""

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

# Entries, and numbers of a row, that a program holds at a time; several entries, so that many rows
# are requested from memory before the first arrives. Not yet tuned on a card.
DOTS_TILE, SUMS_TILE = (32, 64), (16, 128)


def dots(
    x: Float[Tensor, "tokens d"],
    W: Float[Tensor, "d_sae d"],
    tokens: Int[Tensor, " n"],
    latents: Int[Tensor, " n"],
) -> Float[Tensor, " n"]:
    """x[token] . W[latent] at each entry."""
    x, W, n = x.contiguous(), W.contiguous(), len(tokens)
    out = torch.empty(n, dtype=torch.float32, device=x.device)
    programs = (triton.cdiv(n, DOTS_TILE[0]),)
    _launch(dots_kernel, programs, x, W, tokens, latents, out, n, x.shape[1], *DOTS_TILE)
    return out


def sums(
    rows: Int[Tensor, " n"],
    table: Float[Tensor, "n_rows d"],
    offsets: Int[Tensor, " _"],
    weights: Float[Tensor, " n"],
    out: Float[Tensor, "n_bags d"] | None = None,
) -> Float[Tensor, "n_bags d"]:
    """For each bag, the weighted sum of the table's rows in it; zero for an empty bag.

    Args:
        offsets: the start of each bag in `rows`, and the end of the last bag.
        out: contiguous float32 memory for the result.
    """
    table, weights = table.contiguous(), weights.contiguous()
    n_bags, d = len(offsets) - 1, table.shape[1]
    if out is None:
        out = torch.empty(n_bags, d, dtype=torch.float32, device=table.device)
    programs = (n_bags, triton.cdiv(d, SUMS_TILE[1]))
    _launch(sums_kernel, programs, rows, table, offsets, weights, out, d, *SUMS_TILE)
    return out


def _launch(kernel: Any, programs: tuple[int, ...], first: Tensor, *others: Any) -> None:
    # Triton launches on torch's current device, not on the tensors'; it cannot launch 0 programs.
    with torch.cuda.device_of(first):
        if all(programs):
            # explicit: Triton plans another default for multiplying and adding in one rounding
            kernel[programs](first, *others, enable_fp_fusion=True)


# no_type_check: Triton compiles from source, and the tests' shape checker would wrap it.
@triton.jit
@no_type_check
def dots_kernel(
    x,
    W,
    tokens,
    latents,
    out,
    n,
    d,
    n_entries: tl.constexpr,
    n_numbers: tl.constexpr,
):
    entry = tl.program_id(0).to(tl.int64) * n_entries + tl.arange(0, n_entries)
    is_entry = entry < n
    x_row = x + tl.load(tokens + entry, mask=is_entry, other=0).to(tl.int64)[:, None] * d
    W_row = W + tl.load(latents + entry, mask=is_entry, other=0).to(tl.int64)[:, None] * d
    total = tl.full((n_entries, n_numbers), 0.0, tl.float32)
    for first in range(0, d, n_numbers):
        at = (first + tl.arange(0, n_numbers))[None, :]
        mask = is_entry[:, None] & (at < d)
        x_part = tl.load(x_row + at, mask=mask, other=0.0).to(tl.float32)
        W_part = tl.load(W_row + at, mask=mask, other=0.0).to(tl.float32)
        total += x_part * W_part
    tl.store(out + entry, tl.sum(total, axis=1), mask=is_entry)


@triton.jit
@no_type_check
def sums_kernel(
    rows,
    table,
    offsets,
    weights,
    out,
    d,
    n_entries: tl.constexpr,
    n_numbers: tl.constexpr,
):
    bag = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * n_numbers + tl.arange(0, n_numbers)
    begin, end = tl.load(offsets + bag), tl.load(offsets + bag + 1)
    total = tl.full((n_entries, n_numbers), 0.0, tl.float32)
    for first in range(begin, end, n_entries):
        entry = first + tl.arange(0, n_entries)
        row = tl.load(rows + entry, mask=entry < end, other=0).to(tl.int64)[:, None]
        weight = tl.load(weights + entry, mask=entry < end, other=0.0).to(tl.float32)[:, None]
        mask = (entry < end)[:, None] & (at < d)[None, :]
        total += weight * tl.load(table + row * d + at[None, :], mask=mask, other=0.0)
    tl.store(out + bag * d + at, tl.sum(total, axis=0), mask=at < d)
