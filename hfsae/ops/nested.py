"""values W over nested prefixes of the latents, at hardly more cost than over all latents."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial

from .sparse import EVERYWHERE, Entries, Place


def nested_sums(
    values: Tensor, W: Float[Tensor, "d_sae d_out"], at: Place, ends: Sequence[int]
) -> Float[Tensor, "levels *batch d_out"]:
    """values W over the first `end` latents, for each of the rising `ends`; the last is d_sae.

    Each latent is multiplied once, in its segment between two ends; prefixes are running sums of
    segments.
    """
    if isinstance(at, Entries):
        segments = _of_entries(values, W, at, ends)
    elif isinstance(values, DTensor) and isinstance(W, DTensor):
        segments = _of_spread(values, W, ends)
    else:
        segments = _of_all(values, W, ends)
    return segments.cumsum(dim=0, dtype=torch.float32)


def _of_all(values: Tensor, W: Tensor, ends: Sequence[int]) -> Tensor:
    parts = pairwise((0, *ends))
    return torch.stack([EVERYWHERE.combine(values[..., a:b], W[a:b]) for a, b in parts])


def _of_spread(values: DTensor, W: DTensor, ends: Sequence[int]) -> DTensor:
    """Each process sums its own latents, which may be in several segments."""
    mesh, rows = W.device_mesh, W.to_local()
    first = mesh.get_local_rank() * len(rows)
    own_ends = [min(max(end - first, 0), len(rows)) for end in ends]
    return DTensor.from_local(_of_all(values.to_local(), rows, own_ends), mesh, [Partial()])


def _of_entries(values: Tensor, W: Tensor, at: Entries, ends: Sequence[int]) -> Tensor:
    """One product; its result has a row for every pair of a segment and a token."""
    last = torch.tensor(ends, device=at.latents.device)
    segment = torch.bucketize(at.latents, last, right=True)
    rows, n_rows = segment * at.n_tokens + at.tokens, len(ends) * at.n_tokens
    spread = Entries(rows, at.latents, n_rows, at.d_sae, workspace=at.workspace)
    return spread.combine(values, W).unflatten(0, (len(ends), at.n_tokens))
