"""Controls for latents: untrained directions that fire as often on the same activations.

`hfsae.explanations.untrained` shuffles an encoder's weights; here latents lie along random
directions. Both take activations from `sample`, count an SAE's `firings`, and fire beyond `limits`.
"""

from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from ..activations import HarvestArguments, Harvester, TokenBatch
from ..io.errors import Refused
from ..lm import Sites
from ..models import SAE
from ..models.jumprelu import along_directions

SAMPLE_TOKENS = 2**14
"""Tokens on which densities are matched."""
_BLOCK = 2**26  # pre-activations at a time


def sample(
    lm: nn.Module,
    reads: Sites,
    rows: Iterable[TokenBatch],
    *,
    norm_limits: Mapping[str, float] | None = None,
    harvest: HarvestArguments | None = None,
) -> Float[Tensor, "n d_in"]:
    """Activations at an SAE's sites, of the first SAMPLE_TOKENS kept tokens.

    Args:
        norm_limits: the training Harvester's; those of other sites are ignored.
        harvest: how activations are taken; with a cache they are kept for other SAEs.

    Raises:
        ValueError: no token is left.
    """
    harvester = Harvester(lm, reads.names, harvest or HarvestArguments(), norm_limits=norm_limits)
    parts, n_tokens = [], 0
    for batch in rows:
        parts.append(reads.joined(harvester(batch).activations))
        n_tokens += len(parts[-1])
        if n_tokens >= SAMPLE_TOKENS:
            break
    if not n_tokens:
        raise Refused("no token is left to match densities on; give more or other text")
    return torch.cat(parts)[:SAMPLE_TOKENS]


@torch.no_grad()
def firings(sae: SAE, x: Float[Tensor, "n d_in"]) -> Int[Tensor, " d_sae"]:
    """Number of activations on which each latent fires."""
    step = max(1, _BLOCK // sae.config.d_sae)
    counts = torch.zeros(sae.config.d_sae, dtype=torch.long, device=sae.W_dec.device)
    for part in x.split(step):
        counts += (sae.encode(part.to(sae.W_dec)) > 0).sum(dim=0)
    return counts


@torch.no_grad()
def limits(
    inputs: Float[Tensor, "n d_in"],
    directions: Float[Tensor, "d_in d_sae"],
    n_firings: Int[Tensor, " d_sae"],
) -> Float[Tensor, " d_sae"]:
    """For each direction, the limit that the wanted number of inputs exceeds. It is one of their
    values, so that none exceeds the largest limit, and all but one exceed the smallest."""
    values = []
    for columns in torch.arange(len(n_firings)).split(max(1, _BLOCK // len(inputs))):
        along = inputs @ directions[:, columns.to(directions.device)]
        descending = along.sort(dim=0, descending=True).values
        at = n_firings[columns.to(n_firings.device)].to(along.device).clamp(max=len(inputs) - 1)
        values.append(descending.gather(0, at[None])[0])
    return torch.cat(values)


class Untrained:
    """A JumpReLU encoder along random unit directions.

    Each direction takes the density of one latent of an SAE, measured on the same activations: its
    threshold is the value that this share of them exceeds.

    Args:
        x: [n, d_in] activations on which densities are measured.
        densities: [d_sae] shares of these tokens on which an SAE's latents fire.
    """

    def __init__(
        self, x: Float[Tensor, "n d_in"], densities: Float[Tensor, " d_sae"], seed: int
    ) -> None:
        self._seed, generator = seed, torch.Generator().manual_seed(seed)
        self.mean = x.mean(dim=0)
        self.directions = F.normalize(
            torch.randn(len(densities), x.shape[1], generator=generator), dim=1
        )
        n_firings = (densities * len(x)).round().long().clamp(max=len(x))
        self.threshold = limits(x - self.mean, self.directions.T, n_firings)
        always = n_firings == len(x)  # the smallest exceeds its limit, too, however it is rounded
        self.threshold[always] -= 1e-5 * self.threshold[always].abs()
        self.threshold[n_firings == 0] = torch.inf

    def encode(self, x: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_sae"]:
        """Latents: the activation along each direction where it exceeds its threshold, else 0;
        a threshold below 0 is the origin of its latent."""
        along = (x - self.mean) @ self.directions.T
        return torch.where(along > self.threshold, along - self.threshold.clamp(max=0), 0.0)

    def as_sae(self, sae: SAE) -> SAE:
        """An SAE with these latents in place of those of `sae`. Each writes along its own
        direction, or along another random one if a transcoder's target has another width."""
        written, width = self.directions, sae.config.d_out
        if width != written.shape[1]:
            generator = torch.Generator().manual_seed(self._seed)
            written = F.normalize(torch.randn(len(written), width, generator=generator), dim=1)
        return along_directions(sae, self.directions, written, self.threshold, self.mean)
