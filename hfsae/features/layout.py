"""A map of latents: each a point in the plane, near those with similar decoder rows."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

NEAR = 15
"""nearest rows of each that a map is made from"""
_A, _B = 1.577, 0.8951  # UMAP's curve 1 / (1 + a d^2b) for a least distance of 0.1
_REPELLED = 5  # points drawn for each edge, as in UMAP
_LARGEST = 4.0  # of a step along one edge
_EPOCHS = {256: 60, 8_192: 240, 32_768: 120, 10**9: 60}  # by number of points, at most this many


def nearest_rows(
    rows: Float[Tensor, "n d"], k: int, *, block: int = 1024
) -> tuple[Int[Tensor, "n _"], Float[Tensor, "n _"]]:
    """For each row the k other rows with the largest cosines (or all others), and the cosines."""
    unit = F.normalize(rows, dim=1)
    nearest = []
    for first in range(0, len(unit), block):
        cosines = unit[first : first + block] @ unit.T
        cosines.diagonal(first).fill_(-torch.inf)
        nearest.append(cosines.topk(min(k, len(unit) - 1)))
    return torch.cat([f.indices for f in nearest]), torch.cat([f.values for f in nearest])


@torch.no_grad()
def plane(
    rows: Float[Tensor, "n d"],
    neighbours: Int[Tensor, "n k"],
    cosines: Float[Tensor, "n k"],
    *,
    seed: int = 0,
) -> Float[Tensor, "n 2"]:
    """Coordinates, most of them from -1 to 1, that keep neighbours together.

    UMAP's layout (McInnes et al. 2018, arXiv:1802.03426, section 3.2) of the graph of nearest rows,
    from their first two principal components. The same seed gives the same map on a machine.

    Args:
        rows: decoder rows.
        neighbours: the nearest other rows of each, and `cosines` to them; see `nearest_rows`.
    """
    generator = torch.Generator().manual_seed(seed)
    rows, neighbours, cosines = (t.detach().cpu() for t in (rows.float(), neighbours, cosines))
    # the first two principal components, by subspace iteration, scaled to 10
    unit = F.normalize(rows, dim=1)
    centred = unit - unit.mean(0)
    basis = torch.randn(rows.shape[1], 2, generator=generator)
    for _ in range(12):
        basis = torch.linalg.qr(centred.T @ (centred @ basis)).Q[:, :2]
    places = F.pad(centred @ basis, (0, 2 - basis.shape[1]))
    noise = torch.randn(places.shape, generator=generator)
    places = 10 * places / places.abs().max().clamp(min=1e-12) + 1e-2 * noise
    n, k = neighbours.shape
    n_epochs = next(epochs for most, epochs in _EPOCHS.items() if n <= most) if n > 2 and k else 0
    all_heads, all_tails = torch.arange(n).repeat_interleave(k), neighbours.flatten()
    further = cosines[:, :1] - cosines
    weights = torch.exp(-further / further.mean(1, keepdim=True).clamp(min=1e-6)).flatten()
    for epoch in range(n_epochs):
        drawn = torch.rand(n * k, generator=generator) < weights
        heads, tails = all_heads[drawn], all_tails[drawn]
        # ends of an edge come together
        apart = places[heads] - places[tails]
        square = apart.square().sum(1, keepdim=True).clamp(min=1e-9)
        pull = -2 * _A * _B * square ** (_B - 1) / (1 + _A * square**_B)
        step = (pull * apart).clamp(-_LARGEST, _LARGEST)
        # its head flees points drawn at random
        others = torch.randint(n, (len(heads), _REPELLED), generator=generator)
        away = places[heads][:, None] - places[others]  # [edges, _REPELLED, 2]
        square = away.square().sum(2, keepdim=True)
        push = 2 * _B / ((0.001 + square) * (1 + _A * square**_B))
        flight = (push * away).clamp(-_LARGEST, _LARGEST).sum(1)
        moved = torch.zeros_like(places).index_add_(0, heads, step + flight)
        moved.index_add_(0, tails, -step)
        # all edges move at once: a point with many must not overshoot
        degree = torch.bincount(torch.cat([heads, tails]), minlength=n).clamp(min=1)
        places = places + (1 - epoch / n_epochs) * moved / degree.sqrt()[:, None]
    places = places - places.median(0).values
    reach = places.norm(dim=1).sort().values[int(0.98 * (n - 1))]
    return places / reach.clamp(min=1e-12)
