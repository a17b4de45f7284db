"""values W over nested prefixes of the latents, for hardly more than over all of them."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from .sparse import Entries, Place


def nested_sums(
    values: Tensor, W: Float[Tensor, "d_sae d_out"], at: Place, ends: Sequence[int]
) -> Float[Tensor, "levels *batch d_out"]:
    """values W over the first `end` latents, for each of the rising `ends`; the last is d_sae.

    Each latent is multiplied once, in the segment between two ends that it lies in; the prefixes
    are running sums of segments.
    """
    if isinstance(at, Entries):
        segments = _of_entries(values, W, at, ends)
    else:
        parts = pairwise((0, *ends))
        segments = torch.stack([at.combine(values[..., a:b], W[a:b]) for a, b in parts])
    return segments.cumsum(dim=0, dtype=torch.float32)


def _of_entries(values: Tensor, W: Tensor, at: Entries, ends: Sequence[int]) -> Tensor:
    """One product, with a row of the result for every pair of a segment and a token."""
    last = torch.tensor(ends, device=at.latents.device)
    segment = torch.bucketize(at.latents, last, right=True)
    rows, n_rows = segment * at.n_tokens + at.tokens, len(ends) * at.n_tokens
    spread = Entries(rows, at.latents, n_rows, at.d_sae, workspace=at.workspace)
    return spread.combine(values, W).unflatten(0, (len(ends), at.n_tokens))
