"""Quotients of sums over tokens, with 95 % intervals over documents."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from ..evaluation.statistics import bootstrap_weights

N_GROUPS = 64
"""Documents are resampled in so many groups: sums of each document would not fit in memory."""
_N_RESAMPLES = 1000
_AT_ONCE = 1024  # latents
_MOST_LEFT_OUT = 0.01  # of the resamples: a latent fires in fewer than five groups
Values = dict[str, Tensor]


def resampled(
    sums: Values, of: Callable[[Values], Values], seed: int = 0
) -> dict[str, Float[Tensor, "3 m"]]:
    """Each value of `of`, and the two ends of its percentile bootstrap interval.

    Args:
        sums: by group of documents, [groups], or [groups, m] of m latents.
        of: values [..., m] from sums [...] and [..., m] over any groups. One that is NaN in a
            resample, as where a latent did not fire, is left out of it; where that is in more than
            a hundredth of them, there is no interval (NaN).
    """
    n_groups = len(next(iter(sums.values())))
    weights = torch.cat([*bootstrap_weights(n_groups, _N_RESAMPLES, seed)])
    levels = weights.new_tensor([0.025, 0.975])
    n_latents = max(table.shape[1] for table in sums.values() if table.ndim > 1)
    parts = []
    for first in range(0, max(n_latents, 1), _AT_ONCE):
        at = slice(first, first + _AT_ONCE)
        tables = {name: t[:, at] if t.ndim > 1 else t for name, t in sums.items()}
        values = of({name: table.sum(dim=0) for name, table in tables.items()})
        draws = of({name: weights @ table for name, table in tables.items()})
        part = {}
        for name, value in values.items():
            of_draws = draws[name]
            low, high = of_draws.nanquantile(levels, dim=0) if len(value) else of_draws[:2]
            ends = torch.minimum(low, value), torch.maximum(high, value)  # outside by rounding
            part[name] = torch.stack([value, *ends])
            is_rare = of_draws.isnan().double().mean(dim=0) > _MOST_LEFT_OUT
            part[name][1:, is_rare | (n_groups == 1)] = torch.nan
        parts.append(part)
    return {name: torch.cat([part[name] for part in parts], dim=1) for name in parts[0]}
