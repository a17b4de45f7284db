"""The stage of a run that writes a fingerprint, with which copies of an SAE are verified."""

import torch
from torch import Tensor

from ..activations import Harvester
from ..machine.names import FINGERPRINT
from ..machine.refused import Refused
from ..models.fingerprint import N_TOKENS, write_fingerprint
from .fields import sides_of
from .job import Job
from .text import read_rows


def make_fingerprint(job: Job) -> None:
    """Write fingerprint.safetensors: activations, and the latents and reconstructions they give.

    Raises:
        ValueError: all activations are above the norm limits.
    """
    write_fingerprint(job.sae, _activations(job), job.folder)


def _activations(job: Job) -> Tensor:
    """Raw activations of some tokens, from held-out text if there is any."""
    recipe, (site, _) = job.recipe, job.sae.config.places
    harvester = Harvester(job.loaded.lm, [site], recipe.harvest, norm_limits=job.limits)
    for batch in read_rows(recipe, job.loaded, sides_of(recipe)[-1], None):
        activations = harvester(batch).activations[site]
        if n := len(activations):
            return activations[torch.linspace(0, n - 1, N_TOKENS).long()].float()
    raise Refused(
        f"no activation is left for {FINGERPRINT}: {harvester.dropped_outliers} positions are "
        "above the norm limits of the training; give other text"
    )
