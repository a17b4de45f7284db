r"""Dynamic Attention (arXiv:2604.14925): a threshold for each token, by sparsemax.

    hfsae train quickstart --import scripts/citing/variants/sparsemax.py \
        --sae.model_type sparsemax_sae

    latents = z H(z - t(x)),    t so that sum_i relu(z_i - t) = |x| / scale

H(z - t) marks where sparsemax(scale z / |x|) is above 0; the published code has scale 1 and no
control of L0. Here the trainer's controller of `target_l0` moves the scale: a larger one leaves
fewer latents. The loss is the squared error of all variants; the published one divides it by |x|.
"""

import math
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import initialization as init

from hfsae import SAE, Refused, SAEConfig
from hfsae.models import ForwardParts, Schedule
from hfsae.ops import EVERYWHERE, Place

_RATE = 0.01  # of a running frequency


class SparsemaxSAEConfig(SAEConfig):
    """Fields of sparsemax SAEs, for activations of unit mean squared norm (x/c)."""

    model_type = "sparsemax_sae"

    rank: int = 0
    """encoder, decoder: C K, C V with one C [d_sae, rank], but for rows' lengths; 0: both free"""
    most_frequent: float = 1.0
    """latents that fire on a larger share of tokens are silent; .1 in the published code"""

    def check(self) -> None:
        super().check()
        self.require_not_negative("rank")
        if self.rank > self.d_in + (self.d_out or self.d_in):
            raise Refused(f"rank ({self.rank}) is above d_in + d_out: leave it at 0")
        if not 0 < self.most_frequent <= 1:
            raise Refused(f"most_frequent must lie in (0, 1], got {self.most_frequent}")
        if self.sites is not None:
            raise Refused(
                "a sparsemax SAE reads one site, whose norm it uses: give site, not sites"
            )


class SparsemaxSAE(SAE):
    """latents = z H(z - t),  sum_i relu(z_i - t) = |x| / scale;  loss = |x - recon|^2.

    Dynamic Attention (arXiv:2604.14925).
    """

    config_class = SparsemaxSAEConfig
    config: SparsemaxSAEConfig
    float32_parameters = ("log_scale", "frequency")
    _keep_in_fp32_modules_strict = {*float32_parameters}  # noqa: RUF012
    latent_dims: ClassVar = {**SAE.latent_dims, "frequency": 0}

    def make_parameters(self) -> None:
        super().make_parameters()
        self.log_scale = nn.Parameter(torch.empty(()))
        self.frequency = nn.Parameter(torch.empty(self.config.d_sae))

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            init.zeros_(self.log_scale)
            init.zeros_(self.frequency)

    def latents_of(
        self,
        x: Float[Tensor, "*batch d_in"],
        pre_acts: Float[Tensor, "*batch d_sae"],
        schedule: Schedule = Schedule(),
        at: Place = EVERYWHERE,
    ) -> Float[Tensor, "*batch d_sae"]:
        with torch.no_grad():
            norm = self._normalised(x.to(self.W_enc.dtype)).float().norm(dim=-1, keepdim=True)
            threshold = sparsemax_threshold(pre_acts.float(), norm / self.log_scale.exp())
            fires = (pre_acts > threshold) & (self.frequency <= self.config.most_frequent)
        return pre_acts * fires

    def sparsity_losses(self, parts: ForwardParts, schedule: Schedule) -> dict[str, Tensor]:
        """0, whose gradient is the distance to where a number is to go: see before_step_."""
        if not schedule.training:
            return {}
        shares = parts.at.totals_by_latent((parts.latents != 0).float()) / parts.n_tokens
        distances = {self.frequency: self.frequency - shares}
        if schedule.sparsity > 0:
            distances[self.log_scale] = self.log_scale - math.log(schedule.sparsity)
        zeros = [(d.detach() * (p - p.detach())).sum() for p, d in distances.items()]
        return {"running": torch.stack(zeros).sum()}

    @torch.no_grad()
    def before_step_(self) -> None:
        """Also set the scale to the controller's factor, and move running frequencies."""
        super().before_step_()
        for parameter, rate in ((self.log_scale, 1.0), (self.frequency, _RATE)):
            if parameter.grad is not None:
                parameter.sub_(rate * parameter.grad)
                parameter.grad = None

    @torch.no_grad()
    def after_step_(self) -> None:
        """Of a low rank: the nearest weights of that rank, encoder and decoder side by side."""
        if self.config.rank:
            both = torch.cat([self.encoder_rows(), self.decoder_rows()], dim=1)
            _, vectors = torch.linalg.eigh(both.T @ both)
            kept = vectors[:, -self.config.rank :]
            enc, dec = (both @ kept @ kept.T).split([self.config.d_in, self.W_dec.shape[1]], dim=1)
            self.W_enc.copy_(enc.T)
            self.W_dec.copy_(dec)
        super().after_step_()

    def _fold_(self, state: dict[str, Tensor], config: SAEConfig) -> None:
        super()._fold_(state, config)
        state["log_scale"] -= math.log(self.latent_scale / self.read_scale)  # |x| is in that unit


def sparsemax_threshold(
    z: Float[Tensor, "*batch n"], total: Float[Tensor, "*batch 1"]
) -> Float[Tensor, "*batch 1"]:
    """t with sum_i relu(z_i - t) = total (Martins and Astudillo 2016, arXiv:1602.02068)."""
    order = z.sort(dim=-1, descending=True).values
    sums = order.cumsum(dim=-1) - total
    counts = torch.arange(1, z.shape[-1] + 1, device=z.device, dtype=z.dtype)
    n = (order * counts > sums).sum(dim=-1, keepdim=True).clamp(min=1)
    return sums.gather(-1, n - 1) / n
