"""Checks of licences before publishing: a card must name one that fits the language model's."""

from collections.abc import Iterable

from ..cards import front_of
from ..packaged import known_licence, licence_conflict

_HOW = "write `license: {}` between the first two lines of --- in README.md"


def licence_notes(cards: Iterable[str]) -> list[str]:
    """A sentence for each way in which SAEs' cards lack a licence, or have one that leaves out the
    terms of their language model; each once."""
    return list(dict.fromkeys(note for card in cards if (note := _note(card))))


def licence_of(card: str, lm_name: str | None = None) -> str | None:
    """The licence that a card names, or that of its language model where it is known.

    Args:
        lm_name: a language model that the card may not name.
    """
    known = filter(None, map(known_licence, filter(None, [lm_name, *_models(card)])))
    return front_of(card).get("license") or next(known, None)


def _models(card: str) -> list[str]:
    models = front_of(card).get("base_model") or []
    return models if isinstance(models, list) else [models]


def _note(card: str) -> str:
    named = front_of(card).get("license")
    for model in _models(card):
        if conflict := licence_conflict(named, model):
            return f"{conflict.sentence}; {_HOW.format(conflict.licence_id)}"
    if named is None:
        how = _HOW.format("apache-2.0")
        return f"no licence is named, so others may not use it: {how}, or another licence"
    return ""
