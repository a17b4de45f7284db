"""JumpReLU and the Heaviside step, with the pseudo-derivatives that make thresholds trainable.

Both jump at the threshold, so their true derivative with respect to it is zero almost everywhere.
Rajamanoharan et al. 2024 (arXiv:2407.14435, eqs. 10-12 and appendices B, J) replace it by a kernel
estimate of the derivative of the *expected* value, where K is a kernel of width `bandwidth`:

    d jumprelu(z, threshold) / d threshold  =  -(threshold / bandwidth) K(u)
    d heaviside(z, threshold) / d threshold =  -(1 / bandwidth) K(u)
    d jumprelu(z, threshold) / d z          =  1 where z > threshold, else 0
    d heaviside(z, threshold) / d z         =  0               u = (z - threshold) / bandwidth

So the sparsity penalty moves thresholds only; weights feel it only through which latents pass. With
`ste_to_z` (the paper's ablation in appendix H.1, and Anthropic's recipe of January 2025) the jump's
term, with the opposite sign, is added to the two derivatives with respect to z.

Averaged over a batch, the estimates tend to -threshold p(threshold) and -p(threshold), where p is
the density of z; tests/ops/test_straight_through.py checks this for every `kernel`.

Each function keeps only z and the threshold for its backward pass.
"""

import math
from typing import Any, Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

Kernel = Literal["rectangle", "triangle", "epanechnikov", "gaussian"]
_GAUSSIAN_STD = 1 / 6
_GAUSSIAN_HEIGHT = 1 / (_GAUSSIAN_STD * math.sqrt(2 * math.pi) * math.erf(3 / math.sqrt(2)))


def kernel(u: Float[Tensor, "*shape"], name: str = "rectangle") -> Shaped[Tensor, "*shape"]:
    """K(u), with integral 1, and zero where |u| >= 1/2.

        name           K(u) where |u| < 1/2           standard deviation
        rectangle      1 (the paper's), as a mask     0.289
        triangle       2 - 4 |u|                      0.204
        epanechnikov   3/2 (1 - 4 u^2)                0.224
        gaussian       exp(-18 u^2) / 0.4166          0.164

    The Gaussian is cut at three standard deviations and normalised again: sparse steps need a
    finite window. For equal smoothing, scale bandwidths by the inverse standard deviations: 1.41,
    1.29 and 1.76 times the rectangle's.
    """
    inside = u.abs() < 0.5
    if name == "rectangle":
        return inside
    if name == "triangle":
        heights = 2 - 4 * u.abs()
    elif name == "epanechnikov":
        heights = 1.5 - 6 * u.square()
    else:
        assert name == "gaussian", name
        heights = _GAUSSIAN_HEIGHT * (-0.5 * (u / _GAUSSIAN_STD).square()).exp()
    return heights * inside


def jumprelu(
    z: Float[Tensor, "*batch d_sae"],
    threshold: Float[Tensor, " d_sae"],
    bandwidth: float,
    kernel: str = "rectangle",
    ste_to_z: bool = False,
) -> Float[Tensor, "*batch d_sae"]:
    """z where z > threshold, else 0; in z's dtype, compared in the wider dtype of the two."""
    return _JumpReLU.apply(z, threshold, bandwidth, kernel, ste_to_z)


def heaviside(
    z: Float[Tensor, "*batch d_sae"],
    threshold: Float[Tensor, " d_sae"],
    bandwidth: float,
    kernel: str = "rectangle",
    ste_to_z: bool = False,
) -> Float[Tensor, "*batch d_sae"]:
    """1 where z > threshold, else 0; in the threshold's dtype, so sums over it are exact.

    z must be pre-activations: with activations after the jump, the lower half of the kernel window
    is empty, and the threshold gets half its gradient.
    """
    return _Heaviside.apply(z, threshold, bandwidth, kernel, ste_to_z)


class _JumpReLU(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, z: Tensor, threshold: Tensor, bandwidth: float, name: str, ste_to_z: bool
    ) -> Tensor:
        ctx.save_for_backward(z, threshold)
        ctx.window = bandwidth, name, ste_to_z
        return z * (z > threshold)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (z, threshold), (bandwidth, name, ste_to_z) = ctx.saved_tensors, ctx.window
        dz, dthreshold = grad * (z > threshold), None
        if not bandwidth:  # no window, and no gradient but that of z above the threshold
            return dz, torch.zeros_like(threshold), None, None, None
        if ste_to_z or ctx.needs_input_grad[1]:
            height = threshold / bandwidth
            in_window = grad * kernel((z - threshold).div_(bandwidth), name)
            dthreshold = -height * _batch_sum(in_window, threshold)
            if ste_to_z:
                dz = (dz + height * in_window).to(z.dtype)
        return dz, dthreshold, None, None, None


class _Heaviside(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, z: Tensor, threshold: Tensor, bandwidth: float, name: str, ste_to_z: bool
    ) -> Tensor:
        ctx.save_for_backward(z, threshold)
        ctx.window = bandwidth, name, ste_to_z
        return (z > threshold).to(threshold.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (z, threshold), (bandwidth, name, ste_to_z) = ctx.saved_tensors, ctx.window
        if not bandwidth:
            return None, torch.zeros_like(threshold), None, None, None
        in_window = grad * kernel((z - threshold).div_(bandwidth), name)
        dz = (in_window / bandwidth).to(z.dtype) if ste_to_z else None
        return dz, -_batch_sum(in_window, threshold) / bandwidth, None, None, None


def _batch_sum(x: Tensor, threshold: Tensor) -> Tensor:
    """Sum over all dimensions except the last, in the threshold's dtype."""
    batch = tuple(range(x.ndim - 1))
    return x.sum(batch, dtype=threshold.dtype) if batch else x.to(threshold.dtype)
