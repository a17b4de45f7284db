"""Regular files, in contrast to pipes, devices and links that lead nowhere."""

import stat
from pathlib import Path

from .refused import Refused


def refuse_special(path: Path) -> None:
    """Check that a path leads to a regular file.

    Raises:
        ValueError: it leads to a pipe or a device, for which reading could wait for ever, or
            nowhere, as links in a circle do.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise Refused(f"{path} cannot be read ({error.strerror}); check it") from error
    if not stat.S_ISREG(mode):
        raise Refused(
            f"{path} is a pipe, a device or another special file; give a regular file, such as a "
            "copy of what it gives"
        )
