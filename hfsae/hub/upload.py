"""To the Hub: one atomic commit.

`push` (order.py) sends only files on a list of names, refuses those that hold a key, prints
beforehand what will be visible to whom, and makes new repositories private by default. What people
wrote into a card stays. If the Hub's answer to a commit is lost, the retry finds that commit.
"""

import logging
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
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
from ..machine.checksums import PUBLISHED, refuse_changed, refuse_mixture
from ..machine.client import WAITS, HTTPError, in_a_sentence, patiently
from ..machine.files import passes
from ..machine.names import (
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
from ..machine.refused import Refused
from .download import download, refuse_path
from .licence import licence_notes
from .outgoing import (
    CODE,
    files_to_publish,
    is_of_hfsae,
    is_sae,
    link_refusal,
    published,
    refuse_keys,
    refuse_swapped_models,
)

logger = logging.getLogger(__name__)
_OVERTAKEN = (409, 412)  # another commit came in between
_There = tuple[bool, bool, set[str], str | None]


class Plan(NamedTuple):
    """The plan of a push."""

    repo_id: str
    is_new: bool
    private: bool
    files: dict[str, Path | bytes]
    """path in the repository -> content"""
    left_out: list[str]
    revision: str | None = None
    is_pull_request: bool = False
    was_looked_at: bool = True
    """whether the repository's content is known; it is not in a plan made offline"""
    head: str | None = None
    """the commit that the plan is based on; None: the repository does not exist yet"""
    has_examples: bool = False
    """whether excerpts of the text behind the features are sent"""
    deleted: tuple[str, ...] = ()
    """paths in the repository"""

    def __str__(self) -> str:
        n_bytes = sum(_size(content) for content in self.files.values())
        who = "nobody but those you give access to" if self.private else "EVERYONE"
        where = f", branch {self.revision}" if self.revision else ""
        where += ", as a pull request" if self.is_pull_request else ""
        what = f"{'new' if self.is_new else 'existing'} {'private' if self.private else 'public'} "
        if not self.was_looked_at:
            what, who = "", f"{who} if this push creates it"
            where += " (not looked at: HF_HUB_OFFLINE is set, or the Hub does not answer)"
        lines = [
            f"{what}model repository {self.repo_id}{where}, {len(self.files)} files, "
            f"{n_bytes / 1e6:.1f} MB, visible to {who}:",
            *(f"  {path}  {_size(c) / 1e3:,.1f} kB" for path, c in sorted(self.files.items())),
        ]
        if labels := [path for path in self.files if path.endswith(LABELS)]:
            lines.append(f"with labels that people gave latents: {', '.join(sorted(labels))}")
        if self.has_examples:
            lines.append(
                "with excerpts of your text, or names of your files, on which latents fire, in "
                f"{EXAMPLES} and the card; --no_examples leaves them out"
            )
        if any(path.endswith(PICTURES) for path in self.files):
            lines.append(
                f"with small copies of the pictures that latents fire on, in {PICTURES}; "
                "--no_examples leaves them out"
            )
        if self.deleted:
            paths = ", ".join(self.deleted)
            lines.append(f"deleted from the branch, though earlier commits keep it: {paths}")
        texts = (self.files[path] for path in sorted(self.files) if path.endswith(CARD))
        lines += licence_notes(text.decode() for text in texts if isinstance(text, bytes))
        if self.left_out:
            lines.append(f"not sent: {', '.join(self.left_out)}")
        return "\n".join(lines)


class Order(NamedTuple):
    """The arguments of `push` that a plan depends on."""

    repo_id: str
    private: bool | None
    revision: str | None
    create_pr: bool
    subfolder: str
    include_code: bool
    replace_model_card: bool
    no_examples: bool
    looks: bool
    """at the repository's content"""
    reconnects: bool
    """whether it waits where the connection breaks, and tries again"""


def carried_out(
    api: HfApi, folder: Path, order: Order, message: str | None, tell: Callable[[str], None]
) -> str:
    """The commit's address; None without a message, when only the plan is printed."""
    homes = _homes(folder)
    with in_a_sentence(order.repo_id, f"push to {order.repo_id}"):
        make_plan = partial(_plan, api, folder, homes, order)
        try:
            plan = make_plan()
        except HTTPError as error:
            if message is not None or isinstance(error, HfHubHTTPError):  # an answer of the Hub
                raise
            plan = _plan(api, folder, homes, order._replace(looks=False))
        tell(str(plan))
        if message is None:
            tell("dry run: nothing was sent")
            return ""
        done = _send_in_time(api, plan, make_plan, message)
    if order.create_pr and not done.pr_url:
        tell("the repository already has all of this: no pull request was made")
    return done.pr_url or done.commit_url


def _plan(api: HfApi, folder: Path, homes: list[Path], order: Order) -> Plan:
    repo_id, private, revision = order[:3]
    unknown: _There = True, private is not False, set(), None
    there = _look(api, order) if order.looks else unknown
    is_new, is_private, paths, head = there
    has_code = order.include_code or CODE.name in paths
    files, left_out = _collect(folder, homes, order.subfolder, has_code, order.no_examples)
    prefix = _prefix(order.subfolder)
    if (top := f"{prefix}{CARD}") not in files:
        others = _others(api, repo_id, prefix, paths, revision)
        files[top] = _suite_card(folder, homes, others)
    has_text = any(path.endswith(EXAMPLES) for path in files)
    deleted: list[str] = []
    if order.no_examples:
        stores = [_at(folder, home, prefix) + f"{FEATURES}/" for home in homes]
        deleted += [path for path in sorted(paths) if _is_of_store(path, stores)]
    where = (revision, order.create_pr, order.looks, head, has_text, tuple(deleted))
    plan = Plan(repo_id, is_new, is_private, files, left_out, *where)
    _write_cards(api, plan, revision, order.replace_model_card)
    refuse_keys(plan.files, homes, api.token if isinstance(api.token, str) else None)
    return plan


def _is_of_store(path: str, stores: list[str]) -> bool:
    folder = path.rpartition("/")[0]
    return f"{folder}/" in stores and path.endswith((".parquet", META))


def _send_in_time(
    api: HfApi, plan: Plan, make_plan: Callable[[], Plan], message: str
) -> CommitInfo:
    """Commit; if another commit came in between, plan again, so that its card is kept."""
    for wait in WAITS * 2:
        try:
            return _send(api, plan, message)
        except HfHubHTTPError as error:
            if not _is_overtaken(error):
                raise
            logger.warning("%s was changed meanwhile; reading it again", plan.repo_id)
            time.sleep(wait)
            plan = make_plan()
    return _send(api, plan, message)


def _send(api: HfApi, plan: Plan, message: str) -> CommitInfo:
    """Create the repository and the branch if they are missing, and make the one commit."""
    make_repo = partial(api.create_repo, plan.repo_id, private=plan.private, exist_ok=True)
    patiently(make_repo, "create_repo")
    try:
        return _fill(api, plan, message)
    except BaseException as error:  # also Ctrl-C
        if plan.is_new and not _is_overtaken(error):
            logger.warning("%s was made, and may be empty; the same push fills it", plan.repo_id)
        raise


def _is_overtaken(error: BaseException) -> bool:
    return isinstance(error, HfHubHTTPError) and error.response.status_code in _OVERTAKEN


def _fill(api: HfApi, plan: Plan, message: str) -> CommitInfo:
    if plan.revision and not plan.is_pull_request:
        make_branch = partial(api.create_branch, plan.repo_id, branch=plan.revision, exist_ok=True)
        patiently(make_branch, "branch")
    commit = partial(_commit, api, plan, message)
    # if an answer is lost, a repeated commit is recognised; a pull request would be made twice
    return commit() if plan.is_pull_request else patiently(commit, "commit")


def _commit(api: HfApi, plan: Plan, message: str) -> CommitInfo:
    operations: list[CommitOperationAdd | CommitOperationDelete]
    operations = [CommitOperationAdd(path, data) for path, data in sorted(plan.files.items())]
    operations += [CommitOperationDelete(path) for path in plan.deleted]
    with warnings.catch_warnings():  # parquet here is intended: the features
        warnings.filterwarnings("ignore", message="It seems that you are about to commit a data")
        return api.create_commit(
            plan.repo_id,
            operations,
            commit_message=message,
            revision=plan.revision,
            create_pr=plan.is_pull_request,
            parent_commit=plan.head,
        )


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
        refuse_mixture(home, PUBLISHED)
        refuse_changed(home)
        refuse_swapped_models(home)
        if any((home / name).is_file() for name in (META, LATENTS, EXAMPLES)):
            FeatureStore.load(home)  # refuses tables that are damaged or missing
        cards.render_card(home, examples=False)  # refuses records that are damaged
    return homes


def _collect(
    folder: Path, homes: list[Path], subfolder: str, include_code: bool, no_examples: bool
) -> tuple[dict[str, Path | bytes], list[str]]:
    """(what to send by its path in the repository, what is left out)."""
    prefix = _prefix(subfolder)
    files: dict[str, Path | bytes] = {}
    sent: set[Path] = {(home / CARD).resolve() for home in homes}
    for home in homes:
        at = _at(folder, home, prefix)
        for path in files_to_publish(home):
            name = path.relative_to(home).as_posix()
            if not (no_examples and name.startswith(f"{FEATURES}/") and name != LABELS):
                files[at + name] = published(path, include_code)
                sent.add(path.resolve())
        own = home / CARD
        if no_examples or f"{at}{CARD}" not in files:
            made = cards.render_card(home, examples=not no_examples)
            old = own.read_text(encoding="utf-8") if own.is_file() else None
            files[f"{at}{CARD}"] = (cards.carry_over(old, made) if old else made).encode()
    if folder not in homes:
        own = folder / CARD
        files |= {f"{prefix}{CARD}": own} if own.is_file() else {}
    if include_code:
        files[CODE.name] = CODE
    sent |= {path.resolve() for path in files.values() if isinstance(path, Path)}
    every = sorted(p for p in folder.rglob("*") if p.is_file() and p.resolve() not in sent)
    return files, [p.relative_to(folder).as_posix() for p in every if not passes(p)]


def _at(folder: Path, home: Path, prefix: str) -> str:
    """The path in the repository of an SAE in the folder: "", or with a final slash."""
    return prefix + "".join(f"{part}/" for part in home.relative_to(folder).parts)


def _prefix(subfolder: str) -> str:
    return f"{subfolder.strip('/')}/" if subfolder.strip("/") else ""


def _others(
    api: HfApi, repo_id: str, prefix: str, there: set[str], revision: str | None
) -> dict[str, Path]:
    """Records of the repository's SAEs below a prefix: path below it -> local copy."""
    copies = {}
    for path in sorted(there):
        folder, _, name = path.removeprefix(prefix).rpartition("/")
        if path.startswith(prefix) and folder and name in cards.RECORDS:
            refuse_path(repo_id, path)
            copies[f"{folder}/{name}"] = download(api, repo_id, path, revision)
    return copies


def _suite_card(folder: Path, homes: list[Path], others: dict[str, Path]) -> bytes:
    """The card of all SAEs in the repository after the push: those sent and those that stay."""
    ours = {home.relative_to(folder).as_posix(): home for home in homes}
    records = {path: copy for path, copy in others.items() if path.rpartition("/")[0] not in ours}
    for path, home in ours.items():
        records |= {
            f"{path}/{name}": home / name for name in cards.RECORDS if (home / name).is_file()
        }
    with tempfile.TemporaryDirectory() as work:
        for path, record in records.items():
            Path(work, path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(record, Path(work, path))
        return cards.render_suite(work).encode()


def _size(content: Path | bytes) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def _look(api: HfApi, order: Order) -> _There:
    """The repository's state: whether it is new, whether it is or will be private, its files, and
    its commit; a new branch starts with main's."""
    repo_id, private, revision = order[:3]
    look = partial(api.model_info, repo_id)
    ask = partial(patiently, what="model_info", reconnects=order.reconnects)
    try:
        info = ask(lambda: look(revision=revision))
    except GatedRepoError:
        raise
    except RevisionNotFoundError:
        info = ask(look)
    except RepositoryNotFoundError:
        return True, private is not False, set(), None
    if private is not None and bool(info.private) != private:
        is_now = "private" if info.private else "public"
        raise Refused(
            f"{repo_id} already exists and is {is_now}; change that in its settings on the Hub, or "
            f"leave `private` out"
        )
    there = {file.rfilename for file in info.siblings or []}
    return False, bool(info.private), there, info.sha


def _write_cards(api: HfApi, plan: Plan, revision: str | None, replace: bool) -> None:
    """Put the repository's id into cards, and keep what people wrote into the older ones."""
    for path in [p for p in plan.files if p.endswith(CARD)]:
        content = plan.files[path]
        text = (content.read_bytes() if isinstance(content, Path) else content).decode()
        where = path.removesuffix(CARD).strip("/")
        text = cards.set_model_id(text, plan.repo_id, subfolder=where, revision=revision)
        if not replace and not plan.is_new:
            try:
                old = download(api, plan.repo_id, path, revision)
                text = cards.carry_over(old.read_text(encoding="utf-8"), text)
            except LocalEntryNotFoundError:  # offline: there may be one
                raise
            except EntryNotFoundError:
                pass
        plan.files[path] = text.encode()
