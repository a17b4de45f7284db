r"""AEN-SAE (arXiv:2605.05341): an adaptive elastic net in place of ReLU's L1 penalty.

    hfsae train quickstart --import scripts/citing/variants/elastic_net.py \
        --sae.model_type elastic_net_sae

    loss = |x - recon|^2 + l1 sum_i w_i f_i + l2 sum_i f_i^2
    w_i  = 1 + (clip((running mean of f_i)^-exponent, .01, 10) - 1) warm

The square spreads what correlated latents share; weights leave strong latents alone and press on
weak ones. `warm` rises from 0 to 1 over `adaptive_warmup` steps.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import initialization as init

from hfsae import Refused, ReLUSAE, ReLUSAEConfig
from hfsae.models import ForwardParts, Schedule

_LEAST, _MOST = 0.01, 10.0  # of a weight


class ElasticNetSAEConfig(ReLUSAEConfig):
    """Fields of AEN-SAEs, for activations of unit mean squared norm (x/c)."""

    model_type = "elastic_net_sae"

    l2_coefficient: float = 0.005
    """weight of sum_i f_i^2"""
    adaptive_exponent: float = 0.5
    """weights are running means of latents to this negative power; 0: all are 1"""
    adaptive_rate: float = 0.001
    """fraction of its distance to a batch's mean that the running mean moves in each step"""
    adaptive_warmup: int = 4000
    """steps over which weights come into force"""

    def check(self) -> None:
        super().check()
        self.require_not_negative("l2_coefficient", "adaptive_exponent")
        self.require_positive("adaptive_warmup")
        if not 0 < self.adaptive_rate < 1:
            raise Refused(f"adaptive_rate must lie between 0 and 1, got {self.adaptive_rate}")
        if self.penalty != "l1":
            raise Refused("an elastic net is of latents alone: leave penalty at 'l1'")


class ElasticNetSAE(ReLUSAE):
    """latents = relu(z);  loss = |x - recon|^2 + l1 sum_i w_i latents_i + l2 sum_i latents_i^2.

    AEN-SAE (arXiv:2605.05341). w_i is a latent's running mean to a negative power: weak latents
    are pressed to zero, strong ones are not shrunk.
    """

    config_class = ElasticNetSAEConfig
    config: ElasticNetSAEConfig
    n_steps: Tensor
    float32_parameters = ("running_mean", "n_steps")
    _keep_in_fp32_modules_strict = {*float32_parameters}  # noqa: RUF012
    latent_dims: ClassVar = {**ReLUSAE.latent_dims, "running_mean": 0}

    def make_parameters(self) -> None:
        super().make_parameters()
        self.running_mean = nn.Parameter(torch.empty(self.config.d_sae))
        self.register_buffer("n_steps", torch.empty(()))

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            init.ones_(self.running_mean)
            init.zeros_(self.n_steps)

    def weights(self) -> Tensor:
        """w [d_sae]."""
        mean = self.running_mean.detach().clamp(min=1e-12)
        full = mean.pow(-self.config.adaptive_exponent).clamp(_LEAST, _MOST)
        warm = torch.clamp(self.n_steps / self.config.adaptive_warmup, max=1)
        return 1 + (full - 1) * warm

    def sparsity_losses(self, parts: ForwardParts, schedule: Schedule) -> dict[str, Tensor]:
        f = parts.latents.float() / self.latent_scale
        c, weights = self.config, parts.at.of(self.weights())
        losses = {"l1": c.l1_coefficient * schedule.sparsity * parts.per_token(weights * f)}
        losses["l2"] = c.l2_coefficient * parts.per_token(f.square())
        mean = parts.at.totals_by_latent(f.detach()) / parts.n_tokens
        distance = (self.running_mean - mean).detach()  # as a gradient, in a loss of 0
        losses["mean"] = (distance * (self.running_mean - self.running_mean.detach())).sum()
        return losses

    @torch.no_grad()
    def before_step_(self) -> None:
        """Also move the running mean: its gradient is its distance to the batch's mean, over all
        processes and parts of the batch. Nothing is left for the optimiser."""
        super().before_step_()
        if self.running_mean.grad is not None:
            self.running_mean.sub_(self.config.adaptive_rate * self.running_mean.grad)
            self.running_mean.grad = None
            self.n_steps += 1
