"""Terms that variants add to the squared error: means over tokens of latents in units of x/c.

    l1          sum_i f_i                                Bricken et al. 2023
    ri_l1       sum_i f_i |W_dec_i|                      Conerly et al. 2024: norms are free
    tanh        sum_i tanh(slope f_i |W_dec_i|)          Anthropic 2025: a count, smooth near zero
    pre_act     sum_i relu(threshold_i - z_i) |W_dec_i|  Anthropic 2025: brings dead latents back
    aux_k       |e - recon from dead|^2 / |e - mean e|^2 Gao et al. 2024: likewise; e: the error
    quadratic   (L0 / target - 1)^2                      arXiv:2407.14435, appendix F
    frequency   sum_i p_i (1 + p_i / limit)              Smith et al. 2025; L0 is sum_i p_i

Those of several variants stand here, the others in jumprelu.py. p_i is the share of tokens that
latent i fires on. The last two are not sums over tokens: with several processes, or a batch in
parts, each process or part computes them on its own share, and a step uses the mean of these
gradients. It differs from the whole batch's by the noise in L0 and p_i of a share, which is small
beside a target or limit as long as shares have some hundred tokens.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate

from ..ops import EVERYWHERE, indices_of, largest, upload
from .base import SAE, ForwardParts, Schedule
from .config import Number


def l1(sae: SAE, parts: ForwardParts, f: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, ""]:
    """l1, or ri_l1 where norms are free, of latents or gates in their unit."""
    if not sae.config.unit_norm_decoder:
        f = f * parts.at.of(sae.decoder_norms())
    return parts.per_token(f)


def aux_k(
    sae: SAE, parts: ForwardParts, schedule: Schedule, coefficient: Number, k: int
) -> dict[str, Tensor]:
    """coefficient |error - recon from the k largest dead latents|^2 / |error - mean error|^2.

    Gao et al. 2024 (arXiv:2406.04093), appendix A.2: the fraction of the error's variance that dead
    latents do not explain. Its gradients reach dead latents only. Empty where none is dead.
    """
    dead = schedule.dead
    n_dead = 0 if dead is None else int(dead.sum())  # in main memory: nothing waits for it
    if dead is None or n_dead == 0 or coefficient == 0:
        return {}
    if isinstance(parts.pre_acts, DTensor):  # spread: to pick would move them about
        mesh = parts.pre_acts.device_mesh
        is_dead = DTensor.from_local(upload(dead, parts.x.device), mesh, [Replicate()])
        pre_acts, rows = torch.where(is_dead, parts.pre_acts, -torch.inf), sae.decoder_rows()
    elif parts.at is EVERYWHERE:
        pre_acts, rows = parts.pre_acts[..., indices_of(dead, parts.x.device)], sae.rows_of(dead)
    else:  # dead latents need not be among the entries
        pre_acts, rows = sae.pre_activations_of(parts.x, dead), sae.rows_of(dead)
    latents = largest(pre_acts.float() / sae.latent_scale, min(k, n_dead)).relu()
    goal = parts.error.detach()  # the bias would cancel: it stands on both sides
    left = (goal - latents @ rows.float()).square().sum()
    # With several processes the spread is the mean of their sums: ratios to it then average over
    # processes to the ratio that one process would compute.
    tokens, summed = goal.reshape(-1, goal.shape[-1]), schedule.summed
    n = summed(tokens.new_full((), len(tokens)))
    mean = summed(tokens.sum(dim=0)) / n
    spread = summed((tokens - mean).square().sum()) * (len(tokens) / n)
    return {"aux": coefficient * (left / spread.clamp(min=1e-12))}
