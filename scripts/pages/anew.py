"""Put tables and sentences into a page, in the place of those with other numbers.

A table is found by its head and a sentence by its words, whatever their numbers are: so pages hold
no marks, and a sentence whose words were changed on one side alone is an error.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

NUMBER = r"(?<![\w.])[-+]?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?![\w])"


class Told(NamedTuple):
    """A table or a sentence of a page."""

    page: str
    """its path below the repository's root"""
    section: str
    """the title of the page's section"""
    text: str
    """a table in Markdown, or one that a command prints, with the head "metric  value ..."; or
    words with numbers, whose line breaks do not count"""


class Claim(NamedTuple):
    """Words of a page that say what numbers show."""

    page: str
    section: str
    words: str
    holds: bool
    """whether the results show it"""

    def fault(self, page: str) -> str | None:
        """Why the page cannot stay as it is; None if it can."""
        start, end = _section(page, self.section)
        if " ".join(self.words.split()) not in " ".join(page[start:end].split()):
            return f"{self.page}, section {self.section!r}, does not say {self.words!r}"
        if not self.holds:
            return f"{self.page} says {self.words!r}: its results do not show that"
        return None


def table(rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; the first row is its head, and all columns but the first are
    right-aligned."""
    head, *body = rows
    rule = ["---", *["---:"] * (len(head) - 1)]
    text = "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *body))
    return text.replace("|  |", "| |").replace("|  |", "| |")


def read_json(path: Path) -> Any:
    """The content of a file of results."""
    return json.loads(path.read_text(encoding="utf-8"))


def written(page: str, told: Told) -> str:
    """The page with these numbers in it.

    Raises:
        ValueError: the section, the table or the words are not there, or the words are there twice.
    """
    start, end = _section(page, told.section)
    is_table = told.text.startswith(("|", "metric "))
    put = _with_table if is_table else _with_sentence
    try:
        return page[:start] + put(page[start:end], told.text) + page[end:]
    except ValueError as error:
        raise ValueError(f"{told.page}, section {told.section!r}: {error}") from error


def _section(page: str, title: str) -> tuple[int, int]:
    heading = re.search(rf"^## {re.escape(title)}$", page, re.MULTILINE)
    if heading is None:
        raise ValueError(f"no section {title!r}")
    following = re.compile(r"^## ", re.MULTILINE).search(page, heading.end())
    return heading.end(), following.start() if following else len(page)


def _with_table(section: str, table: str) -> str:
    head = table.split("\n", 1)[0]
    row = r"\|.*\n" if head.startswith("|") else r"\w.*\n"
    old = re.compile(rf"^{_any_numbers(head)[0]}\n(?:{row})*", re.MULTILINE)
    return _only(old, section, f"table with the head {head!r}", table.rstrip("\n") + "\n")


def _with_sentence(section: str, sentence: str) -> str:
    pattern, numbers = _any_numbers(sentence)
    old = re.compile(pattern)
    found = _the_only(old, section, f"sentence {sentence!r}, whatever its numbers are")
    parts, at = [], found.start()
    for i, number in enumerate(numbers, start=1):
        parts += [section[at : found.start(i)], number]
        at = found.end(i)
    return section[: found.start()] + "".join(parts) + section[at:]


def _any_numbers(text: str) -> tuple[str, list[str]]:
    """A pattern of the text with any numbers in place of its own, and these."""
    parts = re.split(f"({NUMBER})", " ".join(text.split()))
    words = [re.escape(part).replace(r"\ ", r"\s+") for part in parts[::2]]
    between = [f"({NUMBER})" for _ in parts[1::2]]
    both = [part for pair in zip(words, [*between, ""], strict=True) for part in pair]
    return "".join(both), parts[1::2]


def _only(pattern: re.Pattern[str], text: str, what: str, new: str) -> str:
    found = _the_only(pattern, text, what)
    return text[: found.start()] + new + text[found.end() :]


def _the_only(pattern: re.Pattern[str], text: str, what: str) -> re.Match[str]:
    matches = list(pattern.finditer(text))
    if len(matches) != 1:
        raise ValueError(f"{len(matches) or 'no'} {what}; there must be one")
    return matches[0]
