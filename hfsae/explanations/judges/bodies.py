"""A question in the form of OpenAI's chat completions, and without what a server does not take."""

from .base import Question
from .transport import Body, Trouble

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


def body_of(model: str, question: Question, seed: int) -> Body:
    """A question in the form of OpenAI's chat completions."""
    body: Body = {
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


def reduced(body: Body, without: frozenset[str]) -> Body:
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


def refused_feature(trouble: Trouble, body: Body) -> str | None:
    """The part of a body to leave out after status 400 or 422: one that the server names, else one
    that many do not know."""
    if trouble.status not in (400, 422):
        return None
    text = trouble.reason.casefold()
    present = [f for f in _FEATURES if f in body and body[f] != _TOP_LOGPROBS[1]]
    named = [f for f in present if any(word in text for word in _FEATURES[f])]
    return next(iter(named or [f for f in _UNNAMED if f in present]), None)
