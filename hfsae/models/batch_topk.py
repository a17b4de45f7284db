"""BatchTopK SAE: k latents a token on average, more where a token needs more."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import initialization as init

from ..io.errors import Refused
from ..ops import (
    EVERYWHERE,
    Entries,
    Place,
    Workspace,
    kth_positive,
    one_process,
    screen_batch_top_k,
)
from .base import ForwardParts, Schedule
from .config import Number, SAEConfig
from .topk import AuxKSAE, AuxKSAEConfig


class BatchTopKSAEConfig(AuxKSAEConfig):
    """Fields of BatchTopK SAEs, for activations of unit mean squared norm (x/c)."""

    model_type = "batch_topk_sae"

    threshold_rate: Number = 0.01
    """fraction of its distance to the batch's smallest kept activation that the threshold moves in
    each step"""

    def check(self) -> None:
        super().check()
        if not 0 < self.threshold_rate <= 1:
            raise Refused(f"threshold_rate must lie in (0, 1], got {self.threshold_rate}")


class BatchTopKSAE(AuxKSAE):
    """latents = z H(z - threshold),  z = x W_enc + b_enc;  trained on the k B largest z of a batch.

    loss = |x - recon from these|^2 + aux / 32 + (threshold - the smallest of these)^2 / 2

    Bussmann et al. 2024 (arXiv:2412.06410). `forward(x, return_loss=True)` in training mode keeps
    the k B largest positive z of the B tokens of the batch, in all processes together, so that a
    token gets as many as it needs. Everything else uses one threshold, and no token depends on
    another; its L0 is k on average. `aux` is TopK's (arXiv:2406.04093, appendix A.2).

    Prefer it to TopK, whose error it lowers at the same L0 and cost, and to JumpReLU where there is
    no time to train thresholds: this one follows by itself. In use it is a JumpReLU SAE whose
    thresholds are equal, see `hfsae.convert.to_jumprelu`.

    `threshold` is a number, stored in units of x/c, float32 in every dtype; 0 until it is known.
    The gradient of its term of the loss is threshold - smallest, averaged over processes and
    accumulated parts as gradients are; with it `before_step_` makes threshold a running mean, so
    that no forward pass changes anything. A batch in accumulated parts is cut part by part.
    """

    config_class = BatchTopKSAEConfig
    config: BatchTopKSAEConfig
    float32_parameters = ("threshold",)
    _keep_in_fp32_modules_strict = {"threshold"}  # noqa: RUF012
    threshold: nn.Parameter

    def make_parameters(self) -> None:
        super().make_parameters()
        self.threshold = nn.Parameter(torch.empty((), dtype=torch.float32))

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            init.zeros_(self.threshold)

    def activate(
        self,
        pre_acts: Float[Tensor, "*batch d_sae"],
        schedule: Schedule = Schedule(),
        at: Place = EVERYWHERE,
    ) -> Float[Tensor, "*batch d_sae"]:
        if at is not EVERYWHERE:
            return pre_acts  # entries are what fires
        if not schedule.training:
            return pre_acts * (pre_acts > self.floor())
        n_kept: int | Tensor = self.config.k * (pre_acts.numel() // self.config.d_sae)
        if schedule.summed is not one_process:
            n_kept = schedule.summed(torch.tensor(n_kept, device=pre_acts.device))
        return pre_acts * (pre_acts >= kth_positive(pre_acts, n_kept, schedule.summed))

    def sparsity_losses(self, parts: ForwardParts, schedule: Schedule) -> dict[str, Tensor]:
        losses = super().sparsity_losses(parts, schedule)
        if schedule.training:
            smallest = kth_positive(parts.latents, 2**62, schedule.summed) / self.latent_scale
            is_any = smallest < torch.inf
            goal = torch.where(is_any, smallest, self.threshold.detach())
            losses["threshold"] = (self.threshold - goal).square() / 2
        return losses

    @torch.no_grad()
    def before_step_(self) -> None:
        """Also move the threshold towards the smallest kept activation; the first step sets it."""
        super().before_step_()
        if self.threshold.grad is not None:
            slow = self.config.threshold_rate * self.threshold.grad
            self.threshold.sub_(torch.where(self.threshold == 0, self.threshold.grad, slow))
            self.threshold.grad = None  # nothing is left for the optimiser

    @torch.no_grad()
    def settle_(self, x: Float[Tensor, "n d_in"]) -> None:
        """Set the threshold with which these activations have k latents on average."""
        smallest = kth_positive(self.pre_activations(x), self.config.k * len(x))
        below = torch.nextafter(smallest, torch.zeros_like(smallest))  # what equals it fires
        self.threshold.copy_(below / self.latent_scale)

    @torch.no_grad()
    def floor(self, schedule: Schedule = Schedule()) -> Float[Tensor, " d_sae"]:
        """The threshold, for every latent; in training, firing does not depend on it."""
        return (self.latent_scale * self.threshold).expand(self.config.d_sae)

    @property
    def can_be_sparse(self) -> bool:
        return self.dtype == torch.float32

    def entries(
        self, x: Float[Tensor, "n d_in"], schedule: Schedule, workspace: Workspace
    ) -> Entries:
        """The latents that fire: in training, the n * k largest pre-activations above 0."""
        if not schedule.training:
            return super().entries(x, schedule, workspace)
        return screen_batch_top_k(*self._screened(x), self.config.k, workspace, schedule.summed)

    def density(
        self, pre_acts: Float[Tensor, "*batch d_sae"], schedule: Schedule
    ) -> Float[Tensor, ""]:
        """k / d_sae in training, independent of the pre-activations."""
        if schedule.training:
            return super().density(pre_acts, schedule)
        return EVERYWHERE.share(pre_acts > self.floor())

    def _fold_(self, state: dict[str, Any], config: SAEConfig) -> None:
        super()._fold_(state, config)
        state["threshold"] *= self.latent_scale
