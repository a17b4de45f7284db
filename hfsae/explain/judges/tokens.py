"""How many tokens a question has: by a tokenizer where one is at hand, else by its length."""

from collections.abc import Callable
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from .base import Question

_OF_MESSAGE, _OF_REPLY = 4, 3  # tokens that chat templates add, about


class TokenCounter(NamedTuple):
    """Counts tokens."""

    text: Callable[[str], int]
    question: Callable[[Question], int]
    how: str
    """in words, for the plan"""


def by_length() -> TokenCounter:
    """A counter of characters."""
    return _counter(lambda text: -(-len(text) // 4), "characters / 4: no tokenizer is at hand")


def by_tokenizer(tokenizer: PreTrainedTokenizerBase, name: str) -> TokenCounter:
    """A counter of a tokenizer's tokens; the chat template's are estimated."""

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])  # pyright: ignore

    return _counter(count, f"the tokenizer of {name}")


def _counter(count: Callable[[str], int], how: str) -> TokenCounter:
    def of_question(question: Question) -> int:
        return _OF_REPLY + sum(_OF_MESSAGE + count(text) for _, text in question.messages)

    return TokenCounter(count, of_question, how)
