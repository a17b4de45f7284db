"""Directions in which latents may start: of clusters of activations, and of what these leave."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

_AT_ONCE = 2**23  # similarities that are in memory


@torch.no_grad()
def residual_clusters(
    x: Float[Tensor, "n d_in"], target: Float[Tensor, "n d_out"], n_latents: int, rounds: int
) -> tuple[Float[Tensor, "n_latents d_in"], Float[Tensor, "n_latents d_out"]]:
    """Unit directions for encoder columns and decoder rows, by spherical k-means in two layers.

    The first half of the latents gets the mean directions of clusters of activations. From each
    activation its part along its cluster's direction is taken out, and the second half gets those
    of clusters of what is left, since an SAE adds several latents up. (In the pursuit of a sparse
    code by layers this is residual quantisation.)

    Args:
        x: activations less their mean.
        target: what they are to reconstruct less its mean; x itself, but in a transcoder.
        rounds: of k-means, each a product of x with all directions.
    """
    halves = ((n_latents + 1) // 2, n_latents // 2)
    encoder, decoder = list[Tensor](), list[Tensor]()
    for n, skipped in zip(halves, (0, halves[0]), strict=True):
        if not n:
            continue
        first = torch.arange(skipped, skipped + n, device=x.device) % len(x)
        cluster, columns = _clusters(directions(x), directions(x)[first], rounds)
        rows = _means(directions(target), cluster, directions(target)[first])
        x, target = (_without(*each) for each in ((x, columns[cluster]), (target, rows[cluster])))
        encoder.append(columns)
        decoder.append(rows)
    return torch.cat(encoder), torch.cat(decoder)


def directions(rows: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Each row at a length of 1; a row of zeros stays."""
    return rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-12)


def _clusters(
    unit: Float[Tensor, "n d"], centres: Float[Tensor, "k d"], rounds: int
) -> tuple[Int[Tensor, " n"], Float[Tensor, "k d"]]:
    """The cluster of each row, and the clusters' mean directions, after rounds of k-means."""
    for _ in range(rounds):
        parts = unit.split(max(1, _AT_ONCE // len(centres)))
        cluster = torch.cat([(part @ centres.T).argmax(dim=1) for part in parts])
        centres = _means(unit, cluster, centres)
    return cluster, centres


def _means(
    unit: Float[Tensor, "n d"], cluster: Int[Tensor, " n"], former: Float[Tensor, "k d"]
) -> Float[Tensor, "k d"]:
    """The mean direction of each cluster's rows; an empty one keeps its former direction.

    Sums are of sorted rows, since `index_add_` adds in another order each time on a GPU, and all
    processes must start alike.
    """
    sizes = torch.bincount(cluster, minlength=len(former))
    sums = nn.functional.embedding_bag(
        cluster.argsort(stable=True), unit, sizes.cumsum(0) - sizes, mode="sum"
    )
    return torch.where((sizes > 0)[:, None], directions(sums), former)


def _without(x: Float[Tensor, "n d"], unit: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """x less its part along a direction where that is positive: latents cannot be negative."""
    return x - (x * unit).sum(dim=1, keepdim=True).clamp(min=0) * unit
