"""What an SAE reads one of at a time, in words: tokens, rows of files, patches, or frames."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..machine import units


class Unit(NamedTuple):
    """The words of pages; `whole` is what a unit is a part of."""

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
FRAME = Unit("frame", "frames", "recording", "recordings")
_BY_NAME = {unit.one: unit for unit in (TOKEN, ROW, PATCH, FRAME)}


def unit_of(training: Mapping[str, Any], features: Mapping[str, Any]) -> Unit:
    """The unit of an SAE by the records of its training and of its feature store; without any, it
    reads text.

    Args:
        training: training.json, which has a section for each kind of input.
        features: features/meta.json, whose `unit` names it.
    """
    return _BY_NAME[features.get("unit") or units.unit_of(training).one]
