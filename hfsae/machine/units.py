"""What one activation is of, in words: a token of a text, a row of a file, a patch of a picture."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Unit(NamedTuple):
    one: str
    many: str


TOKEN = Unit("token", "tokens")
UNITS = {
    "text": TOKEN,
    "activations": Unit("row", "rows"),
    "images": Unit("patch", "patches"),
    "audio": Unit("frame", "frames"),
}
"""By the section of a recipe, and of a training's record, that names the inputs."""


def section_of(record: Mapping[str, Any]) -> str:
    """The section of a training's record that names its inputs; of an empty record "text"."""
    return next((name for name in reversed(UNITS) if record.get(name)), "text")


def unit_of(record: Mapping[str, Any]) -> Unit:
    """What one activation of a training was of, by its record."""
    return UNITS[section_of(record)]
