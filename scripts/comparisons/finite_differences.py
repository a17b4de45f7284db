"""The quality of straight-through estimates of a JumpReLU SAE's threshold gradients.

Raising threshold i from t - h to t + h switches latent i off on the tokens with z_i in between. If
all other latents stay the same, the change of a token's loss is known exactly:

    loss without - loss with  =  2 z_i w_i.e - z_i^2 |w_i|^2 - lambda,

where e is the error without latent i, in units of x/c. The sum over many tokens, divided by 2 h and
the number of tokens, is the central finite difference of the expected loss. The estimator
(arXiv:2407.14435, eqs. 10 to 12) estimates the same number with a kernel and two approximations
(t for z_i, and e with the latent half on); neither is used here.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hfsae import SAE, Refused
from hfsae.models import Schedule


class GradientAgreement(NamedTuple):
    """Agreement of estimated and true gradients over latents; per batch, except `mean_cosine`."""

    bias: float
    """|mean over batches - true| / |true|"""
    scatter: float
    """root of the mean squared |estimate - its mean over batches|, / |true|"""
    cosine: float
    """cosine of a batch's estimate with the true gradient, averaged over batches"""
    mean_cosine: float
    """cosine of the mean over batches with the true gradient"""
    sign: float
    """of the latents with a gradient in the batch, the share with the right sign"""


@torch.no_grad()
def finite_difference(
    sae: SAE, batches: Iterable[Float[Tensor, "n d_in"]], half: float
) -> Float[Tensor, " d_sae"]:
    """(loss at threshold + half - loss at threshold - half) / (2 half), one threshold at a time.

    Args:
        batches: raw activations; the loss is their mean.
        half: in units of x/c, like stored thresholds.
    """
    W_dec, threshold = sae.W_dec.float(), _threshold(sae)
    square_norm = W_dec.square().sum(dim=-1)
    total, n = torch.zeros(sae.config.d_sae, dtype=torch.float64, device=W_dec.device), 0
    for x in batches:
        out = sae(x)
        z, on = out.pre_acts / sae.latent_scale, out.latents != 0
        error = (x - out.recon) / sae.write_scale
        window = (z - threshold).abs() < half
        along = error @ W_dec.T + torch.where(on, z * square_norm, 0)  # w_i.e without latent i
        change = 2 * z * along - z.square() * square_norm - sae.config.l0_coefficient
        total += torch.where(window, change, 0).sum(dim=0, dtype=torch.float64)
        n += len(x)
    return (total / (n * 2 * half)).float()


def estimates(
    sae: SAE, batches: Iterable[Float[Tensor, "n d_in"]], bandwidth: float
) -> Float[Tensor, "batches d_sae"]:
    """Each batch's straight-through gradients of the thresholds, at this bandwidth.

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
    """The SAE's trained thresholds.

    Raises:
        ValueError: the variant has no thresholds that are trained by straight-through gradients.
    """
    if not sae.config.has_thresholds:
        raise Refused(
            f"a {type(sae).__name__} has no trained thresholds; give an SAE with trained thresholds"
        )
    return sae.get_parameter("threshold")


def agreement(
    estimated: Float[Tensor, "batches d_sae"], true: Float[Tensor, " d_sae"]
) -> GradientAgreement:
    """The distance of estimates from the true gradient, per batch and of their mean."""
    mean, norm = estimated.mean(dim=0), true.norm()
    cosine = torch.nn.functional.cosine_similarity
    moved = estimated != 0
    right = (estimated.sign() == true.sign()) & moved
    return GradientAgreement(
        bias=float((mean - true).norm() / norm),
        scatter=float((estimated - mean).square().sum(dim=1).mean().sqrt() / norm),
        cosine=float(cosine(estimated, true.expand_as(estimated), dim=1).mean()),
        mean_cosine=float(cosine(mean, true, dim=0)),
        sign=float(right.sum() / moved.sum().clamp(min=1)),
    )
