"""Whether a run's steps are sparse (`hfsae.ops.sparse`) or dense.

The choice depends only on the settings and the density at the step before, so that runs repeat to
the bit on any machine. It is not timed: timings vary between runs, and results would too.
"""

import logging

import torch

from ..io.errors import Refused
from ..models import SAE
from .arguments import TrainingArguments

# Sparse steps are faster where under a seventh of all entries matter, as measured at d_in 576 and
# 2304 on CPUs (scripts/bench/gpu.py measures it on a GPU). Two limits, since hysteresis keeps a run
# from switching back and forth.
SPARSE_BELOW, _DENSE_ABOVE = 0.10, 0.14
SPARSE_FROM = 1024  # latents; with fewer, a dense step takes milliseconds anyway

logger = logging.getLogger(__name__)


class StepKind:
    """Whether the present step `is_sparse`; `choose` decides on the next.

    Raises:
        ValueError: training.sparse="always", but the SAE as configured has no sparse step here.
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
        """Whether densities decide, so that they must be measured."""
        return self.args.sparse == "auto" and self.can_be_sparse

    def choose(self, density: float) -> None:
        """Take sparse or dense steps from here on, by the fraction of entries that matter."""
        if not self.is_open:
            return
        before, limit = self.is_sparse, _DENSE_ABOVE if self.is_sparse else SPARSE_BELOW
        self.is_sparse = self.sae.config.d_sae >= SPARSE_FROM and density < limit
        if self.is_sparse != before:
            kind = "sparse" if self.is_sparse else "dense"
            logger.info(
                "%s steps: a latent can have a value or a gradient at %.2g of all pairs of a "
                "token and a latent",
                kind,
                density,
            )
