"""Markdown that reports share."""

import re
from collections.abc import Sequence


def table(rows: Sequence[Sequence[str]]) -> str:
    """A table; the first row is its head, and all columns but the first are right-aligned."""
    head, *body = rows
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *body))


def escaped(value: object) -> str:
    """Text on one line that Markdown shows as it is, in table cells, too: no HTML, no marks."""
    return re.sub(r"([\\`*_{}\[\]<>|$~#&])", r"\\\1", " ".join(str(value).split()))
