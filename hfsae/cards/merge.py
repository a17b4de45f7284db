"""Carry people's text from a card over to the next one, and set the Hub id in a card's snippet.

People's text is: blocks between `<!-- hfsae:keep -->` and `<!-- /hfsae:keep -->`, sections under
headings that no template has, and extra keys of the front matter.
"""

import json
import re
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub.utils import validate_repo_id

from ..io.errors import Refused
from ..io.file_names import CARD
from ..io.files import parse_yaml, reading

_OPEN, _CLOSE = "<!-- hfsae:keep -->", "<!-- /hfsae:keep -->"
_KEPT = re.compile(f"{_OPEN}.*?{_CLOSE}", re.DOTALL)
_MODEL_ID = re.compile(r'(AutoModel\.from_pretrained|hfsae\.load)\("((?:[^"\\]|\\.)*)"([^)\n]*)')
_FRONT = re.compile(r"\A---\n(.*?)^---\n", re.DOTALL | re.MULTILINE)
_FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
_HEADING = re.compile(r"^## (.+)$", re.MULTILINE)


def refuse_card_of_others(folder: Path) -> None:
    """Refuse to replace a card that hfsae did not write.

    Raises:
        ValueError: the folder's card has no block to keep.
    """
    path = folder / CARD
    if not path.exists():
        return
    with reading(path):
        text = path.read_text(encoding="utf-8")
    if not _kept_blocks(text):
        raise Refused(
            f"{path} has no complete block between {_OPEN} and {_CLOSE}, so its whole text would "
            "be lost; put the text to keep between these lines, or move the file away"
        )


def set_model_id(
    card: str, repo_id: str, *, subfolder: str = "", revision: str | None = None
) -> str:
    """The card with this Hub id in its first snippet."""
    validate_repo_id(repo_id)

    def renamed(call: re.Match[str]) -> str:
        options = {"subfolder": subfolder, "revision": revision}
        if call[1] == "hfsae.load":
            return f"{call[1]}({python_string(repo_id)}{call[3]}"
        arguments = "".join(
            f", {name}={python_string(value)}" for name, value in options.items() if value
        )
        return f"{call[1]}({python_string(repo_id)}{arguments}"

    return _MODEL_ID.sub(renamed, card, count=1)


def template_text(name: str = "model_card.md") -> str:
    """The text of a template in this folder."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def python_string(value: str) -> str:
    """A Python string literal in double quotes."""
    return json.dumps(value, ensure_ascii=False)


def carry_over(old: str, new: str) -> str:
    """The card `new` with people's text from the card `old`, which it replaces.

    That is: kept blocks, sections under headings that no template has, and keys of the front matter
    that `new` lacks. A card without kept blocks is not from hfsae: it is returned unchanged.
    """
    blocks = _kept_blocks(old)
    if not blocks:
        return old
    merged = _KEPT.sub(lambda _: "\n\n".join(blocks), new, count=1)
    templates = (template_text(), template_text("suite_card.md"))
    known = {heading for template in templates for heading in _HEADING.findall(template)}
    # headings inside code do not count
    fenced = _FENCED.sub(lambda m: re.sub("^#", "\0", m[0], flags=re.MULTILINE), _KEPT.sub("", old))
    starts = [*_HEADING.finditer(fenced)]
    ends = [m.start() for m in starts[1:]] + [len(fenced)]
    sections = [
        fenced[start.start() : end].replace("\0", "#").strip()
        for start, end in zip(starts, ends[: len(starts)], strict=True)
        if start[1].strip() not in known
    ]
    if sections:
        merged = merged.rstrip("\n") + "\n\n" + "\n\n".join(sections) + "\n"
    front, theirs, ours = _FRONT.match(merged), front_of(old), front_of(merged)
    fields = ours | {key: value for key, value in theirs.items() if key not in ours}
    # A run's licence never changes, so a different one was set by a person.
    if "license" in ours:
        fields["license"] = theirs.get("license") or ours["license"]
    if "tags" in ours:
        fields["tags"] = [*dict.fromkeys([*ours["tags"], *(theirs.get("tags") or [])])]
    if front is None or fields == ours:
        return merged
    text = yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)
    return f"---\n{text}---\n{merged[front.end() :]}"


def _kept_blocks(text: str) -> list[str]:
    """Blocks to keep; an empty list if a block has no end."""
    if text.count(_OPEN) != text.count(_CLOSE):  # searching for a missing end is slow
        return []
    blocks = _KEPT.findall(text)
    return blocks if text.count(_OPEN) == len(blocks) else []


def front_of(card: str) -> dict[str, Any]:
    """The fields of a card's front matter; empty without one.

    Raises:
        ValueError: they cannot be read.
    """
    front = _FRONT.match(card)
    if front is None:
        return {}
    try:
        fields = parse_yaml(front[1])
    except ValueError as error:
        raise Refused(
            f"the front matter of the existing card cannot be read ({error}), so it would be "
            "lost; repair it, or move the card away"
        ) from error
    return fields if isinstance(fields, dict) else {}
