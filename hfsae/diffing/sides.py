"""The two models of a crosscoder: which columns, decoder rows and latents belong to each."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..io.errors import Refused
from ..lm.places import SLASH
from ..models import SAE

FIRST, SECOND, SHARED, OTHER = "first", "second", "shared", "other"
GROUPS = (FIRST, SECOND, SHARED, OTHER)
MOSTLY = 0.9
"""from this share on a latent counts to one model"""
EVEN = (0.4, 0.6)
"""shares of a latent of both models"""
_ROUNDING = 1e-9


class Sides:
    """Activations, reconstructions and decoder rows of an SAE, apart for each of two models.

    All are over the scale c_s of their site, in which shares are measured; several sites of a model
    stand side by side.

    Raises:
        ValueError: the SAE has not sites of two models, the same in both and equally wide.
    """

    def __init__(self, sae: SAE) -> None:
        self.sae = sae if sae.config.scales_folded else sae.folded()
        config = self.sae.config
        paths: dict[str, list[tuple[str, int]]] = {}
        for site, width in config.writes:
            name, slash, path = site.partition(SLASH)
            paths.setdefault(name if slash else "", []).append((path, width))
        if len(paths) != 2 or "" in paths:
            of = f"reads {config.writes}" if "" in paths else f"has sites of {', '.join(paths)}"
            raise Refused(
                f"this SAE {of}; `hfsae diff` compares two language models, by an SAE over sites "
                "of both, such as base/layers.13 and chat/layers.13 (a recipe with lms)"
            )
        (first, ours), (second, theirs) = ((name, sorted(of)) for name, of in paths.items())
        if ours != theirs:
            raise Refused(
                f"{first} and {second} are not read at the same sites, equally wide "
                f"({_listed(ours)}; {_listed(theirs)}), so their directions cannot be compared"
            )
        self.names = first, second
        self._sites = {name: [f"{name}{SLASH}{path}" for path, _ in ours] for name in self.names}
        scales = config.site_scales or [1.0] * len(config.writes)
        self._scales = dict(zip(config.writes.names, map(float, scales), strict=True))

    def of(self, x: Float[Tensor, "n d"]) -> dict[str, Float[Tensor, "n _"]]:
        """The columns of each model, float64."""
        parts = self.sae.split(x)
        return {
            name: torch.cat([parts[site].double() / self._scales[site] for site in sites], dim=-1)
            for name, sites in self._sites.items()
        }

    @property
    def rows(self) -> dict[str, Float[Tensor, "d_sae _"]]:
        """The decoder rows of each model: what a latent of activation 1 writes there."""
        return self.of(self.sae.W_dec.detach())

    @property
    def moves(self) -> Float[Tensor, "d_sae _"]:
        """d: the second model's rows less the first one's; 0 for a latent that changes nothing."""
        first, second = self.rows.values()
        return second - first

    @property
    def shift(self) -> Float[Tensor, " _"]:
        """The difference of the two models that b_dec holds, on all tokens alike."""
        first, second = self.of(self.sae.b_dec.detach()[None]).values()
        return (second - first)[0]

    @property
    def share(self) -> Float[Tensor, " d_sae"]:
        """r: the share of each latent's row that is the second model's; NaN for a row of zeros."""
        shares = dict(zip(self.sae.config.writes.names, self.sae.shares.double().T, strict=True))
        ours, theirs = (
            torch.stack([shares[site] for site in self._sites[name]]).sum(dim=0)
            for name in self.names
        )
        return theirs / (ours + theirs)

    @property
    def cosine(self) -> Float[Tensor, " d_sae"]:
        """Of each latent's two rows."""
        first, second = self.rows.values()
        return torch.nn.functional.cosine_similarity(first, second, dim=-1)


def _listed(paths: list[tuple[str, int]]) -> str:
    return ", ".join(f"{path} ({width} wide)" for path, width in paths)


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
