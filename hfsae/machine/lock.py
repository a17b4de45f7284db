"""One process at a time writes into a folder.

The kernel locks a file in the folder, and releases the lock at the end of the process, even of a
killed one. The file names the owner, who deletes it at the end: a finished folder has no lock file.
"""

import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from .refused import Refused

try:
    import fcntl
except ImportError:  # Windows
    fcntl: Any = None

logger = logging.getLogger(__name__)
NAME = ".in-use"
# Launchers' variables for a process's rank: rank 0 locks the folder, other ranks share it.
_RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
_FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
_POLL_SECONDS = 0.2
_BEYOND = 2**30  # Windows cannot read a locked byte, so the lock is on one beyond the file's end

_mine: ContextVar[frozenset[Path]] = ContextVar("_mine", default=frozenset())


@contextmanager
def locked(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Lock a folder for this process, creating it if needed. A block inside may lock it again.

    Args:
        wait: wait for the release of the lock, instead of raising.

    Raises:
        ValueError: another process or thread holds the lock; or the folder cannot be made or
            written to.
    """
    root = folder.resolve()
    if root in _mine.get() or not is_first_process():
        yield
        return
    made = [p for p in (root, *root.parents) if not p.exists()]
    try:
        file = _acquire(root, wait)
    except OSError as error:
        raise Refused(
            f"the folder {folder} cannot be made or written to ({error.strerror}); give another "
            "folder"
        ) from error
    token = _mine.set(_mine.get() | {root})
    try:
        yield
    finally:
        _mine.reset(token)
        _release(file, root / NAME)
        with suppress(OSError):  # not empty: the block has written there
            for empty in made:
                empty.rmdir()


def is_first_process() -> bool:
    """Whether this process is the first of its run: by its group, or else by the launcher's
    variables."""
    import torch.distributed as dist  # takes a second

    if dist.is_available() and dist.is_initialized():
        return dist.get_rank() == 0
    return all(os.environ.get(rank, "0") == "0" for rank in _RANKS)


def _acquire(root: Path, wait: bool) -> int:
    """Get the lock; returns its open file."""
    has_logged = False
    while True:
        root.mkdir(parents=True, exist_ok=True)
        try:
            file = os.open(root / NAME, _FLAGS, 0o666)
        except FileNotFoundError:  # another process has just removed the folder
            continue
        try:
            has_it = _try(file, root)
            if has_it and _is_still(file, root / NAME):  # else the last owner has deleted it
                _sign(file, root)
                return file
            if not has_it and not wait:
                raise Refused(
                    f"the folder {root} is in use by {_owner(file)}; wait for its end, or give "
                    "another folder"
                )
            if not has_it and not has_logged:
                logger.info("waiting for %s, in use by %s", root, _owner(file))
                has_logged = True
        except BaseException:
            os.close(file)
            raise
        os.close(file)
        time.sleep(0 if has_it else _POLL_SECONDS)


def _try(file: int, root: Path) -> bool:
    """Lock the file if it is free. On a file system without locks: a warning, then True."""
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            _try_on_windows(file)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        logger.warning(
            "%s cannot be locked (%s): do not start a second run there before this one ends",
            root,
            error.strerror,
        )
    return True


def _try_on_windows(file: int) -> None:
    import msvcrt

    api: Any = msvcrt
    os.lseek(file, _BEYOND, os.SEEK_SET)
    api.locking(file, api.LK_NBLCK, 1)


def _is_still(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _sign(file: int, root: Path) -> None:
    before, host = _read(file), socket.gethostname()
    if before.get("host", host) != host:  # some network file systems do not lock between hosts
        logger.warning(
            "%s was in use by %s, which did not end normally: if it is still running, stop one of "
            "the two",
            root,
            _owner(file),
        )
    since = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
    content = json.dumps({"process": os.getpid(), "host": host, "since": since})
    os.ftruncate(file, 0)
    os.lseek(file, 0, os.SEEK_SET)
    os.write(file, content.encode())


def _owner(file: int) -> str:
    owner = _read(file)
    if not owner:
        return "another process"
    return f"process {owner['process']} on host {owner['host']} since {owner['since']}"


def _read(file: int) -> dict[str, str]:
    """The content of a lock file; empty if it is not from `_sign`."""
    os.lseek(file, 0, os.SEEK_SET)
    try:
        content = json.loads(os.read(file, 1000))
        signed = {key: str(content[key]) for key in ("process", "host", "since")}
    except (ValueError, TypeError, KeyError, OSError, RecursionError):
        return {}
    return signed if all(value.isprintable() for value in signed.values()) else {}


def _release(file: int, path: Path) -> None:
    """Delete the file, then unlock it. On Windows the order is reversed: open files stay there."""
    is_ours = _is_still(file, path)  # False if somebody has deleted the folder and made a new one
    if fcntl is None:
        os.close(file)
    if is_ours:
        with suppress(OSError):
            path.unlink()
    if fcntl is not None:
        os.close(file)
