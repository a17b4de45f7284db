"""TopK SAE: exactly k latents a token."""

from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import AutoConfig, AutoModel

from ..ops import EVERYWHERE, Entries, Place, Workspace, screen_top_k
from .base import SAE, Number, Parts, SAEConfig, Schedule

Selection = Literal["topk", "groupmax"]


class TopKSAEConfig(SAEConfig):
    """For activations of unit mean squared norm (x/c)."""

    model_type = "topk_sae"

    k: int = 64
    """latents a token may fire"""
    aux_coefficient: Number = 1 / 32
    """weight of the auxiliary loss by which dead latents come back; 0: without"""
    aux_k: int = 512
    """how many dead latents a token may use there; about d_in / 2"""
    selection: str = "topk"
    """"topk": the k largest of all; "groupmax": the largest of each of k equal groups"""
    relu: bool = True
    """whether selected pre-activations below 0 become 0; some of OpenAI's SAEs keep them"""

    def check(self) -> None:
        super().check()
        for name in ("k", "aux_k"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.k > self.d_sae:
            raise ValueError(f"k ({self.k}) is more than all latents (d_sae = {self.d_sae})")
        if self.selection not in get_args(Selection):
            known = " or ".join(map(repr, get_args(Selection)))
            raise ValueError(f"selection must be {known}, got {self.selection!r}")
        if self.selection == "groupmax" and self.d_sae % self.k:
            raise ValueError(
                f"groupmax needs d_sae ({self.d_sae}) to be a multiple of k ({self.k})"
            )
        if self.aux_coefficient < 0:
            raise ValueError(f"aux_coefficient must not be negative, got {self.aux_coefficient}")
        if self.target_l0 is not None:
            raise ValueError(f"a TopK SAE's L0 is k ({self.k}): leave target_l0 out")


class TopKSAE(SAE):
    """latents = relu(the k largest of z),  z = x W_enc + b_enc;  loss = |x - recon|^2 + aux / 32.

    Gao et al. 2024 (arXiv:2406.04093), eq. 2 and appendix A.2: `aux` is the share of the error's
    variance that the `aux_k` largest of the dead latents leave. Prefer it where L0 has to be exact
    and there is no time to tune; every token gets the same number of latents, needed or not.
    """

    config_class = TopKSAEConfig
    config: TopKSAEConfig

    def activate(
        self,
        pre_acts: Float[Tensor, "*batch d_sae"],
        schedule: Schedule = Schedule(),
        at: Place = EVERYWHERE,
    ) -> Float[Tensor, "*batch d_sae"]:
        if at is not EVERYWHERE:
            latents = pre_acts  # entries are the k largest already
        elif self.config.selection == "groupmax":
            latents = _largest_of_groups(pre_acts, self.config.k)
        else:
            latents = _largest(pre_acts, self.config.k)
        return latents.relu() if self.config.relu else latents

    def sparsity_losses(self, parts: Parts, schedule: Schedule) -> dict[str, Tensor]:
        dead = schedule.dead
        n_dead = 0 if dead is None else int(dead.sum())
        if dead is None or n_dead == 0 or self.config.aux_coefficient == 0:
            return {}
        pre_acts = self._of_dead(parts, dead).float() / self.scale
        latents = _largest(pre_acts, min(self.config.aux_k, n_dead)).relu()
        wanted = parts.error.detach()  # the bias would cancel: it stands on both sides
        left = wanted - latents @ self.W_dec[dead].float()
        spread = wanted - wanted.reshape(-1, wanted.shape[-1]).mean(dim=0)
        share = left.square().sum() / spread.square().sum().clamp(min=1e-12)
        return {"aux": self.config.aux_coefficient * share}

    def _of_dead(self, parts: Parts, dead: Bool[Tensor, " d_sae"]) -> Tensor:
        """Pre-activations of dead latents, which are no entries."""
        if parts.at is EVERYWHERE:
            return parts.pre_acts[..., dead]
        b = self.scale * self.b_enc
        return EVERYWHERE.project(self.encoder_input(parts.x), self.W_enc.T[dead].T, b[dead])

    @property
    def can_be_sparse(self) -> bool:
        c = self.config
        return c.selection == "topk" and c.relu and self.dtype == torch.float32

    def entries(
        self, x: Float[Tensor, "n d_in"], schedule: Schedule, workspace: Workspace
    ) -> Entries:
        """The k largest pre-activations of each token, as far as they are positive."""
        rows, b = self.W_enc.T.contiguous(), self.scale * self.b_enc
        return screen_top_k(self.encoder_input(x), rows, b, self.config.k, workspace)

    def density(
        self, pre_acts: Float[Tensor, "*batch d_sae"], schedule: Schedule
    ) -> Float[Tensor, ""]:
        return torch.tensor(self.config.k / self.config.d_sae)


def _largest(z: Float[Tensor, "*batch d_sae"], k: int) -> Float[Tensor, "*batch d_sae"]:
    values, indices = z.topk(k, dim=-1, sorted=False)
    return torch.zeros_like(z).scatter(-1, indices, values)


def _largest_of_groups(
    z: Float[Tensor, "*batch d_sae"], n_groups: int
) -> Float[Tensor, "*batch d_sae"]:
    grouped = z.unflatten(-1, (n_groups, -1))  # [*batch, n_groups, latents of a group]
    values, indices = grouped.max(dim=-1, keepdim=True)
    return torch.zeros_like(grouped).scatter(-1, indices, values).flatten(-2)


AutoConfig.register(TopKSAEConfig.model_type, TopKSAEConfig)
AutoModel.register(TopKSAEConfig, TopKSAE)
