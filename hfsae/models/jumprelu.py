"""JumpReLU SAE: a threshold for every latent, trained by straight-through estimators."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel
from transformers import initialization as init

from ..ops import EVERYWHERE, Place, heaviside, jumprelu
from .base import SAE, Number, Parts, SAEConfig, Schedule


class JumpReLUSAEConfig(SAEConfig):
    """Defaults are the paper's, for activations of unit mean squared norm (x/c)."""

    model_type = "jumprelu_sae"

    l0_coefficient: Number = 6e-4
    """lambda. Gemma Scope's 6e-4 gives an L0 near 50 after billions of tokens at 9B layer 20"""
    bandwidth: Number = 0.001
    """width of the STE kernel, in units of x/c; a run of under 1e8 tokens wants about 0.03"""
    initial_threshold: Number = 0.001
    """in units of x/c"""
    log_threshold: bool = True
    """the optimiser moves log(threshold), as in the paper; False: the threshold itself"""

    def check(self) -> None:
        super().check()
        for name in ("bandwidth", "initial_threshold"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.l0_coefficient < 0:
            raise ValueError(f"l0_coefficient must not be negative, got {self.l0_coefficient}")


class JumpReLUSAE(SAE):
    """latents = z H(z - threshold),  z = x W_enc + b_enc;  loss = |x - recon|^2 + lambda * L0.

    Rajamanoharan et al. 2024 (arXiv:2407.14435), eqs. 3, 8 and 9; Gemma Scope's architecture. H is
    the step function, L0 the number of z above their threshold. Gradients reach the thresholds by
    the pseudo-derivatives in `hfsae.ops.straight_through`, and the L0 term reaches nothing else.

    Prefer it to TopK where tokens should differ in how many latents they need. It wants either a
    tuned `l0_coefficient` or a `target_l0`. The parameter `threshold` [d_sae] is stored in units of
    x/c like the biases, and stays float32 in every dtype.
    """

    config_class = JumpReLUSAEConfig
    config: JumpReLUSAEConfig
    float32_parameters = ("threshold",)
    _keep_in_fp32_modules_strict = {"threshold"}  # noqa: RUF012
    threshold: nn.Parameter

    def make_parameters(self) -> None:
        super().make_parameters()
        self.threshold = nn.Parameter(torch.empty(self.config.d_sae, dtype=torch.float32))

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            init.constant_(self.threshold, float(self.config.initial_threshold))

    def activate(
        self,
        pre_acts: Float[Tensor, "*batch d_sae"],
        schedule: Schedule = Schedule(),
        at: Place = EVERYWHERE,
    ) -> Float[Tensor, "*batch d_sae"]:
        threshold = at.of(self.scale * self.threshold)
        return jumprelu(pre_acts, threshold, self._bandwidth(schedule))

    def sparsity_losses(self, parts: Parts, schedule: Schedule) -> dict[str, Tensor]:
        threshold = parts.at.of(self.scale * self.threshold)
        steps = heaviside(parts.pre_acts, threshold, self._bandwidth(schedule))
        l0 = parts.per_token(steps)
        return {"l0": self.config.l0_coefficient * schedule.sparsity * l0}

    @torch.no_grad()
    def line(self, schedule: Schedule = Schedule()) -> Float[Tensor, " d_sae"]:
        """The lower end of the STE window; a little below it, where rounding could matter."""
        threshold, half = self.scale * self.threshold, self._bandwidth(schedule) / 2
        return threshold - half - 2.0**-20 * (threshold.abs() + half)

    def _bandwidth(self, schedule: Schedule) -> float:
        return self.scale * float(self.config.bandwidth) * schedule.bandwidth

    @torch.no_grad()
    def window_share(
        self, pre_acts: Tensor, schedule: Schedule = Schedule(), at: Place = EVERYWHERE
    ) -> Tensor:
        """Share of pre-activations inside the STE window: the only ones that move thresholds."""
        distance = (pre_acts - at.of(self.scale * self.threshold)).abs()
        return at.share(distance < self._bandwidth(schedule) / 2)

    @torch.no_grad()
    def before_step_(self) -> None:
        """With `log_threshold`, also hand the optimiser log(threshold) and its gradient..."""
        super().before_step_()
        if self.config.log_threshold:
            if self.threshold.grad is not None:
                self.threshold.grad *= self.threshold
            self.threshold.log_()

    @torch.no_grad()
    def after_step_(self) -> None:
        """...and take the threshold back from it; else keep it from falling below zero."""
        super().after_step_()
        if self.config.log_threshold:
            self.threshold.exp_()
        else:
            self.threshold.clamp_(min=0)

    def _fold_(self, state: dict[str, Any], config: SAEConfig) -> None:
        super()._fold_(state, config)
        state["threshold"] *= self.scale
        config.bandwidth = float(self.config.bandwidth) * self.scale
        config.initial_threshold = float(self.config.initial_threshold) * self.scale


AutoConfig.register(JumpReLUSAEConfig.model_type, JumpReLUSAEConfig)
AutoModel.register(JumpReLUSAEConfig, JumpReLUSAE)
