"""Keys of this machine in texts: found by a plain search, and hidden."""

import os
import re
from collections.abc import Callable, Collection
from typing import Any

HIDDEN = "[key]"
_LEAST_HIDDEN, _LEAST_FOUND = 4, 8  # characters; shorter texts occur anywhere
_NAMES = re.compile(r"\w*_(TOKEN|API_KEY|ACCESS_KEY|SECRET_KEY)", re.IGNORECASE)


def hider(keys: Collection[str]) -> Callable[[Any], Any]:
    """A function that gives a text, or JSON content, with "[key]" in place of each key.

    Args:
        keys: those of fewer than four characters are left out.
    """
    longest_first = sorted({key for key in keys if len(key) >= _LEAST_HIDDEN}, key=len)[::-1]
    pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def hidden(content: object) -> Any:
        if isinstance(content, dict):
            return {hidden(key): hidden(value) for key, value in content.items()}
        if isinstance(content, list | tuple):
            return [hidden(value) for value in content]
        return pattern.sub(HIDDEN, content) if isinstance(content, str) else content

    return hidden


def keys_of_environment(named: Collection[str] = ()) -> dict[str, str]:
    """Variables that hold keys, by name: those named, and those whose names end in _TOKEN,
    _API_KEY, _ACCESS_KEY or _SECRET_KEY. Values below eight characters are left out."""
    values = {name: value.strip() for name, value in os.environ.items()}
    return {
        name: value
        for name, value in values.items()
        if len(value) >= _LEAST_FOUND and (name in named or _NAMES.fullmatch(name))
    }
