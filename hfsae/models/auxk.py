"""The base of TopK and BatchTopK: k latents a token, and a loss that revives dead latents."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.distributed.tensor import DTensor

from ..machine.refused import Refused
from ..ops import EVERYWHERE, Summed, largest
from .base import SAE, ForwardParts, Schedule
from .config import Number, SAEConfig


class AuxKSAEConfig(SAEConfig):
    """For activations of unit mean squared norm (x/c)."""

    k: int = 64
    """latents that may fire on a token; for BatchTopK, on average"""
    aux_coefficient: Number = 1 / 32
    """weight of the auxiliary loss that revives dead latents; 0: no such loss"""
    aux_k: int = 512
    """dead latents that a token may use in the auxiliary loss; about d_in / 2"""

    def check(self) -> None:
        super().check()
        self.require_positive("k", "aux_k")
        self.require_not_negative("aux_coefficient")
        if self.k > self.d_sae:
            raise Refused(f"k ({self.k}) is larger than the dictionary: use at most {self.d_sae}")
        if self.target_l0 is not None:
            raise Refused(f"this SAE's L0 is k ({self.k}): leave target_l0 out and set k instead")


class AuxKSAE(SAE):
    """Base of SAEs that pick latents by rank; dead ones get gradient from an auxiliary loss only.

    aux = |error - recon from the aux_k largest dead latents|^2 / |error - mean error|^2

    Gao et al. 2024 (arXiv:2406.04093), appendix A.2: the fraction of the error's variance that dead
    latents do not explain. Its gradients reach dead latents only.
    """

    config: AuxKSAEConfig

    def sparsity_losses(self, parts: ForwardParts, schedule: Schedule) -> dict[str, Tensor]:
        dead = schedule.dead
        n_dead = 0 if dead is None else int(dead.sum())
        if dead is None or n_dead == 0 or self.config.aux_coefficient == 0:
            return {}
        pre_acts, rows = self._of_dead(parts, dead)
        latents = largest(pre_acts.float() / self.scale, min(self.config.aux_k, n_dead)).relu()
        goal = parts.error.detach()  # the bias would cancel: it stands on both sides
        left = (goal - latents @ rows.float()).square().sum()
        share = left / _spread(goal, schedule.summed).clamp(min=1e-12)
        return {"aux": self.config.aux_coefficient * share}

    def _of_dead(self, parts: ForwardParts, dead: Bool[Tensor, " d_sae"]) -> tuple[Tensor, Tensor]:
        """Pre-activations of dead latents, which are not among the entries; their decoder rows."""
        if isinstance(parts.pre_acts, DTensor):  # spread: to pick would move them about
            return torch.where(dead, parts.pre_acts, -torch.inf), self.W_dec
        if parts.at is EVERYWHERE:
            return parts.pre_acts[..., dead], self.W_dec[dead]
        x, W, b = self.encoder_input(parts.x), self.W_enc.T[dead].T, self.scale * self.b_enc
        return EVERYWHERE.project(x, W, b[dead]), self.W_dec[dead]

    def density(
        self, pre_acts: Float[Tensor, "*batch d_sae"], schedule: Schedule
    ) -> Float[Tensor, ""]:
        return torch.tensor(self.config.k / self.config.d_sae)


def _spread(x: Float[Tensor, "*batch d"], summed: Summed) -> Float[Tensor, ""]:
    """Sum of |x - mean|^2 over the batch; with several processes, the mean of their sums.

    Ratios to it then average over processes to the ratio that one process would compute.
    """
    tokens = x.reshape(-1, x.shape[-1])
    n = int(summed(torch.tensor(len(tokens), device=x.device)))
    mean = summed(tokens.sum(dim=0)) / n
    return summed((tokens - mean).square().sum()) * (len(tokens) / n)
