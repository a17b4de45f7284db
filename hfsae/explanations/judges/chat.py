"""OpenAI's chat completions, as servers and batch files have them: a question as the body of a
request, without what a server does not take; the answer in a reply; what went wrong in one word."""

from collections.abc import Callable
from typing import Any, Literal

from .base import REFUSED, Answer, Question, failure_of, without_thoughts

_FEATURES = {  # parts of a body that some servers refuse, and the words by which they name them
    "response_format": ("response_format", "json_schema", "schema", "guided"),
    "seed": ("seed",),
    "temperature": ("temperature",),
    "max_tokens": ("max_tokens",),
}
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
    return body


def reduced(body: dict[str, Any], without: frozenset[str]) -> dict[str, Any]:
    """A body without what the server refuses."""
    body = dict(body)
    for feature in without & body.keys():
        value = body.pop(feature)
        if feature == "max_tokens":
            body["max_completion_tokens"] = value
    return body


def refused_feature(error: ChatError, body: dict[str, Any]) -> str | None:
    """The part of a body to leave out after status 400 or 422: one that the server names, else the
    answer's schema, which many do not know."""
    if error.status not in (400, 422):
        return None
    text = str(error).casefold()
    present = [f for f in _FEATURES if f in body]
    named = [f for f in present if any(word in text for word in _FEATURES[f])]
    return next(iter(named or [f for f in present if f == "response_format"]), None)


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
    return Answer(text, None, None, *counts)
