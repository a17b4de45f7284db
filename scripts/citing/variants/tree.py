r"""Tree SAE (arXiv:2605.07922): a latent fires only where its parent does.

    hfsae train quickstart --import scripts/citing/variants/tree.py \
        --sae.model_type tree_sae --sae.k 50

Latents stand in levels. The first level's k_1 largest fire; at a later one the k_l largest among
those whose parent fires. Each level's latents with those before must reconstruct x. Dead children
are given, from time to time, to parents of whose tokens much is still unexplained.
"""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import initialization as init

from hfsae import Refused
from hfsae.models import (
    AuxKSAE,
    AuxKSAEConfig,
    ForwardParts,
    Matryoshka,
    MatryoshkaConfig,
    Schedule,
)
from hfsae.ops import EVERYWHERE, Place, largest

_RATE = 0.01  # of a running mean


class TreeSAEConfig(MatryoshkaConfig, AuxKSAEConfig):
    """Fields of Tree SAEs. `prefixes` are the levels' ends, `k` all levels' latents a token."""

    model_type = "tree_sae"

    prefixes: list | tuple = (1 / 4, 1)
    shares: list | tuple = (13 / 16, 3 / 16)
    """of the k latents of a token, for each level; their sum is 1"""
    reassign_every: int = 3000
    """steps until dead children first get other parents; then twice as many, and so on"""
    reassign_at_most: int = 10000
    """the longest such interval"""

    def check(self) -> None:
        super().check()
        self.require_positive("reassign_every", "reassign_at_most")
        is_whole = abs(sum(self.shares) - 1) < 1e-6
        if len(self.shares) != len(self.ends) or not is_whole or min(self.level_k) < 1:
            raise Refused(
                f"shares needs a number for each of {len(self.ends)} levels (prefixes), with the "
                f"sum 1 and at least one latent of k ({self.k}) each, got {list(self.shares)}"
            )

    @property
    def level_k(self) -> list[int]:
        """Latents of a token, for each level."""
        later = [round(share * self.k) for share in self.shares[1:]]
        return [self.k - sum(later), *later]


class TreeSAE(Matryoshka, AuxKSAE):
    """latents = relu(k_l largest of z at level l, by parent);  loss = sum_l |x - recon_l|^2 + aux.

    Tree SAE (arXiv:2605.07922); `aux` is TopK's (arXiv:2406.04093), / 32, of the
    first level. A child fires only where its parent does.
    """

    config_class = TreeSAEConfig
    config: TreeSAEConfig
    latent_dims: ClassVar = {**AuxKSAE.latent_dims, "cost": 0}
    float32_parameters = ("cost", "parent", "n_steps")  # indices are exact up to 2^24
    _keep_in_fp32_modules_strict = {*float32_parameters}  # noqa: RUF012
    parent: Tensor

    def make_parameters(self) -> None:
        super().make_parameters()
        self.cost = nn.Parameter(torch.empty(self.config.d_sae))
        self.register_buffer("parent", torch.empty(self.config.d_sae))
        self.register_buffer("n_steps", torch.empty(()))
        self._dead: Tensor | None = None

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is not self:
            return
        init.zeros_(self.cost)
        init.zeros_(self.n_steps)
        ends, parent = self.config.ends, torch.full((self.config.d_sae,), -1.0)
        for before, start, end in zip([0, *ends], ends, ends[1:], strict=False):
            parent[start:end] = before + torch.arange(end - start) % (start - before)
        init.copy_(self.parent, parent)

    def activate(
        self,
        pre_acts: Float[Tensor, "*batch d_sae"],
        schedule: Schedule = Schedule(),
        at: Place = EVERYWHERE,
    ) -> Float[Tensor, "*batch d_sae"]:
        latents = torch.zeros_like(pre_acts)
        start = 0
        for end, k in zip(self.config.ends, self.config.level_k, strict=True):
            z = pre_acts[..., start:end].relu()
            if start:
                z = z * (latents[..., self.parent[start:end].long()] > 0)
            before, after = latents[..., :start], latents[..., end:]
            latents = torch.cat([before, largest(z, min(k, end - start)), after], dim=-1)
            start = end
        return latents

    def sparsity_losses(self, parts: ForwardParts, schedule: Schedule) -> dict[str, Tensor]:
        dead, n_roots = schedule.dead, self.config.ends[0]
        self._dead = dead
        if dead is not None:
            dead = dead & (torch.arange(len(dead)) < n_roots)
        losses = super().sparsity_losses(parts, schedule._replace(dead=dead))
        if schedule.training:
            fires = (parts.latents > 0).float()
            error = parts.error.square().sum(dim=-1, keepdim=True)
            shares = error * fires / fires.sum(dim=-1, keepdim=True).clamp(min=1)
            goal = parts.at.totals_by_latent(shares.detach()) / parts.n_tokens
            distance = (self.cost - goal).detach()  # as a gradient, in a loss of 0
            losses["cost"] = (distance * (self.cost - self.cost.detach())).sum()
        return losses

    @torch.no_grad()
    def before_step_(self) -> None:
        """Also move each parent's running share of the error, which is its gradient's work."""
        super().before_step_()
        if self.cost.grad is not None:
            self.cost.sub_(_RATE * self.cost.grad)
            self.cost.grad = None

    @torch.no_grad()
    def after_step_(self) -> None:
        super().after_step_()
        self.n_steps += 1
        step, length, at = int(self.n_steps), self.config.reassign_every, 0
        while at < step:
            at, length = at + length, min(2 * length, self.config.reassign_at_most)
        if at == step and self._dead is not None:
            self.reassign_(self._dead.to(self.parent.device))

    @torch.no_grad()
    def reassign_(self, dead: Tensor) -> None:
        """Give each dead child to the live latent of the level above whose share of the error, over
        the number of its live children and one, is largest; one after another."""
        ends = self.config.ends
        for before, start, end in zip([0, *ends], ends, ends[1:], strict=False):
            children = torch.arange(start, end, device=dead.device)
            n = torch.bincount(
                self.parent[start:end][~dead[start:end]].long(), minlength=start
            ).float()
            cost = torch.where(dead, 0.0, self.cost)[before:start]
            for child in children[dead[start:end]].tolist():
                best = before + int((cost / (n[before:start] + 1)).argmax())
                self.parent[child] = best
                n[best] += 1
