"""Latents that nothing was trained for: random unit directions that fire as often as an SAE's."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


class Untrained:
    """A JumpReLU encoder along random unit directions.

    Each direction takes the density of one latent of an SAE, measured on the same activations: its
    threshold is the value that this share of them exceeds.

    Args:
        x: [n, d_in] activations on which densities are measured.
        densities: [d_sae] shares of these tokens on which an SAE's latents fire.
    """

    def __init__(
        self, x: Float[Tensor, "n d_in"], densities: Float[Tensor, " d_sae"], seed: int
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.mean = x.mean(dim=0)
        self.directions = F.normalize(
            torch.randn(len(densities), x.shape[1], generator=generator), dim=1
        )
        self.threshold = torch.empty(len(densities))
        n_active = (densities * len(x)).round().long().clamp(max=len(x))
        for latents in torch.arange(len(densities)).split(4096):
            along = ((x - self.mean) @ self.directions[latents].T).sort(dim=0, descending=True)[0]
            along = torch.cat([along, torch.full_like(along[:1], -torch.inf)])
            self.threshold[latents] = along.gather(0, n_active[latents][None])[0]
        self.threshold[n_active == 0] = torch.inf

    def encode(self, x: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_sae"]:
        """Latents: the activation along each direction where it exceeds its threshold, else 0;
        a threshold below 0 is the origin of its latent."""
        along = (x - self.mean) @ self.directions.T
        return torch.where(along > self.threshold, along - self.threshold.clamp(max=0), 0.0)
