"""One dictionary over several sites (a crosscoder): what an SAE knows of the sites beneath it.

An SAE with `config.sites` is an SAE on their activations side by side, each site in its own unit:

    x = concat_s x^s / (c_s sqrt(S))      c_s: root of the mean squared norm at site s; S sites
    latents = activate(x W_enc + b_enc),  recon = latents W_dec + b_dec
    loss = mean over sites of |x^s - recon^s|^2 / c_s^2, and the variant's sparsity terms

So |x|^2 is 1 on average, as with one site, and rates, thresholds and coefficients carry over. What
differs is the norm of a decoder row: N(row) = sum_s |row^s|, which training holds at 1. Then a
latent is as large as what it writes at all sites together, and the penalties and selections of
every variant act on f sum_s |row^s|: Anthropic's L1 of norms (Crosscoders, October 2024),
BatchTopK's scores of Minder et al. (arXiv:2504.02922). With `row_norm="l2"` it is a plain SAE of
the concatenation, for which being at one site alone saves nothing.

Rows of W_dec are in the unit of each site while training; `folded()` puts these units into the
weights, as with one site, and keeps `config.site_scales`, in which N and shares stay measured.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..io.errors import Refused
from ..lm.hooks import Sites
from ..ops import indices_of
from .config import SAEConfig

_LEAST = 1e-12  # of a norm that something is divided by


class SiteLayout(nn.Module):
    """The part of an SAE that knows its sites and their units; a base of `SAE`."""

    config: SAEConfig
    W_enc: nn.Parameter
    W_dec: nn.Parameter
    b_dec: nn.Parameter
    decoder_names: Sequence[str] = ("W_dec",)
    """names of the parameters that hold decoder rows, of equal parts of the latents"""

    def encoder_rows(self) -> Float[Tensor, "d_sae _"]:
        """What each latent reads: a view of W_enc, row i of latent i."""
        return self.W_enc.T

    def decoder_rows(self) -> Float[Tensor, "d_sae d_out"]:
        """What each latent writes: W_dec, row i of latent i."""
        return self.W_dec

    def rows_of(self, chosen: Bool[Tensor, " d_sae"]) -> Float[Tensor, "n d_out"]:
        """`decoder_rows` of some latents, marked in main memory."""
        rows = self.decoder_rows()
        return rows[indices_of(chosen, rows.device)]

    def decoder_parts(self) -> list[nn.Parameter]:
        """The parameters that hold decoder rows: those of the first latents, of the next, ..."""
        return [self.get_parameter(name) for name in self.decoder_names]

    def decoder_norms(self) -> Float[Tensor, " d_sae"]:
        """`row_norms` of all decoder rows."""
        return self.row_norms(self.decoder_rows().float())

    def sources(self) -> list[tuple[Tensor, Tensor, slice, slice]]:
        """Equal parts of the latents, here one: encoder rows [n, d_read], decoder rows
        [n, d_written], and the columns of x and of its reconstruction that these are."""
        return [(self.encoder_rows(), self.decoder_rows(), slice(None), slice(None))]

    @property
    def latent_scale(self) -> float:
        """The unit of latents, raw units: stored thresholds and b_enc are multiplied by it."""
        return self.config.latent_scale

    @property
    def read_scale(self) -> float | Float[Tensor, " d_in"]:
        """The scale c of what is read, raw units; for several sites, c_s sqrt(S) of each column."""
        if self.config.has_column_scales:
            return self._of_columns(self.config.read_column_scales, self.config.reads)
        return float(self.config.activation_scale or 1.0)

    @property
    def write_scale(self) -> float | Float[Tensor, " d_out"]:
        """The scale c of what is written, raw units: b_dec is multiplied, errors divided by it."""
        if self.config.has_column_scales:
            return self._of_columns(self.config.column_scales, self.config.writes)
        return self.latent_scale

    @property
    def read_unit(self) -> float:
        """Unit of b_dec, where it is subtracted from what is read, over that of latents: 1 unless
        each source reads its own site."""
        return 1.0

    def _of_columns(self, scales: list[float], sites: Sites) -> Float[Tensor, " d"]:
        bias = self.b_dec.detach()  # of it, so that scales are where the weights are
        dtype = torch.promote_types(bias.dtype, torch.float32)
        of_sites = zip(sites, scales, strict=True)
        return torch.cat([bias.new_full((n,), scale, dtype=dtype) for (_, n), scale in of_sites])

    def with_sites_hidden(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        """Activations of a training step, at some tokens without those of some sites
        (`config.site_dropout`): the other sites count for them, and one is always left."""
        parts = list(self.split(x).values())
        drawn = torch.rand_like(x[..., : len(parts)])
        shown = drawn >= self.config.site_dropout
        shown |= drawn == drawn.amax(dim=-1, keepdim=True)
        weights = shown * (len(parts) / shown.sum(dim=-1, keepdim=True))
        columns = zip(parts, weights.to(x.dtype).split(1, dim=-1), strict=True)
        return torch.cat([part * weight for part, weight in columns], dim=-1)

    def split(
        self, x: Float[Tensor, "*batch d"], side: Literal["written", "read"] = "written"
    ) -> dict[str, Float[Tensor, "*batch _"]]:
        """By site, the columns of activations or reconstructions that belong to it: views.

        Args:
            side: the sites that the SAE writes, or those that it reads: a transcoder's differ.

        Raises:
            ValueError: x has another width.
        """
        sites = self.config.writes if side == "written" else self.config.reads
        if x.shape[-1] != (d := sum(width for _, width in sites)):
            raise Refused(f"{sites} are {d} wide side by side, got {[*x.shape]}")
        return sites.split(x)

    def join(self, activations: Mapping[str, Float[Tensor, "*batch _"]]) -> Tensor:
        """Activations by site as the SAE reads them, [*batch, d_in]: the inverse of
        `split(x, "read")`.

        Raises:
            ValueError: a site is missing, or has another width.
        """
        for site, width in self.config.reads:
            if site not in activations:
                raise Refused(
                    f"activations at {site!r} are missing; this SAE reads {self.config.reads}"
                )
            if (x := activations[site]).shape[-1] != width:
                raise Refused(f"activations at {site!r} are {width} wide, got {[*x.shape]}")
        return self.config.reads.joined(activations)

    @property
    def shares(self) -> Float[Tensor, "d_sae S"]:
        """The share of each latent that it writes at each site, |row^s| / N(row), in the sites'
        units c_s; rows sum to 1."""
        norms = self._site_norms(self.W_dec.detach().float())
        return norms / norms.sum(dim=-1, keepdim=True).clamp(min=_LEAST)

    def row_norms(self, rows: Float[Tensor, "n d_out"]) -> Float[Tensor, " n"]:
        """Norms of decoder rows, which training holds at 1 or penalises: of several sites the sum
        of their norms, in the sites' units."""
        if not self.config.sums_norms:
            return torch.linalg.vector_norm(rows, dim=-1)
        return self._site_norms(rows).sum(dim=-1)

    def _site_norms(self, rows: Float[Tensor, "n d_out"]) -> Float[Tensor, "n S"]:
        norms = [torch.linalg.vector_norm(part, dim=-1) for part in self.split(rows).values()]
        stacked = torch.stack(norms, dim=-1)
        if not self.config.scales_folded or self.config.site_scales is None:
            return stacked
        return stacked / stacked.new_tensor(self.config.relative_scales)

    def normals(self, rows: Float[Tensor, "n d_out"]) -> Float[Tensor, "n d_out"]:
        """The gradient of `row_norms` at rows of norm 1, over its squared length's root."""
        if not self.config.sums_norms:
            return rows
        parts = list(self.split(rows).values())
        norms = [torch.linalg.vector_norm(part, dim=-1, keepdim=True) for part in parts]
        units = [p / norm.clamp(min=_LEAST) for p, norm in zip(parts, norms, strict=True)]
        if self.config.dedicated:  # some rows are 0 at some sites
            return nn.functional.normalize(torch.cat(units, dim=-1), dim=-1)
        return torch.cat(units, dim=-1) / len(parts) ** 0.5

    def revivable(self, dead: Bool[Tensor, " d_sae"]) -> Bool[Tensor, " d_sae"]:
        """Those of the dead latents that may learn from what others leave. Dedicated ones may not:
        where sites do not differ, nothing is left for them."""
        own = torch.arange(len(dead), device=dead.device) >= len(dead) - self.config.dedicated
        return dead & ~own

    def first_rows(self, drawn: Float[Tensor, "d_sae d_out"]) -> Float[Tensor, "d_sae d_out"]:
        """Rows of norm 1 to start from: at every site of equal width the same direction, and the
        same share."""
        first: dict[int, Tensor] = {}
        parts = [
            first.setdefault(part.shape[-1], nn.functional.normalize(part, dim=-1))
            for part in drawn.split(self.config.written_widths, dim=-1)
        ]
        if (n := len(parts)) == 1:
            return parts[0]
        rows = torch.cat(parts, dim=-1) / (n if self.config.sums_norms else n**0.5)
        if not self.config.dedicated:
            return rows
        rows[-self.config.dedicated :, : -(rows.shape[1] // n)] = 0  # the last site's part is left
        return rows / self.row_norms(rows)[:, None]
