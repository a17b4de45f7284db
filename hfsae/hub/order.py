"""A push to the Hub, as it is asked for. Importing this imports no torch."""

import re
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import HfApi, constants

from ..machine.refused import Refused


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
    _refuse_subfolder(subfolder)
    looks = not (dry_run and constants.HF_HUB_OFFLINE)
    from .upload import Order, carried_out  # takes seconds

    where = (repo_id, private, revision, create_pr, subfolder)
    order = Order(*where, include_code, replace_model_card, no_examples, looks, not dry_run)
    message = None if dry_run else commit_message or f"Upload {subfolder or 'SAE'} with hfsae"
    return carried_out(HfApi(token=token), Path(folder), order, message, tell)


def refuse_repo_id(repo_id: str) -> None:
    """Refuse what is no repository's name.

    Raises:
        ValueError: it has no slash, or several.
    """
    if repo_id.count("/") != 1:
        raise Refused(f"repository must be written as 'name/repository', got {repo_id!r}")


def _refuse_subfolder(subfolder: str) -> None:
    if ".." in re.split(r"[/\\]", subfolder) or subfolder.startswith(("/", "\\")):
        raise Refused(f"subfolder {subfolder!r} lies outside the repository; name one inside it")
