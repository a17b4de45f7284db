"""How many tokens a question has: by a tokenizer where one is at hand, else by its length."""

from collections.abc import Callable
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from ...lm import load_tokenizer
from ...packaged import packaged_lm
from .base import PACKAGED, PACKAGED_MODEL, JudgeArguments, Question
from .wording import Wording

_OF_MESSAGE, _OF_REPLY = 4, 3  # tokens that chat templates add, about


class TokenCounter(NamedTuple):
    """Counts tokens."""

    text: Callable[[str], int]
    context: Callable[[str], int]
    """of a text's beginning, with BOS where the model has one"""
    question: Callable[[Question], int]
    how: str
    """in words, for the plan"""


def counter_of(args: JudgeArguments) -> TokenCounter:
    """A local model's own tokenizer; for a server's model SmolLM2's where that is installed.

    Raises:
        ValueError: the local model's tokenizer cannot be loaded.
    """
    if args.is_remote:
        if packaged_lm(PACKAGED_MODEL) is None:
            return by_length()
        tokenizer = load_tokenizer(PACKAGED_MODEL, source="packaged")
        return by_tokenizer(tokenizer, f"{PACKAGED_MODEL}, since {args.model}'s is not at hand")
    if args.model == PACKAGED:
        wording = Wording(load_tokenizer(PACKAGED_MODEL, source="packaged"))
    else:
        wording = Wording(load_tokenizer(args.model))
    return TokenCounter(
        lambda text: len(wording.text(text)),
        lambda text: len(wording.context(text)),
        lambda question: len(wording.prompt(question)),
        "the model's own tokenizer and chat template",
    )


def by_length() -> TokenCounter:
    """A counter of characters."""
    return _counter(lambda text: -(-len(text) // 4), "characters / 4: no tokenizer is at hand")


def by_tokenizer(tokenizer: PreTrainedTokenizerBase, name: str) -> TokenCounter:
    """A counter of a tokenizer's tokens; the chat template's are estimated."""

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    return _counter(count, f"the tokenizer of {name}")


def _counter(count: Callable[[str], int], how: str) -> TokenCounter:
    def of_question(question: Question) -> int:
        return _OF_REPLY + sum(_OF_MESSAGE + count(text) for _, text in question.messages)

    return TokenCounter(count, count, of_question, how)
