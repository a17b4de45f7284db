"""JumpReLU SAE: a threshold for every latent, trained by straight-through estimators.

Defaults are the paper's. Named recipes, as fields of the config, n = d_in; values that they give
for E|x|^2 = n are converted to x/c (bandwidth, thresholds and latents by 1 / sqrt(n), the loss by
1 / n):

    Gemma Scope (2024)      the defaults; l0_coefficient 6e-4 and others
    paper, appendix F       l0_loss "quadratic", target_l0, l0_coefficient 1
    DeepMind, March 2025    l0_loss "frequency", frequency_limit 0.1
    Anthropic, Jan. 2025    penalty "tanh", ste_to_inputs, bandwidth 2 / sqrt(n), initial_threshold
                            0.1 / sqrt(n), l0_coefficient 10 / n to 20 / n, pre_act_coefficient
                            3e-6 / sqrt(n); sparsity rising through the whole run (training's
                            sparsity_warmup_steps), Adam (0.9, 0.999), decay_steps 0.2,
                            max_grad_norm 1. Anthropic's SAEs start from other weights, and from
                            encoder biases with which some 10,000 latents fire
    ablations of the paper  H.1: ste_to_inputs; H.2: activation "shifted", penalty "l1";
                            H.3: kernel; and ste
"""

from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import initialization as init

from ..io.errors import Refused
from ..ops import EVERYWHERE, Kernel, Place, heaviside, jumprelu
from .base import SAE, ForwardParts, Schedule, aux_k_losses, l1_penalty
from .config import Number, SAEConfig


class JumpReLUSAEConfig(SAEConfig):
    """Fields of JumpReLU SAEs: the paper's defaults, for activations of unit mean squared norm
    (x/c)."""

    model_type = "jumprelu_sae"
    has_thresholds = True
    options_on_card: ClassVar = {
        "penalty": {"tanh": "conerly2025dictionary"},
        "l0_loss": {"frequency": "smith2025negative"},
        "activation": {},
        "kernel": {},
        "ste": {},
        "ste_to_inputs": {},
        "pre_act_coefficient": {},
        "aux_coefficient": {},
    }
    dense_copies = 5.25

    l0_coefficient: Number = 6e-4
    """lambda. Gemma Scope's 6e-4 gives an L0 near 50 after billions of tokens at 9B layer 20. With
    l0_loss="quadratic" L0 settles at target * (1 + m target / 2 lambda), where m is the lambda that
    a linear loss would need; lambda = 1 keeps it close"""
    bandwidth: Number = 0.001
    """width of the STE kernel, in units of x/c; use about 0.03 for runs under 1e8 tokens"""
    initial_threshold: Number = 0.001
    """in units of x/c"""
    log_threshold: bool = True
    """the optimiser moves log(threshold), as in the paper; False: the threshold itself"""
    activation: Literal["jump", "shifted"] = "jump"
    """"jump": z H(z - threshold); "shifted": (z - threshold) H(z - threshold), which is ReLU with
    a bias, its gradient exact: for ablation. `folded()` makes it a jump at 0"""
    kernel: Kernel = "rectangle"
    """of the STE: "rectangle", "triangle", "epanechnikov" or "gaussian" (`hfsae.ops.kernel`)"""
    ste: Literal["both", "l0", "reconstruction", "none"] = "both"
    """which loss terms move thresholds: "both"; for ablation "l0" (thresholds only rise) or
    "reconstruction" (lambda has no effect); "none" freezes them"""
    ste_to_inputs: bool = False
    """pseudo-derivatives with respect to z too, so that penalties reach the encoder. The paper's
    H.1 finds dead latents and poor fidelity with it"""
    penalty: Literal["l0", "l1", "tanh"] = "l0"
    """"l0"; "l1", on latents; "tanh": sum_i tanh(tanh_slope f_i |W_dec_i|), with free norms"""
    l0_loss: Literal["linear", "quadratic", "frequency"] = "linear"
    """"linear": lambda L0; "quadratic": lambda (L0 / target_l0 - 1)^2, so that the loss itself
    leads to target_l0 (the trainer's controller rests); "frequency": lambda sum_i p_i (1 + p_i /
    frequency_limit), p_i the fraction of tokens that latent i fires on, against dense latents"""
    frequency_limit: Number = 0.1
    """omega_0: for a latent that fires on this fraction of tokens, each firing costs double"""
    tanh_slope: Number = 4
    """c, applied to latents times sqrt(d_out): the paper's unit, E|x|^2 = d"""
    pre_act_coefficient: Number = 0.0
    """weight of sum_i relu(threshold_i - z_i) |W_dec_i|, which revives dead latents; no warm-up.
    Every latent of every token then has a gradient, so sparse steps are not possible. A weight
    under 1e-7 needs an adam_epsilon below 1e-8"""
    aux_coefficient: Number = 0.0
    """weight of TopK's auxiliary loss (`aux_k_losses`; 1/32 there), which revives dead latents
    in a warm start; a latent's own threshold, which it does not lower, keeps it silent later"""
    aux_k: int = 512
    """dead latents that a token may use in the auxiliary loss; about d_in / 2"""

    def check(self) -> None:
        super().check()
        self.require_positive("bandwidth", "initial_threshold", "frequency_limit", "tanh_slope")
        self.require_positive("aux_k")
        self.require_not_negative("l0_coefficient", "pre_act_coefficient", "aux_coefficient")
        if self.l0_loss != "linear" and self.penalty != "l0":
            raise Refused(f"l0_loss={self.l0_loss!r} needs penalty='l0'")
        if self.l0_loss == "quadratic" and self.target_l0 is None:
            raise Refused("l0_loss='quadratic' needs target_l0, where its minimum lies")
        if self.penalty != "l0" and self.ste not in ("both", "none"):
            raise Refused(
                f"ste={self.ste!r} needs penalty='l0': {self.penalty!r} penalises the "
                "latents that are also decoded, so the two terms cannot be separated"
            )

    @property
    def unit_norm_decoder(self) -> bool:
        return self.penalty != "tanh"

    @property
    def steers_itself(self) -> bool:
        return self.l0_loss == "quadratic"

    def sparsity_at(self, threshold: float) -> float | None:
        """Factor on lambda for which this threshold is optimal, for penalties that count latents.

        Removing a latent of activation z (in x/c) adds z^2 to the squared error, if its decoder
        row is orthogonal to the others'. So it is worth its price lambda where z^2 > lambda, that
        is above a threshold of sqrt(lambda).
        """
        counts = (self.activation, self.penalty, self.l0_loss) == ("jump", "l0", "linear")
        return threshold**2 / self.l0_coefficient if counts and self.l0_coefficient else None


class JumpReLUSAE(SAE):
    """latents = z H(z - threshold),  z = x W_enc + b_enc;  loss = |x - recon|^2 + lambda * L0.

    Rajamanoharan et al. 2024 (arXiv:2407.14435), eqs. 3, 8 and 9; Gemma Scope's architecture. H is
    the step function, L0 the number of z above their threshold. Gradients reach the thresholds by
    the pseudo-derivatives in `hfsae.ops.straight_through`; the L0 term moves only thresholds.

    Prefer it to TopK where tokens should differ in how many latents they need. It needs either a
    tuned `l0_coefficient` or a `target_l0`. The parameter `threshold` [d_sae] is stored in units of
    x/c like the biases, and stays float32 in every dtype. This module's docstring names recipes.
    """

    config_class = JumpReLUSAEConfig
    config: JumpReLUSAEConfig
    float32_parameters = ("threshold",)
    _keep_in_fp32_modules_strict = {"threshold"}  # noqa: RUF012
    latent_dims: ClassVar = {**SAE.latent_dims, "threshold": 0}
    threshold: nn.Parameter

    def make_parameters(self) -> None:
        super().make_parameters()
        threshold = torch.empty(self.config.d_sae, dtype=torch.float32)
        self.threshold = nn.Parameter(threshold, requires_grad=self.config.ste != "none")

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
        threshold = at.of(self._threshold("reconstruction"))
        if self.config.activation == "shifted":
            return (pre_acts - threshold).relu().to(pre_acts.dtype)
        c, width = self.config, self._bandwidth(schedule)
        return jumprelu(pre_acts, threshold, width, c.kernel, c.ste_to_inputs)

    def sparsity_losses(self, parts: ForwardParts, schedule: Schedule) -> dict[str, Tensor]:
        c = self.config
        latents = parts.latents.float()
        if c.penalty == "l1":
            penalty = l1_penalty(self, parts, latents) / self.latent_scale
        elif c.penalty == "tanh":  # a count, smooth near zero
            written = latents / self.latent_scale * parts.at.of(self.decoder_norms())
            penalty = parts.per_token((c.tanh_slope * c.d_out**0.5 * written).tanh())
        else:
            z, threshold = parts.pre_acts, parts.at.of(self._threshold("l0"))
            width = self._bandwidth(schedule)
            fires = heaviside(z, threshold, width, c.kernel, c.ste_to_inputs)
            if c.l0_loss == "quadratic":
                assert c.target_l0 is not None  # by check()
                penalty = (parts.per_token(fires) / c.target_l0 - 1).square()
            elif c.l0_loss == "frequency":
                p = parts.at.totals_by_latent(fires) / parts.n_tokens
                penalty = (p * (1 + p / c.frequency_limit)).sum()
            else:
                penalty = parts.per_token(fires)  # L0
        losses = {c.penalty: c.l0_coefficient * schedule.sparsity * penalty}
        losses |= aux_k_losses(self, parts, schedule, c.aux_coefficient, c.aux_k)
        if c.pre_act_coefficient:
            threshold = parts.at.of(self._threshold("l0") / self.latent_scale)
            below = (threshold - parts.pre_acts.float() / self.latent_scale).relu()
            # Norms are weights. If they got a gradient, Adam would shrink a dead latent's row to
            # nothing before its encoder could move, and the loss with it: in
            # tests/training/test_options.py none of 24 dead latents would come back.
            norms = parts.at.of(self.decoder_norms().detach())
            losses["pre_act"] = c.pre_act_coefficient * parts.per_token(below * norms)
        return losses

    def _threshold(self, term: str) -> Float[Tensor, " d_sae"]:
        """The threshold in raw units; detached for a term that must not move it."""
        threshold = self.latent_scale * self.threshold
        return threshold if self.config.ste in ("both", term) else threshold.detach()

    @torch.no_grad()
    def floor(self, schedule: Schedule = Schedule()) -> Float[Tensor, " d_sae"] | None:
        """The lower end of the STE window, less a margin where rounding could matter."""
        if self.config.pre_act_coefficient:
            return None
        threshold, half = self.latent_scale * self.threshold, self._bandwidth(schedule) / 2
        return threshold - half - 2.0**-20 * (threshold.abs() + half)

    def _bandwidth(self, schedule: Schedule) -> float:
        return self.latent_scale * float(self.config.bandwidth) * schedule.bandwidth

    @torch.no_grad()
    def window_share(
        self, pre_acts: Tensor, schedule: Schedule = Schedule(), at: Place = EVERYWHERE
    ) -> Tensor:
        distance = (pre_acts - at.of(self.latent_scale * self.threshold)).abs()
        return at.share(distance < self._bandwidth(schedule) / 2)

    @torch.no_grad()
    def before_step_(self) -> None:
        """With `log_threshold`, also hand log(threshold) and its gradient to the optimiser."""
        super().before_step_()
        if self.config.log_threshold and self.config.ste != "none":
            if self.threshold.grad is not None:
                self.threshold.grad *= self.threshold
            self.threshold.log_()

    @torch.no_grad()
    def after_step_(self) -> None:
        """Return from log(threshold) to the threshold; without `log_threshold`, clamp it at
        zero."""
        super().after_step_()
        if self.config.log_threshold and self.config.ste != "none":
            self.threshold.exp_()
        else:
            self.threshold.clamp_(min=0)

    def _fold_(self, state: dict[str, Any], config: SAEConfig) -> None:
        super()._fold_(state, config)
        state["threshold"] *= self.latent_scale
        if self.config.activation == "shifted":
            state["b_enc"] -= state["threshold"]
            state["threshold"].zero_()
            config.activation = "jump"
        config.bandwidth = float(self.config.bandwidth) * self.latent_scale
        config.initial_threshold = float(self.config.initial_threshold) * self.latent_scale


@torch.no_grad()
def along_directions(
    sae: SAE,
    directions: Float[Tensor, "d_sae d_in"],
    written: Float[Tensor, "d_sae d_out"],
    limits: Float[Tensor, " d_sae"],
    mean: Float[Tensor, " d_in"],
) -> JumpReLUSAE:
    """A JumpReLU SAE that replaces another: a latent is z = (x - mean) . direction where z is above
    its limit, or z - limit if the limit is negative.

    Args:
        written: the rows of the decoder.
    """
    names = ("d_in", "d_out", "site", "target_site", "model_name", "bos")
    kept = {name: getattr(sae.config, name) for name in names}
    other = JumpReLUSAE(JumpReLUSAEConfig(d_sae=len(directions), **kept)).eval()
    other.W_enc.copy_(directions.T)
    other.b_enc.copy_(-directions @ mean - limits.clamp(max=0))
    other.threshold.copy_(limits.clamp(min=0))
    other.W_dec.copy_(written)
    return other.to(sae.W_dec.device)
