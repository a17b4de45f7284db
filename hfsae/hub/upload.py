"""To the Hub: one atomic commit. Importing this imports no torch.

`push` sends only files on a list of names, refuses those that hold a key, prints beforehand what
will be visible to whom, and makes new repositories private by default. What people wrote into a
card stays. If the Hub's answer to a commit is lost, the retry finds that commit.
"""

import filecmp
import logging
import re
import shutil
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from .. import cards
from ..features.labels import read_names
from ..io.checksums import PUBLISHED, refuse_changed, refuse_mixture
from ..io.errors import Refused
from ..io.file_names import (
    CARD,
    CONFIG,
    EXAMPLES,
    FEATURES,
    FINGERPRINT,
    LABELS,
    LATENTS,
    META,
    PICTURES,
    STEPS,
    WEIGHTS,
)
from ..io.files import passes, read_json
from ..io.hub_client import WAITS, hub_error_text, with_retries
from .download import refuse_path
from .outgoing import (
    CODE,
    files_to_publish,
    is_of_hfsae,
    is_sae,
    licence_notes,
    link_refusal,
    published,
    refuse_keys,
)

if TYPE_CHECKING:
    from ..models import SAE

logger = logging.getLogger(__name__)
_filters = threading.Lock()
_OVERTAKEN = (409, 412)  # another commit came in between
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
            weights, or were changed since they were written; a file holds a key of this machine; or
            the repository is not allowed, not found or unreachable.
    """
    refuse_repo_id(repo_id)
    if ".." in re.split(r"[/\\]", subfolder) or subfolder.startswith(("/", "\\")):
        raise Refused(f"subfolder {subfolder!r} lies outside the repository; name one inside it")
    inside = subfolder.strip("/")
    upload = Upload(
        api=HfApi(token=token),
        folder=Path(folder),
        homes=_homes(Path(folder)),
        repo_id=repo_id,
        private=private,
        revision=revision,
        create_pr=create_pr,
        prefix=f"{inside}/" if inside else "",
        include_code=include_code,
        replace_model_card=replace_model_card,
        no_examples=no_examples,
        message=commit_message or f"Upload {subfolder or 'SAE'} with hfsae",
    )
    with hub_error_text(repo_id, f"push to {repo_id}"):
        upload.plan(looks=not (dry_run and constants.HF_HUB_OFFLINE))
        tell(str(upload))
        if dry_run:
            tell("dry run: nothing was sent")
            return ""
        done = upload.send()
    if create_pr and not done.pr_url:
        tell("the repository already has all of this: no pull request was made")
    return done.pr_url or done.commit_url


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
        home, saved = Path(source.get("name", ""), source.get("subfolder", "")), Path(temporary)
        if all((folder / n).is_file() for folder in (home, saved) for n in (WEIGHTS, CONFIG)):
            ours, theirs = (
                {k: v for k, v in read_json(folder / CONFIG).items() if k not in _OF_SAVING}
                for folder in (home, saved)
            )
            if ours == theirs and filecmp.cmp(home / WEIGHTS, saved / WEIGHTS, shallow=False):
                saved = home
        return push(saved, repo_id, **kwargs)


@dataclass(kw_only=True)
class Upload:
    """A push: its arguments, and the plan that fits the repository as it is at present."""

    api: HfApi
    folder: Path
    homes: list[Path]
    """the folders of the SAEs"""
    repo_id: str
    private: bool | None
    revision: str | None
    create_pr: bool
    prefix: str
    """of every path in the repository"""
    include_code: bool
    replace_model_card: bool
    no_examples: bool
    message: str
    is_new: bool = True
    is_private: bool = True
    has_looked: bool = False
    """whether the repository's content is known; it is not in a plan made offline"""
    there: set[str] = field(default_factory=set)
    """paths in the repository"""
    head: str | None = None
    """the commit that the plan is based on; None: the repository does not exist yet"""
    files: dict[str, Path | bytes] = field(default_factory=dict)
    """path in the repository -> content"""
    left_out: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    """paths in the repository"""

    def __str__(self) -> str:
        """The plan: which files a push sends where, and who will see them."""
        sizes = {
            path: len(c) if isinstance(c, bytes) else c.stat().st_size
            for path, c in sorted(self.files.items())
        }
        who = "nobody but those you give access to" if self.is_private else "EVERYONE"
        where = f", branch {self.revision}" if self.revision else ""
        where += ", as a pull request" if self.create_pr else ""
        what = "new " if self.is_new else "existing "
        what += "private " if self.is_private else "public "
        if not self.has_looked:
            what, who = "", f"{who} if this push creates it"
            where += " (not looked at: HF_HUB_OFFLINE is set)"
        lines = [
            f"{what}model repository {self.repo_id}{where}, {len(sizes)} files, "
            f"{sum(sizes.values()) / 1e6:.1f} MB, visible to {who}:",
            *(f"  {path}  {size / 1e3:,.1f} kB" for path, size in sizes.items()),
        ]
        if labels := [path for path in sizes if path.endswith(LABELS)]:
            lines.append(f"with labels that people gave latents: {', '.join(labels)}")
        if any(path.endswith(EXAMPLES) for path in sizes):
            lines.append(
                "with excerpts of your text, or names of your files, on which latents fire, in "
                f"{EXAMPLES} and the card; --no_examples leaves them out"
            )
        if any(path.endswith(PICTURES) for path in sizes):
            lines.append(
                f"with small copies of the pictures that latents fire on, in {PICTURES}; "
                "--no_examples leaves them out"
            )
        if self.deleted:
            paths = ", ".join(self.deleted)
            lines.append(f"deleted from the branch, though earlier commits keep it: {paths}")
        texts = (self.files[path] for path in sizes if path.endswith(CARD))
        lines += licence_notes(text.decode() for text in texts if isinstance(text, bytes))
        if self.left_out:
            lines.append(f"not sent: {', '.join(self.left_out)}")
        return "\n".join(lines)

    def plan(self, looks: bool = True) -> None:
        """The files to send, with cards that fit the repository as it is at present."""
        self.is_new, self.is_private, self.has_looked = True, self.private is not False, looks
        self.there, self.head, self.files = set(), None, {}
        if looks:
            self._look()
        has_code = self.include_code or CODE.name in self.there
        sent = {(home / CARD).resolve() for home in self.homes}
        stores = []
        for home in self.homes:
            inside = home.relative_to(self.folder).parts
            at, own = self.prefix + "".join(f"{part}/" for part in inside), home / CARD
            stores.append(f"{at}{FEATURES}")
            for path in files_to_publish(home):
                name = path.relative_to(home).as_posix()
                is_of_store = name.startswith(f"{FEATURES}/") and name != LABELS
                if not (self.no_examples and is_of_store):
                    self.files[at + name] = published(path, has_code)
                    sent.add(path.resolve())
            if self.no_examples or f"{at}{CARD}" not in self.files:
                made = cards.render_card(home, examples=not self.no_examples)
                old = own.read_text(encoding="utf-8") if own.is_file() else None
                self.files[f"{at}{CARD}"] = (cards.carry_over(old, made) if old else made).encode()
        top = f"{self.prefix}{CARD}"
        if self.folder not in self.homes and (own := self.folder / CARD).is_file():
            self.files[top] = own
        if has_code:
            self.files[CODE.name] = CODE
        sent |= {path.resolve() for path in self.files.values() if isinstance(path, Path)}
        every = sorted(p for p in self.folder.rglob("*") if p.is_file() and p.resolve() not in sent)
        self.left_out = [p.relative_to(self.folder).as_posix() for p in every if not passes(p)]
        if top not in self.files:
            self.files[top] = self._suite_card()
        self.deleted = [
            path
            for path in sorted(self.there if self.no_examples else ())
            if path.rpartition("/")[0] in stores and path.endswith((".parquet", META))
        ]
        for path in [p for p in self.files if p.endswith(CARD)]:
            content = self.files[path]
            text = (content.read_bytes() if isinstance(content, Path) else content).decode()
            where = path.removesuffix(CARD).strip("/")
            text = cards.set_model_id(text, self.repo_id, subfolder=where, revision=self.revision)
            if not self.replace_model_card and not self.is_new:
                try:  # keep what people wrote into the older one
                    text = cards.carry_over(self._download(path).read_text(encoding="utf-8"), text)
                except LocalEntryNotFoundError:  # offline: there may be one
                    raise
                except EntryNotFoundError:
                    pass
            self.files[path] = text.encode()
        token = self.api.token if isinstance(self.api.token, str) else None
        refuse_keys(self.files, self.homes, token)

    def _look(self) -> None:
        """The repository's state; a new branch starts with main's."""
        look = partial(self.api.model_info, self.repo_id)
        ask = partial(with_retries, what="model_info")
        try:
            info = ask(partial(look, revision=self.revision))
        except GatedRepoError:  # a kind of one not found
            raise
        except RevisionNotFoundError:
            info = ask(look)
        except RepositoryNotFoundError:
            return
        if self.private is not None and bool(info.private) != self.private:
            is_now = "private" if info.private else "public"
            raise Refused(
                f"{self.repo_id} already exists and is {is_now}; change that in its settings on "
                "the Hub, or leave `private` out"
            )
        self.is_new, self.is_private, self.head = False, bool(info.private), info.sha
        self.there = {file.rfilename for file in info.siblings or []}

    def _suite_card(self) -> bytes:
        """The card of all SAEs in the repository after the push: those sent and those that stay."""
        ours = {home.relative_to(self.folder).as_posix(): home for home in self.homes}
        records = {
            f"{folder}/{name}": home / name
            for folder, home in ours.items()
            for name in cards.RECORDS
            if (home / name).is_file()
        }
        for path in sorted(self.there):
            folder, _, name = path.removeprefix(self.prefix).rpartition("/")
            is_inside = path.startswith(self.prefix) and folder and folder not in ours
            if is_inside and name in cards.RECORDS:
                refuse_path(self.repo_id, path)
                records[f"{folder}/{name}"] = self._download(path)
        with tempfile.TemporaryDirectory() as work:
            for path, record in records.items():
                Path(work, path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(record, Path(work, path))
            return cards.render_suite(work).encode()

    def _download(self, path: str) -> Path:
        """A file on the branch; for a branch that does not exist yet, main's."""
        get = partial(self.api.hf_hub_download, self.repo_id, path)
        try:
            return Path(with_retries(partial(get, revision=self.revision), "download"))
        except RevisionNotFoundError:
            return Path(with_retries(get, "download"))

    def send(self) -> CommitInfo:
        """Commit; if another commit came in between, plan again, so that its card is kept."""
        for wait in (*WAITS, *WAITS, None):
            try:
                return self._commit()
            except HfHubHTTPError as error:
                if error.response.status_code not in _OVERTAKEN or wait is None:
                    raise
                logger.warning("%s was changed meanwhile; reading it again", self.repo_id)
                time.sleep(wait)
                self.plan()
        raise AssertionError

    def _commit(self) -> CommitInfo:
        """Create the repository and the branch if they are missing, and make the one commit."""
        make_repo = partial(self.api.create_repo, private=self.is_private, exist_ok=True)
        with_retries(partial(make_repo, self.repo_id), "create_repo")

        def commit() -> CommitInfo:
            files = [CommitOperationAdd(path, data) for path, data in sorted(self.files.items())]
            return self.api.create_commit(
                self.repo_id,
                [*files, *map(CommitOperationDelete, self.deleted)],
                commit_message=self.message,
                revision=self.revision,
                create_pr=self.create_pr,
                parent_commit=self.head,
            )

        try:
            if self.revision and not self.create_pr:
                branch = partial(self.api.create_branch, branch=self.revision, exist_ok=True)
                with_retries(partial(branch, self.repo_id), "branch")
            # Parquet here is intended: the features. Filters are the whole process's, so one thread
            # at a time changes them; commits of one repository wait for each other anyway.
            with _filters, warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="It seems that you are about to commit a")
                # a repeated commit is recognised; a pull request would be made twice
                return commit() if self.create_pr else with_retries(commit, "commit")
        except BaseException as error:  # also Ctrl-C
            is_overtaken = (
                isinstance(error, HfHubHTTPError) and error.response.status_code in _OVERTAKEN
            )
            if self.is_new and not is_overtaken:
                made = "%s was made, and may be empty; the same push fills it"
                logger.warning(made, self.repo_id)
            raise


def _homes(folder: Path) -> list[Path]:
    """The folders of the SAEs in `folder`, checked for damage, for results of other weights, and
    for those that were changed."""
    if not folder.is_dir():
        raise Refused(f"there is no folder {folder} to push")
    from ..convert import load_folder  # takes seconds, as the next
    from ..features import FeatureStore

    folders = sorted(p.parent for p in folder.rglob(CONFIG) if is_sae(p.parent))
    homes = [home for home in folders if not passes(home)]
    for link in (p for p in sorted(folder.rglob("*")) if p.is_symlink() and p.is_dir()):
        if any(is_of_hfsae(p) for p in (link, *link.iterdir())):  # `rglob` does not follow links
            raise Refused(link_refusal(link, folder))
    if not homes and next(folder.rglob(STEPS), None):
        raise Refused(
            f"the training in {folder} is not finished; run its command again, which resumes it"
        )
    if not homes:
        raise Refused(
            f"{folder} holds no hfsae SAE: no config.json with model.safetensors beside it; for "
            "another library's files, run `hfsae convert FOLDER NEW --to hfsae` first"
        )
    for home in homes:
        sae = load_folder(home, "hfsae", str(home))  # refuses damaged or inconsistent files
        read_names(home)  # so does this
        recorded = home / FINGERPRINT
        if recorded.is_file() and (damaged := sae.verify(home).damaged):
            raise Refused(
                f"{home} is DAMAGED: {', '.join(damaged)}: not what was saved ({recorded.name}); "
                f"restore an intact copy, or delete {recorded.name} if you changed the SAE yourself"
            )
        refuse_mixture(home, PUBLISHED)
        refuse_changed(home)
        if any((home / name).is_file() for name in (META, LATENTS, EXAMPLES)):
            FeatureStore.load(home)  # refuses tables that are damaged or missing
        cards.render_card(home, examples=False)  # refuses records that are damaged
    return homes
