"""An SAE in memory to the Hub, with the results of the folder that it was loaded from."""

import filecmp
import tempfile
from pathlib import Path
from typing import Any

from ..machine.files import read_json
from ..machine.names import CONFIG, WEIGHTS
from ..models import SAE
from .order import push

_OF_SAVING = ("transformers_version", "auto_map", "_name_or_path", "dtype", "architectures")


def push_sae(sae: SAE, repo_id: str, **kwargs: Any) -> str:
    """Send this SAE to the Hub in one commit; the commit's address. Options as for `hfsae.push`.

    The metrics, figures, features and fingerprint in the folder that it was loaded from go with it,
    as long as weights and config equal those in that folder.
    """
    with tempfile.TemporaryDirectory() as temporary:
        sae.save_pretrained(temporary)
        source = getattr(sae, "_source", {})
        home = Path(source.get("name", ""), source.get("subfolder", ""))
        return push(home if _is_same(home, Path(temporary)) else temporary, repo_id, **kwargs)


def _is_same(home: Path, other: Path) -> bool:
    """Whether two folders hold the same SAE: the same weights and config."""
    names = (WEIGHTS, CONFIG)
    if not all((home / name).is_file() and (other / name).is_file() for name in names):
        return False
    ours, theirs = (
        {k: v for k, v in read_json(folder / CONFIG).items() if k not in _OF_SAVING}
        for folder in (home, other)
    )
    weights = (folder / WEIGHTS for folder in (home, other))
    return ours == theirs and filecmp.cmp(*weights, shallow=False)
