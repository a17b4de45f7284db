"""The licence of what is published: named in the card, and in keeping with the language model's."""

from collections.abc import Iterable

from ..cards import front_of
from ..packaged import licence_conflict

_HOW = "write `license: {}` between the first two lines of --- in README.md"


def licence_notes(cards: Iterable[str]) -> list[str]:
    """A sentence for each way in which SAEs' cards lack a licence, or have one that leaves out the
    terms of their language model; each once."""
    return list(dict.fromkeys(note for card in cards if (note := _note(card))))


def licence_of(card: str) -> str | None:
    """The licence that a card names."""
    return front_of(card).get("license")


def _note(card: str) -> str:
    named, models = licence_of(card), front_of(card).get("base_model")
    for model in models if isinstance(models, list) else [models]:
        if model and (conflict := licence_conflict(named, model)):
            return f"{conflict.sentence}; {_HOW.format(conflict.licence_id)}"
    if named is None:
        how = _HOW.format("apache-2.0")
        return f"no licence is named, so others may not use it: {how}, or another licence"
    return ""
