"""JumpReLU and the Heaviside step, with the pseudo-derivatives that make thresholds trainable.

Both jump at the threshold, so their true derivative with respect to it is zero almost everywhere.
Rajamanoharan et al. 2024 (arXiv:2407.14435, eqs. 10-12 and appendices B, J) put in its place a
kernel estimate of the derivative of the *expected* value, with a rectangle K of width `bandwidth`:

    K(u) = 1 where |u| < 1/2, else 0                       u = (z - threshold) / bandwidth
    d jumprelu(z, threshold) / d threshold  =  -(threshold / bandwidth) K(u)
    d heaviside(z, threshold) / d threshold =  -(1 / bandwidth) K(u)
    d jumprelu(z, threshold) / d z          =  1 where z > threshold, else 0
    d heaviside(z, threshold) / d z         =  0

So the sparsity penalty moves thresholds only, and weights hear of it through what the thresholds
let pass. Averaged over a batch, the estimate tends to -p(threshold) and -threshold p(threshold),
p being the density of z: tests/ops/test_straight_through.py holds both to that.

Each function keeps z and the threshold for its backward pass, nothing else.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


def jumprelu(
    z: Float[Tensor, "*batch d_sae"], threshold: Float[Tensor, " d_sae"], bandwidth: float
) -> Float[Tensor, "*batch d_sae"]:
    """z where z > threshold, else 0; in z's dtype, compared in the wider of the two."""
    return _JumpReLU.apply(z, threshold, bandwidth)


def heaviside(
    z: Float[Tensor, "*batch d_sae"], threshold: Float[Tensor, " d_sae"], bandwidth: float
) -> Float[Tensor, "*batch d_sae"]:
    """1 where z > threshold, else 0; in the threshold's dtype, so that sums over it are exact.

    Give it pre-activations. Given activations after the jump, the lower half of the kernel window
    is empty and the threshold gets half its gradient.
    """
    return _Heaviside.apply(z, threshold, bandwidth)


class _JumpReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(z, threshold)
        ctx.bandwidth = bandwidth
        return z * (z > threshold)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        z, threshold = ctx.saved_tensors
        in_window = _sum_in_window(grad, z, threshold, ctx.bandwidth)
        return grad * (z > threshold), -(threshold / ctx.bandwidth) * in_window, None


class _Heaviside(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(z, threshold)
        ctx.bandwidth = bandwidth
        return (z > threshold).to(threshold.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None]:
        z, threshold = ctx.saved_tensors
        return None, -_sum_in_window(grad, z, threshold, ctx.bandwidth) / ctx.bandwidth, None


def _sum_in_window(grad: Tensor, z: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """Batch sum of grad where |z - threshold| < bandwidth / 2, in the threshold's dtype."""
    kernel = (z - threshold).abs() < bandwidth / 2
    batch = tuple(range(z.ndim - 1))
    inside = grad * kernel
    return inside.sum(batch, dtype=threshold.dtype) if batch else inside.to(threshold.dtype)
