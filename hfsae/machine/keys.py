"""Keys in texts: hidden, and found, also in the forms in which servers and files hold them.

Those are: as it is; percent-encoded, as in an address; with JSON's escapes; in base64, also inside
a longer text such as `user:key`. A key that is split, or written in another way, is not found.
"""

import base64
import os
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any
from urllib.parse import quote

HIDDEN = "[key]"
_LEAST_HIDDEN, _LEAST_FOUND = 4, 8  # characters; shorter texts occur anywhere
_NAMES = re.compile(r"\w*_(TOKEN|API_KEY|ACCESS_KEY|SECRET_KEY)", re.IGNORECASE)


def hider(keys: Collection[str]) -> Callable[[Any], Any]:
    """A function that gives a text, or JSON content, with "[key]" in place of each key.

    Args:
        keys: those of fewer than four characters are left out.
    """
    longest_first = sorted({key for key in keys if len(key) >= _LEAST_HIDDEN}, key=len)[::-1]
    pattern = re.compile("|".join(map(_any_form, longest_first)) or "(?!)")

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


def holder_of(data: bytes, keys: Mapping[str, str]) -> str | None:
    """The name of the first key that stands in the data; None: it holds none."""
    return next((name for name, key in keys.items() if any(f in data for f in _forms(key))), None)


def _forms(key: str) -> set[bytes]:
    """A key as it is, and wholly in each encoding."""
    data = key.encode("utf-8", "surrogateescape")
    percent = "".join(f"%{byte:02X}" for byte in data)
    escapes = "".join(f"\\u{ord(c):04x}" for c in key if ord(c) < 2**16)
    forms = {data, quote(data, safe="").encode(), percent.encode(), escapes.encode()}
    for text in (_in_base64(data, n) for n in range(3)):
        forms |= {text.encode(), text.translate(_FOR_ADDRESSES).encode()}
    return forms


def _any_form(key: str) -> str:
    """A regular expression for a key whose characters may be encoded, each in its own way.

    Repetitions in it are bounded, so that the search stays linear.
    """
    forms = ["".join(map(_spellings, key))]
    if len(key) >= _LEAST_FOUND:
        for text in (_in_base64(key.encode(), n) for n in range(3)):
            forms += [re.escape(text), re.escape(text.translate(_FOR_ADDRESSES))]
    return "|".join(dict.fromkeys(forms))


def _spellings(character: str) -> str:
    plain = re.escape(character)
    if character == "/":
        plain = r"\\{0,4}/"
    if not character.isascii():
        return plain
    code = f"{ord(character):02x}"
    return rf"(?:{plain}|(?i:%(?:25){{0,2}}{code}|\\{{1,4}}u00{code}))"


_FOR_ADDRESSES = str.maketrans("+/", "-_")


def _in_base64(data: bytes, n_before: int) -> str:
    """The characters that the data alone decides, behind a number of other bytes, mod 3."""
    text = base64.b64encode(bytes(n_before) + data).decode()
    return text[(0, 2, 3)[n_before] : (n_before + len(data)) * 8 // 6]
