"""The stage of a run that writes a fingerprint, with which copies of an SAE are verified."""

import torch
from torch import Tensor

from ..machine.names import FINGERPRINT
from ..machine.refused import Refused
from ..models.fingerprint import N_TOKENS, write_fingerprint
from .fields import sides_of
from .job import Job


def make_fingerprint(job: Job) -> None:
    """Write fingerprint.safetensors: activations, and the latents and reconstructions they give.

    Raises:
        ValueError: all activations are above the norm limits.
    """
    write_fingerprint(job.sae, _activations(job), job.folder)


def _activations(job: Job) -> Tensor:
    """Raw activations of some tokens, from held-out text if there is any."""
    recipe, reads = job.recipe, job.sae.config.reads
    source = job.inputs.source(reads.names, job.limits)
    for batch in source.batches(sides_of(recipe)[-1]):
        activations = reads.joined(batch.activations)
        if n := len(activations):
            return activations[torch.linspace(0, n - 1, N_TOKENS).long()].float()
    raise Refused(
        f"no activation is left for {FINGERPRINT}: all positions are above the norm limits of the "
        "training; give other text"
    )
