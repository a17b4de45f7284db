"""The base of TopK and BatchTopK: k latents a token, and a loss that revives dead latents."""

import torch
from jaxtyping import Float
from torch import Tensor

from ..io.errors import Refused
from . import penalties
from .base import SAE, ForwardParts, Schedule
from .config import Number, SAEConfig


class AuxKSAEConfig(SAEConfig):
    """Fields of TopK and BatchTopK, for activations of unit mean squared norm (x/c)."""

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
    """Base of SAEs that pick latents by rank; dead ones learn by `penalties.aux_k` alone."""

    config: AuxKSAEConfig

    def sparsity_losses(self, parts: ForwardParts, schedule: Schedule) -> dict[str, Tensor]:
        c = self.config
        return penalties.aux_k(self, parts, schedule, c.aux_coefficient, c.aux_k)

    def density(
        self, pre_acts: Float[Tensor, "*batch d_sae"], schedule: Schedule
    ) -> Float[Tensor, ""]:
        return torch.tensor(self.config.k / self.config.d_sae)
