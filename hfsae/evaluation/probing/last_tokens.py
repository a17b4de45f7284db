"""Activations at the last kept token of texts, at several sites in one pass."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ...activations import HarvestArguments, Harvester, TokenBatch

_ROWS = 16  # texts of about the same length in one forward pass


class LastTokens(NamedTuple):
    """What a language model has read of texts."""

    activations: dict[str, Float[Tensor, "n _"]]
    """by site, at the last token of each text whose norm is no outlier"""
    tokens: list[list[int]]
    """of each text, as far as they were read"""
    is_read: list[bool]
    """whether a text has such a token; where not, its activations are zeros"""


@torch.no_grad()
def last_tokens(
    lm: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    sites: Sequence[str],
    *,
    bos: bool,
    max_tokens: int,
    norm_limits: Mapping[str, float] | None = None,
    progress: Callable[[int], object] = lambda n: None,
) -> LastTokens:
    """Read texts; of longer ones only the end.

    Args:
        bos: begin each with the tokenizer's BOS token.
        max_tokens: of a text, BOS included.
        norm_limits: by site, the largest norm of a kept activation.
        progress: called with the number of further texts.
    """
    encoded = tokenizer(list(texts), add_special_tokens=False, verbose=False)
    first: Any = tokenizer.bos_token_id if bos else None
    before: list[int] = [] if first is None else [first]
    tokens: list[list[int]] = [ids[len(before) - max_tokens :] for ids in encoded["input_ids"]]
    order = sorted(range(len(texts)), key=lambda index: len(tokens[index]))
    harvester = Harvester(lm, sites, HarvestArguments(), norm_limits=norm_limits)
    kept: dict[int, dict[str, Tensor]] = {}
    for start in range(0, len(order), _ROWS):
        members = order[start : start + _ROWS]
        harvested = harvester(_batch([tokens[index] for index in members], before))
        for row, at in _last_of_row(harvested.row.tolist()).items():
            acts = harvested.activations
            kept[members[row]] = {site: acts[site][at].float().cpu() for site in sites}
        progress(len(members))
    return _gathered(kept, tokens, sites)


def _batch(rows: Sequence[Sequence[int]], before: Sequence[int]) -> TokenBatch:
    """Rows padded on the right, where a causal model does not look."""
    width = len(before) + max(1, *map(len, rows))
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    keep = torch.zeros(ids.shape, dtype=torch.bool)
    for number, row in enumerate(rows):
        stop = len(before) + len(row)
        ids[number, :stop] = torch.tensor([*before, *row], dtype=torch.long)
        keep[number, len(before) : stop] = True
    return TokenBatch(ids, keep, torch.zeros_like(ids))


def _last_of_row(rows: Sequence[int]) -> dict[int, int]:
    """The index of the last entry of each row."""
    return {row: at for at, row in enumerate(rows)}


def _gathered(
    kept: Mapping[int, Mapping[str, Tensor]], tokens: list[list[int]], sites: Sequence[str]
) -> LastTokens:
    is_read = [index in kept for index in range(len(tokens))]
    activations = {}
    for site in sites:
        width = len(next(iter(kept.values()))[site]) if kept else 0
        empty = torch.zeros(width)
        activations[site] = torch.stack(
            [kept[index][site] if index in kept else empty for index in range(len(tokens))]
        )
    return LastTokens(activations, tokens, is_read)
