"""A push to the Hub: its arguments, checked. Importing this imports no torch."""

import filecmp
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import HfApi

from ..io.errors import Refused
from ..io.file_names import CONFIG, WEIGHTS
from ..io.files import read_json

if TYPE_CHECKING:
    from ..models import SAE

_OF_SAVING = ("transformers_version", "auto_map", "_name_or_path", "dtype", "architectures")


def push(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    subfolder: str = "",
    include_code: bool = False,
    replace_model_card: bool = False,
    no_examples: bool = False,
    dry_run: bool = False,
    tell: Callable[[str], None] = print,
) -> str:
    """Send the SAE in `folder`, or the SAEs in its subfolders, in one commit; the commit's address.

    Args:
        folder: what `hfsae train` wrote, or a folder of such folders.
        repo_id: "name/repository".
        token: None: the one from `hf auth login`, or the environment's HF_TOKEN.
        private: whether a new repository is private; None: private. An existing repository stays as
            it is, and asking for the opposite is an error.
        revision: branch to commit to, created if missing.
        create_pr: propose the commit as a pull request.
        subfolder: folder in the repository.
        commit_message: message of the commit, instead of "Upload ... with hfsae".
        include_code: also send code that runs the SAE where hfsae is not installed
            (AutoModel.from_pretrained(repo, trust_remote_code=True)); a repository that has that
            file keeps it.
        replace_model_card: do not keep what people wrote into the existing card.
        no_examples: send no excerpts of the text: no features folder, no examples in the card; and
            delete those that the repository holds.
        dry_run: print what would be sent, and stop; offline, without looking at the repository.
        tell: called with the plan's text before anything is sent.

    Raises:
        ValueError: the folder holds no SAE, or a damaged one; results or names belong to other
            weights, or to models in the place of each other, or were changed since they were
            written; a file holds a key of this machine; or the repository is not allowed, not found
            or unreachable.
    """
    refuse_repo_id(repo_id)
    if ".." in re.split(r"[/\\]", subfolder) or subfolder.startswith(("/", "\\")):
        raise Refused(f"subfolder {subfolder!r} lies outside the repository; name one inside it")
    from .upload import Upload  # takes seconds

    return Upload(
        api=HfApi(token=token),
        folder=Path(folder),
        repo_id=repo_id,
        private=private,
        revision=revision,
        create_pr=create_pr,
        subfolder=subfolder,
        include_code=include_code,
        replace_model_card=replace_model_card,
        no_examples=no_examples,
        message=commit_message or f"Upload {subfolder or 'SAE'} with hfsae",
        dry_run=dry_run,
    ).run(tell)


def refuse_repo_id(repo_id: str) -> None:
    """Refuse what is no repository's name.

    Raises:
        ValueError: it has no slash, or several.
    """
    if repo_id.count("/") != 1:
        raise Refused(f"repository must be written as 'name/repository', got {repo_id!r}")


def push_sae(sae: "SAE", repo_id: str, **kwargs: Any) -> str:
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
    return ours == theirs and filecmp.cmp(home / WEIGHTS, other / WEIGHTS, shallow=False)
