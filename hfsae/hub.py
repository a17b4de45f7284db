"""To the Hub and from it: one atomic commit up, whole files down, one sentence for what fails.

`push` sends what is on a list of names and nothing else, says before it sends what will be seen by
whom, and makes new repositories private unless told otherwise. What people wrote into a card stays.
Calls that may fail for a while (429, 5xx, a connection that breaks) are repeated; a commit whose
answer was lost is found to be there. Files that came down are held against the Hub's checksums, so
that a damaged one is fetched again and not kept.
"""

import hashlib
import json
import logging
import re
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    constants,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage] - of httpx or httpx2, by version
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers import AutoConfig

from . import card
from .convert.formats import load_folder
from .features.labels import NAME as LABELS
from .features.labels import read_labels
from .models.probe import NAME as PROBE
from .models.probe import renamed
from .public import public_record
from .records import passes, read_json, write_whole
from .weights import refuse_mixture

logger = logging.getLogger(__name__)
T = TypeVar("T")

PUSHED = (
    "config.json",
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
    "README.md",
    "training.json",
    "evaluation.json",
    "probe.safetensors",
    "modeling_hfsae.py",
    "figures/*.png",
    "features/*.parquet",
    "features/meta.json",
    f"features/{LABELS}",
)
_RECORDS = ("config.json", "training.json", "evaluation.json")  # what cards are made from
_CODE = Path(__file__).with_name("modeling_hfsae.py")
_AUTO_MAP = {"AutoConfig": "modeling_hfsae.HfsaeConfig", "AutoModel": "modeling_hfsae.HfsaeModel"}
_WAITS = (1.0, 2.0, 4.0, 8.0)
_PASSING = (408, 429, 500, 502, 503, 504)
_OVERTAKEN = (409, 412)  # somebody else's commit came in between
_TEXT = "features/examples.parquet"
_There = tuple[bool, bool, set[str], str | None]


class HubFile(NamedTuple):
    path: str
    size: int | None
    sha256: str | None
    """of a file in LFS"""
    git_hash: str | None
    """of any other. The client compares neither, only sizes"""


class Listing(NamedTuple):
    """What a repository holds at a commit."""

    repo_id: str
    commit: str | None
    files: list[HubFile]
    revision: str | None = None
    """that was asked for; None: the main branch"""


class Plan(NamedTuple):
    """What a push would do."""

    repo_id: str
    is_new: bool
    private: bool
    files: dict[str, Path | bytes]
    """path in the repository -> content"""
    left_out: list[str]
    revision: str | None = None
    is_pull_request: bool = False
    was_looked_at: bool = True
    """whether it is known what is there: of a plan that is made offline it is not"""
    head: str | None = None
    """the commit that it was made for; None: of a repository that is yet to be made"""
    has_examples: bool = False
    """whether excerpts of the text that features were collected on are sent"""
    deleted: tuple[str, ...] = ()
    """paths in the repository"""

    def __str__(self) -> str:
        n_bytes = sum(_size(content) for content in self.files.values())
        who = "nobody but those you give access to" if self.private else "EVERYONE"
        where = f", branch {self.revision}" if self.revision else ""
        where += ", as a pull request" if self.is_pull_request else ""
        what = f"{'new' if self.is_new else 'existing'} {'private' if self.private else 'public'} "
        if not self.was_looked_at:
            what, who = "", f"{who} if it is made by this"
            where += " (which was not looked at, since HF_HUB_OFFLINE is set)"
        lines = [
            f"{what}model repository {self.repo_id}{where}, {len(self.files)} files, "
            f"{n_bytes / 1e6:.1f} MB, visible to {who}:",
            *(f"  {path}  {_size(c) / 1e3:,.1f} kB" for path, c in sorted(self.files.items())),
        ]
        if labels := [path for path in self.files if path.endswith(f"/{LABELS}")]:
            lines.append(f"with labels that people gave to latents: {', '.join(sorted(labels))}")
        if self.has_examples:
            lines.append(
                f"with excerpts of your text around what latents fire on, in {_TEXT} and the card; "
                "--no_examples leaves them out"
            )
        if self.deleted:
            paths = ", ".join(self.deleted)
            lines.append(f"deleted there, though earlier commits keep it: {paths}")
        if self.left_out:
            lines.append(f"not sent: {', '.join(self.left_out)}")
        return "\n".join(lines)


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
        token: None: that of `hf auth login`, or the environment's HF_TOKEN.
        private: of a repository that is made by this; None: private. An existing one stays as it
            is, and the opposite is an error.
        revision: branch to commit to, made if it is not there.
        create_pr: propose the commit as a pull request.
        subfolder: where in the repository.
        commit_message: None: "Upload ... with hfsae".
        include_code: send a file with which the SAE runs where hfsae is not installed. A repository
            that has that file keeps it.
        replace_model_card: do not carry over what people wrote into the card that is there.
        no_examples: send no excerpts of the text that features were collected on: no feature store,
            which the same commit deletes where the repository has one, and a card without them.
        dry_run: only tell; offline, without a look at what is there.
        tell: is given what will be sent where, before it is sent.

    Raises:
        ValueError: no SAE in the folder, or a damaged one; not allowed, no such thing, unreachable;
            one sentence.
    """
    if repo_id.count("/") != 1:
        raise ValueError(f"{repo_id!r} is no repository; write 'name/repository'")
    _refuse_subfolder(subfolder)
    looks = not (dry_run and constants.HF_HUB_OFFLINE)
    where = (repo_id, private, revision, create_pr, subfolder)
    order = _Order(*where, include_code, replace_model_card, no_examples, looks)
    message = None if dry_run else commit_message or f"Upload {subfolder or 'SAE'} with hfsae"
    return _carried_out(HfApi(token=token), Path(folder), order, message, tell)


class _Order(NamedTuple):
    """What `push` was called with, as far as plans are made by it."""

    repo_id: str
    private: bool | None
    revision: str | None
    create_pr: bool
    subfolder: str
    include_code: bool
    replace_model_card: bool
    no_examples: bool
    looks: bool
    """at what the repository holds"""


def _carried_out(
    api: HfApi, folder: Path, order: _Order, message: str | None, tell: Callable[[str], None]
) -> str:
    """The commit's address; without a message there is none: the plan is told, and that is all."""
    homes = _homes(folder)
    with _in_a_sentence(order.repo_id, f"push to {order.repo_id}"):
        make_plan = partial(_plan, api, folder, homes, order)
        plan = make_plan()
        tell(str(plan))
        if message is None:
            return ""
        done = _send_in_time(api, plan, make_plan, message)
    if order.create_pr and not done.pr_url:
        tell("nothing differs from what is there: no pull request was made")
    return done.pr_url or done.commit_url


def _plan(api: HfApi, folder: Path, homes: list[Path], order: _Order) -> Plan:
    repo_id, private, revision = order[:3]
    unknown: _There = True, private is not False, set(), None
    there = _look(api, repo_id, private, revision) if order.looks else unknown
    is_new, is_private, paths, head = there
    has_code = order.include_code or _CODE.name in paths
    files, left_out = _collect(folder, homes, order.subfolder, has_code, order.no_examples)
    prefix = _prefix(order.subfolder)
    if (top := f"{prefix}README.md") not in files:
        others = _others(api, repo_id, prefix, paths, revision)
        files[top] = _suite_card(folder, homes, others)
    has_text = any(path.endswith(_TEXT) for path in files)
    stores = [_at(folder, home, prefix) + "features/" for home in homes]
    deleted = [path for path in sorted(paths) if order.no_examples and _is_of_store(path, stores)]
    where = (revision, order.create_pr, order.looks, head, has_text, tuple(deleted))
    plan = Plan(repo_id, is_new, is_private, files, left_out, *where)
    _write_cards(api, plan, revision, order.replace_model_card)
    return plan


def _is_of_store(path: str, stores: list[str]) -> bool:
    folder, _, name = path.rpartition("/")
    return f"{folder}/" in stores and (name.endswith(".parquet") or name == "meta.json")


def _send_in_time(
    api: HfApi, plan: Plan, make_plan: Callable[[], Plan], message: str
) -> CommitInfo:
    """The commit; planned again where somebody else's came in between, whose card it must keep."""
    for wait in _WAITS * 2:
        try:
            return _send(api, plan, message)
        except HfHubHTTPError as error:
            if error.response.status_code not in _OVERTAKEN:
                raise
            logger.warning("%s was changed meanwhile; reading it again", plan.repo_id)
            time.sleep(wait)
            plan = make_plan()
    return _send(api, plan, message)


def _send(api: HfApi, plan: Plan, message: str) -> CommitInfo:
    """Make the repository and the branch, if they are not there, and the one commit."""
    repo_id, revision = plan.repo_id, plan.revision
    make_repo = partial(api.create_repo, repo_id, private=plan.private, exist_ok=True)
    _patiently(make_repo, "create_repo")
    if revision and not plan.is_pull_request:
        make_branch = partial(api.create_branch, repo_id, branch=revision, exist_ok=True)
        _patiently(make_branch, "branch")
    commit = partial(_commit, api, plan, message)
    # a commit whose answer was lost is found to be there, but a second pull request would be made
    return commit() if plan.is_pull_request else _patiently(commit, "commit")


def _commit(api: HfApi, plan: Plan, message: str) -> CommitInfo:
    operations: list[CommitOperationAdd | CommitOperationDelete]
    operations = [CommitOperationAdd(path, data) for path, data in sorted(plan.files.items())]
    operations += [CommitOperationDelete(path) for path in plan.deleted]
    with warnings.catch_warnings():  # parquet in a model's repository is meant: its features
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
    """The folders of the SAEs in `folder`, none of them damaged or mixed with another's results."""
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder} to push")
    found = sorted(p.parent for p in folder.rglob("config.json") if is_sae(p.parent))
    homes = [home for home in found if not passes(home)]
    for link in (p for p in sorted(folder.rglob("*")) if p.is_symlink() and p.is_dir()):
        if any(_is_of_hfsae(p) for p in (link, *link.iterdir())):  # `rglob` looks into no link
            raise ValueError(_is_a_link(link, folder))
    if not homes:
        raise ValueError(
            f"{folder} holds no SAE of hfsae's: no config.json with model.safetensors beside it; "
            "`hfsae convert FOLDER NEW --to hfsae` makes one of another library's files"
        )
    for home in homes:
        sae = load_folder(home, "hfsae", str(home))  # refuses what is damaged or does not fit
        read_labels(home)  # as does this
        if (home / PROBE).is_file() and (damaged := sae.verify(home).damaged):
            raise ValueError(
                f"{home} is DAMAGED: {', '.join(damaged)}: not what was saved, says {PROBE}; put "
                f"back a sound copy, or delete {PROBE} if you changed the SAE yourself"
            )
        refuse_mixture(home)
        card.render_card(home, examples=False)  # refuses records that are damaged
    return homes


def _refuse_subfolder(subfolder: str) -> None:
    if ".." in re.split(r"[/\\]", subfolder) or subfolder.startswith(("/", "\\")):
        raise ValueError(f"subfolder {subfolder!r} leaves the repository; name one inside it")


def _collect(
    folder: Path, homes: list[Path], subfolder: str, include_code: bool, no_examples: bool
) -> tuple[dict[str, Path | bytes], list[str]]:
    """(what to send by its path in the repository, what is left out)."""
    prefix = _prefix(subfolder)
    files: dict[str, Path | bytes] = {}
    for home in homes:
        at = _at(folder, home, prefix)
        for path in files_to_publish(home):
            name = path.relative_to(home).as_posix()
            if not (no_examples and name.startswith("features/") and path.name != LABELS):
                files[at + name] = published(path, include_code)
        own = home / "README.md"
        if no_examples or f"{at}README.md" not in files:
            made = card.render_card(home, examples=not no_examples)
            old = own.read_text(encoding="utf-8") if own.is_file() else None
            files[f"{at}README.md"] = (card.carry_over(old, made) if old else made).encode()
    if folder not in homes:
        own = folder / "README.md"
        files |= {f"{prefix}README.md": own} if own.is_file() else {}
    if include_code:
        files[_CODE.name] = _CODE
    sent = {path.resolve() for path in files.values() if isinstance(path, Path)}
    sent |= {(h / n).resolve() for h in homes for n in (*_RECORDS, PROBE, "README.md")}
    if not no_examples:
        sent |= {(h / "features" / "meta.json").resolve() for h in homes}
    every = sorted(p for p in folder.rglob("*") if p.is_file() and p.resolve() not in sent)
    return files, [p.relative_to(folder).as_posix() for p in every if not passes(p)]


def files_to_publish(home: Path, more: tuple[str, ...] = ()) -> Iterator[Path]:
    """The files of an SAE's folder that others may see.

    Raises:
        ValueError: one of them is a link, or lies in a linked folder: what it leads to was not put
            there to be seen.
    """
    for pattern in (*PUSHED, *more):
        for path in sorted(home.glob(pattern)):
            on_the_way = [path, *list(path.parents)[: len(path.relative_to(home).parts) - 1]]
            link = next((p for p in on_the_way if p.is_symlink()), None)
            if link is not None and not _is_cached(path):
                raise ValueError(_is_a_link(link, home))
            if path.is_file():
                yield path


def _is_a_link(link: Path, folder: Path) -> str:
    return (
        f"{link.relative_to(folder)} in {folder} is a link to {link.resolve()}; put a copy in its "
        "place, or remove it: links are not sent"
    )


def _is_cached(path: Path) -> bool:
    """Whether it is a link of the Hub's cache, from a snapshot to the blobs beside it."""
    snapshots = [p for p in path.absolute().parents if p.name == "snapshots"]
    return any(path.resolve().parent == (p.parent / "blobs").resolve() for p in snapshots)


def _at(folder: Path, home: Path, prefix: str) -> str:
    """Where in the repository an SAE of the folder lies: "", or with a slash at its end."""
    return prefix + "".join(f"{part}/" for part in home.relative_to(folder).parts)


def _prefix(subfolder: str) -> str:
    return f"{subfolder.strip('/')}/" if subfolder.strip("/") else ""


def _others(
    api: HfApi, repo_id: str, prefix: str, there: set[str], revision: str | None
) -> dict[str, Path]:
    """Records of SAEs that the repository holds below a prefix: path below it -> copy of it."""
    found = {}
    for path in sorted(there):
        folder, _, name = path.removeprefix(prefix).rpartition("/")
        if path.startswith(prefix) and folder and name in _RECORDS:
            _refuse_path(repo_id, path)
            found[f"{folder}/{name}"] = _download(api, repo_id, path, revision)
    return found


def _suite_card(folder: Path, homes: list[Path], others: dict[str, Path]) -> bytes:
    """The card of all SAEs that will be there: those that are sent, and those that stay."""
    ours = {home.relative_to(folder).as_posix(): home for home in homes}
    records = {path: copy for path, copy in others.items() if path.rpartition("/")[0] not in ours}
    for path, home in ours.items():
        records |= {f"{path}/{name}": home / name for name in _RECORDS if (home / name).is_file()}
    with tempfile.TemporaryDirectory() as work:
        for path, record in records.items():
            Path(work, path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(record, Path(work, path))
        return card.render_suite(work).encode()


def is_sae(folder: Path) -> bool:
    """Whether weights of hfsae's lie there."""
    return any(
        (folder / n).is_file() for n in ("model.safetensors", "model.safetensors.index.json")
    )


def _is_of_hfsae(folder: Path) -> bool:
    """Whether an SAE lies there, and not a language model."""
    config = folder / "config.json"
    return is_sae(folder) and config.is_file() and "d_sae" in read_json(config)


def published(path: Path, include_code: bool = False) -> Path | bytes:
    """A file as it may be seen: records without where things lie on this machine."""
    if path.name == PROBE:
        return _published_probe(path)
    if path.name not in ("config.json", "training.json", "evaluation.json", "meta.json"):
        return path
    home = path.parent.parent if path.name == "meta.json" else path.parent
    content = public_record(read_json(path), home)
    if path.name == "config.json":
        content.pop("auto_map", None)
        content.pop("_name_or_path", None)
        content |= {"auto_map": _AUTO_MAP} if include_code else {}
    return (json.dumps(content, indent=2) + "\n").encode()


def _published_probe(path: Path) -> Path | bytes:
    """It holds a hash of the config, in which a language model's folder goes up as `./name`."""
    config = path.with_name("config.json")
    name = read_json(config).get("model_name") if config.is_file() else None
    shown = public_record({"model_name": name}, path.parent)["model_name"]
    return path if shown == name else renamed(path, AutoConfig.from_pretrained(path.parent), shown)


def _size(content: Path | bytes) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def _look(api: HfApi, repo_id: str, private: bool | None, revision: str | None) -> _There:
    """Of the repository: whether it is new, is or will be private, what files it holds, and at
    which commit, on a branch that is yet to be made those of main."""
    look = partial(api.model_info, repo_id)
    try:
        found = _patiently(lambda: look(revision=revision), "model_info")
    except GatedRepoError:
        raise
    except RevisionNotFoundError:
        found = _patiently(look, "model_info")
    except RepositoryNotFoundError:
        return True, private is not False, set(), None
    if private is not None and bool(found.private) != private:
        is_now = "private" if found.private else "public"
        raise ValueError(
            f"{repo_id} is there already and {is_now}; change that in its settings on the Hub, or "
            f"leave `private` out"
        )
    there = {file.rfilename for file in found.siblings or []}
    return False, bool(found.private), there, found.sha


def _write_cards(api: HfApi, plan: Plan, revision: str | None, replace: bool) -> None:
    """Put the repository's id into cards, and into them what people wrote into the older ones."""
    for path in [p for p in plan.files if p.endswith("README.md")]:
        content = plan.files[path]
        text = (content.read_bytes() if isinstance(content, Path) else content).decode()
        where = path.removesuffix("README.md").strip("/")
        text = card.set_model_id(text, plan.repo_id, subfolder=where, revision=revision)
        if not replace and not plan.is_new:
            try:
                old = _download(api, plan.repo_id, path, revision)
                text = card.carry_over(old.read_text(encoding="utf-8"), text)
            except LocalEntryNotFoundError:  # it could not be asked: there may be one
                raise
            except EntryNotFoundError:
                pass
        plan.files[path] = text.encode()


def _download(api: HfApi, repo_id: str, path: str, revision: str | None) -> Path:
    """A file as it is on a branch; on one that is yet to be made it is that of main."""
    get = partial(api.hf_hub_download, repo_id, path)
    try:
        return Path(_patiently(lambda: get(revision=revision), "download"))
    except RevisionNotFoundError:
        return Path(_patiently(get, "download"))


def list_files(
    repo_id: str,
    *,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Listing:
    """Everything a repository holds, from one call; offline, what of it is in the cache.

    Raises:
        ValueError: not there, not allowed, or unreachable; one sentence.
    """
    with _in_a_sentence(repo_id, f"read {repo_id} (no folder here)", revision):
        if local_files_only or constants.HF_HUB_OFFLINE:
            return _list_cached(repo_id, revision, cache_dir)
        ask = partial(HfApi(token=token).model_info, repo_id, revision=revision)
        try:
            info = _patiently(lambda: ask(files_metadata=True), "model_info")
        except HTTPError as error:
            if isinstance(error, HfHubHTTPError) and error.response.status_code < 500:
                raise
            logger.warning("the Hub cannot be reached; looking for %s in the cache", repo_id)
            return _list_cached(repo_id, revision, cache_dir)
        files = [
            HubFile(f.rfilename, f.size, f.lfs.sha256 if f.lfs else None, f.blob_id)
            for f in info.siblings or []
        ]
        if junk := next((f for f in files if not _is_sound(f)), None):
            raise ValueError(f"the Hub's listing of {repo_id} holds an entry that is none: {junk}")
        return Listing(repo_id, info.sha, files, revision)


def _is_sound(file: HubFile) -> bool:
    numbers, texts = (file.size,), (file.sha256, file.git_hash)
    return isinstance(file.path, str) and all(
        value is None or isinstance(value, kind)
        for values, kind in ((numbers, int), (texts, str))
        for value in values
    )


def _list_cached(repo_id: str, revision: str | None, cache_dir: str | Path | None) -> Listing:
    where = {"revision": revision, "cache_dir": cache_dir, "local_files_only": True}
    root = Path(snapshot_download(repo_id, **where))
    paths = sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())
    files = [HubFile(path, None, None, None) for path in paths]
    return Listing(repo_id, root.name, files, revision)


def fetch(
    listing: Listing,
    paths: list[str],
    *,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Path:
    """Have these files of a repository in the cache; the folder that holds them all.

    Raises:
        ValueError: not allowed, unreachable, or damaged on the way; one sentence. A file that
            does not have the Hub's checksum is not kept.
    """
    files = {file.path: file for file in listing.files}
    root = Path()
    for path in paths:
        _refuse_path(listing.repo_id, path)
        with _in_a_sentence(listing.repo_id, f"download {path} of {listing.repo_id}"):

            def get(path: str = path, force: bool = False) -> Path:
                return Path(
                    hf_hub_download(
                        listing.repo_id,
                        path,
                        revision=listing.commit,
                        token=token,
                        cache_dir=cache_dir,
                        local_files_only=local_files_only or constants.HF_HUB_OFFLINE,
                        force_download=force,
                    )
                )

            found = _patiently(get, path)
            if not _is_intact(found, files[path]):
                found = _patiently(lambda: get(force=True), path)
                if not _is_intact(found, files[path]):
                    found.resolve().unlink()
                    raise ValueError(
                        f"{path} of {listing.repo_id} arrives damaged: its checksum is not the "
                        "Hub's. It was not kept; try again later, or over another connection"
                    )
            root = found.parents[path.count("/")]
    return root


def remember_revision(listing: Listing, root: Path) -> None:
    """Note in the cache, once all of an SAE is in `root`, which commit its branch is at.

    The client does so for files that it asks for by name. `fetch` asks by commit, and without the
    note the SAE would not be found offline.
    """
    revision = listing.revision or constants.DEFAULT_REVISION
    note = root.parents[1] / "refs" / revision
    if revision == listing.commit or (note.is_file() and note.read_text() == listing.commit):
        return
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        write_whole(note, str(listing.commit))
    except OSError as error:  # a cache that can only be read; all that is needed is in it
        logger.info("the cache's note of %s is left as it is: %s", revision, error)


def _refuse_path(repo_id: str, path: str) -> None:
    parts = path.replace("\\", "/").split("/")
    if ".." in parts or path.startswith(("/", "\\")) or ":" in parts[0]:
        raise ValueError(f"{repo_id} holds a file named {path!r}, which leaves its folder: refused")


def _is_intact(path: Path, file: HubFile) -> bool:
    if file.size is not None and path.stat().st_size != file.size:
        return False
    expected = file.sha256 or file.git_hash
    if expected is None:
        return True
    digest = hashlib.sha256() if file.sha256 else hashlib.sha1(usedforsecurity=False)
    if not file.sha256:  # as git hashes a blob
        digest.update(f"blob {path.stat().st_size}\0".encode())
    with open(path, "rb") as handle:
        while block := handle.read(2**24):
            digest.update(block)
    return digest.hexdigest() == expected


def _patiently(call: Callable[[], T], what: str) -> T:
    """The call's result; repeated where it may go well the next time."""
    call = partial(_understood, call, what)
    for wait in _WAITS:
        try:
            return call()
        except (HTTPError, RuntimeError) as error:
            if not _may_pass(error):
                raise
            asked = _retry_after(error)
            logger.warning("%s: %s; again in %.0f s", what, _brief(error), asked or wait)
            time.sleep(asked or wait)
    return call()


def _understood(call: Callable[[], T], what: str) -> T:
    """The client takes answers apart as it gets them, whatever their shape."""
    try:
        return call()
    except (TypeError, LookupError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"the Hub's answer to {what} is of an unknown shape ({type(error).__name__}: {error}); "
            "try again later, or another version of huggingface_hub"
        ) from error


def _may_pass(error: BaseException) -> bool:
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in _PASSING
    if isinstance(error, RuntimeError):  # the client's word for an upload that broke off
        return isinstance(error.__cause__, HTTPError) and _may_pass(error.__cause__)
    return isinstance(error, HTTPError)


def _retry_after(error: BaseException) -> float | None:
    response = getattr(error, "response", None)
    asked = response.headers.get("Retry-After", "") if response is not None else ""
    return min(float(asked), 60.0) if asked.isdigit() else None


class _in_a_sentence:
    """Turns what the client raises inside into ValueError: what failed, and what would help."""

    def __init__(self, repo_id: str, doing: str, revision: str | None = None) -> None:
        self.repo_id, self.doing, self.revision = repo_id, doing, revision

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, HTTPError | OSError | RuntimeError | HFValidationError):
            reason = _reason(error, self.repo_id, self.revision)
            raise ValueError(f"cannot {self.doing}: {reason}") from error


def _reason(error: BaseException, repo_id: str, revision: str | None) -> str:
    chain = list(_causes(error))
    page = f"{constants.ENDPOINT}/{repo_id}"
    reasons: dict[type[BaseException], str] = {  # a gated repository is a kind of one not found
        GatedRepoError: f"it is gated; ask for access at {page}, then `hf auth login`",
        RepositoryNotFoundError: "there is no such repository, or it is private and your token "
        "may not read it; check the name, or run `hf auth login`",
        RevisionNotFoundError: f"it has no revision {revision!r}",
        LocalEntryNotFoundError: "it is not in the cache, and the Hub is not asked or not there; "
        "go online once",
        EntryNotFoundError: "it has no such file",
        HFValidationError: "that is no repository id; write 'name/repository'",
    }
    answers = [cause for cause in chain if isinstance(cause, HfHubHTTPError)]
    for kind, reason in reasons.items():
        if any(isinstance(cause, kind) for cause in chain):
            # what is not cached is asked for: the client hides what the Hub said to that
            is_hidden = kind is LocalEntryNotFoundError and answers
            return _of_status(answers[0]) if is_hidden else reason
    for cause in chain:
        if isinstance(cause, HfHubHTTPError):
            return _of_status(cause)
        if isinstance(cause, HTTPError):
            return f"the connection to {constants.ENDPOINT} broke ({_brief(cause)}); try again"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror} ({error.filename or constants.HF_HUB_CACHE})"
    return _brief(error)


def _of_status(error: HfHubHTTPError) -> str:
    code = error.response.status_code
    said = (error.server_message or _brief(error)).strip().rstrip(".")
    return {
        401: f"the Hub does not know your token ({said}); run `hf auth login`, or give `token`",
        403: f"your token may not do that ({said}); use one with write access to the repository",
        412: "others' commits came in between, again and again; push once more",
        409: f"somebody changes the repository at the same time ({said}); run the command again",
        429: "the Hub asks for fewer requests (429); wait a few minutes and try again",
    }.get(code, f"the Hub answered {code} ({said}); try again later")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _brief(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
