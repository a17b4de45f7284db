"""Latent scaling (Minder et al., arXiv:2504.02922): is a latent of one model in the other, too?

For a latent of one model, with direction d there and activations f, and any vectors y,

    beta(y) = argmin_beta min_c sum_n |y_n - c - beta f_n d|^2
            = sum_n (f_n - mean f) <d, y_n> / (|d|^2 sum_n (f_n - mean f)^2)

is how much of the latent is in y. The constant c, which the paper has not, takes what is in y on
all tokens alike: without it the activations' mean counts as the latent. Of each model M two kinds
of y are looked at:

    recon   the reconstruction of M, with the latent left in
    error   the activation of M less the reconstruction without the latent: a - (recon - f d^M)

and nu = beta of the other model / beta of the latent's own. A latent that is really of one model
has both near 0. With nu_recon near 1 other latents carry it in the other model; with nu_error near
1 it is there too, and the dictionary left it out. Where the own beta is small, since other latents
write against it on its tokens, the quotient is undetermined.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..evaluation.metrics import DocumentSums
from .intervals import N_GROUPS, Values, resampled
from .sides import Sides

KINDS = ("recon", "error")
MOST_NU = 0.2
"""little of a latent is in the other model: both nu are below it in size, intervals included"""
LEAST_OWN = 0.5
"""own coefficients below it leave nu undetermined: they are 1 where no other latent interferes"""
LITTLE, SOME, UNDETERMINED = "little", "some", "undetermined"


class Scaling:
    """Sums over tokens, float64, by 64 groups of documents, from which beta and nu of some latents
    follow.

    Args:
        latents: indices.
        of_second: whether each of them is the second model's.
    """

    def __init__(
        self, sides: Sides, latents: Int[Tensor, " m"], of_second: Bool[Tensor, " m"]
    ) -> None:
        self.sides, self.latents, self.of_second = sides, latents, of_second
        first, second = (rows[latents] for rows in sides.rows.values())
        own = torch.where(of_second[:, None], second, first)  # d
        self._unit = own / own.square().sum(dim=1, keepdim=True)
        self._left_out = [(rows * self._unit).sum(dim=1) for rows in (first, second)]
        self.sums = DocumentSums()

    def add(
        self,
        x: Float[Tensor, "n d"],
        recon: Float[Tensor, "n d"],
        latents: Float[Tensor, "n d_sae"],
        document: Int[Tensor, " n"],
    ) -> None:
        """Add tokens: raw activations, reconstructions, and the activations of all latents."""
        f = latents[:, self.latents].double()
        values = {"tokens": f.new_ones(len(f)), "f": f, "square": f.square()}
        along = []  # <d, y> / |d|^2 of each model, for both kinds
        parts = zip(self.sides.of(x).values(), self.sides.of(recon).values(), strict=True)
        for (a, written), left_out in zip(parts, self._left_out, strict=True):
            along.append((written @ self._unit.T, (a - written) @ self._unit.T + f * left_out))
        for kind, first, second in zip(KINDS, *along, strict=True):
            for name, y in (
                ("own", torch.where(self.of_second, second, first)),
                ("other", torch.where(self.of_second, first, second)),
            ):
                values |= {f"{name}_{kind}": y, f"f_{name}_{kind}": f * y}
        self.sums.add(document % N_GROUPS, values)
        self.sums.per_document()  # merged, so that memory does not grow

    def nu(self) -> dict[str, Float[Tensor, "3 m"]]:
        """own_recon, own_error (the latent's own beta), nu_recon and nu_error: values, and the ends
        of their intervals over documents; NaN where a latent never fired."""
        return resampled(self.sums.per_document(), _nu_of)


def betas_of(sums: Values) -> Values:
    """beta of a latent's "own" model and of the "other", for both kinds, from sums over tokens; NaN
    where a latent never fired."""
    mean = sums["f"] / sums["tokens"][..., None]
    spread = sums["square"] - mean * sums["f"]
    spread = torch.where(sums["square"] > 0, spread, torch.nan)
    names = [f"{name}_{kind}" for name in ("own", "other") for kind in KINDS]
    return {name: (sums[f"f_{name}"] - mean * sums[name]) / spread for name in names}


def _nu_of(sums: Values) -> Values:
    betas = betas_of(sums)
    own = {f"own_{kind}": betas[f"own_{kind}"] for kind in KINDS}
    return own | {f"nu_{kind}": betas[f"other_{kind}"] / betas[f"own_{kind}"] for kind in KINDS}


def in_other(nu: dict[str, Float[Tensor, "3 m"]]) -> list[str | None]:
    """Whether "little" or "some" of each latent is in the other model, or "undetermined", from
    values and intervals of `Scaling.nu`; None for one that never fired.

    Little: both intervals of nu lie within -.2 and .2. Some: one lies above .2. Else, and where the
    interval of an own coefficient reaches below .5, it is undetermined: a quotient of a small
    number can be anything.
    """
    own, nus = (torch.stack([nu[f"{name}_{kind}"] for kind in KINDS]) for name in ("own", "nu"))
    is_sure = (own[:, 1] >= LEAST_OWN).all(dim=0)
    is_little = (nus.abs() < MOST_NU).all(dim=0).all(dim=0)
    is_some = (nus[:, 1] > MOST_NU).any(dim=0)
    words = []
    for sure, little, some, value in zip(is_sure, is_little, is_some, own[0, 0], strict=True):
        word = LITTLE if little else SOME if some else UNDETERMINED
        words.append(None if value.isnan() else word if sure else UNDETERMINED)
    return words
