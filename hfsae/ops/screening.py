"""Finds the entries that matter by a low-precision product that provably misses none.

Entries are the pairs of a token x and a latent (w, b) whose float32 pre-activation v = x.w + b lies
above the latent's `floor`. Finding them needs a product over all pairs, the largest cost of a
sparse step, but not its full precision. So: bound v from above by a bfloat16 product, then compute
exact float32 values at the few pairs whose bound lies above their floor.

**The bound.** Let x' and w' be x and w rounded to bfloat16, dx = x - x', dw = w - w'. By
Cauchy-Schwarz

    x.w  =  x'.w' + dx.w + x'.dw  <=  x'.w' + |dx| |w| + |x'| |dw|

The terms beyond x'.w' have rank two, and b - floor has rank one. So they all fit into the same
product, as four more columns; a pair is a candidate if the product is positive:

    X = [ x' | |dx| | |x'|             | 1  | 1  ]
    W = [ w' | |w|  | |dw| + 3 g |w|   | hi | lo ],   hi + lo >= b - floor + g (|b| + 4 |b - floor|)

**Rounding.** The columns are rounded upwards to bfloat16. Products of two bfloat16 numbers are
exact in float32. The error of a sum of n <= d + 4 float32 terms, in any order, is at most g times
the sum of their magnitudes, g = (d + 8) 2^-23 (twice the usual n u / (1 - n u)). Three sums count:
v itself, with an error of at most g (|x| |w| + |b|); the product, with at most
g (1.03 |x'| |w| + |hi| + |lo|); and norms, which are scaled by 1 + g. The terms in g above cover
them; |x'| is 1 + 2^-7 times too large, so it bounds |x| too. Processors may flush numbers below
2^-126 to zero, and so the squares of numbers below 2^-63: norms are raised by sqrt(d) 2^-62 and the
bias by 2^-80, more than this loss. The product's own rounding to bfloat16 keeps its sign.

**Tensor cores** add k >= 4 products to a float32 sum at once. They align the products with the
largest, cut off lower bits, and cut the result to float32 (Fasi et al. 2021, PeerJ CS 7:e330): each
of k + 2 numbers loses at most 2^-23 of the largest. So the error of a product is at most
(n / k) (k + 2) 2^-23 <= 1.5 g times the sum of magnitudes, and the paragraph above allows 1 g. The
difference fits: v itself, without tensor cores, needs at most g / 2, and 1.5 * 1.03 + 0.5 < 3 for
|x| |w|, as 1.5 * 1.02 < 4 for the bias. Partial sums of a product that is split over its columns
must be float32 too, as `_full_precision` sets for cuBLAS: in bfloat16 they would break the bound.

The bound holds where |x|^2, |w|^2 and 4 (b - floor) are finite; tests/ops/test_screening.py tries
to break it.

For TopK the floor differs by token and is unknown at first: see `screen_top_k`. For BatchTopK it is
one number, first guessed and then proven: see `screen_batch_top_k`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..io.processor import multiplies_bfloat16
from .selection import Summed, kth_positive, one_process
from .sparse import Entries, Workspace, blocks, on_gpu, stable_order

_FLOOR, _TINY = 2.0**-62, 2.0**-80
_GROUPS_PER_K = 4  # more groups: a tighter bound of the k-th value, at a higher cost
# Scores computed at a time: they should stay in a CPU's cache; a GPU needs few and large products.
_SCORES, _GPU_SCORES = 2**23, 2**26
_SAMPLE = 64  # tokens for the guess of BatchTopK's floor
_MARGINS = (1.25, 2.0, 4.0)  # successive guesses: this many times the needed values lie above

_Mask = Tensor | np.ndarray


class _Bound(NamedTuple):
    """The bound's two factors: X W^T >= v - floor, for every pair. Their first d columns are those
    of x and w."""

    X: Float[Tensor, "tokens _"]
    W: Float[Tensor, "d_sae _"]
    raised: Float[Tensor, " d_sae"]
    """hi + lo - (b - floor): the allowance for rounding"""


def screen(
    x: Float[Tensor, "tokens d_all"],
    W: Float[Tensor, "d_sae d"],
    b: Float[Tensor, " d_sae"],
    floor: Float[Tensor, " d_sae"],
    workspace: Workspace,
) -> Entries:
    """The entries where x.w + b > floor, in float32, with their values.

    x may be S times as wide as W, inputs of S sources side by side. Latents are then in S equal
    parts, each of which reads the columns of its source.
    """
    parts = []
    with _full_precision(x.device):
        for of, rows, bias, level in zip(*_sources(x, W, b, floor), strict=True):
            bound = _bound(of, rows, bias, level, workspace)
            candidates = _candidates(bound, lambda scores, X: _ordered(scores) > 0, workspace)
            values = candidates.dots(of, rows) + candidates.of(bias)
            parts.append(_kept(candidates, values, values > candidates.of(level)))
    return Entries.joined(parts)


def _sources(x: Tensor, W: Tensor, *others: Tensor) -> list[Sequence[Tensor]]:
    """By source: its columns of x, and the rows of its latents."""
    n = max(1, x.shape[1] // W.shape[1])
    columns = [x] if n == 1 else [part.contiguous() for part in x.chunk(n, dim=1)]
    return [columns, *(each.chunk(n) for each in (W, *others))]


def screen_top_k(
    x: Float[Tensor, "tokens d"],
    W: Float[Tensor, "d_sae d"],
    b: Float[Tensor, " d_sae"],
    k: int,
    workspace: Workspace,
) -> Entries:
    """The entries of each token's k largest x.w + b that are positive, with their values.

    A score S bounds its v from above, and by the same inequalities v >= S - 2 A, where A is the sum
    of all additions. Split the latents into groups: in each, the latent with the largest score has
    a value of at least max S - 2 max A. The k-th largest of these numbers is a lower bound of the
    k-th largest v, since k different latents reach it. Latents with a lower score are not among the
    k largest.
    """
    with _full_precision(x.device):
        bound = _bound(x, W, b, torch.zeros_like(b), workspace)
        d, size = W.shape[1], max(1, len(W) // (_GROUPS_PER_K * k))
        n_groups = len(W) // size

        def largest_of_groups(by_latent: Tensor) -> Tensor:
            """[d_sae, n] -> [groups, n]."""
            return by_latent[: size * n_groups].unflatten(0, (size, n_groups)).amax(0)

        norms = bound.W[:, d : d + 2].float()
        most_added = largest_of_groups(torch.cat([norms, bound.raised[:, None]], dim=1))

        def pick(scores: Tensor, X: Tensor) -> _Mask:
            best = largest_of_groups(scores).T.float()  # [n, groups]
            added = X[:, d : d + 2].float() @ most_added[:, :2].T + most_added[:, 2]
            # Rounding to bfloat16 changed scores by up to 2^-8; 2.1 covers this floor's own.
            reached = best - 2.0**-7 * best.abs() - 2.1 * added
            least = reached.topk(k, dim=1, sorted=False).values.amin(1).clamp(min=0)
            return _ordered(scores) >= _ordered(-_rounded_up(-least, scores.dtype))

        candidates = _candidates(bound, pick, workspace)
        values = candidates.dots(x, W) + candidates.of(b)
        return _kept(candidates, values, among_top_k(candidates, values, k) & (values > 0))


def screen_batch_top_k(
    x: Float[Tensor, "tokens d_all"],
    W: Float[Tensor, "d_sae d"],
    b: Float[Tensor, " d_sae"],
    k: int,
    workspace: Workspace,
    summed: Summed = one_process,
) -> Entries:
    """The entries of the batch's tokens * k largest x.w + b that are positive, with their values.

    If at least tokens * k values lie above a floor, then so do the tokens * k largest, and `screen`
    with this floor finds them all. So any guess of the floor works if enough values lie above it;
    else the floor is lowered, in the end to 0. The guess is a quantile of some tokens' values. All
    values equal to the smallest are kept.

    Args:
        summed: sums over the processes that each hold a part of the batch.
    """
    with _full_precision(x.device):
        floors, n_needed = _guesses(x, W, b, k, summed)
        for floor in floors:
            entries = screen(x, W, b, floor.expand(len(b)), workspace)
            n_above = len(entries)
            if summed is not one_process:
                n_above = int(summed(torch.tensor(n_above, device=x.device)))
            if n_above >= n_needed or floor == 0:
                break
        assert entries.values is not None
        least = kth_positive(entries.values, n_needed, summed)
        return _kept(entries, entries.values, entries.values >= least)


def _guesses(
    x: Tensor, W: Tensor, b: Tensor, k: int, summed: Summed
) -> tuple[Float[Tensor, " n"], int]:
    """Floors to try, falling to 0, the same in all processes; and the needed number of values."""
    some = x[:: max(1, -(-len(x) // _SAMPLE))]
    parts = zip(*_sources(some, W, b), strict=True)
    values = torch.cat([(x @ W.T + b).flatten() for x, W, b in parts])
    ranks = [min(round(margin * k * len(some)), len(values)) for margin in _MARGINS]
    largest = values.topk(ranks[-1]).values if ranks[-1] else values.new_zeros(1)
    floors = torch.stack([largest[max(rank, 1) - 1] for rank in ranks]).clamp(min=0)
    if summed is one_process:
        return floors, k * len(x)
    shared = summed(torch.cat([floors, floors.new_tensor([0, len(x), 1])]))
    return shared[:-2] / shared[-1], k * int(shared[-2])


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """Without gradients, without autocast, and with products summed in float32."""
    matmul = torch.backends.cuda.matmul  # affects all threads: set it only if it has an effect
    if is_rounded := device.type == "cuda" and matmul.allow_bf16_reduced_precision_reduction:
        matmul.allow_bf16_reduced_precision_reduction = False
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        if is_rounded:
            matmul.allow_bf16_reduced_precision_reduction = True


def _bound(x: Tensor, W: Tensor, b: Tensor, floor: Tensor, workspace: Workspace) -> _Bound:
    d, g, low = W.shape[1], (W.shape[1] + 8) * 2.0**-23, _low_dtype(x.device)
    # Tensor cores read rows in units of 16 bytes: extra columns are zero.
    width = -(-(d + 4) // 8) * 8 if on_gpu(x) else d + 4
    X = workspace.buffer("X", len(x), width, dtype=low, device=x.device)
    dx, _ = _rounded_rows(x, X)
    X[:, d] = _rounded_up(dx, low)
    X[:, d + 1] = _rounded_up(_norms(X[:, :d].float()) * (1 + 2.0**-7), low)
    X[:, d + 2 : d + 4] = 1
    X[:, d + 4 :] = 0
    columns = workspace.buffer("W", len(W), width, dtype=low, device=W.device)
    dw, norm = _rounded_rows(W, columns)
    columns[:, d] = _rounded_up(norm, low)
    columns[:, d + 1] = _rounded_up((dw + 3 * g * norm) * (1 + g), low)
    gap = b - floor
    upper = gap + (g * (b.abs() + 4 * gap.abs()) + _TINY)
    columns[:, d + 2] = upper
    columns[:, d + 3] = _rounded_up(upper - columns[:, d + 2].float(), low)
    columns[:, d + 4 :] = 0
    raised = (columns[:, d + 2].float() + columns[:, d + 3].float() - gap).clamp(min=0)
    return _Bound(X, columns, raised)


def _rounded_rows(rows: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """Round rows into the first columns of `out`; returns bounds of |row - rounded| and |row|."""
    lost, whole = rows.new_empty(len(rows)), rows.new_empty(len(rows))
    for part, low, dw, w in blocks(rows, out, lost, whole):
        low[:, : rows.shape[1]] = part
        dw.copy_(_norms(part - low[:, : rows.shape[1]]))
        w.copy_(_norms(part))
    return lost, whole


def _norms(rows: Tensor) -> Tensor:
    """Upper bounds of the rows' norms."""
    d = rows.shape[1]
    return torch.linalg.vector_norm(rows, dim=1) * (1 + (d + 8) * 2.0**-23) + d**0.5 * _FLOOR


def _candidates(
    bound: _Bound, pick: Callable[[Tensor, Tensor], _Mask], workspace: Workspace
) -> Entries:
    """The pairs that `pick` marks in the scores W X^T, computed for some tokens at a time."""
    n_tokens, d_sae = len(bound.X), len(bound.W)
    n_rows, parts = max(256, (_GPU_SCORES if on_gpu(bound.X) else _SCORES) // d_sae), []
    for first in range(0, max(n_tokens, 1), n_rows):  # without tokens: one empty part
        X = bound.X[first : first + n_rows]
        scores = workspace.buffer("scores", d_sae, len(X), dtype=X.dtype, device=X.device)
        torch.mm(bound.W, X.T, out=scores)
        mask = pick(scores, X)
        if isinstance(mask, Tensor):
            latents, tokens = mask.nonzero(as_tuple=True)
        else:
            places = np.divmod(np.flatnonzero(mask), mask.shape[1])
            latents, tokens = map(torch.from_numpy, places)
        parts.append((tokens + first, latents))
    tokens, latents = (torch.cat(each) for each in zip(*parts, strict=True))
    order = stable_order(latents, d_sae)
    tokens, latents = tokens.index_select(0, order), latents.index_select(0, order)
    return Entries(tokens, latents, n_tokens, d_sae, workspace=workspace)


def _kept(at: Entries, values: Tensor, keep: Tensor) -> Entries:
    kept = keep.nonzero().squeeze(1)
    tokens, latents = at.tokens.index_select(0, kept), at.latents.index_select(0, kept)
    values = values.index_select(0, kept)
    return Entries(tokens, latents, at.n_tokens, at.d_sae, values, at.workspace)


def among_top_k(at: Entries, values: Tensor, k: int) -> Tensor:
    """[n], True for an entry among its token's k largest values."""
    n_each = at.token_offsets.diff()
    width = max(k, int(n_each.max())) if at.n_tokens else k
    device = values.device
    place = torch.arange(len(at), device=device)
    place -= at.token_offsets[:-1].repeat_interleave(n_each)
    place += torch.arange(at.n_tokens, device=device).repeat_interleave(n_each) * width
    table = torch.full((at.n_tokens, width), -torch.inf, device=device)
    table.view(-1)[place] = values[at.by_token]
    chosen = torch.zeros(at.n_tokens, width, dtype=torch.bool, device=device)
    chosen.scatter_(1, table.topk(k, dim=1, sorted=False).indices, True)
    among = torch.empty(len(at), dtype=torch.bool, device=device)
    among[at.by_token] = chosen.view(-1)[place]
    return among


def _ordered(scores: Tensor) -> Tensor | np.ndarray:
    """Numbers with the same order as the scores, for comparison with numbers >= 0.

    On a CPU the comparison runs in numpy, which has no bfloat16; but floats of one sign have the
    same order as their bits.
    """
    if on_gpu(scores):
        return scores
    return (scores.view(torch.int16) if scores.dtype == torch.bfloat16 else scores).numpy()


def _rounded_up(x: Tensor, dtype: torch.dtype) -> Tensor:
    near = x.to(dtype)
    return torch.where(near.float() < x, near.nextafter(near.new_full((), torch.inf)), near)


def _low_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 if the processor multiplies it; else float32: the bound holds for it too."""
    # A GPU without bfloat16 has no TF32 either.
    return torch.bfloat16 if multiplies_bfloat16(device) else torch.float32
