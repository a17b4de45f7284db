"""Readable texts of tokens.

Tokens of a byte-level vocabulary may be parts of a character, and SentencePiece decoders drop the
space at the beginning of a text: this module corrects both.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..io.errors import Refused
from .tokens import TokenBatch, special_among

REPLACEMENT = "\ufffd"  # decoders write it for bytes that are not a whole character
_LONGEST_CHARACTER = 4  # bytes in UTF-8; so a character has at most 4 tokens


class Tokens(NamedTuple):
    """The tokens of one text; three lists of equal length."""

    ids: list[int]
    texts: list[str]
    """Joined, they are the text. A character of several tokens is at the first of them, the others
    are empty; special tokens have their names."""
    special: list[bool]

    def batch(self, device: torch.device | str = "cpu") -> TokenBatch:
        """The text as a batch of one row; `keep` is False at special tokens."""
        ids = torch.tensor([self.ids], device=device)
        keep = ~torch.tensor([self.special], device=device)
        return TokenBatch(ids, keep, torch.zeros_like(ids))


def tokenise(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    *,
    bos: bool = True,
    chat: bool = False,
    max_tokens: int | None = None,
) -> Tokens:
    """Ids and readable texts of the tokens of `text`.

    Args:
        bos: prepend the tokenizer's BOS token, for an SAE that was trained with BOS, unless the
            text begins with it.
        chat: make the text a user's message in the tokenizer's chat template, up to the answer.

    Raises:
        ValueError: the text is empty or has more than max_tokens tokens, or the tokenizer has no
            chat template.
    """
    if not text:
        raise Refused("there is no text; write a prompt")
    if chat:
        return tokenise_chat(tokenizer, [("user", text)], max_tokens=max_tokens)
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    bos_id: Any = tokenizer.bos_token_id
    if bos and bos_id is not None and ids[:1] != [bos_id]:  # the text may spell BOS itself
        ids = [bos_id, *ids]
    return _tokens(tokenizer, list(ids), "text", max_tokens)


def tokenise_chat(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[tuple[str, str]],
    *,
    max_tokens: int | None = None,
) -> Tokens:
    """Ids and readable texts of a conversation in the chat template, up to the next answer.

    Args:
        messages: pairs of a role, "user" or "assistant", and a text.

    Raises:
        ValueError: the conversation has more than max_tokens tokens, or the tokenizer has no chat
            template.
    """
    if not tokenizer.chat_template:
        raise Refused("this model's tokenizer has no chat template; turn it off")
    written: Any = tokenizer.apply_chat_template(
        [{"role": role, "content": text} for role, text in messages],
        add_generation_prompt=True,
        tokenize=False,
    )
    ids: list[int] = tokenizer(written, add_special_tokens=False, verbose=False)["input_ids"]
    what = "conversation" if len(messages) > 1 else "text"
    return _tokens(tokenizer, list(ids), what, max_tokens)


def _tokens(
    tokenizer: PreTrainedTokenizerBase, ids: list[int], what: str, max_tokens: int | None
) -> Tokens:
    if max_tokens is not None and len(ids) > max_tokens:
        raise Refused(f"the {what} has {len(ids):,} tokens; at most {max_tokens:,} fit here")
    special = special_among(tokenizer, ids)
    return Tokens(ids, spell(tokenizer, ids), [i in special for i in ids])


def spell(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[str]:
    """The text of each token, as in `Tokens.texts`."""
    texts, special = [], special_among(tokenizer, ids)
    while len(texts) < len(ids):
        at = len(texts)
        n, text = 1, str(tokenizer.convert_ids_to_tokens(ids[at]))
        spans = [] if ids[at] in special else range(1, min(len(ids) - at, _LONGEST_CHARACTER) + 1)
        for length in spans:  # the first tokens that together spell whole characters
            whole = decoded(tokenizer, ids[at : at + length])
            if REPLACEMENT not in whole:
                n, text = length, _with_space(text, whole)
                break
        texts += [text, *[""] * (n - 1)]
    return texts


def decoded(tokenizer: PreTrainedTokenizerBase, ids: Iterable[int]) -> str:
    """The text of token ids, special tokens included."""
    return str(tokenizer.decode([int(i) for i in ids], skip_special_tokens=False))


def is_part(tokenizer: PreTrainedTokenizerBase, token_id: int) -> bool:
    """Whether a token is part of a character."""
    return REPLACEMENT in decoded(tokenizer, [token_id])


def token_text(tokenizer: PreTrainedTokenizerBase, token_id: int) -> str:
    """The text of one token, with its leading space.

    For a part of a character it is the vocabulary's spelling.
    """
    piece = str(tokenizer.convert_ids_to_tokens(token_id))
    if is_part(tokenizer, token_id):
        return piece
    return _with_space(piece, decoded(tokenizer, [token_id]))


def single_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The tokens that a person may mean by a text: itself, and the same after a space, unless it
    begins with one; where neither is one token, without the spaces around it."""
    own = (text, f" {text}") if text[:1].strip() else (text,)
    for spellings in (own, (text.strip(),)):
        rows = [tokenizer(s, add_special_tokens=False)["input_ids"] for s in spellings if s]
        if tokens := [int(ids[0]) for ids in rows if len(ids) == 1]:
            return tokens
    return []


def named_token(
    tokenizer: PreTrainedTokenizerBase, text: str, next_logits: Callable[[], Tensor]
) -> tuple[int, int | None]:
    """The token that a text names as the next one, the likelier of `single_tokens`; and that of the
    text itself, where the same after a space is likelier, and meant.

    Args:
        next_logits: gives the next token's logits, by id; called where there are two spellings.

    Raises:
        ValueError: it is several tokens.
    """
    tokens = single_tokens(tokenizer, text)
    if not tokens:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        pieces = [str(tokenizer.decode([i])) for i in ids]
        raise Refused(
            f"{text[:40]!r} is {len(ids)} tokens, {pieces[:8]}; give one of them, or a token's id"
        )
    if len(tokens) == 1:
        return tokens[0], None
    logits = next_logits()
    likelier = max(tokens, key=lambda token: float(logits[token]))
    return likelier, None if likelier == tokens[0] else tokens[0]


def _with_space(piece: str, text: str) -> str:
    """The text with its leading space, which SentencePiece decoders drop."""
    return f" {text}" if piece.startswith("▁") and not text.startswith(" ") else text
