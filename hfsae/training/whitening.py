"""Partly whitened activations: the space in which first directions of latents are found.

Where one principal direction holds much of the variance, all clusters of activations share it, and
the latents that start there compete for the same tokens. With S the covariance, tokens and clusters
c are those of S^(-p/2) x. In activations the pattern of a cluster is S^(p/2) c, where decoder rows
start; the direction that tells it from others, its detector, is S^(-p/2) c, where encoder columns
start.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

_FLOOR = 1e-4  # of the mean variance: directions with less are not blown up
_AT_ONCE = 2**14  # activations


class Whitening(NamedTuple):
    """Symmetric maps of row vectors, up to a factor."""

    to: Float[Tensor, "d d"]
    """S^(-p/2)"""
    back: Float[Tensor, "d d"]
    """S^(p/2)"""


@torch.no_grad()
def whiten_(x: Float[Tensor, "n d"], power: float) -> Whitening:
    """Map activations, less their mean, to S^(-p/2) x, in place; returns the maps.

    Args:
        power: p, from 0 (nothing changes) to 1 (all directions get the same variance).
    """
    variances, basis = torch.linalg.eigh((x.T @ x / len(x)).double())
    mean = variances.mean().clamp(min=torch.finfo(torch.float32).tiny)
    spread = (variances / mean).clamp(min=_FLOOR) ** (power / 2)
    to, back = ((basis * size) @ basis.T for size in (1 / spread, spread))
    maps = Whitening(to.to(x.dtype), back.to(x.dtype))
    for part in x.split(_AT_ONCE):
        part.copy_(part @ maps.to)
    return maps
