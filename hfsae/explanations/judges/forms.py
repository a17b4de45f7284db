"""Whether a text is an answer: without thoughts, no refusal, of the form that is asked for."""

import json
import re
from collections.abc import Sequence
from typing import Any

from .base import Question

_TAG = re.compile(r"<(/?)think(?:ing)?>", re.IGNORECASE)
_REFUSAL = re.compile(
    r"(i'm|i am) (very |so |really )?(sorry|unable|not able)\b|(i'm |i am )?sorry[,.]|"
    r"(unfortunately, )?i (can ?not|can't|won't|will not|am not able to) "
    r"(help|assist|answer|provide|comply|fulfil|continue|do that)|as an ai\b",
    re.IGNORECASE,
)
REFUSED = "the model refused to answer"
_FENCE = re.compile(r"^```[a-z]*\n(.*?)\n?```$", re.DOTALL)


def misfit(text: str, question: Question) -> str:
    """Why a text is no answer to a question, by its choices or its schema; "" where it is one.

    A list may stand without the object around it, and a number beside a text may be missing.
    """
    if question.choices:
        is_one = choice_in(text, question.choices) is not None
        return "" if is_one else f"it is none of {', '.join(question.choices)}"
    value = json_in(text)
    for key, form in (question.schema or {}).get("properties", {}).items():
        part = value.get(key) if isinstance(value, dict) else value
        if form["type"] == "array" and (lack := _lack_of(part, form)):
            return f'"{key}" {lack}'
        is_text = isinstance(value, dict) and isinstance(part, str) and part.strip()
        if form["type"] == "string" and not is_text:
            return f'it has no text "{key}"'
    return ""


def _lack_of(part: object, form: dict[str, Any]) -> str:
    n, least, most = form["minItems"], form["items"]["minimum"], form["items"]["maximum"]
    wanted = f"is to have {n} whole numbers, {least} to {most}"
    if not isinstance(part, list):
        return f"{wanted}, and is no list"
    if len(part) != n:
        return f"{wanted}, and has {len(part)}"
    wrong = [number for number in part if type(number) is not int or not least <= number <= most]
    return f"{wanted}, and has {str(wrong[0])[:20]!r}" if wrong else ""


def choice_in(answer: str, choices: Sequence[str]) -> str | None:
    """The choice that an answer consists of, whatever its case and full stop; else None."""
    word = answer.strip().strip("\"'.:*`").casefold()
    return next((choice for choice in choices if choice.casefold() == word), None)


def json_in(answer: str) -> Any:
    """The one JSON object or list in an answer: alone, in a fence, or between words; else None."""
    text = answer.strip()
    if fence := _FENCE.match(text):
        text = fence[1]
    starts = [at for at in (text.find("{"), text.find("[")) if at >= 0]
    if not starts:
        return None
    try:
        value, _ = json.JSONDecoder().raw_decode(text, min(starts))
    except (ValueError, RecursionError):
        return None
    return value


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


def failure_of(text: str | None, stop: object, question: Question) -> str | None:
    """Why a text is no answer; None if it is one.

    Args:
        text: without thoughts; None: a thought does not end.
        stop: "length" if the answer was cut.
    """
    if _REFUSAL.match((text or "").replace("\u2019", "'")):
        return REFUSED
    if text is None:
        return f"a thought without an end within {question.max_tokens} tokens"
    if not text:
        return "an empty answer"
    if question.schema is not None and stop == "length":
        return f"the answer was cut at {question.max_tokens} tokens"
    return None
