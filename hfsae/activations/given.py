"""Rows of tokens from the texts, data set or rows that a caller gives."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from ..lm import tokenizer_of
from .harvest import HarvestArguments
from .tokens import PackedRows, TextArguments, TokenBatch

Given = str | Sequence[str] | TextArguments | Iterable[TokenBatch]
"""A text, several texts, a data set, or rows of tokens."""


def as_rows(
    given: Given, lm: nn.Module, config: Any, tokenizer: PreTrainedTokenizerBase | None
) -> Iterable[TokenBatch]:
    """Rows of tokens: the given ones, or rows packed from texts.

    Args:
        given: texts are packed into rows of 128 tokens; of a data set the held-out side is read.
        config: the SAE's config; its `bos` decides where BOS tokens go.
        tokenizer: None: the one that `hfsae.load_lm` loaded with the model.

    Raises:
        ValueError: a tokenizer is needed and not known.
    """
    if isinstance(given, str):
        given = [given]
    if isinstance(given, Sequence) and given and all(isinstance(text, str) for text in given):
        given = TextArguments(
            dataset=[str(text) for text in given], shuffle_documents=False, held_out_fraction=1.0
        )
    if not isinstance(given, TextArguments):
        return given  # pyright: ignore[reportReturnType] - rows, by elimination
    tokenizer = tokenizer or tokenizer_of(lm)
    bos = getattr(config, "bos", None) or given.bos
    if tokenizer.bos_token_id is None:
        bos = "none"
    return PackedRows(tokenizer, replace(given, bos=bos), "held_out", rows=HarvestArguments().rows)
