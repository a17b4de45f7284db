"""Rows of tokens from the texts, data set or rows that a caller gives."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, cast

from torch import nn
from transformers import PreTrainedTokenizerBase

from ..lm import tokenizer_of
from .harvest import HarvestArguments
from .tokens import PackedRows, Split, TextArguments, TokenBatch

Given = str | Sequence[str] | TextArguments | Iterable[TokenBatch]
"""A text, several texts, a data set, or rows of tokens."""


def as_rows(
    given: Given,
    lm: nn.Module,
    config: Any,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    side: Split = "test",
) -> Iterable[TokenBatch]:
    """Rows of tokens: the given ones, or rows packed from texts.

    Args:
        given: a list is read whole, in rows of 128 tokens (fewer for a shorter list); of a
            `TextArguments` one side is read.
        config: the SAE's config; its `bos` sets the places of BOS tokens.
        tokenizer: None: the tokenizer that `hfsae.load_lm` loaded with the model.
        side: of a `TextArguments`.

    Raises:
        ValueError: text without a tokenizer.
    """
    if isinstance(given, str):
        given = [given]
    is_list = isinstance(given, Sequence) and given and all(isinstance(t, str) for t in given)
    if not is_list and not isinstance(given, TextArguments):
        return given  # pyright: ignore[reportReturnType] - rows, by elimination
    tokenizer = tokenizer or tokenizer_of(lm)
    if not isinstance(given, TextArguments):
        given = _of_list([str(text) for text in cast(Sequence[str], given)], tokenizer)
        side = "test"  # holds all of a list
    bos = getattr(config, "bos", None) or given.bos
    if tokenizer.bos_token_id is None:
        bos = "none"
    return PackedRows(tokenizer, replace(given, bos=bos), side, rows=HarvestArguments().rows)


def _of_list(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> TextArguments:
    """Arguments that read all these texts, in rows no longer than the texts together."""
    encoded: Any = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    n_tokens = 1 + sum(len(ids) + 1 for ids in encoded)  # a BOS, and an EOS after each
    context_size = min(TextArguments.context_size, n_tokens)
    return TextArguments(
        dataset=texts, context_size=context_size, shuffle_documents=False, held_out_fraction=1.0
    )
