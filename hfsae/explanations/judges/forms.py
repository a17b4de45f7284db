"""The form that a question wants its answer in, and what a text lacks of it."""

import json
import re
from collections.abc import Sequence
from typing import Any

from .base import Question

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
