"""Latents by the share of their decoder row that is the second model's."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

FIRST, SECOND, SHARED, OTHER = "first", "second", "shared", "other"
GROUPS = (FIRST, SECOND, SHARED, OTHER)
MOSTLY = 0.9
"""from this share on a latent counts to one model"""
EVEN = (0.4, 0.6)
"""shares of a latent of both models"""
_ROUNDING = 1e-9


class Groups(NamedTuple):
    """The group of each latent, as an index of `GROUPS`."""

    index: Int[Tensor, " d_sae"]

    def are(self, *names: str) -> Bool[Tensor, " d_sae"]:
        """Which latents are in one of these groups."""
        return torch.isin(self.index, self.index.new_tensor([GROUPS.index(name) for name in names]))

    @property
    def names(self) -> list[str]:
        """The group of each latent."""
        return [GROUPS[i] for i in self.index.tolist()]


def groups_of(share: Float[Tensor, " d_sae"]) -> Groups:
    """r >= .9: the second model's; r <= .1: the first one's; .4 to .6: of both; the others, and
    latents that write nothing (NaN), are in none of these."""
    index = torch.full_like(share, GROUPS.index(OTHER), dtype=torch.long)
    low, high = EVEN
    index[share <= 1 - MOSTLY + _ROUNDING] = GROUPS.index(FIRST)
    index[share >= MOSTLY - _ROUNDING] = GROUPS.index(SECOND)
    index[(share >= low - _ROUNDING) & (share <= high + _ROUNDING)] = GROUPS.index(SHARED)
    return Groups(index)
