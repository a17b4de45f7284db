"""Where labels of the app's user lie."""

import os
import re
from pathlib import Path


def is_shown_to_others() -> bool:
    """Whether this is a Space, whose visitors have no access to this machine's folders."""
    return "SPACE_ID" in os.environ


def label_home(source: str, subfolder: str = "", **picked: object) -> Path | None:
    """A folder under HFSAE_HOME for labels of an SAE that is not in a folder of the user's own;
    None on a Space, where they are not kept.

    Args:
        picked: which SAE of the source; None counts as nothing.
    """
    if is_shown_to_others():
        return None
    home = Path(os.environ.get("HFSAE_HOME", Path.home() / ".cache" / "hfsae"))
    parts = [source, subfolder]
    parts += [f"{name}_{value}" for name, value in picked.items() if value is not None]
    return home / "labels" / re.sub(r"[^\w.-]+", "--", "/".join(filter(None, parts)))
