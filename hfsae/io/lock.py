"""One process at a time writes into a folder: a lock of the package filelock, and its owner's note;
and one thread at a time loads a model.

The kernel releases the lock at the end of the process, even of a killed one. Both files are deleted
at the end: a finished folder has neither.
"""

import errno
import json
import logging
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import datetime, timezone
from pathlib import Path

from filelock import FileLock, Timeout

from .errors import Refused
from .file_names import IN_USE, IN_USE_LOCK

logger = logging.getLogger(__name__)
# Launchers' variables for a process's rank: rank 0 locks the folder, other ranks share it.
_RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
_POLL_SECONDS = 0.2
_MOST_REMOVALS = 100  # of the folder by others, between its making and its lock

one_at_a_time = threading.RLock()
"""Around the loading of a model. While transformers loads one, it replaces
`PreTrainedModel.tie_weights` for the whole process, then restores the method from before. Two
threads that load at once (sessions of the app, pushes that verify) may restore each other's
replacement: later models are then not tied, and a head that should share the embeddings' weights
has no weights."""
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
    path, note = root / IN_USE_LOCK, root / IN_USE
    lock, seconds, n_removals = FileLock(path, thread_local=False), 0.0, 0
    while not lock.is_locked:
        try:
            root.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=seconds, poll_interval=_POLL_SECONDS)
        except Timeout:
            if not wait:
                raise Refused(
                    f"the folder {root} is in use by {_owner(note)}; wait for its end, or give "
                    "another folder"
                ) from None
            logger.info("waiting for %s, in use by %s", root, _owner(note))
            seconds = -1.0
        except OSError as error:
            if isinstance(error, FileNotFoundError) and n_removals < _MOST_REMOVALS:
                n_removals += 1  # another process has just removed the folder
                continue
            if error.errno in (errno.ENOLCK, errno.EOPNOTSUPP):
                logger.warning(
                    "%s cannot be locked (%s): do not start a second run there before this one "
                    "ends",
                    root,
                    error.strerror,
                )
                break
            raise Refused(
                f"the folder {folder} cannot be made or written to ({error.strerror}); give "
                "another folder"
            ) from error
    token = _mine.set(_mine.get() | {root})
    try:
        note.unlink(missing_ok=True)  # a link in its place is not followed
        since = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
        owner = {"process": os.getpid(), "host": socket.gethostname(), "since": since}
        note.write_text(json.dumps(owner), encoding="utf-8")
        yield
    finally:
        _mine.reset(token)
        for file in (note, path):  # who waits for a deleted lock makes a new one
            with suppress(OSError):
                file.unlink()
        lock.release()
        with suppress(OSError):  # not empty: the block has written there
            for empty in made:
                empty.rmdir()


def _owner(note: Path) -> str:
    try:
        owner = json.loads(note.read_text(encoding="utf-8"))
        words = f"process {owner['process']} on host {owner['host']} since {owner['since']}"
    except (OSError, ValueError, TypeError, KeyError):
        return "another process"
    return words if words.isprintable() else "another process"


def is_first_process() -> bool:
    """Whether this process is the first of its run: by its group, or else by the launcher's
    variables."""
    import torch.distributed as dist  # takes a second

    if dist.is_available() and dist.is_initialized():
        return dist.get_rank() == 0
    return all(os.environ.get(rank, "0") == "0" for rank in _RANKS)
