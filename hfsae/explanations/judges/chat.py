"""OpenAI's chat completions, as servers and batch files have them: a question as the body of a
request, without what a server does not take; the answer in a reply; what went wrong in one word."""

import math
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, Literal

import numpy as np

from .base import REFUSED, Answer, Question, failure_of, without_thoughts

_TOP_LOGPROBS = (20, 5)  # of OpenAI; some servers give fewer
_FEATURES = {  # parts of a body that some servers refuse, and the words by which they name them
    "response_format": ("response_format", "json_schema", "schema", "guided"),
    "top_logprobs": ("top_logprobs",),
    "logprobs": ("logprobs",),
    "seed": ("seed",),
    "temperature": ("temperature",),
    "max_tokens": ("max_tokens",),
}
_UNNAMED = ("response_format", "logprobs")  # left out in this order where no name is given
_MOST_TOKENS = 2**40  # a larger count is no count
_Kind = Literal["status", "unreachable", "broken", "no chat"]


class ChatError(Exception):
    """A request without a reply.

    Args:
        kind: "status": the server answered with an error; "unreachable": no connection; "broken":
            the connection broke, or took too long; "no chat": a reply of another shape.
        status: of HTTP, 0 for other kinds.
    """

    def __init__(self, kind: _Kind, reason: str, status: int = 0) -> None:
        super().__init__(reason)
        self.kind: _Kind = kind
        self.status = status


def body_of(model: str, question: Question, seed: int) -> dict[str, Any]:
    """A question in the form of OpenAI's chat completions."""
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": role, "content": text} for role, text in question.messages],
        "max_tokens": question.max_tokens,
        "temperature": 0,
        "seed": seed,
    }
    if question.schema is not None:
        schema = {"name": "answer", "strict": True, "schema": question.schema}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    if question.choices:
        body |= {"logprobs": True, "top_logprobs": _TOP_LOGPROBS[0]}
    return body


def reduced(body: dict[str, Any], without: frozenset[str]) -> dict[str, Any]:
    """A body without what the server refuses."""
    body = dict(body)
    for feature in without & body.keys():
        value = body.pop(feature)
        if feature == "max_tokens":
            body["max_completion_tokens"] = value
        if feature == "top_logprobs" and "logprobs" not in without:
            body[feature] = _TOP_LOGPROBS[1]
    if "logprobs" in without:
        body.pop("top_logprobs", None)
    return body


def refused_feature(error: ChatError, body: dict[str, Any]) -> str | None:
    """The part of a body to leave out after status 400 or 422: one that the server names, else one
    that many do not know."""
    if error.status not in (400, 422):
        return None
    text = str(error).casefold()
    present = [f for f in _FEATURES if f in body and body[f] != _TOP_LOGPROBS[1]]
    named = [f for f in present if any(word in text for word in _FEATURES[f])]
    return next(iter(named or [f for f in _UNNAMED if f in present]), None)


def n_tokens(text: str) -> int:
    """About how many tokens a text has: a quarter of its characters."""
    return -(-len(text) // 4)


def n_question_tokens(question: Question, count: Callable[[str], int] = n_tokens) -> int:
    """About how many tokens a question has: its messages', and what chat templates add."""
    return 3 + sum(4 + count(text) for _, text in question.messages)


def read_reply(reply: dict[str, Any], question: Question) -> Answer:
    """The answer in a reply, or why it is none.

    Raises:
        ChatError: the reply is of another shape.
    """
    try:
        choice = reply["choices"][0]
        message, stop = choice["message"], choice.get("finish_reason")
        content = message.get("content")
        if isinstance(content, list):  # some servers send text in parts
            content = "".join(str(part.get("text") or "") for part in content)
        if content is not None and not isinstance(content, str):
            raise TypeError("content is no text")
        text = without_thoughts(content or "")
        is_refused = message.get("refusal") or stop == "content_filter"
        failure = REFUSED if is_refused else failure_of(text, stop, question)
        usage = reply.get("usage") or {}
        counts = [
            n if type(n) is int and 0 <= n < _MOST_TOKENS else estimate
            for n, estimate in (
                (usage.get("prompt_tokens"), n_question_tokens(question)),
                (usage.get("completion_tokens"), n_tokens(content or "")),
            )
        ]
    except (LookupError, TypeError, AttributeError) as error:
        raise ChatError("no chat", "the reply has no message") from error
    if failure:
        return Answer(None, failure, None, *counts)
    return Answer(text, None, _log_probabilities(choice.get("logprobs"), question.choices), *counts)


def _log_probabilities(logprobs: Any, choices: Sequence[str]) -> dict[str, float] | None:
    """Those of the choices where the visible answer begins; None where the server sent none.

    A choice has the sum over tokens that begin it and no other, the same letters in capitals
    included. One that is not among the likely tokens has at most what they leave, and at most the
    least likely one's: that bound stands for it.
    """
    if not choices:
        return None
    try:
        tokens = logprobs["content"]
        texts = [str(token["token"]) for token in tokens]
        whole = "".join(texts)
        visible = without_thoughts(whole)
        begin = whole.rindex(visible) if visible else len(whole)
        ends = accumulate(map(len, texts))
        first = next(token for token, end in zip(tokens, ends, strict=True) if end > begin)
        pairs = [(str(top["token"]), float(top["logprob"])) for top in first["top_logprobs"]]
    except (LookupError, TypeError, AttributeError, ValueError, OverflowError, StopIteration):
        return None
    pairs = [(token, min(value, 0.0)) for token, value in pairs if value > -math.inf]
    sums = dict.fromkeys(choices, -math.inf)
    for token, value in pairs:
        start = token.strip(" \t\n\"'*.").casefold()
        begun = [choice for choice in choices if choice.casefold() == start]
        begun = begun or [c for c in choices if start and c.casefold().startswith(start)]
        if len(begun) == 1:
            sums[begun[0]] = float(np.logaddexp(sums[begun[0]], value))
    if not pairs or all(value == -math.inf for value in sums.values()):
        return None
    left = math.log(max(1 - sum(math.exp(value) for _, value in pairs), 1e-9))
    bound = min(left, min(value for _, value in pairs))
    return {choice: bound if value == -math.inf else value for choice, value in sums.items()}
