"""To the Hub: one atomic commit.

`push` (push.py) sends only files on a list of names, refuses those that hold a key, prints
beforehand what will be visible to whom, and makes new repositories private by default. What people
wrote into a card stays. If the Hub's answer to a commit is lost, the retry finds that commit.
"""

import logging
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

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
from ..convert.formats import load_folder
from ..features import FeatureStore
from ..features.labels import read_names
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
)
from ..io.files import passes
from ..io.hub_client import WAITS, HTTPError, hub_error_text, with_retries
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
    refuse_unsound,
)

logger = logging.getLogger(__name__)
_OVERTAKEN = (409, 412)  # another commit came in between


@dataclass
class Plan:
    """What a push will do to a repository, as it is at present."""

    repo_id: str
    is_new: bool
    private: bool
    revision: str | None
    create_pr: bool
    has_looked: bool
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
        sizes = {
            path: len(c) if isinstance(c, bytes) else c.stat().st_size
            for path, c in sorted(self.files.items())
        }
        who = "nobody but those you give access to" if self.private else "EVERYONE"
        where = f", branch {self.revision}" if self.revision else ""
        where += ", as a pull request" if self.create_pr else ""
        what = f"{'new' if self.is_new else 'existing'} {'private' if self.private else 'public'} "
        if not self.has_looked:
            what, who = "", f"{who} if this push creates it"
            where += " (not looked at: HF_HUB_OFFLINE is set, or the Hub does not answer)"
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


@dataclass(kw_only=True)
class Upload:
    """The arguments of `hfsae.push`, and its work: look, plan, print, commit."""

    api: HfApi
    folder: Path
    repo_id: str
    private: bool | None
    revision: str | None
    create_pr: bool
    subfolder: str
    include_code: bool
    replace_model_card: bool
    no_examples: bool
    message: str
    dry_run: bool
    homes: list[Path] = field(init=False)
    """the folders of the SAEs"""
    prefix: str = field(init=False)
    """of every path in the repository"""

    def run(self, tell: Callable[[str], None]) -> str:
        """The commit's address; empty of a dry run."""
        self.homes = _homes(self.folder)
        self.prefix = f"{self.subfolder.strip('/')}/" if self.subfolder.strip("/") else ""
        with hub_error_text(self.repo_id, f"push to {self.repo_id}"):
            try:
                plan = self.plan(looks=not (self.dry_run and constants.HF_HUB_OFFLINE))
            except HTTPError as error:
                if not self.dry_run or isinstance(error, HfHubHTTPError):  # an answer of the Hub
                    raise
                plan = self.plan(looks=False)
            tell(str(plan))
            if self.dry_run:
                tell("dry run: nothing was sent")
                return ""
            done = self.send(plan)
        if self.create_pr and not done.pr_url:
            tell("the repository already has all of this: no pull request was made")
        return done.pr_url or done.commit_url

    def plan(self, looks: bool = True) -> Plan:
        """The files to send, with cards that fit the repository as it is at present."""
        plan = Plan(
            self.repo_id, True, self.private is not False, self.revision, self.create_pr, looks
        )
        if looks:
            self._look(plan)
        self._collect(plan)
        if (top := f"{self.prefix}{CARD}") not in plan.files:
            plan.files[top] = self._suite_card(plan)
        if self.no_examples:
            stores = [f"{self._at(home)}{FEATURES}" for home in self.homes]
            plan.deleted = [
                path
                for path in sorted(plan.there)
                if path.rpartition("/")[0] in stores and path.endswith((".parquet", META))
            ]
        self._write_cards(plan)
        token = self.api.token if isinstance(self.api.token, str) else None
        refuse_keys(plan.files, self.homes, token)
        return plan

    def _look(self, plan: Plan) -> None:
        """The repository's state; a new branch starts with main's."""
        look = partial(self.api.model_info, self.repo_id)
        ask = partial(with_retries, what="model_info", reconnects=not self.dry_run)
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
        plan.is_new, plan.private, plan.head = False, bool(info.private), info.sha
        plan.there = {file.rfilename for file in info.siblings or []}

    def _collect(self, plan: Plan) -> None:
        """The files to send, and what is left out."""
        has_code = self.include_code or CODE.name in plan.there
        sent = {(home / CARD).resolve() for home in self.homes}
        for home in self.homes:
            at, own = self._at(home), home / CARD
            for path in files_to_publish(home):
                name = path.relative_to(home).as_posix()
                is_of_store = name.startswith(f"{FEATURES}/") and name != LABELS
                if not (self.no_examples and is_of_store):
                    plan.files[at + name] = published(path, has_code)
                    sent.add(path.resolve())
            if self.no_examples or f"{at}{CARD}" not in plan.files:
                made = cards.render_card(home, examples=not self.no_examples)
                old = own.read_text(encoding="utf-8") if own.is_file() else None
                plan.files[f"{at}{CARD}"] = (cards.carry_over(old, made) if old else made).encode()
        if self.folder not in self.homes and (own := self.folder / CARD).is_file():
            plan.files[f"{self.prefix}{CARD}"] = own
        if has_code:
            plan.files[CODE.name] = CODE
        sent |= {path.resolve() for path in plan.files.values() if isinstance(path, Path)}
        every = sorted(p for p in self.folder.rglob("*") if p.is_file() and p.resolve() not in sent)
        plan.left_out = [p.relative_to(self.folder).as_posix() for p in every if not passes(p)]

    def _at(self, home: Path) -> str:
        """The path in the repository of an SAE in the folder: "", or with a final slash."""
        return self.prefix + "".join(f"{part}/" for part in home.relative_to(self.folder).parts)

    def _suite_card(self, plan: Plan) -> bytes:
        """The card of all SAEs in the repository after the push: those sent and those that stay."""
        ours = {home.relative_to(self.folder).as_posix(): home for home in self.homes}
        records = {
            f"{folder}/{name}": home / name
            for folder, home in ours.items()
            for name in cards.RECORDS
            if (home / name).is_file()
        }
        for path in sorted(plan.there):
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

    def _write_cards(self, plan: Plan) -> None:
        """Put the repository's id into cards, and keep what people wrote into the older ones."""
        for path in [p for p in plan.files if p.endswith(CARD)]:
            content = plan.files[path]
            text = (content.read_bytes() if isinstance(content, Path) else content).decode()
            where = path.removesuffix(CARD).strip("/")
            text = cards.set_model_id(text, self.repo_id, subfolder=where, revision=self.revision)
            if not self.replace_model_card and not plan.is_new:
                try:
                    text = cards.carry_over(self._download(path).read_text(encoding="utf-8"), text)
                except LocalEntryNotFoundError:  # offline: there may be one
                    raise
                except EntryNotFoundError:
                    pass
            plan.files[path] = text.encode()

    def send(self, plan: Plan) -> CommitInfo:
        """Commit; if another commit came in between, plan again, so that its card is kept."""
        for wait in (*WAITS, *WAITS, None):
            try:
                return self._commit(plan)
            except HfHubHTTPError as error:
                if error.response.status_code not in _OVERTAKEN or wait is None:
                    raise
                logger.warning("%s was changed meanwhile; reading it again", self.repo_id)
                time.sleep(wait)
                plan = self.plan()
        raise AssertionError

    def _commit(self, plan: Plan) -> CommitInfo:
        """Create the repository and the branch if they are missing, and make the one commit."""
        make_repo = partial(self.api.create_repo, private=plan.private, exist_ok=True)
        with_retries(partial(make_repo, self.repo_id), "create_repo")

        def commit() -> CommitInfo:
            files = [CommitOperationAdd(path, data) for path, data in sorted(plan.files.items())]
            return self.api.create_commit(
                self.repo_id,
                [*files, *map(CommitOperationDelete, plan.deleted)],
                commit_message=self.message,
                revision=self.revision,
                create_pr=self.create_pr,
                parent_commit=plan.head,
            )

        try:
            if self.revision and not self.create_pr:
                branch = partial(self.api.create_branch, branch=self.revision, exist_ok=True)
                with_retries(partial(branch, self.repo_id), "branch")
            with warnings.catch_warnings():  # parquet here is intended: the features
                warnings.filterwarnings("ignore", message="It seems that you are about to commit a")
                # a repeated commit is recognised; a pull request would be made twice
                return commit() if self.create_pr else with_retries(commit, "commit")
        except BaseException as error:  # also Ctrl-C
            is_overtaken = (
                isinstance(error, HfHubHTTPError) and error.response.status_code in _OVERTAKEN
            )
            if plan.is_new and not is_overtaken:
                made = "%s was made, and may be empty; the same push fills it"
                logger.warning(made, plan.repo_id)
            raise


def _homes(folder: Path) -> list[Path]:
    """The folders of the SAEs in `folder`, checked for damage, for results of other weights, and
    for those that were changed."""
    if not folder.is_dir():
        raise Refused(f"there is no folder {folder} to push")
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
        refuse_unsound(home)
        if any((home / name).is_file() for name in (META, LATENTS, EXAMPLES)):
            FeatureStore.load(home)  # refuses tables that are damaged or missing
        cards.render_card(home, examples=False)  # refuses records that are damaged
    return homes
