"""Markdown that the reports share."""

from collections.abc import Iterable, Sequence

from hfsae.comparison import METRICS


def table(rows: Sequence[Sequence[str]]) -> str:
    """A table; the first row is its head, and all columns but the first are right-aligned."""
    head, *body = rows
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *body))


def one_line(text: str) -> str:
    """Text from a file: line ends become ↵, characters that cannot be seen escape sequences."""
    text = text.replace("\n", "↵")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def they_differ(metrics: Iterable[str]) -> str:
    """The names of these metrics, and the verb."""
    names = [METRICS[metric] for metric in metrics]
    return f"{' and '.join(names)} {'differs' if len(names) == 1 else 'differ'}"
