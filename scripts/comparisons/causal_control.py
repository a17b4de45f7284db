"""Tests whether latents are causes: ablates, doubles, keeps and removes them beside controls.

The latents f of one token's activation are edited; earlier tokens are unchanged, and the SAE's
error is held fixed. Measures of the prediction made at that token:

    m            logit of the correct next token minus the mean of all logits
    off-target   KL(clean || edited) of the next token, the correct one left out of both

The edited latent has the largest |effect| by gradient, |f_i W_dec_i . dm/dx|. Two controls show the
effect of any push of its size: another latent that fires at this token, with f_j W_dec_j nearest in
norm, and a random direction of the same norm. Norms differ a little, so quote effects per norm.

Sufficiency is the part of m that the n latents largest by |effect| give alone, necessity the part
lost without them, both as shares of m(f) - m(0). The controls are n latents in random order.
"""

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from hfsae import SAE, Refused
from hfsae.lm import Moment, cache_name, intervene, random_places, special_ids

ACTIONS = ("ablate", "double")
KINDS = ("latent", "matched latent", "random direction")
ORDERS = ("by effect", "at random")
COUNTS = (1, 2, 4, 8, 16, 32)


class CausalControl(NamedTuple):
    """One number for each token; NaN where fewer than two latents fire."""

    change: Float[Tensor, "actions kinds tokens"]
    """m edited - m clean, logits"""
    off_target: Float[Tensor, "actions kinds tokens"]
    """nats"""
    norm: Float[Tensor, "kinds tokens"]
    """norm of the vector that was removed or added, raw units"""
    alone: Float[Tensor, "orders counts tokens"]
    """m with n latents only - m(0)"""
    without: Float[Tensor, "orders counts tokens"]
    """m(f) - m without the n latents"""
    whole: Float[Tensor, " tokens"]
    """m(f) - m(0)"""


def causal_control(
    lm: PreTrainedModel,
    sae: SAE,
    input_ids: Int[Tensor, "rows ctx"],
    *,
    n_tokens: int = 64,
    counts: Sequence[int] = COUNTS,
    seed: int = 0,
    spare_tokens: Sequence[int] | None = None,
) -> CausalControl:
    """Interventions at random tokens, the same tokens for every SAE.

    Args:
        lm: use float32 if effects of a hundredth of a logit matter.
        n_tokens: number of tokens, drawn without replacement; each has a next token.
        counts: values of n for the curves `alone` and `without`.
        spare_tokens: ids that are never drawn; None: the model's BOS, EOS and padding.
    """
    ids = input_ids.to(lm.device)
    spare = special_ids(lm) if spare_tokens is None else list(spare_tokens)
    drawn = random_places(ids, n_tokens, spare_tokens=spare, seed=seed)
    if not len(drawn):
        raise Refused(
            f"no token to intervene at: all {ids.numel()} tokens are spared or have no next token; "
            "give more text"
        )
    generator = torch.Generator().manual_seed(seed)
    by_token = [
        _at(lm, sae, ids[row, : position + 2], counts, generator)
        for row, position in drawn.tolist()
    ]
    return CausalControl(*(torch.stack(each, dim=-1) for each in zip(*by_token, strict=True)))


def _at(
    lm: PreTrainedModel,
    sae: SAE,
    ids: Int[Tensor, " n"],
    counts: Sequence[int],
    generator: torch.Generator,
) -> CausalControl:
    """Interventions at the last but one of `ids`; the last is the correct next token."""
    run = _LastToken(lm, sae, ids)
    vectors = run.vectors()
    if len(vectors) < 2:
        return _nothing(len(counts))
    norms = vectors.norm(dim=-1)
    matched = 1 + int((norms[1:] - norms[0]).abs().argmin())
    direction = F.normalize(torch.randn(vectors.shape[1], generator=generator), dim=0)
    pushes = torch.stack([vectors[0], vectors[matched], direction.to(vectors) * norms[0]])
    shuffled = vectors[torch.randperm(len(vectors), generator=generator).to(vectors.device)]
    kept = torch.stack([each[:n].sum(dim=0) for each in (vectors, shuffled) for n in counts])
    whole = vectors.sum(dim=0, keepdim=True)
    changes = [0 * whole, -whole, -pushes, pushes, kept - whole, -kept]
    m, off_target = run.edited(torch.cat(changes))
    clean, empty, ablated, doubled, alone, without = m.split([len(each) for each in changes])
    tried = slice(2, 2 + len(ACTIONS) * len(KINDS))
    return CausalControl(
        change=torch.stack([ablated, doubled]) - clean,
        off_target=off_target[tried].view(len(ACTIONS), len(KINDS)),
        norm=pushes.norm(dim=-1).cpu(),
        alone=(alone - empty).view(len(ORDERS), len(counts)),
        without=(clean - without).view(len(ORDERS), len(counts)),
        whole=(clean - empty)[0],
    )


def _nothing(n_counts: int) -> CausalControl:
    actions, kinds, orders = len(ACTIONS), len(KINDS), len(ORDERS)
    shapes = [(actions, kinds), (actions, kinds), (kinds,), *[(orders, n_counts)] * 2, ()]
    return CausalControl(*(torch.full(shape, torch.nan) for shape in shapes))


class _LastToken:
    """The last token of a text, with a KV cache of the tokens before it, and edits of x there."""

    def __init__(self, lm: PreTrainedModel, sae: SAE, ids: Int[Tensor, " n"]) -> None:
        self.lm, self.sae, self.answer = lm, sae, int(ids[-1])
        self.token = ids[None, -2:-1]
        self._cache_name = cache_name(lm)
        self._cache = None
        if len(ids) > 2:
            with torch.no_grad():
                self._cache = lm(ids[None, :-2], use_cache=True)[self._cache_name]

    def _logits(self, rows: int) -> Float[Tensor, "rows vocab"]:
        cache = copy.deepcopy(self._cache)  # a forward pass writes to its cache
        if cache is not None and rows > 1:
            cache.batch_repeat_interleave(rows)
        options = {self._cache_name: cache, "use_cache": True}
        return self.lm(self.token.expand(rows, -1), **options).logits[:, -1].float()

    def _m(self, logits: Float[Tensor, "rows vocab"]) -> Float[Tensor, " rows"]:
        return logits[:, self.answer] - logits.mean(dim=-1)

    def vectors(self) -> Float[Tensor, "n d_out"]:
        """The vector that each firing latent writes, sorted by |effect| (estimated by gradient)."""
        kept: list[Tensor] = []

        def write(moment: Moment) -> Tensor:
            source = moment.source.detach()
            latents = self.sae.encode(source).detach()
            leaf = latents.clone().requires_grad_()
            kept.extend((latents, leaf, self.sae.row_factor(source)))
            change = self.sae.decode(leaf, source) - self.sae.decode(latents, source)
            return moment.target + change.to(moment.target)

        with torch.enable_grad(), intervene(self.lm, self.sae, write):
            m = self._m(self._logits(1)).sum()
        gradient = torch.autograd.grad(m, kept[1])[0]
        latents, factor, gradient = (each[0, 0] for each in (kept[0], kept[2], gradient))
        effects = latents * gradient
        firing = latents.nonzero().squeeze(1)
        order = firing[effects[firing].abs().argsort(descending=True)]
        rows = self.sae.W_dec.detach()[order].float()
        return latents[order, None].float() * factor.float() * rows

    @torch.no_grad()
    def edited(
        self, changes: Float[Tensor, "rows d_out"]
    ) -> tuple[Float[Tensor, " rows"], Float[Tensor, " rows"]]:
        """m and the off-target KL of x + change, for each row; the KL compares with row 0."""

        def write(moment: Moment) -> Tensor:
            return moment.target + changes[:, None].to(moment.target)

        with intervene(self.lm, self.sae, write):
            logits = self._logits(len(changes))
        others = torch.arange(logits.shape[-1], device=logits.device) != self.answer
        logs = F.log_softmax(logits[:, others], dim=-1)
        off_target = (logs[0].exp() * (logs[0] - logs)).sum(dim=-1)
        return self._m(logits).cpu(), off_target.clamp(min=0).cpu()
