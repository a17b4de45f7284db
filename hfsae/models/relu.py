"""ReLU SAE: the classic one, made sparse by an L1 penalty."""

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AutoConfig, AutoModel

from ..ops import EVERYWHERE, Place
from .base import SAE, Number, Parts, SAEConfig, Schedule


class ReLUSAEConfig(SAEConfig):
    """For activations of unit mean squared norm (x/c)."""

    model_type = "relu_sae"

    l1_coefficient: Number = 0.03
    """lambda, on latents in units of x/c"""

    def check(self) -> None:
        super().check()
        if self.l1_coefficient < 0:
            raise ValueError(f"l1_coefficient must not be negative, got {self.l1_coefficient}")


class ReLUSAE(SAE):
    """latents = relu(z),  z = x W_enc + b_enc;  loss = |x - recon|^2 + lambda * |latents|_1.

    Bricken et al. 2023; the baseline of Rajamanoharan et al. 2024 (arXiv:2404.16014, section 2).
    The penalty shrinks what fires and so costs fidelity. Prefer another variant for training; this
    one is the baseline, and what many published SAEs are.
    """

    config_class = ReLUSAEConfig
    config: ReLUSAEConfig

    def activate(
        self,
        pre_acts: Float[Tensor, "*batch d_sae"],
        schedule: Schedule = Schedule(),
        at: Place = EVERYWHERE,
    ) -> Float[Tensor, "*batch d_sae"]:
        return pre_acts.relu()

    def sparsity_losses(self, parts: Parts, schedule: Schedule) -> dict[str, Tensor]:
        l1 = parts.per_token(parts.latents.float()) / self.scale
        return {"l1": self.config.l1_coefficient * schedule.sparsity * l1}

    def line(self, schedule: Schedule = Schedule()) -> Float[Tensor, " d_sae"]:
        return torch.zeros_like(self.b_enc)


AutoConfig.register(ReLUSAEConfig.model_type, ReLUSAEConfig)
AutoModel.register(ReLUSAEConfig, ReLUSAE)
