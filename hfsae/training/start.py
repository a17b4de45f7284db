"""The values from which training starts: the unit of activations, the bias, encoder and decoder.

Defaults are the paper's. Short runs gain from other ones (scripts/recipes/short_runs.md): decoder
rows and encoder columns may start in directions of data, those of tokens or of clusters.

**Clusters** are of activations, and of what these leave, by spherical k-means (Dhillon and Modha
2001, "Concept decompositions for large sparse text data"). On SmolLM2, 2,048 latents, one pass over
131,072 tokens, FVU fell by 3 % with clusters of activations alone and by 5 to 6 % with half of the
latents on what they leave; four layers were no better.

**Whitening**: where one principal direction holds much of the variance, all clusters of activations
share it, and the latents that start there compete for the same tokens. With S the covariance,
tokens and clusters c are those of S^(-p/2) x. In activations the pattern of a cluster is S^(p/2) c,
where decoder rows start; the direction that tells it from others, its detector, is S^(-p/2) c,
where encoder columns start.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import normalize  # by default along dim 1; a row of zeros stays
from tqdm.auto import tqdm

from ..io.errors import Refused
from ..io.processor import multiplies_bfloat16
from ..lm import Sites
from ..models import SAE
from ..models.config import INITIAL_FREE_NORM
from ..models.dedicated import directions_of_difference, reading_difference, tie_
from .arguments import TrainingArguments
from .directions import read_directions, start_at_
from .health import root_mean_square_norm
from .sharding import local, part, whole

SAMPLE = 2**15  # activations that scales, variances and biases are estimated from
_CLUSTERED = 2**17  # activations that are clustered, where latents start at clusters
_SIMILARITIES = 2**23  # that are in memory
_WHITENED = 2**14  # activations at a time
_FLOOR = 1e-4  # of the mean variance: directions with less are not blown up


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
    read, written = centred if args.unit == "spread" else few
    sides = (config.reads, read), (config.writes, written)
    sizes = [[root_mean_square_norm(part) for part in s.split(acts).values()] for s, acts in sides]
    config.fill_scales(*sizes)
    if args.init_b_dec == "mean":
        sae.b_dec.copy_(means[1] / sae.write_scale)
    scale, own = sae.write_scale, None
    if config.dedicated:  # now, since x is changed below
        scaled = whole(few[0]) / (whole(scale) if isinstance(scale, Tensor) else 1.0)
        own = directions_of_difference(scaled, config.dedicated, len(config.writes))
    if args.init_decoder_data:
        x = goal = _centred(x, means[0], sae.read_scale, config.reads)
        if config.is_transcoder:
            goal = _centred(target, means[1], sae.write_scale, config.writes)
        _turn_to_data_(sae, args, x, goal)
    if args.init_decoder:
        start_at_(sae, read_directions(args.init_decoder, config)[0])
    if args.init_encoder_scale != 1:
        sae.encoder_rows().mul_(args.init_encoder_scale)
    if own is not None:
        _start_dedicated_(sae, own)
    left = centred[1] if isinstance(scale, float) else centred[1] / scale
    variance = float(left.square().sum(-1).mean())
    return variance / (1 if config.has_column_scales else sae.latent_scale**2)


def _centred(
    x: Float[Tensor, "n d"], mean: Tensor, scale: float | Float[Tensor, " d"], sites: Sites
) -> Float[Tensor, "n d"]:
    """Activations less their mean, in their sites' units. Of several sites they are a copy already
    (`Sites.joined`), and many times as large: so in place."""
    x = whole(x - mean if len(sites) == 1 else x.sub_(mean))
    return x.div_(whole(scale)) if isinstance(scale, Tensor) else x


def _start_dedicated_(sae: SAE, own: Float[Tensor, "m d"]) -> None:
    """Tie rows and biases, and have dedicated latents read and write how the last site differs."""
    n_sites = len(sae.config.writes)
    bias = local(sae.b_dec.detach()).unflatten(0, (n_sites, -1))
    bias.copy_(bias[:-1].mean(dim=0).expand_as(bias))  # what is the last's own is for latents
    decoder, encoder = sae.decoder_rows().detach(), sae.encoder_rows().detach()
    rows, read = whole(decoder).clone(), whole(encoder).clone()
    tie_(rows, whole(decoder), n_sites)
    norm = 1.0 if sae.config.unit_norm_decoder else INITIAL_FREE_NORM
    rows *= (norm / sae.row_norms(rows))[:, None]
    first = len(rows) - sae.config.dedicated
    read[first : first + len(own)], written = reading_difference(own, n_sites)
    rows[first : first + len(own)] = norm * written
    local(decoder).copy_(part(rows, like=decoder))
    local(encoder).copy_(part(read, like=encoder))


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
    for encoder_rows, decoder_rows, reads, writes in sae.sources():
        read, written = x, target
        if reads != slice(None):  # a copy of some columns, since they are changed
            read, written = x[:, reads].clone(), target[:, writes].clone()
        columns, rows = first_directions_(read, written, len(encoder_rows), args)
        decoder = decoder_rows.detach()
        start = whole(decoder)
        turned = normalize(torch.lerp(normalize(start), rows, share))
        norms = start.norm(dim=1)
        if sae.config.sums_norms:
            norms = sae.row_norms(start) / sae.row_norms(turned)
        local(decoder).copy_(part(norms[:, None] * turned, like=decoder))
        start = whole(encoder_rows.detach())
        turned = normalize(torch.lerp(normalize(start), columns, share))
        turned_columns.append(start.norm(dim=1, keepdim=True) * turned)
    local(encoder).copy_(part(torch.cat(turned_columns), like=encoder))


def first_directions_(
    x: Float[Tensor, "n d_in"], target: Float[Tensor, "n d_out"], n: int, args: TrainingArguments
) -> tuple[Float[Tensor, "n_latents d_in"], Float[Tensor, "n_latents d_out"]]:
    """Unit directions of tokens or clusters, for encoder columns and decoder rows."""
    if args.init_whitening:
        to, back = whiten_(x, args.init_whitening)
        if target is not x:
            _, back = whiten_(target, args.init_whitening)
    if args.init_cluster_rounds:
        columns, rows = residual_clusters_(x, target, n, args.init_cluster_rounds)
    else:
        order = torch.arange(n, device=x.device) % len(x)
        columns, rows = normalize(x[order]), normalize(target[order])
    if args.init_whitening:
        columns, rows = normalize(columns @ to), normalize(rows @ back)
    return columns, rows


@torch.no_grad()
def whiten_(
    x: Float[Tensor, "n d"], power: float
) -> tuple[Float[Tensor, "d d"], Float[Tensor, "d d"]]:
    """Map activations, less their mean, to S^(-p/2) x, in place.

    Args:
        power: p, from 0 (nothing changes) to 1 (all directions get the same variance).

    Returns:
        S^(-p/2) and S^(p/2), symmetric maps of row vectors, up to a factor.
    """
    variances, basis = torch.linalg.eigh((x.T @ x / len(x)).double())
    mean = variances.mean().clamp(min=torch.finfo(torch.float32).tiny)
    spread = (variances / mean).clamp(min=_FLOOR) ** (power / 2)
    to, back = (((basis * size) @ basis.T).to(x.dtype) for size in (1 / spread, spread))
    for rows in x.split(_WHITENED):
        rows.copy_(rows @ to)
    return to, back


@torch.no_grad()
def residual_clusters_(
    x: Float[Tensor, "n d_in"], target: Float[Tensor, "n d_out"], n_latents: int, rounds: int
) -> tuple[Float[Tensor, "n_latents d_in"], Float[Tensor, "n_latents d_out"]]:
    """Unit directions for encoder columns and decoder rows, by spherical k-means in two layers.

    The first half of the latents gets the mean directions of clusters of activations. From each
    activation its part along its cluster's direction is taken out, and the second half gets those
    of clusters of what is left, since an SAE adds several latents up. (Quantisation by layers like
    this is known as residual quantisation.) Activations are assigned by products in bfloat16, where
    these are faster, and averaged in float32.

    Args:
        x: activations less their mean; changed in place, to save memory.
        target: what they are to reconstruct less its mean, x itself but in a transcoder; changed.
        rounds: of k-means, on as many activations as `sizes_of_rounds` says.
    """
    narrow = torch.bfloat16 if multiplies_bfloat16(x.device) else torch.float32
    first = (n_latents + 1) // 2
    encoder, decoder = list[Tensor](), list[Tensor]()
    for latents in (range(first), range(first, n_latents)):
        if not latents:
            continue
        starts = torch.tensor(latents, device=x.device) % len(x)
        columns = normalize(x[starts])
        sizes = sizes_of_rounds(len(x), len(columns), rounds)
        for size in tqdm(sizes, desc="  clusters", leave=False, disable=None):
            towards = columns.to(narrow).T
            blocks = x[:size].split(max(1, _SIMILARITIES // len(columns)))
            cluster = torch.cat([(rows.to(narrow) @ towards).argmax(dim=1) for rows in blocks])
            columns = _means(x[:size], cluster, columns)
        rows = columns if target is x else _means(target, cluster, normalize(target[starts]))
        _take_out_(x, columns, cluster)
        if target is not x:
            _take_out_(target, rows, cluster)
        encoder.append(columns)
        decoder.append(rows)
    return torch.cat(encoder), torch.cat(decoder)


def sizes_of_rounds(n: int, n_centres: int, rounds: int) -> list[int]:
    """How many of n activations each round sees: twice as many as the round before, the last all of
    them. So all rounds together cost two of the last; where six rounds saw all each time, FVU after
    training was .1 % lower at 131,072 tokens and .4 % at 524,288 (three seeds, test documents). At
    least eight a centre, where there are."""
    return [min(n, max(n >> later, 8 * n_centres)) for later in reversed(range(rounds))]


def _means(
    x: Float[Tensor, "n d"], cluster: Int[Tensor, " n"], former: Float[Tensor, "k d"]
) -> Float[Tensor, "k d"]:
    """The mean direction of the directions of each cluster's rows; an empty one keeps its former.

    Sums are of sorted rows, since `index_add_` adds in another order each time on a GPU, and all
    processes must start alike.
    """
    sizes = torch.bincount(cluster, minlength=len(former))
    order, weights = cluster.argsort(stable=True), 1 / x.norm(dim=1).clamp(min=1e-12)
    sums = nn.functional.embedding_bag(
        order, x, sizes.cumsum(0) - sizes, mode="sum", per_sample_weights=weights[order]
    )
    return torch.where((sizes > 0)[:, None], normalize(sums), former)


def _take_out_(
    x: Float[Tensor, "n d"], centres: Float[Tensor, "k d"], cluster: Int[Tensor, " n"]
) -> None:
    """From each row its part along its cluster's direction, where that is positive: latents cannot
    be negative."""
    n = max(1, _SIMILARITIES // x.shape[1])
    for rows, of in zip(x.split(n), cluster.split(n), strict=True):
        unit = centres[of]
        rows -= (rows * unit).sum(dim=1, keepdim=True).clamp(min=0) * unit
