"""Terms that variants add to the squared error: means over tokens of latents in units of x/c.

    l1          sum_i f_i                                Bricken et al. 2023
    ri_l1       sum_i f_i |W_dec_i|                      Conerly et al. 2024: norms are free
    tanh        sum_i tanh(slope f_i |W_dec_i|)          Anthropic 2025: a count, smooth near zero
    pre_act     sum_i relu(threshold_i - z_i) |W_dec_i|  Anthropic 2025: brings dead latents back
    aux_k       |e - recon from dead|^2 / |e - mean e|^2 Gao et al. 2024: likewise; e: the error
    quadratic   (L0 / target - 1)^2                      arXiv:2407.14435, appendix F
    frequency   sum_i p_i (1 + p_i / limit)              Smith et al. 2025; L0 is sum_i p_i

p_i is the share of tokens that latent i fires on. The last two are not sums over tokens: with
several processes, or a batch in parts, each process or part computes them on its own share, and a
step uses the mean of these gradients. It differs from the whole batch's by the noise in L0 and p_i
of a share, which is small beside a target or limit as long as shares have some hundred tokens.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.distributed.tensor import DTensor

from ..ops import EVERYWHERE, Summed, largest
from .base import SAE, ForwardParts, Schedule
from .config import Number


def l1(sae: SAE, parts: ForwardParts, f: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, ""]:
    """l1, or ri_l1 where norms are free, of latents or gates in their unit."""
    return parts.per_token(_as_written(sae, parts, f))


def tanh(sae: SAE, parts: ForwardParts, slope: Number) -> Float[Tensor, ""]:
    """tanh of latents in units of x/c, weighted by the norms of their decoder rows."""
    f = parts.latents.float() / sae.latent_scale
    return parts.per_token((slope * _as_written(sae, parts, f)).tanh())


def pre_act(sae: SAE, parts: ForwardParts, threshold: Float[Tensor, " d_sae"]) -> Float[Tensor, ""]:
    """pre_act, thresholds in units of x/c; decoder norms are weights, and get no gradient from it.

    If they did, Adam would shrink a dead latent's row to nothing before its encoder could move, and
    the loss with it: in tests/training/test_options.py none of 24 dead latents would come back.
    """
    z = parts.pre_acts.float() / sae.latent_scale
    below = (parts.at.of(threshold) - z).relu()
    norms = sae.decoder_norms().detach()
    return parts.per_token(below * parts.at.of(norms))


def aux_k(
    sae: SAE, parts: ForwardParts, schedule: Schedule, coefficient: Number, k: int
) -> dict[str, Tensor]:
    """coefficient |error - recon from the k largest dead latents|^2 / |error - mean error|^2.

    Gao et al. 2024 (arXiv:2406.04093), appendix A.2: the fraction of the error's variance that dead
    latents do not explain. Its gradients reach dead latents only. Empty where none is dead.
    """
    dead = schedule.dead
    n_dead = 0 if dead is None else int(dead.sum())
    if dead is None or n_dead == 0 or coefficient == 0:
        return {}
    pre_acts, rows = _of_dead(sae, parts, dead)
    latents = largest(pre_acts.float() / sae.latent_scale, min(k, n_dead)).relu()
    goal = parts.error.detach()  # the bias would cancel: it stands on both sides
    left = (goal - latents @ rows.float()).square().sum()
    share = left / _spread(goal, schedule.summed).clamp(min=1e-12)
    return {"aux": coefficient * share}


def quadratic(
    parts: ForwardParts, steps: Float[Tensor, "*batch d_sae"], target: Number
) -> Float[Tensor, ""]:
    """The quadratic L0 term; `steps` are 1 where a latent fires, with pseudo-derivatives."""
    return (parts.per_token(steps) / target - 1).square()


def frequency(
    parts: ForwardParts, steps: Float[Tensor, "*batch d_sae"], limit: Number
) -> Float[Tensor, ""]:
    """The frequency term: a latent that fires on the share `limit` of tokens costs twice as
    much."""
    p = parts.at.totals_by_latent(steps) / parts.n_tokens
    return (p * (1 + p / limit)).sum()


def _as_written(
    sae: SAE, parts: ForwardParts, values: Float[Tensor, "*batch d_sae"]
) -> Float[Tensor, "*batch d_sae"]:
    """Values of latents times the norms of the rows that they write."""
    if sae.config.unit_norm_decoder:
        return values
    return values * parts.at.of(sae.decoder_norms())


def _of_dead(sae: SAE, parts: ForwardParts, dead: Bool[Tensor, " d_sae"]) -> tuple[Tensor, Tensor]:
    """Pre-activations of dead latents, which need not be among the entries; their decoder rows."""
    if isinstance(parts.pre_acts, DTensor):  # spread: to pick would move them about
        return torch.where(dead, parts.pre_acts, -torch.inf), sae.decoder_rows()
    if parts.at is EVERYWHERE:
        return parts.pre_acts[..., dead], sae.rows_of(dead)
    return sae.pre_activations_of(parts.x, dead), sae.rows_of(dead)


def _spread(x: Float[Tensor, "*batch d"], summed: Summed) -> Float[Tensor, ""]:
    """Sum of |x - mean|^2 over the batch; with several processes, the mean of their sums.

    Ratios to it then average over processes to the ratio that one process would compute.
    """
    tokens = x.reshape(-1, x.shape[-1])
    n = int(summed(torch.tensor(len(tokens), device=x.device)))
    mean = summed(tokens.sum(dim=0)) / n
    return summed((tokens - mean).square().sum()) * (len(tokens) / n)
