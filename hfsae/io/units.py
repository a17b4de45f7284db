"""What one activation is of, in words: a token of a text, a row of a file, a patch of a picture."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Unit(NamedTuple):
    """Words for one activation's place; `whole` is what it is a part of."""

    one: str
    many: str
    whole: str
    wholes: str

    @property
    def is_text(self) -> bool:
        """Whether a language model reads them."""
        return self == TOKEN

    def short(self, caption: str) -> str:
        """The whole that a caption names: "flower.jpg" of "flower.jpg, patch row 3 column 7"; of
        text, the token as it is."""
        return caption if self.is_text else caption.partition(", ")[0]


TOKEN = Unit("token", "tokens", "text", "texts")
ROW = Unit("row", "rows", "document", "documents")
PATCH = Unit("patch", "patches", "picture", "pictures")
UNITS = {"text": TOKEN, "activations": ROW, "images": PATCH}
"""By the section of a recipe, and of a training's record, that names the inputs."""


def section_of(record: Mapping[str, Any]) -> str:
    """The section of a training's record that names its inputs; of an empty record "text"."""
    return next((name for name in reversed(UNITS) if record.get(name)), "text")


def unit_of(record: Mapping[str, Any], features: Mapping[str, Any] | None = None) -> Unit:
    """What one activation of a training was of, by its record, training.json.

    Args:
        features: features/meta.json, whose `unit` names it, too, and wins.
    """
    named = (features or {}).get("unit")
    return next((unit for unit in UNITS.values() if unit.one == named), UNITS[section_of(record)])
