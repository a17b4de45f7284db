"""Maxima and means of latents and of raw activations over labelled documents, or rows of them."""

import logging
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from ..activations import ActivationBatch
from ..machine.refused import Refused
from ..models import SAE
from .column_files import LabelColumns
from .draws import hashed

logger = logging.getLogger(__name__)
_AT_ONCE = 2**22  # latents encoded at a time
_MOST = 2**26  # maxima that are held, and as many sums: 256 MiB each


class Sheet(NamedTuple):
    """Variables (latents, then raw dimensions) in the units that have labels and were read."""

    unit: Int[np.ndarray, " n"]
    """Each unit's place in the labels."""
    values: dict[str, Float[np.ndarray, "n variables"]]
    """"max" and "mean" over the rows of a unit, or "value" where each unit is one row."""
    share: float
    """Of the units that were read: below 1 if there were more than memory should hold."""


@torch.no_grad()
def sheet_of(
    sae: SAE, batches: Iterable[ActivationBatch], labels: LabelColumns, seed: int
) -> Sheet:
    """One pass over activations; of more units than fit, a random part is used.

    Raises:
        ValueError: labels are those of rows, and the activations come without positions.
    """
    units = _Units(labels, sae.config.d_sae + sae.config.d_in, seed)
    step = max(1, _AT_ONCE // sae.config.d_sae)
    for batch in batches:
        unit = units.find(batch)
        used = units.admit(unit).nonzero()[0]
        x = sae.config.reads.joined(batch.activations)
        for first in range(0, len(used), step):
            rows = used[first : first + step]
            part = x[torch.from_numpy(rows).to(x.device)]
            latents = sae.encode(part.to(sae.W_dec))
            values = torch.cat([latents.float().cpu(), part.float().cpu()], dim=1)
            units.add(unit[rows], values.numpy())
    return units.sheet()


class _Units:
    """Sums and maxima over units; if there are too many, over those with the smallest hashes."""

    def __init__(self, labels: LabelColumns, n_variables: int, seed: int):
        document, position = labels.document, labels.position
        self.documents, self.by_row = np.unique(document), position is not None
        places = np.zeros(1, dtype=np.int64) if position is None else position
        self.low = places.min(initial=0)
        self.span = places.max(initial=0) - self.low + 1
        keys = self._keys(document, position)
        self.order = keys.argsort()
        self.sorted = keys[self.order]
        self.hash = hashed(torch.from_numpy(keys), seed).numpy()
        self.limit, self.most = 2**63 - 1, max(1, _MOST // n_variables)
        self.slot = np.full(len(keys), -1)
        self.unit = np.empty(0, dtype=np.int64)
        size = (min(self.most, len(keys)), n_variables)
        self.max, self.sum = (np.empty(size, dtype=np.float32) for _ in range(2))
        self.count = np.empty(size[0], dtype=np.int64)

    def _keys(self, document: np.ndarray, position: np.ndarray | None) -> Int[np.ndarray, " n"]:
        """A number for each place that may have labels; -1 for others."""
        place = np.searchsorted(self.documents, document).clip(max=len(self.documents) - 1)
        is_known = self.documents[place] == document
        if position is None:
            return np.where(is_known, place, -1)
        within = position - self.low
        is_known &= (within >= 0) & (within < self.span)
        return np.where(is_known, place * self.span + within, -1)

    def find(self, batch: ActivationBatch) -> Int[np.ndarray, " n"]:
        """The unit of each row of a batch; -1 for rows without labels."""
        if self.by_row and batch.position is None:
            raise Refused(
                "labels are those of rows, but the activations come without positions; give "
                "labels to documents, or ActivationBatch(activations, document, position)"
            )
        position = None
        if self.by_row and batch.position is not None:
            position = batch.position.cpu().numpy()
        keys = self._keys(batch.document.cpu().numpy(), position)
        at = np.searchsorted(self.sorted, keys).clip(max=len(self.sorted) - 1)
        return np.where((keys >= 0) & (self.sorted[at] == keys), self.order[at], -1)

    def admit(self, unit: Int[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
        """Which rows are used; a slot is given to each of their units."""
        while True:
            is_used = (unit >= 0) & (self.hash[unit] <= self.limit)
            fresh = np.unique(unit[is_used])
            fresh = fresh[self.slot[fresh] < 0]
            n = len(self.unit)
            if n + len(fresh) <= self.most:
                break
            self._drop_half()
        slots = slice(n, n + len(fresh))
        self.slot[fresh] = np.arange(n, n + len(fresh))
        self.unit = np.concatenate([self.unit, fresh])
        self.max[slots], self.sum[slots], self.count[slots] = -np.inf, 0, 0
        return is_used

    def _drop_half(self) -> None:
        """Keep the units whose hashes are in the lower half of what they may be."""
        self.limit //= 2
        stay = self.hash[self.unit] <= self.limit
        n, n_stay = len(self.unit), int(stay.sum())
        for field in (self.max, self.sum, self.count):
            field[:n_stay] = field[:n][stay]
        self.slot[self.unit] = -1
        self.unit = self.unit[stay]
        self.slot[self.unit] = np.arange(n_stay)

    def add(self, unit: Int[np.ndarray, " n"], values: Float[np.ndarray, "n variables"]) -> None:
        """The variables in some rows of units that have a slot."""
        order = np.argsort(self.slot[unit], kind="stable")
        slots, starts, counts = np.unique(
            self.slot[unit[order]], return_index=True, return_counts=True
        )
        values = values[order]
        self.max[slots] = np.maximum(self.max[slots], np.maximum.reduceat(values, starts))
        self.sum[slots] += np.add.reduceat(values, starts)
        self.count[slots] += counts

    def sheet(self) -> Sheet:
        """What was added, in the order of the labels."""
        share = (self.limit + 1) / 2**63
        if share < 1:
            logger.warning(
                "of the labelled units a random share of %.1f %% is used: %s, which memory holds",
                100 * share,
                f"{len(self.unit):,}",
            )
        order = np.argsort(self.unit)
        most, count = self.max[order], self.count[order]
        if (count == 1).all():
            return Sheet(self.unit[order], {"value": most}, share)
        mean = self.sum[order] / count[:, None].astype(np.float32)
        return Sheet(self.unit[order], {"max": most, "mean": mean}, share)
