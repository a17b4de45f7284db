"""Whether a run's steps are sparse (`hfsae.ops.sparse`) or dense.

It depends on nothing but the step before and the settings, so that runs repeat to the bit on any
machine. No run times the two for itself: the clock would choose differently from one run to the
next, and the bits with it.
"""

import logging

import torch

from ..machine.refused import Refused
from ..models import SAE
from .arguments import TrainingArguments

# Sparse steps gain where under a seventh of all entries matter, as measured at d_in 576 and 2304 on
# CPUs (scripts/bench/gpu.py tells it of a GPU); two limits, so that a run which lies between them
# does not go to and fro.
SPARSE_BELOW, _DENSE_ABOVE = 0.10, 0.14
SPARSE_FROM = 1024  # latents; with fewer, a dense step takes milliseconds anyway

logger = logging.getLogger(__name__)


class StepKind:
    """`is_sparse` at present; `choose` says of the next step.

    Raises:
        ValueError: training.sparse="always", and the SAE as configured has no sparse step there.
    """

    def __init__(
        self, sae: SAE, args: TrainingArguments, device: torch.device, *, is_spread: bool
    ) -> None:
        self.sae, self.args, self.device = sae, args, device
        self._is_supported = device.type in ("cpu", "cuda") and not is_spread
        self.is_sparse = args.sparse == "always"
        if self.is_sparse and not self.can_be_sparse:
            raise Refused(
                f"training.sparse='always': a {type(sae).__name__} as configured on {device} has "
                "no sparse step; 'auto' takes dense ones there"
            )
        if args.sparse == "auto" and not self.can_be_sparse:
            name = type(sae).__name__
            logger.info("dense steps: a %s as configured has no sparse one on %s", name, device)

    @property
    def can_be_sparse(self) -> bool:
        """Whether the SAE has sparse steps as configured, on this device and in these processes."""
        return self._is_supported and self.sae.can_be_sparse

    @property
    def is_open(self) -> bool:
        """Whether densities are asked for: they decide."""
        return self.args.sparse == "auto" and self.can_be_sparse

    def choose(self, density: float) -> None:
        """Take sparse or dense steps from here on, by the share of all entries that matter."""
        if not self.is_open:
            return
        before, limit = self.is_sparse, _DENSE_ABOVE if self.is_sparse else SPARSE_BELOW
        self.is_sparse = self.sae.config.d_sae >= SPARSE_FROM and density < limit
        if self.is_sparse != before:
            kind = "sparse" if self.is_sparse else "dense"
            logger.info("%s steps: %.2g of all entries matter", kind, density)
