"""Weights of SAEs whose decoder rows have norms of their own, rewritten with rows of norm 1."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def _length(rows: Tensor) -> Tensor:
    return rows.norm(dim=-1)


def fold_decoder_norms(
    state: dict[str, Tensor],
    norms_of: Callable[[Tensor], Tensor] = _length,
    decoder: Sequence[str] = ("W_dec",),
) -> dict[str, Tensor]:
    """Weights with decoder rows of norm 1, latents scaled up: the same reconstructions.

    Args:
        decoder: names of the weights that hold the rows of equal parts of the latents.
    """
    norms = torch.cat([norms_of(state[name]) for name in decoder])
    # Folded rows differ from norm 1 by rounding: left alone, so folding twice changes nothing.
    norms = torch.where((norms - 1).abs() < 1e-6, 1.0, norms).clamp(min=1e-12)
    names = ("W_enc", "b_enc", "b_mag", "threshold")
    scaled = {name: state[name] * norms for name in names if name in state and state[name].ndim}
    parts = zip(decoder, norms.chunk(len(decoder)), strict=True)
    rows = {name: state[name] / of_rows[:, None] for name, of_rows in parts}
    return {**state, **scaled, **rows}
