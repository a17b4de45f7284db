"""Documents that lie on both sides: the same rows under two ids, so that one id is held out and the
other trained on."""

import logging
from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ..source import ActivationBatch

logger = logging.getLogger(__name__)
_READ = 2**30
"""Bytes of training rows that are compared: about a second."""


def warn_of_equal_documents(
    held_out: Iterable[ActivationBatch], training: Iterable[ActivationBatch], where: str
) -> None:
    """Log how many held-out documents have all of their rows among those of training, of which 1
    GiB is read. The activations of the first site count."""
    each = [(_hashes_of(_first(batch)), batch.document.numpy()) for batch in held_out]
    if not each:
        return
    hashes, document = (np.concatenate(part) for part in zip(*each, strict=True))
    distinct, which = np.unique(hashes, return_inverse=True)
    is_there, n_bytes, n_rows = np.zeros(len(distinct), dtype=bool), 0, 0
    for batch in training:
        x = _first(batch)
        at = np.searchsorted(distinct, read := _hashes_of(x)).clip(max=len(distinct) - 1)
        is_there[at[distinct[at] == read]] = True
        n_bytes, n_rows = n_bytes + x.nbytes, n_rows + len(x)
        if n_bytes >= _READ:
            break
    documents, number = np.unique(document, return_inverse=True)
    is_doubled = np.ones(len(documents), dtype=bool)
    np.logical_and.at(is_doubled, number, is_there[which])
    if n := int(is_doubled.sum()):
        logger.warning(
            "%s: %d of %d held-out documents have all of their rows among %s training rows, "
            "under other ids: results on them are not of held-out data; give equal documents "
            "one id",
            *(where, n, len(documents), f"{n_rows:,}"),
        )


def _first(batch: ActivationBatch) -> Float[Tensor, "n d"]:
    return next(iter(batch.activations.values()))


def _hashes_of(x: Float[Tensor, "n d"]) -> Int64[np.ndarray, " n"]:
    """Of each row a number that follows from its bits."""
    bits = x.contiguous().view({2: torch.int16, 4: torch.int32}[x.element_size()])
    weights = np.random.default_rng(0).integers(1, 2**62, x.shape[1]) * 2 + 1
    return (bits.numpy().astype(np.int64) * weights).sum(1)  # modulo 2**64
