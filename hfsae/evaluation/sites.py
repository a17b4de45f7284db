"""From which sites the latents of a crosscoder are read, and to which they write."""

import torch
from jaxtyping import Float
from torch import Tensor

from ..models import SAE
from .metrics import Metric

COHERENCE = "coherence"
SHARES = "share@"  # followed by a site
L0_OF = "l0@"  # followed by a site


class SiteReading:
    """Sums over tokens of how much of each latent comes from each site.

    The coherence of a latent is (sum_s m_s)^2 / sum_s m_s^2, m_s the mean of |x^s W_enc^s| over the
    tokens on which it fires: the number of sites that it is read from, 1 to S.
    """

    def __init__(self, sae: SAE) -> None:
        self.sae, self.reads = sae, sae.config.reads
        shape = sae.config.d_sae, len(self.reads)
        self.sums = torch.zeros(shape, dtype=torch.float64, device=sae.device)
        self.firings = torch.zeros(shape[0], dtype=torch.float64, device=sae.device)

    def in_units(
        self, target: Float[Tensor, "n d_out"], recon: Float[Tensor, "n d_out"]
    ) -> tuple[Float[Tensor, "n d_out"], Float[Tensor, "n d_out"]]:
        """Both in the sites' units, so that numbers over all sites count each alike."""
        config = self.sae.config
        if config.site_scales is None:
            return target, recon
        widths = torch.tensor(config.written_widths)
        scales = torch.tensor(config.column_scales).repeat_interleave(widths).to(recon.device)
        return target / scales, recon.float() / scales

    def add(self, x: Float[Tensor, "n d_in"], latents: Float[Tensor, "n d_sae"]) -> None:
        """Add tokens."""
        fires = (latents != 0).float()
        self.firings += fires.sum(dim=0)
        read = self.sae.encoder_input(x)
        of_encoder = self.reads.split(self.sae.encoder_rows())
        for s, (site, part) in enumerate(self.reads.split(read).items()):
            contributions = (part @ of_encoder[site].T).abs().float()
            self.sums[:, s] += (contributions * fires).sum(dim=0)

    @property
    def coherence(self) -> Float[Tensor, " n_fired"]:
        """Of each latent that fired."""
        means = self.sums[self.firings > 0]  # the number of firings cancels
        return means.sum(dim=1).square() / means.square().sum(dim=1).clamp(min=1e-300)

    def metrics(self, n_tokens: int) -> dict[str, Metric]:
        """The mean coherence, and the mean share of each site, over the latents that fired."""
        fired = (self.firings > 0).cpu()
        shares = self.sae.shares.double().cpu()[fired].mean(dim=0).tolist()
        found = {
            f"{SHARES}{site}": _over_latents(
                share, n_tokens, "site_share", f"mean share of a latent's decoder row at {site}"
            )
            for site, share in zip(self.reads.names, shares, strict=True)
        }
        text = "mean number of sites that a latent is read from: (sum m)^2 / sum m^2 over sites, "
        text += "m = mean |x W_enc| of the site where the latent fires"
        coherence = float(self.coherence.mean())
        return {COHERENCE: _over_latents(coherence, n_tokens, "coherence", text), **found}


class SourceReading(SiteReading):
    """How many latents of each source of a cross-layer transcoder fire."""

    def __init__(self, sae: SAE) -> None:
        self.sae, self.reads = sae, sae.config.reads
        self.firings = torch.zeros(sae.config.d_sae, dtype=torch.float64, device=sae.device)

    def add(self, x: Float[Tensor, "n d_in"], latents: Float[Tensor, "n d_sae"]) -> None:
        """Add tokens."""
        self.firings += (latents != 0).float().sum(dim=0)

    def metrics(self, n_tokens: int) -> dict[str, Metric]:
        """L0 of each source, and the mean share of each target in its latents that fired."""
        found, nan = {}, float("nan")
        shares, n = self.sae.shares.double().cpu(), len(self.reads)
        parts = zip(self.firings.cpu().chunk(n), shares.chunk(n), strict=True)
        for s, (source, (firings, of_source)) in enumerate(
            zip(self.reads.names, parts, strict=True)
        ):
            value = float(firings.sum()) / n_tokens
            text = "mean number of non-zero latents per kept token among those that read "
            text += source
            unit = "latents/token"
            found[f"{L0_OF}{source}"] = Metric(
                value, nan, nan, unit, n_tokens, text, "l0.of_source.v1"
            )
            means = of_source[firings > 0].mean(dim=0).tolist()
            for target, share in [*zip(self.sae.config.writes.names, means, strict=True)][s:]:
                text = f"mean share at {target} of the decoder rows of latents that read {source}"
                name = f"{SHARES}{source}->{target}"
                found[name] = _over_latents(share, n_tokens, "source_share", text)
        return found


def _over_latents(value: float, n_tokens: int, name: str, text: str) -> Metric:
    nan = float("nan")  # latents are all there are: nothing was drawn
    text = f"{text}, over the latents that fired"
    return Metric(value, nan, nan, "1", n_tokens, text, f"{name}.latent_mean.v1")
