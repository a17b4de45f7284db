"""The files of a repository: listed by one call, fetched by the Hub's own client."""

import glob
import logging
from functools import partial
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError

from ..io.errors import Refused, closest_folders
from ..io.hub_client import HTTPError, hub_error_text, with_retries

logger = logging.getLogger(__name__)


class Listing(NamedTuple):
    """The files of a repository at a commit, or of a folder."""

    repo_id: str
    commit: str | None
    """None: `repo_id` is a folder or a file here"""
    files: dict[str, int | None]
    """path -> bytes, where they are known"""
    revision: str | None = None
    """the requested one; None: the main branch"""
    is_cached: bool = False
    """they are the files in the cache, since the Hub was left out or did not answer"""


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
    with hub_error_text(repo_id, doing, revision):
        if local_files_only or constants.HF_HUB_OFFLINE:
            return _cached_files(repo_id, revision, cache_dir)
        ask = partial(HfApi(token=token).model_info, repo_id, revision=revision)
        try:
            info = with_retries(partial(ask, files_metadata=True), "model_info")
        except HTTPError as error:
            if isinstance(error, HfHubHTTPError) and error.response.status_code < 500:
                raise
            logger.warning("the Hub cannot be reached; looking for %s in the cache", repo_id)
            return _cached_files(repo_id, revision, cache_dir)
        files = {file.rfilename: file.size for file in info.siblings or []}
        return Listing(repo_id, info.sha, files, revision)


def _cached_files(repo_id: str, revision: str | None, cache_dir: str | Path | None) -> Listing:
    where = {"revision": revision, "cache_dir": cache_dir, "local_files_only": True}
    root = Path(snapshot_download(repo_id, allow_patterns=[], **where))  # any part of it will do
    paths = sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())
    return Listing(repo_id, root.name, dict.fromkeys(paths), revision, is_cached=True)


def fetch(
    listing: Listing,
    paths: list[str],
    *,
    whole: bool = False,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Path:
    """Download these files of a repository into the cache; the folder that holds them all.

    Args:
        whole: they are all of an SAE: the cache notes its commit, so that it is found offline.

    Raises:
        ValueError: a file is not allowed or unreachable, or its path leads elsewhere.
    """
    for path in paths:
        refuse_path(listing.repo_id, path)
    get = partial(
        snapshot_download,
        listing.repo_id,
        revision=listing.revision if whole else listing.commit,
        allow_patterns=[glob.escape(path) for path in paths],
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only or listing.is_cached,
    )
    with hub_error_text(listing.repo_id, f"download {listing.repo_id}", listing.revision):
        return Path(with_retries(get, "download"))


def refuse_path(repo_id: str, path: str) -> None:
    """Refuse a file whose path leads out of the download's folder."""
    parts = path.replace("\\", "/").split("/")
    if ".." in parts or path.startswith(("/", "\\")) or ":" in parts[0]:
        raise Refused(f"{repo_id} holds a file named {path!r}, a path outside its folder: refused")
