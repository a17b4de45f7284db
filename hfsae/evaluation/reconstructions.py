"""The fidelity of SAEs' reconstructions of given activations, which needs no language model; of
crosscoders also from which sites latents are read, and to which they write."""

from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..activations.harvest import refuse_not_finite
from ..activations.source import ActivationBatch
from ..io.errors import Refused
from ..lm import Autoencoder, cast_for, reads_of, writes_of
from ..models import SAE
from ..ops import Download, upload
from .arguments import EvaluationArguments
from .metrics import Metric, RunningFidelity, density_histogram, estimate
from .result import LOSSES, EvaluationResult

COHERENCE = "coherence"
SHARES = "share@"  # followed by a site
L0_OF = "l0@"  # followed by a site


@torch.no_grad()
def evaluate_reconstructions(
    sae: Autoencoder,
    batches: Iterable[ActivationBatch],
    args: EvaluationArguments | None = None,
) -> EvaluationResult:
    """Fidelity of an SAE's reconstructions, with intervals; no loss of a language model.

        result = evaluate_reconstructions(sae, source.batches("test", 100_000))

    Args:
        sae: Anything with `encode`, `decode` and `config.site`, as in `evaluate`.
        batches: Activations, raw, at the SAE's site (and its target site), such as those of a
            `Source`.
        args: Its `n_tokens`, `side` and `texts` are those of text, and are not used.

    Raises:
        ValueError: there is no activation, or activations or reconstructions have NaN or infinity.
    """
    args = args or EvaluationArguments()
    sums = Reconstructions({"": sae}, args.sae_batch_tokens)
    n = 0
    for batch in batches:
        sums.late.tell()
        refuse_not_finite(batch.activations)
        if len(batch.document):
            sums.add("", batch)
        n += len(batch.document)
    if not n:
        raise Refused("no activation to evaluate on; give more of them, or higher norm limits")
    sums.late.tell()
    return sums.result("", args)


class LateRefusals:
    """Refusals that a device decides, told when it has computed them anyway: nobody waits."""

    def __init__(self) -> None:
        self._asked: list[tuple[Download, str]] = []

    def add(self, bad: Bool[Tensor, "*shape"], sentence: str) -> None:
        """Refuse if any is true; "{n}" in the sentence is their number."""
        self._asked.append((Download(bad.sum()), sentence))

    def tell(self) -> None:
        """Raises ValueError: what was added since the last call is refused."""
        asked, self._asked = self._asked, []
        for n_bad, sentence in asked:
            if n := int(n_bad.value()):
                raise Refused(sentence.replace("{n}", str(n)))


class Reconstructions:
    """Sums over batches of activations of how well SAEs reconstruct them. `late` refuses those
    that are NaN or infinite.

    Args:
        n_at_once: activations that an SAE reads at once.
    """

    def __init__(self, saes: Mapping[str, Autoencoder], n_at_once: int) -> None:
        self.saes, self.n_at_once, self.late = saes, n_at_once, LateRefusals()
        self.fidelity = {name: RunningFidelity(writes_of(sae.config)) for name, sae in saes.items()}
        self.reading = {
            name: (SourceReading if sae.config.is_causal else SiteReading)(sae)
            for name, sae in saes.items()
            if isinstance(sae, SAE) and sae.config.has_several_sites
        }

    def add(self, name: str, batch: ActivationBatch) -> Float[Tensor, "n d_out"]:
        """One SAE's reconstructions of a batch, which is not empty; they are added to its sums."""
        recons, sae = [], self.saes[name]
        x, target = (side(sae.config).joined(batch.activations) for side in (reads_of, writes_of))
        parts = (part.split(self.n_at_once) for part in (x, target, batch.document))
        for x_part, target_part, document_part in zip(*parts, strict=True):
            x_part = cast_for(sae, x_part)
            latents = sae.encode(x_part)
            recon = sae.decode(latents, x_part)
            of_part = target_part.to(recon.device), recon
            if name in self.reading:
                self.reading[name].add(x_part, latents)
                of_part = self.reading[name].in_units(*of_part)
            self.fidelity[name].update(*of_part, latents, document_part)
            recons.append(recon.to(target))
        whole = torch.cat(recons)
        self.late.add(
            ~whole.isfinite(),
            f"SAE {name!r} reconstructs NaN or infinity from finite activations: its weights are "
            f"damaged, or its values overflow {str(target.dtype).removeprefix('torch.')}; try "
            "lm.dtype float32",
        )
        return whole

    def result(
        self,
        name: str,
        args: EvaluationArguments,
        *,
        losses: Mapping[str, Tensor] | None = None,
        mean_source: str = "not needed",
        side: str | None = None,
    ) -> EvaluationResult:
        """The metrics of one SAE.

        Args:
            losses: sums by document of a language model's losses, if they were measured.
        """
        bootstrap = {"n_resamples": args.bootstrap_samples, "seed": args.seed}
        fidelity, losses = self.fidelity[name], dict(losses or {})
        config = self.saes[name].config
        metrics = fidelity.compute(**bootstrap)
        if name in self.reading:
            metrics |= self.reading[name].metrics(metrics["l0"].n_tokens)
        if losses:
            metrics |= estimate(LOSSES, losses, **bootstrap)
        return EvaluationResult(
            metrics=metrics,
            density=fidelity.density,
            density_histogram=density_histogram(fidelity.density),
            l0_histogram=fidelity.l0_histogram,
            n_tokens=metrics["l0"].n_tokens,
            n_documents=fidelity.n_documents,
            seed=args.seed,
            site=str(reads_of(config)),
            target_site=str(writes_of(config)),
            mean_source=mean_source,
            side=side,
            of_documents={"fidelity": fidelity.of_documents(), "losses": losses},
        )


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
        scales = torch.tensor(config.column_scales).repeat_interleave(widths)
        scales = upload(scales, recon.device)
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
        of_sources = zip(self.reads.names, parts, strict=True)
        for s, (source, (firings, of_source)) in enumerate(of_sources):
            value = float(firings.sum()) / n_tokens
            text = f"mean number of non-zero latents per kept token among those that read {source}"
            of = nan, nan, "latents/token", n_tokens, text, "l0.of_source.v1"
            found[f"{L0_OF}{source}"] = Metric(value, *of)
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
