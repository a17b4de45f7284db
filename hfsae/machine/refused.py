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


def closest_folders(path: str) -> str:
    """The end of an error about a folder that does not exist: "; closest: 'runs/a'", or nothing."""
    folder = Path(path).expanduser()
    try:
        beside = [other.name for other in folder.parent.iterdir() if other.is_dir()]
    except OSError:
        return ""
    close = get_close_matches(folder.name, beside, n=3)
    near = (repr(str(folder.parent / name)) for name in close)
    return f"; closest: {', '.join(near)}" if close else ""


def one_line(error: BaseException) -> str:
    """An error's text in one line; its class where it has none."""
    return " ".join(str(error).split()) or type(error).__name__
