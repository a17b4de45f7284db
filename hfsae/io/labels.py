"""The content of `features/labels.json`: {"labels": {"1234": "the sea"}}."""

from pathlib import Path

from .errors import Refused
from .files import parse_json

MAX_LENGTH = 200
"""Characters of a label."""


def labels_in(path: Path) -> dict[int, str]:
    """{latent: label} of a file of labels.

    Raises:
        ValueError: the file is damaged, or is not a file of labels.
    """
    try:
        labels = parse_json(path)["labels"]
        return {int(latent): checked_label(label) for latent, label in labels.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        form = '{"labels": {"1234": "text"}}'
        why = 'it has no "labels"' if isinstance(error, KeyError) else error
        raise Refused(f"{path} holds no labels: it must look like {form} ({why})") from error


def checked_label(label: object) -> str:
    """The label, if it is one line of printable text that is not too long.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(label, str):
        raise Refused(f"a label is text, not {label!r}")
    if len(label.strip()) > MAX_LENGTH:
        raise Refused(f"a label has at most {MAX_LENGTH} characters, this one {len(label)}")
    for character in label.strip():
        if not character.isprintable():
            raise Refused(
                f"a label is one line of printable text; this one has {character!r} in it"
            )
    return label
