"""What TopK and BatchTopK share: k latents a token, and a loss that brings dead latents back."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..ops import EVERYWHERE
from .base import SAE, Number, Parts, SAEConfig, Schedule


class AuxKSAEConfig(SAEConfig):
    """For activations of unit mean squared norm (x/c)."""

    k: int = 64
    """latents a token may fire; of a BatchTopK SAE, on average"""
    aux_coefficient: Number = 1 / 32
    """weight of the auxiliary loss by which dead latents come back; 0: without"""
    aux_k: int = 512
    """how many dead latents a token may use there; about d_in / 2"""

    def check(self) -> None:
        super().check()
        for name in ("k", "aux_k"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.k > self.d_sae:
            raise ValueError(f"k ({self.k}) is more than all latents (d_sae = {self.d_sae})")
        if self.aux_coefficient < 0:
            raise ValueError(f"aux_coefficient must not be negative, got {self.aux_coefficient}")
        if self.target_l0 is not None:
            raise ValueError(
                f"this SAE's L0 is k ({self.k}): leave target_l0 out and set k instead"
            )


class AuxKSAE(SAE):
    """An SAE whose latents are chosen by rank, so that a loss of its own is left to dead ones.

    aux = |error - recon from the aux_k largest dead latents|^2 / |error - mean error|^2

    Gao et al. 2024 (arXiv:2406.04093), appendix A.2: the share of the error's variance that dead
    latents leave. Its gradients reach nothing but them.
    """

    config: AuxKSAEConfig

    def sparsity_losses(self, parts: Parts, schedule: Schedule) -> dict[str, Tensor]:
        dead = schedule.dead
        n_dead = 0 if dead is None else int(dead.sum())
        if dead is None or n_dead == 0 or self.config.aux_coefficient == 0:
            return {}
        pre_acts = self._of_dead(parts, dead).float() / self.scale
        latents = largest(pre_acts, min(self.config.aux_k, n_dead)).relu()
        wanted = parts.error.detach()  # the bias would cancel: it stands on both sides
        left = wanted - latents @ self.W_dec[dead].float()
        spread = wanted - wanted.reshape(-1, wanted.shape[-1]).mean(dim=0)
        share = left.square().sum() / spread.square().sum().clamp(min=1e-12)
        return {"aux": self.config.aux_coefficient * share}

    def _of_dead(self, parts: Parts, dead: Bool[Tensor, " d_sae"]) -> Tensor:
        """Pre-activations of dead latents, which are no entries."""
        if parts.at is EVERYWHERE:
            return parts.pre_acts[..., dead]
        b = self.scale * self.b_enc
        return EVERYWHERE.project(self.encoder_input(parts.x), self.W_enc.T[dead].T, b[dead])

    def density(
        self, pre_acts: Float[Tensor, "*batch d_sae"], schedule: Schedule
    ) -> Float[Tensor, ""]:
        return torch.tensor(self.config.k / self.config.d_sae)


def largest(z: Float[Tensor, "*batch d_sae"], k: int) -> Float[Tensor, "*batch d_sae"]:
    """z at the k largest of each row, 0 elsewhere."""
    values, indices = z.topk(k, dim=-1, sorted=False)
    return torch.zeros_like(z).scatter(-1, indices, values)
