"""The fidelity of SAEs' reconstructions of given activations, which needs no language model."""

from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from ..activations.harvest import refuse_not_finite
from ..activations.source import ActivationBatch
from ..io.errors import Refused
from ..lm import Autoencoder, cast_for, reads_of, writes_of
from ..models import SAE
from .arguments import EvaluationArguments
from .metrics import RunningFidelity, density_histogram, estimate
from .result import LOSSES, EvaluationResult
from .sites import SiteReading, SourceReading


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
        refuse_not_finite(batch.activations)
        if len(batch.document):
            sums.add("", batch)
        n += len(batch.document)
    if not n:
        raise Refused("no activation to evaluate on; give more of them, or higher norm limits")
    return sums.result("", args)


class Reconstructions:
    """Sums over batches of activations of how well SAEs reconstruct them.

    Args:
        n_at_once: activations that an SAE reads at once.
    """

    def __init__(self, saes: Mapping[str, Autoencoder], n_at_once: int) -> None:
        self.saes, self.n_at_once = saes, n_at_once
        self.fidelity = {name: RunningFidelity(writes_of(sae.config)) for name, sae in saes.items()}
        self.reading = {
            name: (SourceReading if sae.config.is_causal else SiteReading)(sae)
            for name, sae in saes.items()
            if isinstance(sae, SAE) and sae.config.has_several_sites
        }

    def add(self, name: str, batch: ActivationBatch) -> Float[Tensor, "n d_out"]:
        """One SAE's reconstructions of a batch, which is not empty; they are added to its sums.

        Raises:
            ValueError: a reconstruction is NaN or infinite.
        """
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
            if not recons[-1].isfinite().all():
                raise Refused(
                    f"SAE {name!r} reconstructs NaN or infinity from finite activations: its "
                    "weights are damaged, or its values overflow "
                    f"{str(target.dtype).removeprefix('torch.')}; try lm.dtype float32"
                )
        return torch.cat(recons)

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
