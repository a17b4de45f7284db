"""Download whole files from the Hub and compare checksums; a damaged file is fetched again."""

import hashlib
import logging
from functools import partial
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    RevisionNotFoundError,
)

from ..machine.client import HTTPError, in_a_sentence, patiently
from ..machine.files import write_whole
from ..machine.refused import Refused, closest_folders

logger = logging.getLogger(__name__)


class HubFile(NamedTuple):
    path: str
    size: int | None
    sha256: str | None
    """of a file in LFS; None for others"""
    git_hash: str | None
    """git's hash of any other file. The Hub's client compares neither, only sizes"""


class Listing(NamedTuple):
    """The files of a repository at a commit."""

    repo_id: str
    commit: str | None
    files: list[HubFile]
    revision: str | None = None
    """the requested one; None: the main branch"""


def download(api: HfApi, repo_id: str, path: str, revision: str | None) -> Path:
    """A file on a branch; for a branch that does not exist yet, main's."""
    get = partial(api.hf_hub_download, repo_id, path)
    try:
        return Path(patiently(lambda: get(revision=revision), "download"))
    except RevisionNotFoundError:
        return Path(patiently(get, "download"))


def list_files(
    repo_id: str,
    *,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Listing:
    """The listing of a repository, from one call; offline, of the files in the cache.

    Raises:
        ValueError: the repository does not exist, is not allowed, or is unreachable.
    """
    doing = f"read {repo_id} (not a local folder{closest_folders(repo_id)})"
    with in_a_sentence(repo_id, doing, revision):
        if local_files_only or constants.HF_HUB_OFFLINE:
            return _list_cached(repo_id, revision, cache_dir)
        ask = partial(HfApi(token=token).model_info, repo_id, revision=revision)
        try:
            info = patiently(lambda: ask(files_metadata=True), "model_info")
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
            raise Refused(
                f"the Hub's listing of {repo_id} has an invalid entry: {junk}; try again later"
            )
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
    """Download these files of a repository into the cache; the folder that holds them all.

    Raises:
        ValueError: a file is not allowed, unreachable, or damaged on the way. A file whose
            checksum differs from the Hub's is not kept.
    """
    files = {file.path: file for file in listing.files}
    root = Path()
    for path in paths:
        refuse_path(listing.repo_id, path)
        with in_a_sentence(listing.repo_id, f"download {path} of {listing.repo_id}"):

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

            copy = patiently(get, path)
            if not _is_intact(copy, files[path]):
                copy = patiently(lambda: get(force=True), path)
                if not _is_intact(copy, files[path]):
                    copy.resolve().unlink()
                    raise Refused(
                        f"{path} of {listing.repo_id} arrives damaged: its checksum is not the "
                        "Hub's; try again later, or over another connection"
                    )
            root = copy.parents[path.count("/")]
    return root


def remember_revision(listing: Listing, root: Path) -> None:
    """Note in the cache which commit a branch is at, once all of an SAE's files are in `root`.

    The Hub's client does so for files fetched by branch. `fetch` names the commit, and without the
    note the SAE would not be found offline.
    """
    revision = listing.revision or constants.DEFAULT_REVISION
    note = root.parents[1] / "refs" / revision
    if revision == listing.commit or (note.is_file() and note.read_text() == listing.commit):
        return
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        write_whole(note, str(listing.commit))
    except OSError as error:  # a read-only cache; the files themselves are there
        logger.info("the cache's note of %s is left as it is: %s", revision, error)


def refuse_path(repo_id: str, path: str) -> None:
    """Refuse a file whose path leads out of the download's folder."""
    parts = path.replace("\\", "/").split("/")
    if ".." in parts or path.startswith(("/", "\\")) or ":" in parts[0]:
        raise Refused(f"{repo_id} holds a file named {path!r}, a path outside its folder: refused")


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
