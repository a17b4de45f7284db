"""Why this token: the effect of each latent of an SAE on a logit, a logit difference or the loss.

The model runs unchanged: x = decode(f) + error, with f the latents. m(g) is the objective where x
is x + decode(g) - decode(f), so that the error and all other latents are held fixed. A latent's
effect is the part of m due to its firing, at all positions together: positive if m would be smaller
without it. Three estimates of one function m, from cheap to exact:

    gradient     sum over positions of f * dm/df                       one backward pass for all
    integrated   the same with dm/df averaged over latents a * f, 0 < a < 1 (Sundararajan et al.
                 2017, arXiv:1703.01365, from all latents at 0; midpoint rule): effects add up to
                 m(f) - m(0)                                           one backward pass per a
    ablation     m(f) - m(f with the latent at 0)                      one forward pass per latent

The gradient's effects are terms of a sum that is m, with x the activation the SAE reconstructs:

    m = sum over latents of f * dm/df + b_dec * dm/dx + error * dm/dx + rest

The first three are x * dm/dx, the linear term of m's Taylor expansion, by the parts of x; the error
is a term as in Marks et al. 2024 (Sparse Feature Circuits, arXiv:2403.19647, section 3). `rest` is
all that is not linear in x at this site: what later blocks add by their weights and
non-linearities, paths around the site, and spared tokens such as BOS, whose x is not taken apart.
All of it comes from the gradient's own pass.

Where an SAE writes at several sites, x is all of them. At every site and token of a crosscoder the
model runs on that sum itself, so what it wrote at earlier sites is not added again. At each target
of a cross-layer transcoder decode(g) - decode(f) is added to what the model computes there, which
follows from what was written before. Neither reads again what the model computes of an edit, as
`hfsae.splice` does: there later sources of a transcoder would fire differently, and a crosscoder's
sites keep the model's own value where an edit changes nothing.

`Attribution.agreement` compares the first two with ablation. It differs much from prompt to prompt:
of ten, in float32, with the 40 largest latents of each, the correlation with ablation was

    SmolLM2-135M, packaged SAE   gradient 0.29 to 0.97, mean 0.78   integrated 0.20 to 0.90, 0.67
    Gemma 3 270M, gemma3_270m's           0.14 to 1.00, mean 0.86              0.59 to 0.98, 0.89

(`scripts/attribution_agreement.py`, in a clone); the gradient had the sign of at least 92 % of the
ablations. So ablate where a latent's effect matters, and in float32: in bfloat16 a logit near 20
has steps of 0.125.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from math import nan
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .activations.token_text import named_token, tokenise
from .io.errors import Refused
from .lm import (
    Moment,
    check_arguments,
    contract,
    intervene,
    known_tokenizer,
    random_places,
    special_ids,
    tokenizer_of,
    unspared,
)
from .models import SAE

Objective = Callable[[Tensor], Tensor]
"""Logits [rows, ctx, vocab] -> a number for each row, [rows]. The rows are copies of one text."""

_ROWS = 8  # rows in one forward pass


def logit(token: int, contrast: int | None = None, *, position: int = -1) -> Objective:
    """The logit of a token after `position`, minus the logit of a contrast token."""

    def of(logits: Float[Tensor, "rows ctx vocab"]) -> Float[Tensor, " rows"]:
        for token_id in (token, contrast):
            if token_id is not None and not 0 <= token_id < logits.shape[-1]:
                last = logits.shape[-1] - 1
                raise Refused(f"token {token_id} is not in the vocabulary: it has 0 to {last}")
        if not -logits.shape[1] <= position < logits.shape[1]:
            raise Refused(f"position {position} is outside the text: {logits.shape[1]} tokens")
        at_position = logits[:, position]
        return at_position[:, token] - (0 if contrast is None else at_position[:, contrast])

    return of


def loss(input_ids: Int[Tensor, "1 ctx"]) -> Objective:
    """The mean next-token cross-entropy of the text, nats a token."""

    def of(logits: Float[Tensor, "rows ctx vocab"]) -> Float[Tensor, " rows"]:
        targets = input_ids[:, 1:].to(logits.device).expand(len(logits), -1)
        losses = F.cross_entropy(logits[:, :-1].transpose(1, 2), targets, reduction="none")
        return losses.mean(dim=1)

    return of


class Agreement(NamedTuple):
    """Agreement of an estimate with ablation, over the ablated latents."""

    pearson: float
    """Correlation of the effects; NaN for fewer than two latents."""
    same_sign: float
    """Share of latents whose effects have the same sign."""
    n: int


class Attribution(NamedTuple):
    """Effects of the n latents that fire, sorted by size of the gradient estimate."""

    latents: Int[Tensor, " n"]
    activation: Float[Tensor, " n"]
    """Largest activation over positions."""
    position: Int[Tensor, " n"]
    """Position of the largest gradient estimate."""
    gradient: Float[Tensor, " n"]
    integrated: Float[Tensor, " n"]
    """NaN without integration."""
    ablation: Float[Tensor, " n"]
    """NaN for latents that were not ablated."""
    objective: float
    """m(f) of the unchanged model."""
    without_latents: float
    """m(0): all latents at 0, error and decoder bias unchanged. NaN without integration."""
    error: float
    """error * dm/dx, over the tokens that are not spared: the part that the SAE leaves out."""
    bias: float
    """The same for what is in the reconstruction without any latent: the decoder's bias, and a skip
    connection or a token's mean if the SAE has them."""
    target: int | None = None
    """Id of the token whose logit is the objective; None: another objective."""
    contrast: int | None = None
    """Id of the token whose logit is subtracted, if there is one."""

    @property
    def rest(self) -> float:
        """The objective without the effects of all latents by gradient, `error` and `bias`."""
        return self.objective - float(self.gradient.double().sum()) - self.error - self.bias

    @property
    def agreement(self) -> dict[str, Agreement]:
        """Agreement of the estimates "gradient" and "integrated" with ablation."""
        is_ablated, agreements = self.ablation.isfinite(), {}
        for name in ("gradient", "integrated"):
            estimate, truth = getattr(self, name)[is_ablated], self.ablation[is_ablated]
            n = len(truth)
            pearson = float(torch.corrcoef(torch.stack([estimate, truth]))[0, 1]) if n > 1 else nan
            is_defined = bool(n) and bool(estimate.isfinite().all())
            same = float((estimate.sign() == truth.sign()).float().mean()) if is_defined else nan
            agreements[name] = Agreement(pearson, same, n)
        return agreements


def attribute(
    lm: PreTrainedModel,
    sae: SAE,
    text: str | Mapping[str, Tensor] | Tensor,
    objective: Objective | None = None,
    *,
    target: int | str | None = None,
    contrast: int | str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    ablate: int | Sequence[int] = 20,
    integration_steps: int = 10,
    spare_tokens: Sequence[int] | None = None,
) -> Attribution:
    """Effects of the latents that fire in one text on the next token's logit or another objective.

        hfsae.attribute(lm, sae, "The Eiffel Tower stands in", target=" Paris", contrast=" Rome")

    Args:
        text: a text, or a row of tokens: [1, ctx], or {"input_ids": [1, ctx]}, perhaps with a mask.
        objective: in place of a target: `hfsae.logit(...)`, `hfsae.loss(...)` or your own function,
            logits [rows, ctx, vocab] -> [rows].
        target: the token to explain, as text or id: its logit is the objective. Most words begin
            with a space: of "sea" and " sea", which are two tokens, a target without one is the
            likelier here, with a warning if that has the space.
        contrast: a token whose logit is subtracted, likewise.
        tokenizer: for text; None: the tokenizer that `hfsae.load_lm` loaded with the model.
        ablate: number of latents to ablate, the largest by gradient; or a list of latents.
        integration_steps: backward passes for `integrated`; 0: leave it out.
        spare_tokens: ids whose latents are ignored and unchanged; None: BOS, EOS and padding.

    Raises:
        ValueError: several rows or target tokens, a latent that never fires, or another model.
    """
    check_arguments("attribute", lm, sae)
    contract.check_model(lm, sae, tokenizer or known_tokenizer(lm))
    row: Mapping[str, Tensor]
    if isinstance(text, Tensor):
        row = {"input_ids": torch.atleast_2d(text)}
    elif isinstance(text, Mapping):
        row = {name: text[name] for name in ("input_ids", "attention_mask") if name in text}
    elif isinstance(text, str):
        ids = tokenise(tokenizer or tokenizer_of(lm), text, bos=sae.config.bos != "none").ids
        row = {"input_ids": torch.tensor([ids])}
    else:
        raise Refused(
            f"the text is a {type(text).__name__}; give one text, token ids as a tensor [1, ctx], "
            "or a tokenizer's output"
        )
    if objective is not None:
        target = contrast = None
    elif target is None:
        raise Refused(
            'attribute needs a target or an objective; give one of them, such as target=" Paris"'
        )
    else:
        target = _token(lm, row, target, tokenizer)
        contrast = None if contrast is None else _token(lm, row, contrast, tokenizer)
        objective = logit(target, contrast)
    run = _Run(lm, sae, row, objective, spare_tokens)
    latents, gradient, value, error, bias = run.expansion()
    effects = latents * gradient  # [ctx, d_sae]
    firing = (latents != 0).any(dim=0).nonzero().squeeze(1)
    total = effects.sum(dim=0)
    order = firing[total[firing].abs().argsort(descending=True)]

    integrated, without = torch.full_like(total, nan), nan
    if integration_steps > 0:
        integrated = (latents * run.mean_gradient(integration_steps)).sum(dim=0)
        with torch.no_grad():
            without = float(run.value(torch.zeros_like(run.latents)))
    ablation = torch.full_like(total, nan)
    if isinstance(ablate, int):
        chosen = order[:ablate]
    else:
        for latent in ablate:
            if latent not in order:
                raise Refused(
                    f"latent {latent} does not fire in this text, so its ablation has no effect; "
                    f"choose from the {len(order)} latents that fire"
                )
        chosen = torch.tensor(list(ablate), dtype=torch.long, device=order.device)
    ablation[chosen] = run.ablate(chosen).to(ablation.device)
    return Attribution(
        latents=order.cpu(),
        activation=latents.amax(dim=0)[order].cpu(),
        position=effects.abs().argmax(dim=0)[order].cpu(),
        gradient=total[order].cpu(),
        integrated=integrated[order].cpu(),
        ablation=ablation[order].cpu(),
        objective=value,
        without_latents=without,
        error=error,
        bias=bias,
        target=target,
        contrast=contrast,
    )


def _token(
    lm: PreTrainedModel,
    row: Mapping[str, Tensor],
    token: int | str,
    given: PreTrainedTokenizerBase | None,
) -> int:
    if isinstance(token, int):
        return token

    @torch.no_grad()
    def next_logits() -> Tensor:
        return lm(**{name: t.to(lm.device) for name, t in row.items()}, use_cache=False).logits[
            0, -1
        ]

    chosen, typed = named_token(given or tokenizer_of(lm), token, next_logits)
    if typed is not None:
        warnings.warn(
            f"{token!r} is read as {' ' + token!r}, with a space before it, the likelier of both "
            f"spellings; for the other, give the token's id: {typed}",
            stacklevel=3,
        )
    return chosen


class _Leaves:
    """Latents and activations of the unchanged model as leaves of a gradient: x is decode(latents)
    and the rest, which is held fixed. A cross-layer transcoder writes several times in a pass, each
    time with the latents of the sources that the model has reached: gradients are sums over these.

    Args:
        counted: the tokens whose latents may change; None: all.
    """

    def __init__(self, sae: SAE, counted: Bool[Tensor, " ctx"] | None = None):
        self.sae, self.counted = sae, counted
        self.moments: list[Moment] = []
        self._leaves: list[tuple[Tensor, Tensor]] = []  # latents, what is added to the target

    def block(self, lm: PreTrainedModel) -> AbstractContextManager[None]:
        """Inside it the model runs on these."""
        return intervene(lm, self.sae, self._write, everywhere=True)

    def _write(self, moment: Moment) -> Tensor:
        x, source = moment.target, moment.source.detach()
        latents = self.sae.encode(source).detach()
        leaves = latents.clone().requires_grad_(), torch.zeros_like(x).requires_grad_()
        self._leaves.append(leaves)
        self.moments.append(moment)
        # difference first: it is exactly zero
        new = x + (self.sae.decode(leaves[0], source) - self.sae.decode(latents, source)).to(
            x.device
        )
        if self.counted is not None:
            new = torch.where(self.counted.to(x.device)[:, None], new, x)
        return new.to(x) + leaves[1]

    @property
    def latents(self) -> Float[Tensor, "rows ctx d_sae"]:
        """Of the last time that the SAE wrote, when it had read everything."""
        return self._leaves[-1][0].detach()

    @property
    def target(self) -> Float[Tensor, "rows ctx d_out"]:
        """The model's own activations at all targets: each time those of the others are zeros."""
        return torch.stack([moment.target for moment in self.moments]).sum(dim=0)

    def gradients(self, value: Float[Tensor, ""]) -> tuple[Tensor, Tensor]:
        """d value / d latents [rows, ctx, d_sae], and d value / d target [rows, ctx, d_out]."""
        flat = [leaf for pair in self._leaves for leaf in pair]
        slopes = torch.autograd.grad(value, flat)
        return torch.stack(slopes[::2]).sum(dim=0), torch.stack(slopes[1::2]).sum(dim=0)


class _Run:
    """Runs of one text, first unchanged (`expansion`), then on other latents, with one
    objective."""

    latents: Float[Tensor, "1 ctx d_sae"]
    """of the unchanged model, also of spared tokens"""
    source: Float[Tensor, "1 ctx d_in"]
    """what the SAE reads there"""

    def __init__(
        self,
        lm: PreTrainedModel,
        sae: SAE,
        tokens: Mapping[str, Tensor],
        objective: Objective,
        spare_tokens: Sequence[int] | None,
    ):
        self.tokens = {name: tensor.to(lm.device) for name, tensor in tokens.items()}
        ids = self.tokens["input_ids"]
        if len(ids) != 1:
            raise Refused(f"tokens hold {len(ids)} rows; attribute one text at a time")
        self.lm, self.sae, self.objective = lm, sae, objective
        spare = special_ids(lm) if spare_tokens is None else list(spare_tokens)
        self.counted = unspared(ids, spare)[0].to(sae.device)  # [ctx]

    def _run(self, block: AbstractContextManager[None], rows: int) -> Float[Tensor, " rows"]:
        batch: dict[str, Any] = {name: t.expand(rows, -1) for name, t in self.tokens.items()}
        with block:
            return self.objective(self.lm(**batch, use_cache=False).logits.float())

    def expansion(self) -> tuple[Tensor, Tensor, float, float, float]:
        """Of the unchanged model the latents [ctx, d_sae], 0 on spared tokens; d objective /
        d latents; the objective; and its first-order terms in the SAE's error and in the
        reconstruction without latents, the bias."""
        leaves = _Leaves(self.sae, self.counted)
        with torch.enable_grad():
            value = self._run(leaves.block(self.lm), 1)
            gradient, slope = leaves.gradients(value.sum())
        self.latents, self.source = leaves.latents, leaves.moments[-1].source.detach()
        with torch.no_grad():
            recon = self.sae.decode(self.latents, self.source)
            bias = self.sae.decode(torch.zeros_like(self.latents), self.source)
            error = leaves.target.float() - recon.to(leaves.target.device).float()
            weights = slope.double() * self.counted.to(slope.device)[:, None]
            of_error, of_bias = (float((p.to(weights) * weights).sum()) for p in (error, bias))
        latents = self.latents[0].float() * self.counted[:, None]
        return latents, gradient[0].float(), float(value.detach()), of_error, of_bias

    def value(self, latents: Float[Tensor, "rows ctx d_sae"]) -> Float[Tensor, " rows"]:
        """The objective with other latents in each row: m of the module."""
        source = self.source.expand(len(latents), -1, -1)
        change = self.sae.decode(latents, source) - self.sae.decode(self.latents, self.source)
        change = change * self.counted[:, None]

        def write(moment: Moment) -> Tensor:
            return (moment.target + change.to(moment.target.device)).to(moment.target)

        return self._run(intervene(self.lm, self.sae, write, everywhere=True), len(latents))

    def mean_gradient(self, n: int) -> Float[Tensor, "ctx d_sae"]:
        """d objective / d latents, mean over n points from no latents to all."""
        total = torch.zeros_like(self.latents[0], dtype=torch.float32)
        for scales in ((torch.arange(n) + 0.5) / n).split(_ROWS):
            latents = self.latents * scales.to(self.latents)[:, None, None]
            with torch.enable_grad():
                value = self.value(latents.requires_grad_()).sum()
            total += torch.autograd.grad(value, latents)[0].float().sum(dim=0)
        return total / n

    @torch.no_grad()
    def ablate(self, chosen: Int[Tensor, " k"]) -> Float[Tensor, " k"]:
        """For each latent: objective - objective without it."""
        effects = []
        for part in chosen.split(_ROWS) if len(chosen) else ():  # none would be one empty part
            # row 0 is the reference: with another batch size, the last bits may differ
            latents = self.latents.repeat(len(part) + 1, 1, 1)
            for row, latent in enumerate(part, start=1):
                latents[row, :, latent] = 0
            values = self.value(latents)
            effects.append(values[0] - values[1:])
        return torch.cat(effects) if effects else torch.zeros(0)


class Uniformity(NamedTuple):
    """The evenness of the effects of a token's latents on its prediction."""

    value: float
    """Mean over tokens: 1 if all firing latents matter equally, near 1 / L0 if only one matters."""
    per_token: Float[Tensor, " n"]


def uniformity(
    lm: PreTrainedModel,
    sae: SAE,
    input_ids: Int[Tensor, "rows ctx"],
    *,
    n_tokens: int = 64,
    seed: int = 0,
    spare_tokens: Sequence[int] | None = None,
) -> Uniformity:
    """r_L0 of Gemma Scope, appendix D.5, eqs. 12 to 14 (arXiv:2408.05147), at random tokens.

        y = latents * W_dec dL/dx,  p = |y| / sum |y|,  r = exp(entropy of p) / |y|_0

    L is the logit of the correct next token minus the mean of all logits, x the activation at the
    same token: effects on later predictions do not count.

    Args:
        n_tokens: number of tokens, drawn without replacement from those that are neither spared nor
            last in their row; tokens without a firing latent are left out of the result.
    """
    check_arguments("uniformity", lm, sae)
    contract.check_model(lm, sae)
    ids = input_ids.to(lm.device)
    spare = special_ids(lm) if spare_tokens is None else list(spare_tokens)
    drawn = random_places(ids, n_tokens, spare_tokens=spare, seed=seed)
    values = []
    for places in drawn.split(_ROWS):
        (row, position), leaves = places.T, _Leaves(sae)
        copies = torch.arange(len(places), device=ids.device)
        with torch.enable_grad(), leaves.block(lm):
            logits = lm(input_ids=ids[row], use_cache=False).logits[copies, position].float()
            correct = logits[copies, ids[row, position + 1]] - logits.mean(dim=-1)
            gradient, _ = leaves.gradients(correct.sum())
        at = (copies.to(gradient.device), position.to(gradient.device))
        effects = (leaves.latents * gradient)[at].float()  # [n, d_sae]
        values.append(evenness(effects).cpu())
    per_token = torch.cat(values) if values else torch.zeros(0)
    per_token = per_token[per_token.isfinite()]
    return Uniformity(float(per_token.mean()), per_token)


def evenness(effects: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch"]:
    """exp(entropy of |y| / sum |y|) / |y|_0, from 1 / |y|_0 to 1; NaN if all are 0."""
    shares = effects.abs() / effects.abs().sum(dim=-1, keepdim=True)
    entropy = -torch.xlogy(shares, shares).sum(dim=-1)
    return entropy.exp() / (effects != 0).sum(dim=-1)
