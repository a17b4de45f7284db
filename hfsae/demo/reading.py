"""From a caller's text to tokens, and to the latents that fire on them."""

from collections.abc import Sequence
from typing import NamedTuple

from ..activations.token_text import Tokens, single_tokens
from ..features.inspection import Inspection
from ..machine.refused import Refused
from . import validate
from .rows import Json
from .subject import Subject


def check_text(prompt: object) -> str:
    """A caller's text, which must not be blank."""
    return validate.text(prompt, "the prompt", empty="there is no text; write a prompt")


def tokens_of(subject: Subject, prompt: object, chat: object = False) -> Tokens:
    """A caller's text as tokens; with `chat`, as a user's message in the chat template."""
    return subject.tokens(check_text(prompt), validate.flag(chat, "chat"))


MAX_TURNS = 12  # of a conversation


class Exchange(NamedTuple):
    """A message in a conversation, with both answers to it."""

    message: str
    plain: str
    steered: str


def conversations(
    subject: Subject, earlier: Sequence[Exchange], message: object
) -> tuple[Tokens, Tokens]:
    """A conversation up to the answer to a message, as tokens: unsteered so far, and steered.

    Raises:
        ValueError: the message is blank, or the conversation is too long.
    """
    if len(earlier) >= MAX_TURNS:
        raise Refused(f"the conversation has {len(earlier)} turns already; begin another one")
    last = ("user", check_text(message))
    plain, steered = (
        [turn for e in earlier for turn in (("user", e.message), ("assistant", answer(e)))]
        for answer in (lambda e: e.plain, lambda e: e.steered)
    )
    return subject.conversation([*plain, last]), subject.conversation([*steered, last])


def inspection_of(subject: Subject, prompt: object, chat: object = False) -> Inspection:
    """The latents that fire in a caller's text; with `chat`, in a user's message."""
    return subject.inspection(check_text(prompt), validate.flag(chat, "chat"))


def token_id(subject: Subject, text: str) -> int:
    """Of a token by its text, or by `#` and its number.

    Raises:
        ValueError: the text is more than one token, with a space in front or without.
    """
    tokenizer = subject.tokenizer
    if text.startswith("#") and text[1:].isdecimal():
        return validate.whole(int(text[1:]), "the token", 0, len(tokenizer) - 1)
    if tokens := single_tokens(tokenizer, text):
        return tokens[0]
    raise Refused(f"{text[:40]!r} is not one token of this model; use one of its pieces")


def token_rows(seen: Inspection, trace: list[float], largest: float | None = None) -> list[Json]:
    """Each token with an activation, raw and as a share of the latent's largest in the feature
    store, which an activation here may exceed; without one, of the largest here."""
    most = largest or max([*trace, 0.0]) or 1.0
    rows = zip(seen.tokens.texts, seen.tokens.special, seen.l0, trace, strict=True)
    return [
        {"text": text, "special": special, "l0": l0, "activation": a}
        | {"share": max(0.0, a / most)}
        for text, special, l0, a in rows
    ]
