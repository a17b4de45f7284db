"""Log-probabilities of continuations under a local model, a batch at a time."""

import copy
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ...lm import cache_name

_MAX_LOGITS = 2**27  # of a batch: 512 MiB in float32
_OVERHEAD = 32  # tokens that a forward pass costs besides its own, about


class Continuation(NamedTuple):
    """A continuation: ids that follow a context, and alternatives for the token after them."""

    context: tuple[int, ...]
    """one id or more"""
    body: tuple[int, ...]
    """may be empty"""
    ends: tuple[int, ...]
    """the last token, in one or several versions"""

    @property
    def fed(self) -> tuple[int, ...]:
        """What the model reads."""
        return self.context + self.body


def batches(items: Sequence[Continuation], size: int, vocabulary: int) -> Iterator[list[int]]:
    """Indices of items, batch by batch: neighbours share as long a beginning as possible.

    Args:
        size: items of a batch, at most.
    """
    order = sorted(range(len(items)), key=lambda i: (items[i].context, len(items[i].body)))
    batch: list[int] = []
    for i in order:
        if batch and not _joins(items, batch, i, size, vocabulary):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _joins(
    items: Sequence[Continuation], batch: list[int], i: int, size: int, vocabulary: int
) -> bool:
    """Whether a batch with one more item costs less than that item apart."""
    lengths = [len(items[j].fed) for j in (*batch, i)]
    shared = _n_shared(items[batch[0]].context, items[batch[-1]].context)
    all_shared = _n_shared(items[batch[0]].context, items[i].context)
    together = all_shared + sum(length - all_shared for length in lengths)
    apart = shared + sum(length - shared for length in lengths[:-1]) + lengths[-1] + _OVERHEAD
    n_logits = (max(len(items[j].body) for j in (*batch, i)) + 1) * vocabulary * len(lengths)
    return len(batch) < size and together <= apart and n_logits <= _MAX_LOGITS


def _n_shared(first: Sequence[int], last: Sequence[int]) -> int:
    """Length of the beginning that two sequences share; the last id of neither counts."""
    n = min(len(first), len(last)) - 1
    return next((i for i in range(n) if first[i] != last[i]), n)


class ContinuationScorer:
    """Scores batches; the beginning that a batch shares is computed once, and kept for the next."""

    def __init__(self, lm: PreTrainedModel) -> None:
        self._lm = lm
        self._prefix: tuple[int, ...] = ()
        self._cache: Any = None

    @torch.inference_mode()
    def score(self, items: Sequence[Continuation]) -> list[list[float]]:
        """For each item log p(body and end | context) for each of its ends, in nats."""
        items_of = sorted(item.context for item in items)
        n_shared = _n_shared(items_of[0], items_of[-1])
        cache = self._cache_of(items[0].context[:n_shared])
        n_shared = n_shared if cache is not None else 0
        rows = [item.fed[n_shared:] for item in items]
        ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
        for row, fed in zip(ids, rows, strict=True):
            row[: len(fed)] = torch.tensor(fed)
        # Padding is on the right, where no token attends to it.
        first = [len(item.context) - n_shared - 1 for item in items]
        places = sorted({f + j for f, i in zip(first, items, strict=True) for j in _steps(i)})
        logits = self._logits(ids, cache, places)
        at = {place: k for k, place in enumerate(places)}
        return [
            _of_item(logits[row, at[start] : at[start] + len(item.body) + 1], item)
            for row, (item, start) in enumerate(zip(items, first, strict=True))
        ]

    def _logits(self, ids: Tensor, cache: Any, places: list[int]) -> Tensor:
        """Logits at some places of each row.

        The places are a tensor: for a slice, which is not contiguous, a processor's product with
        the vocabulary takes fifty times longer in bfloat16.
        """
        device = self._lm.device
        more = {} if cache is None else {cache_name(self._lm): _expanded(cache, len(ids))}
        keep = torch.tensor(places, device=device)
        return self._lm(
            input_ids=ids.to(device), logits_to_keep=keep, use_cache=cache is not None, **more
        ).logits

    def _cache_of(self, prefix: tuple[int, ...]) -> Any:
        """Keys and values of a beginning; None for an empty one, or where the model has others."""
        if not prefix:
            return None
        if prefix != self._prefix or self._cache is None:
            ids = torch.tensor([prefix], device=self._lm.device)
            out = self._lm(input_ids=ids, use_cache=True, logits_to_keep=1)
            cache = getattr(out, cache_name(self._lm), None)
            layers = getattr(cache, "layers", None) or [None]
            is_plain = all(isinstance(getattr(layer, "keys", None), Tensor) for layer in layers)
            self._prefix, self._cache = prefix, cache if is_plain else None
        return self._cache


def _steps(item: Continuation) -> range:
    return range(len(item.body) + 1)


def _expanded(cache: Any, n: int) -> Any:
    """A view of a cache for n rows: the model appends to copies of it."""
    view = copy.copy(cache)
    view.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in view.layers:
        layer.keys = layer.keys.expand(n, -1, -1, -1)
        layer.values = layer.values.expand(n, -1, -1, -1)
    return view


def _of_item(logits: Tensor, item: Continuation) -> list[float]:
    """Sums of log-probabilities, from logits [len(body) + 1, vocabulary]."""
    scores = logits.float().log_softmax(-1)
    body = torch.tensor(item.body, dtype=torch.long, device=scores.device)
    total = scores[:-1].gather(1, body[:, None]).sum(dtype=torch.float64)
    return [float(total + scores[-1, end]) for end in item.ends]
