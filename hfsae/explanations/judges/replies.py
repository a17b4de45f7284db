"""A chat completion read: its text without thoughts, refusals, log-probabilities of choices."""

import math
import re
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from .base import Answer, Question
from .tokens import by_length
from .transport import Trouble

_TAG = re.compile(r"<(/?)think(?:ing)?>", re.IGNORECASE)
_REFUSAL = re.compile(
    r"(i'm|i am) (very |so |really )?(sorry|unable|not able)\b|(i'm |i am )?sorry[,.]|"
    r"(unfortunately, )?i (can ?not|can't|won't|will not|am not able to) "
    r"(help|assist|answer|provide|comply|fulfil|continue|do that)|as an ai\b",
    re.IGNORECASE,
)

_MOST_TOKENS = 2**40  # a larger count is no count
REFUSED = "the model refused to answer"


def without_thoughts(text: str) -> str | None:
    """A text without what is between <think> and </think>; None if a thought does not end.

    Some chat templates open the thought themselves, so an end without a beginning counts.
    """
    kept, begin, is_inside = [], 0, False
    for tag in _TAG.finditer(text):  # one pass: a text of a million tags takes no longer than one
        if not tag[1] and not is_inside:
            kept.append(text[begin : tag.start()])
        elif tag[1] and not is_inside:
            kept.clear()
        is_inside, begin = not tag[1], tag.end()
    return None if is_inside else "".join([*kept, text[begin:]]).strip()


def read(reply: dict[str, Any], question: Question) -> Answer:
    """The answer in a reply, or why it is none.

    Raises:
        Trouble: the reply is of another shape.
    """
    try:
        choice = reply["choices"][0]
        message, stop = choice["message"], choice.get("finish_reason")
        content = _content(message.get("content"))
        usage = reply.get("usage") or {}
        n_in = _whole(usage.get("prompt_tokens"), by_length().question(question))
        n_out = _whole(usage.get("completion_tokens"), by_length().text(content))
        text = without_thoughts(content)
        is_refused = message.get("refusal") or stop == "content_filter"
        failure = REFUSED if is_refused else failure_of(text, stop, question)
    except (LookupError, TypeError, AttributeError) as error:
        raise Trouble("no chat", "the reply has no message") from error
    if failure:
        return Answer(None, failure, None, n_in, n_out)
    logprobs = _log_probabilities(choice.get("logprobs"), question.choices)
    return Answer(text, None, logprobs, n_in, n_out)


def _content(content: object) -> str:
    """Text, which some servers send in parts."""
    if isinstance(content, list):
        return "".join(str(part.get("text") or "") for part in content)
    if content is not None and not isinstance(content, str):
        raise TypeError("content is no text")
    return content or ""


def _whole(value: object, estimate: int) -> int:
    return value if type(value) is int and 0 <= value < _MOST_TOKENS else estimate


def failure_of(text: str | None, stop: object, question: Question) -> str | None:
    """Why a text is no answer; None if it is one.

    Args:
        text: without thoughts; None: a thought does not end.
        stop: "length" if the answer was cut.
    """
    if _REFUSAL.match(_plain(text or "")):
        return REFUSED
    if text is None:
        return f"a thought without an end within {question.max_tokens} tokens"
    if not text:
        return "an empty answer"
    if question.schema is not None and stop == "length":
        return f"the answer was cut at {question.max_tokens} tokens"
    return None


def _plain(text: str) -> str:
    """A text with straight apostrophes."""
    return text.replace("\u2019", "'")


def _log_probabilities(logprobs: Any, choices: Sequence[str]) -> dict[str, float] | None:
    """Those of the choices where the visible answer begins; None where the server sent none.

    A choice that is not among the likely tokens has at most what they leave, and at most the least
    likely one's: that bound stands for it.
    """
    if not choices:
        return None
    try:
        top = _first_visible(logprobs["content"])["top_logprobs"]
        pairs = [(str(t["token"]), float(t["logprob"])) for t in top]
    except (LookupError, TypeError, AttributeError, ValueError, OverflowError, StopIteration):
        return None
    pairs = [(token, min(value, 0.0)) for token, value in pairs if value > -math.inf]
    sums = {choice: _sum(pairs, choice, choices) for choice in choices}
    if not pairs or all(value == -math.inf for value in sums.values()):
        return None
    left = math.log(max(1 - sum(math.exp(value) for _, value in pairs), 1e-9))
    bound = min(left, min(value for _, value in pairs))
    return {choice: bound if value == -math.inf else value for choice, value in sums.items()}


def _first_visible(tokens: Sequence[Any]) -> Any:
    """The token at which the text without thoughts begins."""
    texts = [str(token["token"]) for token in tokens]
    whole = "".join(texts)
    visible = without_thoughts(whole)
    begin = whole.rindex(visible) if visible else len(whole)
    return next(
        t for t, end in zip(tokens, accumulate(map(len, texts)), strict=True) if end > begin
    )


def _sum(pairs: Sequence[tuple[str, float]], choice: str, choices: Sequence[str]) -> float:
    """log of the summed probabilities of tokens that begin this choice and no other."""
    terms = [value for token, value in pairs if _begun(token, choices) == [choice]]
    if not terms:
        return -math.inf
    top = max(terms)
    return top + math.log(sum(math.exp(value - top) for value in terms))


def _begun(token: str, choices: Sequence[str]) -> list[str]:
    """The choices that a token begins or is; the same letters in capitals count."""
    start = token.strip(" \t\n\"'*.").casefold()
    exact = [choice for choice in choices if choice.casefold() == start]
    return exact or [c for c in choices if start and c.casefold().startswith(start)]
