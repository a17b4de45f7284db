"""How good the straight-through estimate of a JumpReLU SAE's threshold gradients is.

Raising threshold i from t - h to t + h switches latent i off on the tokens whose z_i lies between.
What that does to a token's loss is known exactly, all other latents staying as they are:

    loss without - loss with  =  2 z_i w_i.e - z_i^2 |w_i|^2 - lambda,

e being the error without latent i, in units of x/c. Its sum over many tokens, divided by 2 h and
their number, is the central finite difference of the expected loss: what the estimator estimates
(arXiv:2407.14435, eqs. 10 to 12), here without a kernel and without its two approximations (z_i
taken as t, and e taken with the latent half on).
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..machine.refused import Refused
from ..models import SAE, Schedule


class Agreement(NamedTuple):
    """Of estimated with true gradients, over latents; per batch where not said otherwise."""

    bias: float
    """|mean over batches - true| / |true|"""
    scatter: float
    """root of the mean squared |estimate - its mean over batches|, / |true|"""
    cosine: float
    """of a batch's estimate with the true gradient, on average"""
    mean_cosine: float
    """of the mean over batches with the true gradient"""
    sign: float
    """share of latents with a gradient in the batch whose sign is right"""


@torch.no_grad()
def finite_difference(
    sae: SAE, batches: Iterable[Float[Tensor, "n d_in"]], half: float
) -> Float[Tensor, " d_sae"]:
    """(loss at threshold + half - loss at threshold - half) / (2 half) by each threshold alone.

    Args:
        batches: raw activations; the expectation is over all of them.
        half: in units of x/c, as thresholds are stored.
    """
    c, W_dec, threshold = sae.scale, sae.W_dec.float(), _threshold(sae)
    square_norm = W_dec.square().sum(dim=-1)
    total, n = torch.zeros(sae.config.d_sae, dtype=torch.float64, device=W_dec.device), 0
    for x in batches:
        out = sae(x)
        z, on = out.pre_acts / c, out.latents != 0
        error = (x - out.recon) / c
        window = (z - threshold).abs() < half
        along = error @ W_dec.T + torch.where(on, z * square_norm, 0)  # w_i.e without latent i
        change = 2 * z * along - z.square() * square_norm - sae.config.l0_coefficient
        total += torch.where(window, change, 0).sum(dim=0, dtype=torch.float64)
        n += len(x)
    return (total / (n * 2 * half)).float()


def estimates(
    sae: SAE, batches: Iterable[Float[Tensor, "n d_in"]], bandwidth: float
) -> Float[Tensor, "batches d_sae"]:
    """Each batch's straight-through gradients of the thresholds, with another bandwidth.

    Args:
        bandwidth: in units of x/c.
    """
    schedule = Schedule(bandwidth=bandwidth / float(sae.config.bandwidth))
    rows, threshold = [], _threshold(sae)
    for x in batches:
        loss = sae(x, return_loss=True, schedule=schedule).loss
        rows.append(torch.autograd.grad(loss, threshold)[0])
    return torch.stack(rows)


def _threshold(sae: SAE) -> nn.Parameter:
    """
    Raises:
        ValueError: the variant has no thresholds that straight-through gradients move.
    """
    if not sae.config.has_thresholds:
        raise Refused(
            f"a {type(sae).__name__} has no trained thresholds; give an SAE whose latents have them"
        )
    return sae.get_parameter("threshold")


def agreement(found: Float[Tensor, "batches d_sae"], true: Float[Tensor, " d_sae"]) -> Agreement:
    """How far estimates are from the truth, on average and one by one."""
    mean, norm = found.mean(dim=0), true.norm()
    cosine = torch.nn.functional.cosine_similarity
    moved = found != 0
    right = (found.sign() == true.sign()) & moved
    return Agreement(
        bias=float((mean - true).norm() / norm),
        scatter=float((found - mean).square().sum(dim=1).mean().sqrt() / norm),
        cosine=float(cosine(found, true.expand_as(found), dim=1).mean()),
        mean_cosine=float(cosine(mean, true, dim=0)),
        sign=float(right.sum() / moved.sum().clamp(min=1)),
    )
