"""Rows of tokens from the texts, data set or rows that a caller gives."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import cast

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ..lm import NamesSite, tokenizer_of
from ..machine.refused import Refused
from .arguments import HarvestArguments, Split, TextArguments
from .listed import Columns, listed_texts
from .tokens import PackedRows, TokenBatch

Given = str | Sequence[str] | Columns | TextArguments | Iterable[TokenBatch]
"""A text, several texts, a `datasets.Dataset`, a `TextArguments`, or rows of tokens."""


def as_rows(
    given: Given,
    lm: nn.Module,
    config: NamesSite,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    side: Split = "test",
) -> Iterable[TokenBatch]:
    """Rows of tokens: the given ones, or rows packed from texts.

    Args:
        given: a list, or the column "text" of a data set, is read whole, in rows of at most 128
            tokens; of a `TextArguments` only `side` is read; rows are returned unchanged.
        config: the SAE's config; its `bos` sets the places of BOS tokens.
        tokenizer: None: the tokenizer that `hfsae.load_lm` loaded with the model.
        side: the documents of a `TextArguments` to read.

    Raises:
        ValueError: no tokenizer is known for the text, or `given` is neither text nor rows.
    """
    if isinstance(given, Tensor):
        raise Refused(
            "the text is a tensor; give texts, or rows of tokens: a list of "
            "hfsae.activations.TokenBatch(input_ids, keep, document)"
        )
    given = [given] if isinstance(given, str) else given
    if not isinstance(given, TextArguments) and _are_rows(given):
        return cast(Iterable[TokenBatch], given)
    tokenizer = tokenizer or tokenizer_of(lm)
    if not isinstance(given, TextArguments):
        given = _of_list(listed_texts(given), tokenizer)
        side = "test"  # holds all of a list
    bos = getattr(config, "bos", None) or given.bos
    if tokenizer.bos_token_id is None:
        bos = "none"
    return PackedRows(tokenizer, replace(given, bos=bos), side, rows=HarvestArguments().rows)


def _are_rows(given: object) -> bool:
    """Whether it yields rows of tokens, by elimination: a generator cannot be looked into."""
    if isinstance(given, Sequence):
        return all(isinstance(batch, TokenBatch) for batch in given)
    return isinstance(given, Iterable) and not isinstance(given, Columns | Mapping)


def _of_list(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> TextArguments:
    """Arguments that read all these texts, in rows no longer than the texts together."""
    encoded = tokenizer(texts, add_special_tokens=False, verbose=False)
    n_tokens = 1 + sum(len(ids) + 1 for ids in encoded["input_ids"])  # a BOS, and an EOS after each
    context_size = min(TextArguments.context_size, n_tokens)
    return TextArguments(
        dataset=texts, context_size=context_size, shuffle_documents=False, held_out_fraction=1.0
    )
