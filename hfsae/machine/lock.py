"""One process at a time writes into a folder.

The lock is the kernel's, on a file in the folder: it goes with the process, however that ends. In
the file stands who holds it. Whoever holds it deletes it, so that a finished folder has none.
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

import torch.distributed as dist

from .refused import Refused

try:
    import fcntl
except ImportError:  # Windows
    fcntl: Any = None

logger = logging.getLogger(__name__)
NAME = ".in-use"
# Processes of one run share its folder, and the first of them locks it. Launchers name it so.
_RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
_FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
_POLL_SECONDS = 0.2
_BEYOND = 2**30  # on Windows a locked byte cannot be read: so it is one that no file has

_mine: ContextVar[frozenset[Path]] = ContextVar("_mine", default=frozenset())


@contextmanager
def locked(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Lock a folder for this process, creating it if needed. A block inside may lock it again.

    Args:
        wait: wait until the lock is released, instead of raising.

    Raises:
        ValueError: another process holds it, or another thread; or it cannot be made or written
            to. One sentence.
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
            f"the folder {folder} cannot be made or written to ({error.strerror}); give another"
        ) from error
    token = _mine.set(_mine.get() | {root})
    try:
        yield
    finally:
        _mine.reset(token)
        _release(file, root / NAME)
        with suppress(OSError):  # they hold something: what this was for
            for empty in made:
                empty.rmdir()


def is_first_process() -> bool:
    """Of those that share a run: by their group, or before they have met by the launcher's word."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank() == 0
    return all(os.environ.get(rank, "0") == "0" for rank in _RANKS)


def _acquire(root: Path, wait: bool) -> int:
    """The open file of a lock that this process holds."""
    told = False
    while True:
        root.mkdir(parents=True, exist_ok=True)
        try:
            file = os.open(root / NAME, _FLAGS, 0o666)
        except FileNotFoundError:  # whoever made the folder has just removed it
            continue
        try:
            has_it = _try(file, root)
            if has_it and _is_still(file, root / NAME):  # else whoever held it has deleted it
                _sign(file, root)
                return file
            if not has_it and not wait:
                raise Refused(
                    f"the folder {root} is in use by {_owner(file)}; wait until that is done, or "
                    "give another folder"
                )
            if not has_it and not told:
                logger.info("waiting for %s, which is in use by %s", root, _owner(file))
                told = True
        except BaseException:
            os.close(file)
            raise
        os.close(file)
        time.sleep(0 if has_it else _POLL_SECONDS)


def _try(file: int, root: Path) -> bool:
    """Lock the file, if nobody has; on a file system without locks, say so and go on."""
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            _try_on_windows(file)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        logger.warning(
            "%s cannot be locked (%s): start no second run there while this one lasts",
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
    if before.get("host", host) != host:  # not every network file system locks between hosts
        logger.warning(
            "%s was in use by %s, which did not end in order: if that is still running, stop one "
            "of the two",
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
    """What stands in a lock's file; nothing, if that is not what `_sign` writes."""
    os.lseek(file, 0, os.SEEK_SET)
    try:
        found = json.loads(os.read(file, 1000))
        signed = {key: str(found[key]) for key in ("process", "host", "since")}
    except (ValueError, TypeError, KeyError, OSError, RecursionError):
        return {}
    return signed if all(value.isprintable() for value in signed.values()) else {}


def _release(file: int, path: Path) -> None:
    """Delete the file while no other can have it. Windows deletes no open file, so it is last."""
    is_ours = _is_still(file, path)  # not where somebody has deleted and made the folder again
    if fcntl is None:
        os.close(file)
    if is_ours:
        with suppress(OSError):
            path.unlink()
    if fcntl is not None:
        os.close(file)
