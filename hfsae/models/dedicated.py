"""Latents that write at the last of several sites alone; all others write the same at each.

To find what one model has beyond another, the rows that both write must not be free to differ: a
change of the second model is otherwise added to the rows of latents that fire there anyway, which
costs the loss nothing. So with `config.dedicated = n`, in each site's unit, of which all are equal,

    row i = (r, r, ..., r)       of shared latents
    row i = (0, ..., 0, r)       of the last n

Dedicated Feature Crosscoders (arXiv:2602.11729) have such rows, for both models, beside shared ones
that are free; ours are tied, and only the second model has its own. The gradient of a step is tied
likewise (`tie_`), and Adam keeps equal what has equal gradients.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn


def are_dedicated(rows: Float[Tensor, "n d_out"], n_sites: int) -> Bool[Tensor, " n"]:
    """Which rows write at the last site alone."""
    return (rows.unflatten(-1, (n_sites, -1))[:, :-1] == 0).all(dim=-1).all(dim=-1)


@torch.no_grad()
def tie_(changed: Float[Tensor, "n d_out"], rows: Float[Tensor, "n d_out"], n_sites: int) -> None:
    """Make the rows' gradient, or the rows themselves, equal at all sites: their mean. Of dedicated
    ones the last site's part is left, and nothing else."""
    parts = changed.unflatten(-1, (n_sites, -1))
    own = are_dedicated(rows, n_sites)[:, None]
    last, mean = parts[:, -1].clone(), parts.mean(dim=1)
    parts.copy_(torch.where(own, 0.0, mean)[:, None].expand_as(parts))
    parts[:, -1] = torch.where(own, last, mean)


def directions_of_difference(
    x: Float[Tensor, "n d_in"], n_dedicated: int, n_sites: int
) -> Float[Tensor, "m d"]:
    """Principal directions of how the last site differs from the mean of the others, the largest
    first, each towards its longer tail; min(n_dedicated, d) of them."""
    parts = x.float().unflatten(-1, (n_sites, -1))
    difference = parts[:, -1] - parts[:, :-1].mean(dim=1)
    _, vectors = torch.linalg.eigh(difference.T @ difference)
    found = vectors.T.flip(0)[:n_dedicated]
    sides = (difference @ found.T).pow(3).mean(dim=0).sign()
    return torch.where(sides < 0, -1.0, 1.0)[:, None] * found


def reading_difference(
    directions: Float[Tensor, "m d"], n_sites: int
) -> tuple[Float[Tensor, "m d_in"], Float[Tensor, "m d_out"]]:
    """Rows of encoder and decoder of latents that read a difference and write it."""
    others = -directions / (n_sites - 1)
    read = torch.cat([*(others,) * (n_sites - 1), directions], dim=1)
    written = nn.functional.pad(directions, (directions.shape[1] * (n_sites - 1), 0))
    return read, written
