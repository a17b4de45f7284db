"""The values from which training starts: the unit of activations, the bias, encoder and decoder.

Defaults are the paper's. Short runs gain from other ones (scripts/recipes/short_runs.md).
"""

import logging

import torch
from jaxtyping import Float
from torch import Tensor

from ..io.errors import Refused
from ..lm import Sites
from ..models import SAE
from ..models.config import INITIAL_FREE_NORM
from ..models.dedicated import directions_of_difference, reading_difference
from .arguments import TrainingArguments
from .clusters import directions, residual_clusters_
from .health import diagnose_start
from .readings import leading_share, root_mean_square_norm
from .sharding import local, part, whole
from .whitening import whiten_

logger = logging.getLogger(__name__)
SAMPLE = 2**15  # activations that scales, variances and biases are estimated from
_CLUSTERED = 2**17  # activations that are clustered, where latents start at clusters


def sample_size(args: TrainingArguments) -> int:
    """Activations that `start_` wants to see; those beyond SAMPLE it only clusters."""
    return _CLUSTERED if args.init_cluster_rounds else SAMPLE


@torch.no_grad()
def start_(
    sae: SAE, args: TrainingArguments, x: Float[Tensor, "n d_in"], target: Float[Tensor, "n d_out"]
) -> float:
    """Set what is estimated from a sample of activations, raw units; those of several sites, side
    by side, are changed.

    Returns:
        The variance of the target: mean of |target - its mean|^2 / c^2.
    """
    n = sample_size(args)
    x, target = x[:n], target[:n]
    config, few = sae.config, (x[:SAMPLE], target[:SAMPLE])
    means = few[0].mean(dim=0), few[1].mean(dim=0)
    centred = few[0] - means[0], few[1] - means[1]
    sized = centred if args.unit == "spread" else few
    config.fill_scales(_sizes(config.reads, sized[0]), _sizes(config.writes, sized[1]))
    if args.init_b_dec == "mean":
        sae.b_dec.copy_(means[1] / sae.write_scale)
    own = _differences(sae, whole(few[0])) if config.dedicated else None  # x is changed below
    if args.init_decoder_data:
        share = leading_share(whole(few[0]))
        for sentence in diagnose_start(share, whitening=args.init_whitening):
            logger.warning("%s", sentence)
        x = goal = _centred(x, means[0], sae.read_scale, config.reads)
        if config.is_transcoder:
            goal = _centred(target, means[1], sae.write_scale, config.writes)
        _turn_to_data_(sae, args, x, goal)
    if args.init_encoder_scale != 1:
        sae.encoder_rows().mul_(args.init_encoder_scale)
    if own is not None:
        _start_dedicated_(sae, own)
    left = _in_unit(centred[1], sae.write_scale).square().sum(-1).mean()
    return float(left) / (1 if config.has_column_scales else sae.latent_scale**2)


def _differences(sae: SAE, x: Float[Tensor, "n d_in"]) -> Float[Tensor, "m d"]:
    scale = sae.write_scale
    scaled = _in_unit(x, whole(scale) if isinstance(scale, Tensor) else scale)
    return directions_of_difference(scaled, sae.config.dedicated, len(sae.config.writes))


def _start_dedicated_(sae: SAE, own: Float[Tensor, "m d"]) -> None:
    """Tie rows and biases, and have dedicated latents read and write how the last site differs."""
    n_sites = len(sae.config.writes)
    bias = local(sae.b_dec.detach()).unflatten(0, (n_sites, -1))
    bias.copy_(bias[:-1].mean(dim=0).expand_as(bias))  # what is the last's own is for latents
    decoder, encoder = sae.decoder_rows().detach(), sae.encoder_rows().detach()
    rows, read = whole(decoder).clone(), whole(encoder).clone()
    sae.tie_(rows, whole(decoder))
    norm = 1.0 if sae.config.unit_norm_decoder else INITIAL_FREE_NORM
    rows *= (norm / sae.row_norms(rows))[:, None]
    first = len(rows) - sae.config.dedicated
    read[first : first + len(own)], written = reading_difference(own, n_sites)
    rows[first : first + len(own)] = norm * written
    local(decoder).copy_(part(rows, like=decoder))
    local(encoder).copy_(part(read, like=encoder))


def _in_unit(x: Float[Tensor, "n d"], scale: float | Float[Tensor, " d"]) -> Float[Tensor, "n d"]:
    """Activations in their sites' units, where they have several; else as they are."""
    return x if isinstance(scale, float) else x / scale


def _centred(
    x: Float[Tensor, "n d"], mean: Tensor, scale: float | Float[Tensor, " d"], sites: Sites
) -> Float[Tensor, "n d"]:
    """Activations less their mean, in their sites' units. Of several sites they are a copy already
    (`Sites.joined`), and many times as large: so in place."""
    x = whole(x - mean if len(sites) == 1 else x.sub_(mean))
    return x.div_(whole(scale)) if isinstance(scale, Tensor) else x


def _sizes(sites: Sites, x: Float[Tensor, "n d"]) -> list[float]:
    return [root_mean_square_norm(part) for part in sites.split(x).values()]


def _turn_to_data_(
    sae: SAE,
    args: TrainingArguments,
    x: Float[Tensor, "n d_in"],
    target: Float[Tensor, "n d_out"],
) -> None:
    """Turn each latent to a token of the sample, or to a cluster of tokens: its decoder row to the
    target less its mean, its encoder column to the input less its mean. Norms stay as they were. A
    token serves several latents where there are fewer tokens than latents. Changes x and target."""
    d_sae, share = sae.config.d_sae, args.init_decoder_data
    if len(x) < d_sae and share == 1:
        raise Refused(
            f"training.init_decoder_data=1 takes {d_sae} tokens from a sample, which has {len(x)}, "
            "and equal latents would stay equal; give less than 1"
        )
    encoder, turned_columns = sae.encoder_rows().detach(), []
    for source in sae.sources():
        read, written = _columns(x, source.reads), _columns(target, source.writes)
        columns, rows = first_directions_(read, written, len(source.encoder_rows), args)
        decoder = source.decoder_rows.detach()
        start, turned = _turned(decoder, rows, share)
        norms = start.norm(dim=1)
        if sae.config.sums_norms:
            norms = sae.row_norms(start) / sae.row_norms(turned)
        local(decoder).copy_(part(norms[:, None] * turned, like=decoder))
        start, turned = _turned(source.encoder_rows, columns, share)
        turned_columns.append(start.norm(dim=1, keepdim=True) * turned)
    local(encoder).copy_(part(torch.cat(turned_columns), like=encoder))


def _turned(
    weight: Tensor, turn: Float[Tensor, "n d"], share: float
) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]]:
    """The rows of a weight, and their directions when turned a share of the way."""
    start = whole(weight.detach())
    return start, directions(torch.lerp(directions(start), turn, share))


def _columns(x: Float[Tensor, "n d"], part: slice) -> Float[Tensor, "n _"]:
    """Some columns, copied, since they are changed; x itself, if these are all."""
    return x if part == slice(None) else x[:, part].clone()


def first_directions_(
    x: Float[Tensor, "n d_in"], target: Float[Tensor, "n d_out"], n: int, args: TrainingArguments
) -> tuple[Float[Tensor, "n_latents d_in"], Float[Tensor, "n_latents d_out"]]:
    """Unit directions of tokens or clusters, for encoder columns and decoder rows."""
    if args.init_whitening:
        of_x = of_target = whiten_(x, args.init_whitening)
        if target is not x:
            of_target = whiten_(target, args.init_whitening)
    if args.init_cluster_rounds:
        columns, rows = residual_clusters_(x, target, n, args.init_cluster_rounds)
    else:
        order = torch.arange(n, device=x.device) % len(x)
        columns, rows = directions(x[order]), directions(target[order])
    if args.init_whitening:
        columns, rows = directions(columns @ of_x.to), directions(rows @ of_target.back)
    return columns, rows
