"""TopK SAE: exactly k latents a token. Its base is BatchTopK's too."""

from bisect import bisect_left
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..io.errors import Refused
from ..ops import EVERYWHERE, Entries, Place, Workspace, among_top_k, largest, screen_top_k
from .base import SAE, ForwardParts, Schedule, aux_k_losses
from .config import Number, SAEConfig

_MULTI = 4  # times k latents, in the second loss of Multi-TopK


class AuxKSAEConfig(SAEConfig):
    """Fields of TopK and BatchTopK, for activations of unit mean squared norm (x/c)."""

    k: int = 64
    """latents that may fire on a token; for BatchTopK, on average"""
    aux_coefficient: Number = 1 / 32
    """weight of the auxiliary loss that revives dead latents; 0: no such loss"""
    aux_k: int = 512
    """dead latents that a token may use in the auxiliary loss; about d_in / 2"""

    def check(self) -> None:
        super().check()
        self.require_positive("k", "aux_k")
        self.require_not_negative("aux_coefficient")
        if self.k > self.d_sae:
            raise Refused(f"k ({self.k}) is larger than the dictionary: use at most {self.d_sae}")
        if self.target_l0 is not None:
            raise Refused(f"this SAE's L0 is k ({self.k}): leave target_l0 out and set k instead")


class AuxKSAE(SAE):
    """Base of SAEs that pick latents by rank; dead ones learn by `aux_k_losses` alone."""

    config: AuxKSAEConfig

    def sparsity_losses(self, parts: ForwardParts, schedule: Schedule) -> dict[str, Tensor]:
        c = self.config
        return aux_k_losses(self, parts, schedule, c.aux_coefficient, c.aux_k)

    def density(
        self, pre_acts: Float[Tensor, "*batch d_sae"], schedule: Schedule
    ) -> Float[Tensor, ""]:
        return torch.full((), self.config.k / self.config.d_sae, device=pre_acts.device)


class TopKSAEConfig(AuxKSAEConfig):
    """Fields of TopK SAEs, for activations of unit mean squared norm (x/c)."""

    model_type = "topk_sae"

    selection: Literal["topk", "groupmax", "approximate"] = "topk"
    """"topk": the k largest of all; "groupmax": the largest of each of k equal groups;
    "approximate": the k largest among the largest of each of many groups, see `recall`"""
    recall: Number = 0.95
    """for "approximate": expected fraction of the k largest that is found, their places random"""
    relu: bool = True
    """whether selected pre-activations below 0 become 0; some of OpenAI's SAEs keep them"""
    multi_topk_coefficient: Number = 0
    """weight of a second mse, for the reconstruction from the 4k largest; 1/8 in Multi-TopK"""

    def check(self) -> None:
        super().check()
        self.require_not_negative("multi_topk_coefficient")
        if self.selection == "groupmax" and self.d_sae % self.k:
            raise Refused(f"groupmax needs d_sae ({self.d_sae}) to be a multiple of k ({self.k})")
        if not 0 < self.recall < 1:
            raise Refused(f"recall must lie between 0 and 1, got {self.recall}")
        if self.multi_topk_coefficient and self.selection == "groupmax":
            raise Refused(
                "multi_topk_coefficient needs 4k latents, and groupmax can select only k; use "
                "another selection, or leave the coefficient at 0"
            )


class TopKSAE(AuxKSAE):
    """latents = relu(the k largest of z),  z = x W_enc + b_enc;  loss = |x - recon|^2 + aux / 32.

    Gao et al. 2024 (arXiv:2406.04093), eq. 2 and appendix A.2: `aux` is the share of the error's
    variance that the `aux_k` largest of the dead latents leave. Prefer it where L0 has to be exact
    and there is no time to tune; every token gets the same number of latents, needed or not.

    Their Multi-TopK adds |x - recon from the 4k largest|^2 / 8, so that the SAE may be used at
    another k than it was trained at. `selection="approximate"` is for accelerators, whose exact
    selection may take longer than the products; it is the same function in training and in use.
    """

    config_class = TopKSAEConfig
    config: TopKSAEConfig

    def activate(
        self,
        pre_acts: Float[Tensor, "*batch d_sae"],
        schedule: Schedule = Schedule(),
        at: Place = EVERYWHERE,
    ) -> Float[Tensor, "*batch d_sae"]:
        return self._activate(pre_acts, at, self.config.k)

    def _activate(self, pre_acts: Tensor, at: Place, k: int) -> Tensor:
        if isinstance(at, Entries):
            is_all = k == self._n_entries
            latents = pre_acts if is_all else pre_acts * among_top_k(at, pre_acts.detach(), k)
        elif self.config.selection == "groupmax":
            grouped = pre_acts.unflatten(-1, (k, -1))  # [*batch, k, latents of a group]
            values, indices = grouped.max(dim=-1, keepdim=True)
            latents = torch.zeros_like(grouped).scatter(-1, indices, values).flatten(-2)
        elif self.config.selection == "approximate":
            latents = nearly_largest(pre_acts, k, float(self.config.recall))
        else:
            latents = largest(pre_acts, k)
        return latents.relu() if self.config.relu else latents

    @property
    def _n_entries(self) -> int:
        """Entries of a token: Multi-TopK's second loss needs more than those that fire."""
        factor = _MULTI if self.config.multi_topk_coefficient else 1
        return min(factor * self.config.k, self.config.d_sae)

    def sparsity_losses(self, parts: ForwardParts, schedule: Schedule) -> dict[str, Tensor]:
        losses = super().sparsity_losses(parts, schedule)
        if self.config.multi_topk_coefficient:
            more = self._activate(parts.pre_acts, parts.at, self._n_entries) - parts.latents
            recon = parts.at.combine(more, self.decoder_rows()).float() / self.latent_scale
            mse = (parts.error - recon).square().sum(dim=-1).mean()
            losses["multi"] = self.config.multi_topk_coefficient * mse
        return losses

    @property
    def can_be_sparse(self) -> bool:
        c = self.config
        return c.selection == "topk" and c.relu and self.dtype == torch.float32

    def entries(
        self, x: Float[Tensor, "n d_in"], schedule: Schedule, workspace: Workspace
    ) -> Entries:
        """The k largest pre-activations of each token, those above 0."""
        return screen_top_k(*self._screened(x), self._n_entries, workspace)

    def density(
        self, pre_acts: Float[Tensor, "*batch d_sae"], schedule: Schedule
    ) -> Float[Tensor, ""]:
        return torch.full((), self._n_entries / self.config.d_sae, device=pre_acts.device)


def nearly_largest(
    z: Float[Tensor, "*batch d_sae"], k: int, recall: float
) -> Float[Tensor, "*batch d_sae"]:
    """z at the k largest of the maxima of equal groups, 0 elsewhere; JAX's approx_max_k.

    A number is missed where a larger one shares its group. The i-th largest of all, i from 0, has a
    group to itself with probability (1 - 1/n)^i, if numbers fall into the n groups at random; the
    mean over the k largest is (n/k) (1 - (1 - 1/n)^k), and n the least for which it is `recall`.
    """
    d_sae = z.shape[-1]
    size = d_sae // bisect_left(
        range(d_sae), recall, lo=k, key=lambda n: n / k * (1 - (1 - 1 / n) ** k)
    )
    padded = nn.functional.pad(z, (0, -d_sae % size), value=-torch.inf)
    best = padded.unflatten(-1, (-1, size)).max(dim=-1)  # [*batch, groups]
    values, groups = best.values.topk(k, dim=-1, sorted=False)
    indices = groups * size + best.indices.gather(-1, groups)
    return torch.zeros_like(z).scatter(-1, indices, values)
