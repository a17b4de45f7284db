"""Which entries matter, found by a low-precision product that provably misses none.

Wanted are the pairs of a token x and a latent (w, b) whose float32 pre-activation v = x.w + b lies
above the latent's `floor`. Only a product over everything can tell, and it is what a sparse step
mostly costs; but to *tell* needs less precision than to know. So: bound v from above by a bfloat16
product, then take exact float32 values at the few pairs whose bound lies above their floor.

**The bound.** Let x' and w' be x and w rounded to bfloat16, dx = x - x', dw = w - w'. By
Cauchy-Schwarz

    x.w  =  x'.w' + dx.w + x'.dw  <=  x'.w' + |dx| |w| + |x'| |dw|

which is of rank two beyond x'.w', and b - floor is of rank one. So all goes into the same product,
as four more columns; the test is whether the product is positive:

    X = [ x' | |dx| | |x'|             | 1  | 1  ]
    W = [ w' | |w|  | |dw| + 3 g |w|   | hi | lo ],   hi + lo >= b - floor + g (|b| + 4 |b - floor|)

**Rounding.** The columns are rounded upwards to bfloat16. Products of two bfloat16 numbers are
exact in float32. A sum of n <= d + 4 float32 terms, in any order, is off by at most g times the sum
of their magnitudes, g = (d + 8) 2^-23 (twice the usual n u / (1 - n u)). Three such sums count:
v itself, off by at most g (|x| |w| + |b|); the product, by at most g (1.03 |x'| |w| + |hi| + |lo|);
and norms, scaled by 1 + g where they are taken. The terms in g above cover them, |x'| being taken
1 + 2^-7 times too large so that it bounds |x| too. Processors may flush numbers below 2^-126 to
zero, squares of those below 2^-63 with them: norms are raised by sqrt(d) 2^-62 and the bias by
2^-80, more than all that can be lost. The product's own rounding to bfloat16 keeps its sign.

**Tensor cores** add k >= 4 products to a float32 sum at once. They align them with the largest,
cut off what hangs over, and cut the result to float32 (Fasi et al. 2021, PeerJ CS 7:e330): each of
k + 2 numbers loses at most 2^-23 of the largest. So a product is off by at most (n / k) (k + 2)
2^-23 <= 1.5 g times the sum of magnitudes, where the paragraph above grants it 1. There is room: v
itself, without tensor cores, needs g / 2 at most, and 1.5 * 1.03 + 0.5 < 3 for |x| |w|, as
1.5 * 1.02 < 4 for the bias. Partial sums of a product that is split over its columns must be
float32 too, as `_full_precision` asks of cuBLAS: rounded to bfloat16 they would break the bound.

It holds where |x|^2, |w|^2 and 4 (b - floor) are finite; tests/ops/test_screening.py tries
to break it.

For TopK the floor differs by token and is not known beforehand: see `screen_top_k`. For BatchTopK
it is one number, guessed and then proven: see `screen_batch_top_k`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..machine.processor import multiplies_bfloat16
from .selection import Summed, kth_positive, one_process
from .sparse import Entries, Workspace, blocks, on_gpu, stable_order

_FLOOR, _TINY = 2.0**-62, 2.0**-80
_GROUPS_PER_K = 4  # more groups: a tighter bound of the k-th value, dearer to take
# Scores made at a time: they should stay in a CPU's cache; a GPU wants few and large products.
_SCORES, _GPU_SCORES = 2**23, 2**26
_SAMPLE = 64  # tokens that BatchTopK's floor is guessed from
_MARGINS = (1.25, 2.0, 4.0)  # times as many as wanted should lie above it; one after another

_Mask = Tensor | np.ndarray


class _Bound(NamedTuple):
    """The bound's two factors: X W^T >= what is wanted, for every pair."""

    X: Float[Tensor, "tokens _"]
    W: Float[Tensor, "d_sae _"]
    d: int
    """columns that hold x and w; the bound's follow"""
    raised: Float[Tensor, " d_sae"]
    """hi + lo - (b - floor): what rounding may need"""


def screen(
    x: Float[Tensor, "tokens d"],
    W: Float[Tensor, "d_sae d"],
    b: Float[Tensor, " d_sae"],
    floor: Float[Tensor, " d_sae"],
    workspace: Workspace,
) -> Entries:
    """The entries where x.w + b > floor, in float32, with their values."""
    with _full_precision(x.device):
        bound = _bound(x, W, b, floor, workspace)
        found = _candidates(bound, lambda scores, X: _ordered(scores) > 0, workspace)
        values = found.dots(x, W) + found.of(b)
        return _kept(found, values, values > found.of(floor))


def screen_top_k(
    x: Float[Tensor, "tokens d"],
    W: Float[Tensor, "d_sae d"],
    b: Float[Tensor, " d_sae"],
    k: int,
    workspace: Workspace,
) -> Entries:
    """The entries of each token's k largest x.w + b that are positive, with their values.

    A score S bounds its v from above, and by the same inequalities v >= S - 2 A with A the sum of
    all that was added. Split the latents into groups: in each, the latent of the largest score has
    a value of at least max S - 2 max A. The k-th largest of these is a lower bound of the k-th
    largest v, since k different latents reach it; what scores below it is not among the k largest.
    """
    with _full_precision(x.device):
        bound = _bound(x, W, b, torch.zeros_like(b), workspace)
        groups = _Groups(bound, k)

        def pick(scores: Tensor, X: Tensor) -> _Mask:
            return _ordered(scores) >= _ordered(groups.lower_bound(scores, X))

        found = _candidates(bound, pick, workspace)
        values = found.dots(x, W) + found.of(b)
        return _kept(found, values, among_top_k(found, values, k) & (values > 0))


def screen_batch_top_k(
    x: Float[Tensor, "tokens d"],
    W: Float[Tensor, "d_sae d"],
    b: Float[Tensor, " d_sae"],
    k: int,
    workspace: Workspace,
    summed: Summed = one_process,
) -> Entries:
    """The entries of the batch's tokens * k largest x.w + b that are positive, with their values.

    If as many values as are wanted lie above a floor, so does the least of those wanted, and they
    are all among what `screen` finds above it. So any guess of the floor will do, and how many are
    found proves it; where too few are, it is lowered, at last to 0. The guess is a quantile of some
    tokens' values. Of equal values at the edge all are kept.

    Args:
        summed: sums over the processes that have a part of the batch each.
    """
    with _full_precision(x.device):
        floors, n_wanted = _guesses(x, W, b, k, summed)
        for floor in floors:
            found = screen(x, W, b, floor.expand(len(b)), workspace)
            n_found = summed(torch.tensor(len(found), device=x.device))
            if floor == 0 or n_found >= n_wanted:
                break
        assert found.values is not None
        least = kth_positive(found.values, n_wanted, summed)
        return _kept(found, found.values, found.values >= least)


def _guesses(
    x: Tensor, W: Tensor, b: Tensor, k: int, summed: Summed
) -> tuple[Float[Tensor, " n"], int]:
    """Lines to try, falling to 0, the same in all processes; and how many values are wanted."""
    some = x[:: max(1, -(-len(x) // _SAMPLE))]
    values = (some @ W.T + b).flatten()
    ranks = [min(round(margin * k * len(some)), len(values)) for margin in _MARGINS]
    largest = values.topk(ranks[-1]).values if ranks[-1] else values.new_zeros(1)
    floors = torch.stack([largest[max(rank, 1) - 1] for rank in ranks]).clamp(min=0)
    shared = summed(torch.cat([floors, floors.new_tensor([0, len(x), 1])]))
    return shared[:-2] / shared[-1], k * int(shared[-2])


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """Without gradients, without autocast, and with products that are summed in float32."""
    matmul = torch.backends.cuda.matmul  # for all threads: so let it be where it has no effect
    if is_rounded := device.type == "cuda" and matmul.allow_bf16_reduced_precision_reduction:
        matmul.allow_bf16_reduced_precision_reduction = False
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        if is_rounded:
            matmul.allow_bf16_reduced_precision_reduction = True


class _Groups:
    """Latents in groups, each with the largest of its additions to the score."""

    def __init__(self, bound: _Bound, k: int) -> None:
        self.k, self.d = k, bound.d
        size = max(1, len(bound.W) // (_GROUPS_PER_K * k))
        self.shape = (size, len(bound.W) // size)
        norms = bound.W[:, self.d : self.d + 2].float()
        added = torch.cat([norms, bound.raised[:, None]], dim=1)
        self.added = self._grouped(added).amax(0)  # [groups, 3]

    def _grouped(self, by_latent: Float[Tensor, "d_sae n"]) -> Float[Tensor, "size groups n"]:
        size, n_groups = self.shape
        return by_latent[: size * n_groups].unflatten(0, self.shape)

    def lower_bound(
        self, scores: Float[Tensor, "d_sae n"], X: Float[Tensor, "n _"]
    ) -> Float[Tensor, " n"]:
        """Of the k-th largest v of each token, or 0 if that is more; in the scores' dtype."""
        best = self._grouped(scores).amax(0).T.float()  # [n, groups]
        norms = X[:, self.d : self.d + 2].float()
        added = norms @ self.added[:, :2].T + self.added[:, 2]
        # Scores were rounded to bfloat16, by up to 2^-8 of them; 2.1 for this floor's own rounding.
        reached = best - 2.0**-7 * best.abs() - 2.1 * added
        floor = reached.topk(self.k, dim=1, sorted=False).values.amin(1).clamp(min=0)
        return _rounded_down(floor, scores.dtype)


def _bound(x: Tensor, W: Tensor, b: Tensor, floor: Tensor, workspace: Workspace) -> _Bound:
    d, g, low = W.shape[1], (W.shape[1] + 8) * 2.0**-23, _low_dtype(x.device)
    # Tensor cores read rows of whole 16 bytes: the columns that fill them up are zero.
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
    wanted = gap + (g * (b.abs() + 4 * gap.abs()) + _TINY)
    columns[:, d + 2] = wanted
    columns[:, d + 3] = _rounded_up(wanted - columns[:, d + 2].float(), low)
    columns[:, d + 4 :] = 0
    raised = (columns[:, d + 2].float() + columns[:, d + 3].float() - gap).clamp(min=0)
    return _Bound(X, columns, d, raised)


def _rounded_rows(rows: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """Round rows into the first columns of `out`; upper bounds of |row - rounded| and |row|."""
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
    """The pairs that `pick` marks in the scores W X^T, which are made some tokens at a time."""
    n_tokens, d_sae = len(bound.X), len(bound.W)
    n_rows, found = max(256, (_GPU_SCORES if on_gpu(bound.X) else _SCORES) // d_sae), []
    for first in range(0, max(n_tokens, 1), n_rows):  # of no tokens, one part without any
        X = bound.X[first : first + n_rows]
        scores = workspace.buffer("scores", d_sae, len(X), dtype=X.dtype, device=X.device)
        torch.mm(bound.W, X.T, out=scores)
        latents, tokens = _places(pick(scores, X))
        found.append((tokens + first, latents))
    tokens, latents = (torch.cat(each) for each in zip(*found, strict=True))
    order = stable_order(latents, d_sae)
    tokens, latents = tokens.index_select(0, order), latents.index_select(0, order)
    return Entries(tokens, latents, n_tokens, d_sae, workspace=workspace)


def _places(mask: _Mask) -> tuple[Tensor, Tensor]:
    """Rows and columns of what is marked, row by row."""
    if isinstance(mask, Tensor):
        rows, columns = mask.nonzero(as_tuple=True)
        return rows, columns
    rows, columns = np.divmod(np.flatnonzero(mask), mask.shape[1])
    return torch.from_numpy(rows), torch.from_numpy(columns)


def _kept(at: Entries, values: Tensor, keep: Tensor) -> Entries:
    kept = keep.nonzero().squeeze(1)
    tokens, latents = at.tokens.index_select(0, kept), at.latents.index_select(0, kept)
    values = values.index_select(0, kept)
    return Entries(tokens, latents, at.n_tokens, at.d_sae, values, at.workspace)


def among_top_k(at: Entries, values: Tensor, k: int) -> Tensor:
    """[n], whether an entry is among its token's k largest."""
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
    """Numbers that compare as scores do, where the other side is not negative.

    On a CPU they are for numpy, which knows no bfloat16; but floats of one sign are ordered as
    their bits are.
    """
    if on_gpu(scores):
        return scores
    return (scores.view(torch.int16) if scores.dtype == torch.bfloat16 else scores).numpy()


def _rounded_up(x: Tensor, dtype: torch.dtype) -> Tensor:
    near = x.to(dtype)
    return torch.where(near.float() < x, near.nextafter(near.new_tensor(torch.inf)), near)


def _rounded_down(x: Tensor, dtype: torch.dtype) -> Tensor:
    return -_rounded_up(-x, dtype)


def _low_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the processor multiplies it; else float32, which the bound holds for too."""
    # A card without bfloat16 has no TF32 either.
    return torch.bfloat16 if multiplies_bfloat16(device) else torch.float32
