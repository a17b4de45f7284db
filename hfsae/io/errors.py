"""Errors that users can cause: one sentence each, distinguished by class.

Refused (a ValueError)     a setting, argument or folder is wrong
  Damaged                  a file is damaged, or of another kind than its name
  HubRefused               the Hub: not found, not allowed, not reachable
  Diverged                 training left the finite numbers
"""

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path


class Refused(ValueError):
    """Bad input. The message names the problem, the value, and what would work."""


class Damaged(Refused):
    """A file is damaged, or of another kind than its name."""


class HubRefused(Refused):
    """The Hub does not have it, does not allow it, or cannot be reached."""


class Diverged(Refused):
    """Weights in training are no longer finite."""


def closest(name: str, names: Sequence[str], *, cutoff: float = 0.6) -> str:
    """The end of an error about an unknown name: "; closest: 'a', 'b'", or nothing."""
    close = get_close_matches(name, names, n=3, cutoff=cutoff)
    return f"; closest: {', '.join(map(repr, close))}" if close else ""


def closest_folders(path: str, others: Sequence[str] = ()) -> str:
    """The end of an error about a folder that does not exist: "; closest: 'runs/a'", or nothing.

    Args:
        others: names that could be meant, too.
    """
    folder = Path(path).expanduser()
    try:
        beside = [other.name for other in folder.parent.iterdir() if other.is_dir()]
    except OSError:
        beside = []
    near = get_close_matches(path, others, n=3)
    near += (str(folder.parent / name) for name in get_close_matches(folder.name, beside, n=3))
    return f"; closest: {', '.join(map(repr, near))}" if near else ""


def refuse_absent_source(source: str | Path, others: Sequence[str] = ()) -> None:
    """Refuse the source of an SAE that is neither here nor a repository's name.

    Args:
        others: further names that are taken.

    Raises:
        ValueError: it is a path that leads nowhere, or a name without a slash.
    """
    if Path(source).exists():
        return
    is_path = isinstance(source, Path) or source.startswith((".", "/", "~"))
    if is_path or "/" not in str(source):
        or_else = "" if is_path else "; a repository on the Hub is named as name/repository"
        raise Refused(f"there is no folder {source}{closest_folders(str(source), others)}{or_else}")


def one_line(error: BaseException) -> str:
    """An error's text in one line; its class where it has none."""
    return " ".join(str(error).split()) or type(error).__name__
