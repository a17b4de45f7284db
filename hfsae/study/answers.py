"""The answers of raters: a file a rater, to which each answer is appended before it counts.

A line is an answer, or the undoing of the last one. A line that a killed server left half written
is passed over.
"""

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..machine.checksums import content_hash
from ..machine.files import damaged, json_lines
from ..machine.names import STUDY_ANSWERS, STUDY_CLOSED
from ..machine.refused import Damaged, Refused
from .plan import INTRUDER, WORDS, Item, Plan

MAX_WORDS = 300
"""Characters of an answer in words."""
_MAX_SECONDS = 3600.0
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,39}")


@dataclass
class Answer:
    """One answer of a rater."""

    item: str
    answer: str | int | None
    """yes, maybe or no; of an intruder item the index of a window; None: skipped"""
    words: str = ""
    seconds: int | float = 0.0
    """that the page was looked at"""
    at: str = ""


@dataclass
class Ledger:
    """All answers of a rater, and the file that they are appended to."""

    path: Path
    plan_hash: str
    given: list[Answer] = field(default_factory=list)
    """in the order of time, without what was undone"""

    @property
    def latest(self) -> dict[str, Answer]:
        """The last answer to each item."""
        return {answer.item: answer for answer in self.given}

    def add(self, answer: Answer) -> None:
        """Append an answer; it is on the disk when this returns."""
        answer.at = _now()
        self._append({"plan": self.plan_hash[:16], **vars(answer)})
        self.given.append(answer)

    def undo(self) -> str | None:
        """Take back the last answer; its item, or None without any."""
        if not self.given:
            return None
        self._append({"plan": self.plan_hash[:16], "undo": self.given[-1].item, "at": _now()})
        return self.given.pop().item

    def _append(self, line: dict[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+") as file:
            is_torn = file.tell() and not _ends_with_newline(self.path)
            text = json.dumps(line, ensure_ascii=True) + "\n"
            file.write((b"\n" if is_torn else b"") + text.encode())
            file.flush()
            os.fsync(file.fileno())


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def rater_name(name: str) -> str:
    """A rater's name in lower case, which names a file, too.

    Raises:
        ValueError: it has other characters than letters, digits and _ . -
    """
    lower = name.strip().lower()
    if not _NAME.fullmatch(lower):
        raise Refused(
            f"the rater's name {name[:60]!r} must be 1 to 40 letters a to z, digits, and _ . - "
            "inside, such as 'ada' or 'rater-2'"
        )
    return lower


def open_ledger(study: Path, plan: Plan, rater: str) -> Ledger:
    """The answers that a rater has given.

    Raises:
        ValueError: the name cannot be a file's, or its file is damaged or belongs to another plan.
    """
    path = study / STUDY_ANSWERS / f"{rater_name(rater)}.jsonl"
    ledger = Ledger(path, plan.hash)
    if not path.is_file():
        return ledger
    items = {item.id: item for item in plan.items}
    for number, line in json_lines(path):
        if line.get("plan") != plan.hash[:16]:
            raise Damaged(
                f"{path} has answers to plan {line.get('plan')!r}, and the study's is "
                f"{plan.hash[:16]!r}; move the file away, or put back its plan"
            )
        if "undo" in line:
            ledger.given = ledger.given[:-1]
            continue
        line.pop("plan")
        try:
            ledger.given.append(checked(Answer(**line), items))
        except (TypeError, ValueError) as error:
            raise Damaged(damaged(path, f"line {number}: {error}")) from error
    return ledger


def checked(answer: Answer, items: dict[str, Item]) -> Answer:
    """An answer that fits its item.

    Raises:
        ValueError: the plan has no such item, or the answer is not one of its choices.
    """
    item = items.get(answer.item)
    if item is None:
        raise Refused(f"item {str(answer.item)[:40]!r} is not in this study; reload the page")
    n = len(item.windows)
    is_intruder = item.question == INTRUDER
    choices: list[Any] = [*range(n)] if is_intruder else [*WORDS]
    fits = any(type(answer.answer) is type(c) and answer.answer == c for c in choices)
    if answer.answer is not None and not fits:
        shown = f"0 to {n - 1}" if is_intruder else ", ".join(WORDS)
        raise Refused(f"the answer {str(answer.answer)[:40]!r} is not one of {shown}")
    answer.words = " ".join(answer.words.split())[:MAX_WORDS]
    seconds = float(answer.seconds) if math.isfinite(answer.seconds) else 0.0
    answer.seconds = round(min(max(seconds, 0.0), _MAX_SECONDS), 2)
    return answer


def ledgers(study: Path, plan: Plan) -> dict[str, Ledger]:
    """The answers of all raters, by name.

    Raises:
        ValueError: a file is damaged or belongs to another plan.
    """
    files = sorted((study / STUDY_ANSWERS).glob("*.jsonl"))
    return {path.stem: open_ledger(study, plan, path.stem) for path in files}


def answer_hashes(given: Mapping[str, Ledger]) -> dict[str, str]:
    """{rater: hash of all answers that count, in the order of time}, of raters who gave any."""
    return {
        name: content_hash([vars(answer) for answer in ledger.given])
        for name, ledger in given.items()
        if ledger.given
    }


def is_closed(study: Path) -> bool:
    """Whether the study takes no more answers."""
    return (study / STUDY_CLOSED).is_file()
