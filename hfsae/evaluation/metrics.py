"""Metrics of reconstructions and latents, each with its definition and a 95 % interval.

Every mean-like metric is a *ratio of sums over tokens*, over the whole set: a mean of batch ratios
would be another number, because norms are heavy-tailed. `DocumentSums` holds the sums of each
document; a `Definition` is the expression that makes a metric from sums. It gives the value from
the sums over all documents, and the 95 % interval from the sums over documents drawn with
replacement: tokens of one document are not independent, documents are.

Sums are float64 whatever the dtype of the activations.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..lm import Sites
from ..ops import Download, upload
from .statistics import bootstrap_weights

# Firing counts are [groups, d_sae]: [documents, d_sae] would not fit into memory.
_N_GROUPS = 64


@dataclass(frozen=True)
class Metric:
    """A measured number and its 95 % interval, `low` to `high`: NaN if there is one document."""

    value: float
    low: float
    high: float
    unit: str
    n_tokens: int
    definition: str
    definition_id: str


class Definition(NamedTuple):
    """The definition of a metric, in words and as a function `of` sums (or of densities)."""

    id: str
    unit: str
    text: str
    of: Callable


FIDELITY: dict[str, Definition] = {
    "l0": Definition(
        "l0.mean.v1",
        "latents/token",
        "mean number of non-zero latents per kept token",
        lambda s: s["active"] / s["tokens"],
    ),
    "fvu": Definition(
        "fvu.pooled.v1",
        "1",
        "fraction of variance unexplained: sum |x - recon|^2 / sum |x - mean|^2, both sums over "
        "all kept tokens, mean = mean of the same tokens (in the interval it stays that mean)",
        lambda s: s["error"] / s["spread"],
    ),
    "cosine": Definition(
        "cosine.token_mean.v1",
        "1",
        "mean over kept tokens of cos(x, recon); 0 where either is the zero vector",
        lambda s: s["cosine"] / s["tokens"],
    ),
    "relative_reconstruction_bias": Definition(
        "relative_reconstruction_bias.v1",
        "1",
        "gamma = sum |recon|^2 / sum recon.x, the factor by which reconstructions are too long; "
        "below 1 is shrinkage (Gated SAE paper, eq. 10)",
        lambda s: s["recon_square"] / s["recon_dot_x"],
    ),
}


def fidelity_of(sites: Sites) -> dict[str, Definition]:
    """`FIDELITY` for several sites: FVU and cosine of each, and their means over sites in the place
    of one number for all, in which sites of large activations would decide."""
    if len(sites) == 1:
        return FIDELITY
    sums, means, single = ("error", "spread", "cosine"), {}, {}
    for name in ("fvu", "cosine"):
        d = FIDELITY[name]
        of_one = {
            f"{name}@{site}": d._replace(
                id=f"{d.id}@{site}",
                text=f"{d.text}; at {site} alone",
                of=lambda s, of=d.of, at=site: of({**s, **{k: s[f"{k}@{at}"] for k in sums}}),
            )
            for site in sites.names
        }
        single |= of_one
        means[name] = d._replace(
            id=f"{d.id}.mean_of_sites",
            text=f"mean over {len(sites)} sites of: {d.text}",
            of=lambda s, each=of_one: torch.stack([one.of(s) for one in each.values()]).mean(dim=0),
        )
    return {**FIDELITY, **means, **single}


def _above(share: float) -> Definition:
    return Definition(
        f"density_above_share.{share:g}.v1",
        "1",
        f"share of latents that fired on more than {100 * share:g} % of the {{n}} kept tokens",
        lambda density: (density > share).double().mean(dim=-1),
    )


DENSITY: dict[str, Definition] = {
    "dead_share": Definition(
        "dead_share.v1",
        "1",
        "share of latents that fired on none of the {n} kept tokens",
        lambda density: (density == 0).double().mean(dim=-1),
    ),
    "above_1_percent_share": _above(0.01),
    "above_10_percent_share": _above(0.1),
}


def density_histogram(
    density: Float[Tensor, " d_sae"], *, lowest: int = -8, bins_per_decade: int = 4
) -> tuple[Float[Tensor, " edges"], Int[Tensor, " bins"]]:
    """(edges, counts): latents by log10 density, from `lowest` (and everything below) to 0, without
    dead latents; `counts[i]` lie in [edges[i], edges[i + 1]).

    The edges are the same for every SAE and token count: histograms are comparable.
    """
    n_bins = -lowest * bins_per_decade
    edges = torch.linspace(lowest, 0, n_bins + 1, dtype=torch.float64)
    exponents = density.cpu().double()[density.cpu() > 0].log10()
    bins = (torch.bucketize(exponents, edges, right=True) - 1).clamp(0, n_bins - 1)
    return edges, torch.bincount(bins, minlength=n_bins)


class DocumentSums:
    """Sums of per-token quantities for each document. To add waits for no device whose documents
    are known in main memory."""

    def __init__(self) -> None:
        self._parts: list[tuple[Tensor, dict[str, Download]]] = []

    def add(
        self, document: Int[Tensor, " n"], values: Mapping[str, Float[Tensor, "n ..."]]
    ) -> None:
        """Add tokens; `document` is the document's index for each token, in any order."""
        ids, row = document.cpu().unique(return_inverse=True)
        row = upload(row, next(iter(values.values())).device)
        sums = {name: _sum_rows(value, row, len(ids)) for name, value in values.items()}
        self._parts.append((ids, {name: Download(of) for name, of in sums.items()}))

    def per_document(self) -> dict[str, Tensor]:
        """Each quantity's sums, float64 [documents, ...]; documents in ascending order."""
        if not self._parts:
            return {}
        ids, row = torch.cat([ids for ids, _ in self._parts]).unique(return_inverse=True)
        names = self._parts[0][1]
        stacked = {
            name: torch.cat([sums[name].value() for _, sums in self._parts]) for name in names
        }
        merged = {name: _sum_rows(value, row, len(ids)) for name, value in stacked.items()}
        self._parts = [(ids, {name: Download(value) for name, value in merged.items()})]
        return merged


def _sum_rows(values: Tensor, row: Tensor, n_rows: int) -> Tensor:
    sums = torch.zeros(n_rows, *values.shape[1:], dtype=torch.float64, device=values.device)
    return sums.index_add_(0, row.to(values.device), values.double())


def spreads(
    x: Float[Tensor, "documents d"],
    square: Float[Tensor, " documents"],
    tokens: Float[Tensor, " documents"],
    mean: Float[Tensor, " d"],
) -> Float[Tensor, " documents"]:
    """By document the sum of |x - mean|^2 over its tokens, from sums of x, of |x|^2 and of 1; over
    all documents, with the mean of all tokens, it is sum |x|^2 - |sum x|^2 / n."""
    return square - 2 * (x @ mean) + tokens * mean.square().sum()


def estimate(
    definitions: Mapping[str, Definition],
    sums: Mapping[str, Float[Tensor, " documents"]],
    *,
    n_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Metric]:
    """Metrics from per-document sums, which include "tokens". All share the same resamples."""
    table = torch.stack(list(sums.values()), dim=-1)  # [documents, quantities]
    weights = bootstrap_weights(len(table), n_resamples, seed)
    resampled = torch.cat([block @ table for block in weights])  # [n_resamples, quantities]
    total = dict(zip(sums, table.sum(dim=0), strict=True))
    drawn = dict(zip(sums, resampled.unbind(dim=-1), strict=True))
    n_tokens = int(total["tokens"])
    return {
        name: _metric(d, d.of(total), d.of(drawn) if len(table) > 1 else None, n_tokens)
        for name, d in definitions.items()
    }


def _metric(d: Definition, value: Tensor, draws: Tensor | None, n_tokens: int) -> Metric:
    low, high = value.new_full((2,), float("nan"))
    if draws is not None:
        low, high = torch.quantile(draws, draws.new_tensor([0.025, 0.975]))
        # If all draws are equal, rounding can put the value just outside the interval.
        low, high = torch.minimum(low, value), torch.maximum(high, value)
    text = d.text.format(n=f"{n_tokens:,}")
    return Metric(value.item(), low.item(), high.item(), d.unit, n_tokens, text, d.id)


class RunningFidelity:
    """Fidelity of reconstructions and densities of latents, over any number of `update` calls.

    Memory: one [d] float64 vector and a few numbers per document, and [64, d_sae] firing counts.

    Args:
        sites: of the columns, if they are of several sites.
    """

    def __init__(self, sites: Sites | None = None) -> None:
        self._sites = sites or Sites([("", 0)])
        self._sums = DocumentSums()
        self._fired: Tensor | None = None  # [groups, d_sae]
        self._group_tokens = torch.zeros(_N_GROUPS, dtype=torch.float64)
        self._l0_counts: Tensor | None = None  # [d_sae + 1]

    def update(
        self,
        x: Float[Tensor, "n d_out"],
        recon: Float[Tensor, "n d_out"],
        latents: Float[Tensor, "n d_sae"],
        document: Int[Tensor, " n"],
    ) -> None:
        """Add kept tokens: targets x, their reconstructions and their latents."""
        # Float32 counts exactly below 2^24; on a CPU it sums several times as fast as bool.
        fired = (latents != 0).float()
        active = fired.sum(dim=-1)
        quantities = _token_quantities(x.double(), recon.double())
        if len(self._sites) > 1:  # what the definitions of one site need
            parts = self._sites.split(recon.double())
            for site, of_site in self._sites.split(x.double()).items():
                own = _token_quantities(of_site, parts[site])
                quantities |= {f"{q}@{site}": own[q] for q in ("error", "cosine", "square")}
        self._sums.add(document, {"active": active, **quantities})
        if self._fired is None or self._l0_counts is None:
            self._fired = fired.new_zeros(_N_GROUPS, fired.shape[-1], dtype=torch.float64)
            self._l0_counts = fired.new_zeros(fired.shape[-1] + 1, dtype=torch.int64)
        group = document.cpu() % _N_GROUPS
        self._group_tokens += torch.bincount(group, minlength=_N_GROUPS)
        group = upload(group, fired.device)
        self._fired += torch.zeros_like(self._fired, dtype=fired.dtype).index_add_(0, group, fired)
        ones = torch.ones_like(active, dtype=torch.int64)
        self._l0_counts.index_add_(0, active.long(), ones)  # bincount would wait for the device

    @property
    def n_documents(self) -> int:
        """Number of documents added so far."""
        return len(self._sums.per_document()["tokens"])

    @property
    def density(self) -> Float[Tensor, " d_sae"]:
        """Fraction of the tokens so far on which each latent fired."""
        assert self._fired is not None, "no tokens yet"
        return self._fired.sum(dim=0).cpu() / self._group_tokens.sum()

    @property
    def l0_histogram(self) -> Int[Tensor, " k"]:
        """Entry k: tokens with exactly k non-zero latents, up to the largest k seen."""
        assert self._l0_counts is not None, "no tokens yet"
        return self._l0_counts.cpu()[: int(self._l0_counts.nonzero().max()) + 1]

    def of_documents(self) -> dict[str, Float[Tensor, " documents"]]:
        """The sums behind `FIDELITY`, by document."""
        sums = dict(self._sums.per_document())
        x, square, tokens = sums.pop("x"), sums.pop("square"), sums["tokens"]
        mean = x.sum(dim=0) / tokens.sum()
        sums["spread"] = spreads(x, square, tokens, mean)
        if len(self._sites) > 1:
            parts = self._sites.split(x)
            for site, own in self._sites.split(mean).items():
                square = sums.pop(f"square@{site}")
                sums[f"spread@{site}"] = spreads(parts[site], square, tokens, own)
        return sums

    def compute(self, *, n_resamples: int = 1000, seed: int = 0) -> dict[str, Metric]:
        """The metrics of `fidelity_of` the sites and of `DENSITY`, with intervals.

        Densities are resampled by 64 groups of documents. They scatter more than the original ones
        (a latent can lose all its firings, but never gain a first one). This biases shares, so
        draws are centred on the original share.
        """
        assert self._fired is not None, "no tokens yet"
        definitions = fidelity_of(self._sites)
        metrics = estimate(definitions, self.of_documents(), n_resamples=n_resamples, seed=seed)
        seen = self._group_tokens > 0
        fired, tokens = self._fired.cpu()[seen], self._group_tokens[seen]
        values = {name: d.of(self.density) for name, d in DENSITY.items()}
        draws: dict[str, list[Tensor]] = {name: [] for name in DENSITY}
        for block in bootstrap_weights(len(tokens), n_resamples, seed, width=fired.shape[-1]):
            resampled = (block @ fired) / (block @ tokens)[:, None]
            for name, d in DENSITY.items():
                draws[name].append(d.of(resampled))
        for name, d in DENSITY.items():
            drawn, value = torch.cat(draws[name]), values[name]
            centred = (drawn - drawn.mean() + value).clamp(0, 1) if len(tokens) > 1 else None
            metrics[name] = _metric(d, value, centred, int(tokens.sum()))
        return metrics


def _token_quantities(x: Tensor, recon: Tensor) -> dict[str, Tensor]:
    """The quantities that `FIDELITY` sums over tokens, except the number of active latents."""
    square, recon_square, dot = x.square().sum(-1), recon.square().sum(-1), (recon * x).sum(-1)
    return {
        "tokens": torch.ones_like(square),
        "error": (x - recon).square().sum(-1),
        "cosine": dot / (square * recon_square).sqrt().clamp_min(torch.finfo(x.dtype).tiny),
        "recon_square": recon_square,
        "recon_dot_x": dot,
        "square": square,
        "x": x,
    }
