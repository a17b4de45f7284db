"""One pass over held-out text: its tokens in two halves, and the activations of some latents.

    shown    half of the documents, from which explanations are made
    tested   the other half, on which they are scored

A hash of a document's tokens decides its half, whatever else is read. Text that is on both halves
all the same, in runs of 12 tokens or more, is cut out of the tested half.

The first token of each row, on which models fire as on no other (attention sinks), and outliers of
the norm have no activations here, and are in no window.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from ..activations import HarvestArguments, Harvested, Harvester, TokenBatch
from ..features.summary import BLOCK_LATENTS
from ..io.errors import Refused
from ..models import SAE

SHOWN, TESTED, CUT = 0, 1, 2
RUN = 12
"""Tokens: text as long as this is on one half only."""
MAX_DIRECTIONS = 100
"""Random directions, at most: each takes 4 bytes a token."""
MOST_FIRINGS = 2**25  # kept at a time, 16 bytes each; latents at the end of the order go first
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd: of the hash of a run of tokens


class Firings(NamedTuple):
    """The tokens a latent fires on, in their order, and its activations there."""

    token: np.ndarray
    value: np.ndarray


@dataclass
class CorpusActivations:
    """The tokens that were read, special ones apart, and what was computed on them.

    Arrays have an entry a token, in reading order. Text is contiguous from `start` to `stop`:
    tokens of one row, document and half that are all computed, or none of them, with no special
    token between them.
    """

    ids: np.ndarray
    half: np.ndarray
    """SHOWN, TESTED or CUT"""
    start: np.ndarray
    """first token of the text that this one is in"""
    stop: np.ndarray
    """one beyond its last"""
    computed: np.ndarray
    """whether there are activations: not at a row's first token, nor at outliers of the norm"""
    n_documents: tuple[int, int]
    """on the shown and the tested half"""
    n_firings: np.ndarray
    """[d_sae] tokens of both halves that each latent fires on"""
    order: np.ndarray
    """latents in the order in which they are drawn; those whose traces are kept"""
    projections: np.ndarray
    """[n, directions]: activations along random unit directions"""
    _traces: dict[int, Firings] = field(default_factory=dict)

    @property
    def n_computed(self) -> int:
        """Tokens with activations, of both halves: the base of densities."""
        return int(self.computed.sum())

    def density(self, latent: int) -> float:
        """Share of the tokens on which a latent fires."""
        return float(self.n_firings[latent] / self.n_computed)

    def trace(self, latent: int) -> Firings:
        """The firings of a latent in `order`."""
        return self._traces.get(latent, Firings(np.zeros(0, np.int64), np.zeros(0, np.float32)))

    def densest(self, direction: int, density: float) -> Firings:
        """The tokens furthest along a random direction, as many as this density gives, with their
        distances above the threshold."""
        token = np.flatnonzero(self.computed)
        along = self.projections[token, direction]
        n_quiet = len(token) - min(max(1, round(density * len(token))), len(token) - 1)
        above = along - np.partition(along, n_quiet - 1)[n_quiet - 1]
        return Firings(token[above > 0], above[above > 0])


@torch.no_grad()
def read(
    lm: PreTrainedModel,
    sae: SAE,
    rows: Iterable[TokenBatch],
    order: np.ndarray,
    *,
    n_directions: int,
    keep_all: bool,
    seed: int,
    norm_limits: dict[str, float] | None = None,
    harvest: HarvestArguments | None = None,
    progress: Callable[[int], object] | None = None,
    most_firings: int = MOST_FIRINGS,
) -> CorpusActivations:
    """Read rows of tokens once.

    Args:
        order: latents whose activations are kept.
        n_directions: number of random directions, measured in the same way.
        keep_all: keep every latent of the order; False: where they have more than `most_firings`,
            only its first ones.
        norm_limits: the training Harvester's; those of other sites are ignored.
        harvest: how activations are taken; with a cache, the language model reads the text once for
            all SAEs of a site.
        progress: called after each batch with its number of tokens.

    Raises:
        ValueError: no token is left, or all documents are on one half.
    """
    sites = sae.config.reads.names
    harvester = Harvester(lm, sites, harvest or HarvestArguments(), norm_limits=norm_limits)
    parts = _Parts(sae, order, n_directions, None if keep_all else most_firings, seed)
    for batch in rows:
        parts.add(batch, harvester(batch))
        if progress is not None:
            progress(int(batch.keep.sum()))
    if not parts.n_computed:
        raise Refused(
            f"no token is left to explain latents on: {harvester.dropped_special} are special or "
            f"padding, {harvester.dropped_outliers} above norm_limits; give more or other text"
        )
    return parts.reading(seed)


class _Parts:
    """What is kept of the batches."""

    def __init__(
        self, sae: SAE, order: np.ndarray, n_directions: int, most_firings: int | None, seed: int
    ) -> None:
        self.sae, self.order, self.most_firings = sae, order.astype(np.int64), most_firings
        generator = torch.Generator().manual_seed(seed)
        directions = torch.randn(n_directions, sae.config.d_in, generator=generator)
        self.directions = F.normalize(directions, dim=1)
        self.is_kept = torch.zeros(sae.config.d_sae, dtype=torch.bool)
        self.is_kept[torch.from_numpy(self.order)] = True
        self.n_firings = np.zeros(sae.config.d_sae, dtype=np.int64)
        self.tokens: list[np.ndarray] = []  # each [6, n]: ids, document, row, position, computed
        self.firings: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self.projections: list[np.ndarray] = []
        self.n_tokens = self.n_rows = self.n_computed = 0

    def add(self, batch: TokenBatch, harvested: Harvested) -> None:
        """The tokens of a batch; `harvested` are those that have activations."""
        ids, keep, document = (part.cpu() for part in batch)
        row, position = keep.nonzero(as_tuple=True)
        index = torch.full(keep.shape, -1)
        index[row, position] = torch.arange(len(row))
        at = harvested.row.cpu(), harvested.position.cpu()
        later = at[1] > keep.long().argmax(dim=1)[at[0]]  # than the first kept one of its row
        where = index[at[0][later], at[1][later]]  # among the kept ones
        computed = torch.zeros(len(row), dtype=torch.long).index_fill_(0, where, 1)
        facts = [ids[keep], document[keep], row + self.n_rows, position, computed]
        self.tokens.append(torch.stack([fact.long() for fact in facts]).numpy())
        x = self.sae.config.reads.joined(harvested.activations)
        x = x[later.to(x.device)]
        step = max(1, BLOCK_LATENTS // self.sae.config.d_sae)
        for inputs, places in zip(x.split(step), where.split(step), strict=True):
            latents = self.sae.encode(inputs.to(self.sae.W_dec)).float().cpu()
            token, latent = (latents > 0).nonzero(as_tuple=True)
            self.n_firings += np.bincount(latent.numpy(), minlength=latents.shape[1])
            kept = self.is_kept[latent]
            token, latent = token[kept], latent[kept]
            values = latents[token, latent].numpy()
            self.firings.append((latent.numpy(), places[token].numpy() + self.n_tokens, values))
        n_kept, most = sum(len(values) for *_, values in self.firings), self.most_firings
        if most is not None and n_kept > most:  # give up latents at the end of the order
            total = np.cumsum(self.n_firings[self.order])
            self.order = self.order[: max(1, int((total <= most // 2).sum()))]
            self.is_kept[:] = False
            self.is_kept[torch.from_numpy(self.order)] = True
            stays = [self.is_kept.numpy()[latent] for latent, *_ in self.firings]
            pairs = zip(self.firings, stays, strict=True)
            self.firings = [(of[0][stay], of[1][stay], of[2][stay]) for of, stay in pairs]
        along = torch.full((len(row), len(self.directions)), -torch.inf)
        along[where] = x.float().cpu() @ self.directions.T
        self.projections.append(along.numpy())
        self.n_tokens += len(row)
        self.n_rows += len(ids)
        self.n_computed += len(where)

    def reading(self, seed: int) -> CorpusActivations:
        """All of it together, halved."""
        ids, document, row, position, computed = np.concatenate(self.tokens, axis=1)
        half, n_documents = halves(ids, document, seed)
        start, stop = stretches(row, position, document, half)
        half = np.where(is_shared(ids, half, stop), CUT, half)
        start, stop = stretches(row, position, document, half, computed)
        latent, token, value = (np.concatenate(part) for part in zip(*self.firings, strict=True))
        by = np.argsort(latent, kind="stable")
        latents, first = np.unique(latent[by], return_index=True)
        members = zip(latents, np.split(by, first)[1:], strict=True)  # first[0] is 0
        return CorpusActivations(
            ids,
            half,
            start,
            stop,
            computed.astype(bool),
            n_documents,
            self.n_firings,
            self.order,
            np.concatenate(self.projections),
            {int(index): Firings(token[at], value[at]) for index, at in members},
        )


def halves(ids: np.ndarray, document: np.ndarray, seed: int) -> tuple[np.ndarray, tuple[int, int]]:
    """The half of each token, by a hash of its document's tokens; documents on both halves.

    Raises:
        ValueError: a half has no document.
    """
    numbers, of_token = np.unique(document, return_inverse=True)
    members = np.split(np.argsort(of_token, kind="stable"), np.bincount(of_token).cumsum()[:-1])
    key = seed.to_bytes(8, "little")
    texts = (ids[tokens].astype("<i8").tobytes() for tokens in members)
    digests = (blake2b(text, digest_size=1, key=key).digest() for text in texts)
    of_document = np.array([digest[0] % 2 for digest in digests])
    n_tested = int(of_document.sum())
    if n_tested in (0, len(numbers)):
        raise Refused(
            f"the {len(numbers)} held-out documents that were read are all in one "
            "half, but one half must explain and the other test: read more tokens, "
            "or more and shorter documents"
        )
    return of_document[of_token], (len(numbers) - n_tested, n_tested)


def stretches(
    row: np.ndarray, position: np.ndarray, *facts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Start and stop of the contiguous text around each token: of one row, and alike in each fact,
    such as its document and half."""
    n = len(row)
    breaks = np.ones(n, dtype=bool)
    breaks[1:] = np.diff(position) != 1
    for fact in (row, *facts):
        breaks[1:] |= np.diff(fact) != 0
    first = np.flatnonzero(breaks)
    stretch = breaks.cumsum() - 1
    return first[stretch], np.append(first[1:], n)[stretch]


def is_shared(ids: np.ndarray, half: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """Whether a token of the tested half lies in a run of RUN tokens that the shown half has."""
    n, shared = len(ids), np.zeros(len(ids), dtype=bool)
    if n < RUN:
        return shared
    runs = np.zeros(n - RUN + 1, dtype=np.uint64)
    for offset in range(RUN):
        runs = runs * _FACTOR + ids[offset : len(runs) + offset].astype(np.uint64)
        runs ^= runs >> np.uint64(29)
    is_whole = stop[: len(runs)] - np.arange(len(runs)) >= RUN
    of_shown = np.unique(runs[is_whole & (half[: len(runs)] == SHOWN)])
    begins = is_whole & (half[: len(runs)] == TESTED) & np.isin(runs, of_shown)
    for offset in range(RUN):
        shared[offset : len(runs) + offset] |= begins
    return shared
