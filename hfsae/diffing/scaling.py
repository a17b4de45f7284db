"""Latent scaling (Minder et al., arXiv:2504.02922): is a latent of one model in the other, too?

For a latent of one model, with direction d there and activations f, and any vectors y,

    beta(y) = argmin_beta sum_n |y_n - beta f_n d|^2 = <d, sum_n f_n y_n> / (|d|^2 sum_n f_n^2)

says how much of the latent is in y. Of each model M two kinds of y are looked at:

    recon   the reconstruction of M, with the latent left in
    error   the activation of M less the reconstruction without the latent: a - (recon - f d^M)

and nu = beta of the other model / beta of the latent's own. A latent that is really of one model
has both near 0. With nu_recon near 1 other latents carry it in the other model; with nu_error near
1 it is there too, and the dictionary left it out.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .sides import Sides


class Nu(NamedTuple):
    """beta of the other model over beta of the latent's own; NaN where a latent never fires."""

    recon: Float[Tensor, " m"]
    error: Float[Tensor, " m"]


class Scaling:
    """Sums over tokens, float64, from which beta and nu of some latents follow.

    Args:
        latents: indices.
        of_second: whether each of them is the second model's.
    """

    def __init__(
        self, sides: Sides, latents: Int[Tensor, " m"], of_second: Bool[Tensor, " m"]
    ) -> None:
        self.sides, self.latents, self.of_second = sides, latents, of_second
        self.rows = [rows[latents] for rows in sides.rows.values()]
        self.own = torch.where(of_second[:, None], self.rows[1], self.rows[0])  # d
        shape, where = (2, len(latents)), self.own.device
        self._recon = torch.zeros(shape, dtype=torch.float64, device=where)
        self._error = torch.zeros(shape, dtype=torch.float64, device=where)
        self._squares = torch.zeros(len(latents), dtype=torch.float64, device=where)

    def add(
        self,
        x: Float[Tensor, "n d"],
        recon: Float[Tensor, "n d"],
        latents: Float[Tensor, "n d_sae"],
    ) -> None:
        """Add tokens: raw activations, reconstructions, and the activations of all latents."""
        f = latents[:, self.latents].double()
        self._squares += f.square().sum(dim=0)
        parts = zip(self.sides.of(x).values(), self.sides.of(recon).values(), strict=True)
        for model, (a, written) in enumerate(parts):
            self._recon[model] += (f * (written @ self.own.T)).sum(dim=0)
            self._error[model] += (f * ((a - written) @ self.own.T)).sum(dim=0)

    def betas(self) -> dict[str, Float[Tensor, "2 m"]]:
        """beta of both models, for "recon" and "error"; NaN where a latent never fired."""
        left_out = torch.stack([(rows * self.own).sum(dim=1) for rows in self.rows])
        size = self.own.square().sum(dim=1) * self._squares
        error = self._error + self._squares * left_out
        return {"recon": self._recon / size, "error": error / size}

    def nu(self) -> Nu:
        """The other model's beta over the own one's."""
        ratios = [
            torch.where(self.of_second, first / second, second / first)
            for first, second in (betas.unbind() for betas in self.betas().values())
        ]
        return Nu(*ratios)
