"""ReLU SAE: the classic one, made sparse by an L1 penalty."""

from typing import Any, ClassVar, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor

from ..ops import EVERYWHERE, Place
from .base import SAE, ForwardParts, Schedule, l1_penalty
from .config import Number, SAEConfig, own_fields


class ReLUSAEConfig(SAEConfig):
    """Fields of ReLU SAEs, for activations of unit mean squared norm (x/c)."""

    model_type = "relu_sae"
    options_on_card: ClassVar = {"penalty": {"ri_l1": "conerly2024update"}}

    l1_coefficient: Number = 0.03
    """lambda, on latents in units of x/c. Conerly et al.'s 5 is for E|x|^2 = d_in, which makes it
    5 / sqrt(d_in) here"""
    penalty: Literal["l1", "ri_l1"] = "l1"
    """"l1", with W_dec's rows at unit norm; "ri_l1": latents weigh what they write, f_i |W_dec_i|,
    and norms are free"""

    def check(self) -> None:
        super().check()
        self.require_not_negative("l1_coefficient")

    @property
    def unit_norm_decoder(self) -> bool:
        return self.penalty == "l1"


class ReLUSAE(SAE):
    """latents = relu(z),  z = x W_enc + b_enc;  loss = |x - recon|^2 + lambda * |latents|_1.

    Bricken et al. 2023; the baseline of Rajamanoharan et al. 2024 (arXiv:2404.16014, section 2).
    With `penalty="ri_l1"` that of Conerly et al. 2024 (Transformer Circuits, April update): lambda
    * sum_i latents_i |W_dec_i|, which does not change when a latent is rescaled, so that rows need
    no unit norm and fewer latents die. The penalty shrinks latents that fire and so costs fidelity.
    Prefer another variant for training; this one is the baseline, and many published SAEs use it.
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

    def sparsity_losses(self, parts: ForwardParts, schedule: Schedule) -> dict[str, Tensor]:
        l1 = l1_penalty(self, parts, parts.latents.float()) / self.latent_scale
        return {"l1": self.config.l1_coefficient * schedule.sparsity * l1}

    def floor(self, schedule: Schedule = Schedule()) -> Float[Tensor, " d_sae"]:
        return torch.zeros_like(self.b_enc)


@torch.no_grad()
def rectified(sae: SAE) -> ReLUSAE:
    """A ReLU SAE with the weights of another SAE at the same site, and no encoder biases."""
    shared = own_fields(SAEConfig) & own_fields(ReLUSAEConfig)
    config = ReLUSAEConfig(**{name: getattr(sae.config, name) for name in sorted(shared)})
    other = cast(Any, ReLUSAE(config).eval()).to(sae.W_dec)
    for name, parameter in other.named_parameters():
        if name != "b_enc":
            parameter.copy_(getattr(sae, name))
    return other
