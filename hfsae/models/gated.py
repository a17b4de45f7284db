"""Gated SAE: one encoder decides which latents fire, the same one rescaled gives their size."""

from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import initialization as init

from ..ops import EVERYWHERE, Place
from .base import SAE, ForwardParts, Schedule, l1_penalty
from .config import Number, SAEConfig


class GatedSAEConfig(SAEConfig):
    """Fields of Gated SAEs, for activations of unit mean squared norm (x/c)."""

    model_type = "gated_sae"
    options_on_card: ClassVar = {"penalty": {"ri_l1": "conerly2024update"}}
    dense_copies = 8.4  # gates have two of everything

    l1_coefficient: Number = 0.03
    """lambda, on positive gate pre-activations in units of x/c"""
    penalty: Literal["l1", "ri_l1"] = "l1"
    """"l1", with W_dec's rows at unit norm; "ri_l1": gates weigh what they write, relu(z_i)
    |W_dec_i|, norms are free, and the auxiliary loss trains the decoder too"""

    def check(self) -> None:
        super().check()
        self.require_not_negative("l1_coefficient")

    @property
    def unit_norm_decoder(self) -> bool:
        return self.penalty == "l1"


class GatedSAE(SAE):
    """latents = H(z) relu(m),  m = exp(r_mag) (z - b_enc) + b_mag;  z = x W_enc + b_enc.

    loss = |x - recon|^2 + lambda * |relu(z)|_1 + |x - recon from relu(z), decoder frozen|^2

    Rajamanoharan et al. 2024 (arXiv:2404.16014), eqs. 6 to 8 and appendix G. The penalty acts on
    the gate z alone, so that magnitudes do not shrink. The same function as a JumpReLU SAE
    (appendix E, `hfsae.convert.to_jumprelu`), which trains on L0 itself: prefer that one.
    `pre_acts` are the gate's; b_enc is its bias.

    `penalty="ri_l1"` is Gated (RI-L1), the baseline of the JumpReLU paper (section 5): the penalty
    is lambda * sum_i relu(z_i) |W_dec_i|, norms are free, the decoder is not frozen.
    """

    config_class = GatedSAEConfig
    config: GatedSAEConfig
    latent_dims: ClassVar = {**SAE.latent_dims, "r_mag": 0, "b_mag": 0}
    r_mag: nn.Parameter
    b_mag: nn.Parameter

    def make_parameters(self) -> None:
        super().make_parameters()
        self.r_mag = nn.Parameter(torch.empty(self.config.d_sae))
        self.b_mag = nn.Parameter(torch.empty(self.config.d_sae))

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            init.zeros_(self.r_mag)
            init.zeros_(self.b_mag)

    def activate(
        self,
        pre_acts: Float[Tensor, "*batch d_sae"],
        schedule: Schedule = Schedule(),
        at: Place = EVERYWHERE,
    ) -> Float[Tensor, "*batch d_sae"]:
        without_bias = pre_acts - at.of(self.latent_scale * self.b_enc)
        magnitude = at.of(self.r_mag.exp()) * without_bias + at.of(self.latent_scale * self.b_mag)
        return (pre_acts > 0) * magnitude.relu()

    def sparsity_losses(self, parts: ForwardParts, schedule: Schedule) -> dict[str, Tensor]:
        gate = parts.pre_acts.relu().float() / self.latent_scale
        l1 = l1_penalty(self, parts, gate)
        # The target again, from what is left of it; the gate's own reconstruction.
        target = (parts.error + parts.recon.float() / self.write_scale).detach()
        if self.config.skip_connection:
            skip = self._normalised(parts.x).float() @ self.W_skip.float()
            target = target - skip.detach() / self.write_scale
        rows, b_dec = self.decoder_rows().float(), self.b_dec.float()
        if self.config.penalty == "l1":
            rows, b_dec = rows.detach(), b_dec.detach()
        by_gate = parts.at.combine(gate, rows) + b_dec
        aux = (target - by_gate).square().sum(dim=-1).mean()
        return {"l1": self.config.l1_coefficient * schedule.sparsity * l1, "aux": aux}

    def floor(self, schedule: Schedule = Schedule()) -> Float[Tensor, " d_sae"]:
        return torch.zeros_like(self.b_enc)

    def _fold_(self, state: dict[str, Any], config: SAEConfig) -> None:
        if self.config.subtract_b_dec:  # the bias moves into b_enc, which m leaves out again
            state["b_mag"] -= state["r_mag"].exp() * (state["b_dec"] @ state["W_enc"])
        super()._fold_(state, config)
        state["b_mag"] *= self.latent_scale
