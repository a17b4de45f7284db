"""The tokens on which latents fire most often."""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

_SHIFT = 32  # bits of a token's id in a pair's key
_COUNTED, _KEPT = 12, 6  # of a latent: "the" and " the" become one


class Frequent(NamedTuple):
    """A latent's most frequent tokens, with their shares of its firings."""

    shares: list[tuple[str, float]]
    n_kinds: int
    """different tokens on which it fires"""


class FiringTokens:
    """Counts pairs of a latent and a token. Memory: 16 bytes for each pair that a batch has."""

    def __init__(self) -> None:
        self._keys: list[Tensor] = []
        self._counts: list[Tensor] = []

    def add(self, fired: Bool[Tensor, "n m"], token: Int[Tensor, " n"]) -> None:
        """Add which of m latents fire on some tokens."""
        at, latent = fired.nonzero(as_tuple=True)
        keys, counts = ((latent << _SHIFT) + token[at]).unique(return_counts=True)
        self._keys.append(keys.cpu())
        self._counts.append(counts.cpu())

    def most(self, n_latents: int, spell: Callable[[int], str]) -> list[Frequent]:
        """The most frequent tokens of each latent, by text without spaces around it.

        Args:
            spell: gives the text of a token's id.
        """
        if not self._keys:
            return []
        keys, row = torch.cat(self._keys).unique(return_inverse=True)  # in the order of latents
        counts = torch.zeros(len(keys), dtype=torch.long)
        counts.index_add_(0, row, torch.cat(self._counts))
        ends = torch.searchsorted(keys, torch.arange(n_latents + 1) << _SHIFT).tolist()
        frequent = []
        for first, end in pairwise(ends):
            of_one, shares = counts[first:end], dict[str, float]()
            counted = of_one.sort(descending=True, stable=True).indices[:_COUNTED].tolist()
            for i in counted:
                text = spell(int(keys[first + i]) & ((1 << _SHIFT) - 1))
                text = text.strip() or text
                shares[text] = shares.get(text, 0) + float(of_one[i] / of_one.sum())
            best = sorted(shares.items(), key=lambda pair: -pair[1])[:_KEPT]
            frequent.append(Frequent(best, len(of_one) - len(counted) + len(shares)))
        return frequent
