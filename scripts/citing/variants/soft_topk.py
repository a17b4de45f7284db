r"""SoftSAE (arXiv:2605.06610): each token chooses how many latents it gets, by a soft top-k.

    hfsae train quickstart --import scripts/citing/variants/soft_topk.py \
        --sae.model_type soft_topk_sae --sae.k 50

The number is a small network of the token; while training a smooth top-k gives it a gradient:

    k(x) = clamp(k_most sigmoid(w relu((x - b_dec) W_count + b_count) + b_most), 1, d_sae)
    f    = relu(z) p,    p_i = F((z_i - t) / alpha),    t so that sum_i p_i = k(x)
    loss = |x - recon|^2 + softplus(mean k(x) - k) + aux / 32

F is the cumulative distribution of Laplace. In use the floor(k(x)) largest fire. Left out here: the
published code trains its last steps with the hard choice and anneals alpha.
"""

from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import initialization as init

from hfsae import Refused
from hfsae.models import AuxKSAE, AuxKSAEConfig, ForwardParts, SAEConfig, Schedule
from hfsae.ops import EVERYWHERE, Place


class SoftTopKSAEConfig(AuxKSAEConfig):
    """Fields of SoftSAEs, for activations of unit mean squared norm (x/c)."""

    model_type = "soft_topk_sae"

    most: float = 2.0
    """k_most is this many times k"""
    alpha: float = 1e-3
    """width of the soft choice, in units of x/c; the published runs come down to 1e-4"""
    count_coefficient: float = 1.0
    """weight of softplus(mean k(x) - k)"""

    def check(self) -> None:
        super().check()
        self.require_positive("alpha", "count_coefficient")
        if not 1 < self.most <= self.d_sae / self.k:
            highest = self.d_sae / self.k
            raise Refused(f"most must lie in (1, d_sae / k = {highest:g}], got {self.most}")


class SoftTopKSAE(AuxKSAE):
    """latents = relu(the k(x) largest of z);  loss = |x - recon|^2 + softplus(E k(x) - k) + aux/32.

    SoftSAE (arXiv:2605.06610); `aux` is TopK's (arXiv:2406.04093, appendix A.2).
    """

    config_class = SoftTopKSAEConfig
    config: SoftTopKSAEConfig
    latent_dims: ClassVar = {**AuxKSAE.latent_dims, "W_count": 1, "b_count": 0, "w_count": 0}

    def make_parameters(self) -> None:
        super().make_parameters()
        d_in, d_sae = self.config.d_in, self.config.d_sae
        self.W_count = nn.Parameter(torch.empty(d_in, d_sae))
        self.b_count = nn.Parameter(torch.empty(d_sae))
        self.w_count = nn.Parameter(torch.empty(d_sae))
        self.b_most = nn.Parameter(torch.empty(()))

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            init.copy_(self.W_count, self.W_enc)
            init.zeros_(self.b_count)
            bound = self.config.d_sae**-0.5
            init.uniform_(self.w_count, -bound, bound)
            init.zeros_(self.b_most)

    def counts(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch 1"]:
        """k(x), not yet a whole number."""
        hidden = (self.encoder_input(x) / self.latent_scale) @ self.W_count + self.b_count
        share = (hidden.relu() @ self.w_count + self.b_most).sigmoid()
        return (self.config.most * self.config.k * share).clamp(1, self.config.d_sae)[..., None]

    def latents_of(
        self,
        x: Float[Tensor, "*batch d_in"],
        pre_acts: Float[Tensor, "*batch d_sae"],
        schedule: Schedule = Schedule(),
        at: Place = EVERYWHERE,
    ) -> Float[Tensor, "*batch d_sae"]:
        k = self.counts(x)
        if schedule.training:
            return pre_acts.relu() * SoftTopK.apply(
                pre_acts / self.latent_scale, k, self.config.alpha
            )
        order = pre_acts.sort(dim=-1, descending=True)
        chosen = torch.arange(self.config.d_sae, device=x.device) < k.floor()
        return torch.zeros_like(pre_acts).scatter(-1, order.indices, order.values.relu() * chosen)

    def sparsity_losses(self, parts: ForwardParts, schedule: Schedule) -> dict[str, Tensor]:
        losses = super().sparsity_losses(parts, schedule)
        excess = self.counts(parts.x).mean() - self.config.k
        soft = nn.functional.softplus(excess, beta=5)
        return {**losses, "count": self.config.count_coefficient * soft}

    def density(
        self, pre_acts: Float[Tensor, "*batch d_sae"], schedule: Schedule
    ) -> Float[Tensor, ""]:
        return torch.ones((), device=pre_acts.device)

    def _fold_(self, state: dict[str, Any], config: SAEConfig) -> None:
        if self.config.subtract_b_dec:
            state["b_count"] -= state["b_dec"] @ state["W_count"]
        super()._fold_(state, config)
        state["W_count"].T.div_(self.read_scale)


class SoftTopK(torch.autograd.Function):
    """p = F((z - t) / alpha) with sum p = k. Its gradient follows from that sum (implicitly)."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, k: Tensor, alpha: float) -> Tensor:
        low = z.amin(dim=-1, keepdim=True) - 40 * alpha - 1
        high = z.amax(dim=-1, keepdim=True) + 40 * alpha + 1
        # Halvings of the interval in which t lies: 34 are too few for a gradient in float64.
        for _ in range(60 if z.dtype == torch.float64 else 32):
            middle = (low + high) / 2
            is_too_low = laplace((z - middle) / alpha).sum(dim=-1, keepdim=True) > k
            low, high = torch.where(is_too_low, middle, low), torch.where(is_too_low, high, middle)
        u = (z - (low + high) / 2) / alpha
        ctx.save_for_backward(0.5 * (-u.abs()).exp() / alpha)
        return laplace(u)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        (slope,) = ctx.saved_tensors  # dp_i / dz_i at a fixed t
        whole = slope.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(slope.dtype).tiny)
        mean = (slope * grad).sum(dim=-1, keepdim=True) / whole  # by way of t
        return slope * (grad - mean), mean, None


def laplace(u: Tensor) -> Tensor:
    """Its cumulative distribution."""
    tail = 0.5 * (-u.abs()).exp()
    return torch.where(u <= 0, tail, 1 - tail)
