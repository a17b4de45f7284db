"""The files beside an SAE's weights: read with a sentence for damage, written whole.

Files may come from anywhere: a JSON or YAML file has a largest size. Text from files goes through
`printable` before it reaches a terminal.

**The lock.** One process at a time writes into a folder: a lock of the package filelock, and its
owner's note; and one thread at a time loads a model.

The kernel releases the lock at the end of the process, even of a killed one. Both files are deleted
at the end: a finished folder has neither.
"""

import errno
import json
import logging
import math
import os
import re
import shutil
import socket
import stat
import threading
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import datetime, timezone
from gzip import GzipFile
from itertools import chain, islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open

from .errors import Damaged, Refused, one_line
from .file_names import (
    CALLS,
    DOCUMENTS,
    IN_USE,
    IN_USE_LOCK,
    MADE_BY,
    RESULT_TENSORS,
    RESULTS,
    in_folder,
)

if TYPE_CHECKING:
    import pyarrow
    from torch import Tensor

T = TypeVar("T")

MAX_TEXT = 2**26  # bytes of a JSON or YAML file; a large evaluation takes a few million
_MAX_DEPTH, _MAX_LISTS = 100, 2**20
_TEXTS = ("promoted_tokens", "suppressed_tokens", "tokens")  # columns with lists of texts
_MISFITS = (LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError)
_KEPT_BY_COMPARISON = (RESULTS, RESULT_TENSORS)
# Temporary names of files, in this file and in the trainer: renamed when they are complete.
_UNFINISHED = re.compile(
    r"\..+\.[0-9a-f]{32}(\.tmp)?|\..+\.(parquet|png)\.tmp|\.tmp-\d+|step-\d+\.tmp-\d+"
)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ValueError: the file is damaged or holds no object; the sentence names it and the remedy.
    """
    content = parse_json(path)
    if not isinstance(content, dict):
        raise Damaged(damaged(path, "not a JSON object"))
    return content


def parse_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        ValueError: it is no JSON file, or too large.
    """
    about = path.stat()
    if not stat.S_ISREG(about.st_mode):  # reading a pipe would wait
        raise Damaged(damaged(path, "not a regular file"))
    if about.st_size > MAX_TEXT:
        why = f"{about.st_size:,} bytes, over the limit of {MAX_TEXT:,}"
        raise Damaged(damaged(path, why))
    try:
        return json_value(path.read_text(encoding="utf-8"))
    except ValueError as error:  # invalid UTF-8 too
        raise Damaged(damaged(path, error)) from error


def json_value(text: str | bytes) -> Any:
    """The value of a JSON text, whose numbers are all finite.

    Raises:
        ValueError: it is no JSON, nested too deeply, or has a number that no float can hold: NaN,
            Infinity, or 1e999.
    """
    try:
        return shallow(json.loads(text, parse_float=_number, parse_constant=_number))
    except RecursionError as error:
        raise Refused("nested too deeply") from error


def shallow(value: Any) -> Any:
    """The value, which functions that call themselves can walk through in little time.

    Raises:
        ValueError: it is nested too deeply, or holds too many lists.
    """
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(_MAX_DEPTH):
        if not level:
            return value
        items = chain.from_iterable(x.values() if isinstance(x, dict) else x for x in level)
        inner = (item for item in items if isinstance(item, dict | list))
        level = list(islice(inner, _MAX_LISTS))
        if len(level) == _MAX_LISTS:  # by a few names that YAML repeats
            raise Refused(f"{_MAX_LISTS:,} lists in lists, or more")
    raise Refused("nested too deeply")


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise Refused(f"the number {text[:20]}, where a finite one must be")
    return value


def json_safe(value: Any) -> Any:
    """The same for JSON: tensors and tuples become lists; numbers that are not finite, which JSON
    has not, None."""
    if isinstance(value, Mapping):
        return {key: json_safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(item) for item in value]
    if hasattr(value, "tolist"):  # of torch or numpy
        return json_safe(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def refuse_special(path: Path) -> None:
    """Check that a path leads to a regular file.

    Raises:
        ValueError: it leads to a pipe or a device, for which reading could wait for ever, or
            nowhere, as links in a circle do.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise Refused(f"{path} cannot be read ({error.strerror}); check it") from error
    if not stat.S_ISREG(mode):
        raise Refused(
            f"{path} is a pipe, a device or another special file; give a regular file, such as a "
            "copy of what it gives"
        )


def numbered_lines(file: IO[bytes] | GzipFile, longest: int) -> Iterator[tuple[int, bytes]]:
    """(number from 1, line) of each line that is not blank.

    Raises:
        ValueError: a line is longer than `longest` bytes; no line fills the memory.
    """
    number = 0
    while line := file.readline(longest + 1):
        number += 1
        if len(line) > longest:
            raise Refused(
                f"line {number} of {file.name} is longer than {longest:,} bytes, the most that is "
                "read of one; shorten it, or break it at the ends of its objects"
            )
        if line.strip():
            yield number, line


def parsed_lines(file: IO[bytes] | GzipFile, longest: int) -> Iterator[tuple[str, Any]]:
    """(its place in words, value) of each line of JSON that is not blank.

    Raises:
        ValueError: a line is not JSON, or longer than `longest` bytes.
    """
    for number, line in numbered_lines(file, longest):
        where = f"line {number} of {file.name}"
        yield where, parsed(line, where)


def parsed(text: bytes, where: str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is not JSON.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Refused(f"{where} is not JSON ({one_line(error)}); put one object there") from error


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, object) of each whole line of a file; one that a killed process left half written is
    passed over."""
    with open(path, "rb") as file:
        for number, text in enumerate(file, 1):
            try:
                line = json.loads(text)
            except (ValueError, RecursionError):
                continue
            if isinstance(line, dict):
                yield number, line


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Around code that interprets a file's content: errors there are reported as damage.

    Raises:
        ValueError: an item is missing, of another type or out of range; the sentence names the file
            and the remedy.
    """
    try:
        yield
    except (ValueError, *_MISFITS) as error:
        if isinstance(error, ValueError) and str(path) in str(error):
            raise  # the sentence already names the file
        why = error if isinstance(error, Refused) else f"{type(error).__name__}: {error}"
        raise Damaged(damaged(path, why)) from error


def parse_yaml(text: str, *, as_texts: bool = False) -> Any:
    """The value of a YAML text: plain values, each key once.

    Args:
        as_texts: every scalar is text, so that 8_77_4 is no number.

    Raises:
        ValueError: the text is not YAML, has a key twice, or is too large.
    """
    import yaml  # a dependency of an extra

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> Any:
            lines: dict[Any, int] = {}
            for key, _ in node.value:
                if not isinstance(key, yaml.ScalarNode) or key.tag.endswith((":merge", ":value")):
                    continue
                line, name = key.start_mark.line + 1, self.construct_object(key)
                if name in lines:
                    both = f"lines {lines[name]} and {line}"
                    where = both if lines[name] != line else f"line {line}"
                    raise Refused(
                        f"the key {key.value!r} appears twice, on {where}; keep one of them"
                    )
                lines[name] = line
            return super().construct_mapping(node, deep)

    if as_texts:
        Loader.yaml_implicit_resolvers = {}
    if len(text) > MAX_TEXT:
        raise Refused(f"{len(text):,} characters, over the limit of {MAX_TEXT:,}")
    try:
        return shallow(yaml.load(text, Loader))
    except RecursionError:
        raise Refused("nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: for example February 30
        raise Refused(one_line(error)) from error
    except (AttributeError, KeyError, TypeError) as error:  # !!bool "maybe", !!timestamp "never"
        raise Refused(f"a value does not match its tag's type ({error})") from error


def printable(text: str) -> str:
    """Text that is safe to print: line ends become ↵; control characters (escape, NUL) and marks
    that reverse or hide text become escape sequences."""
    text = text.replace("\n", "↵")
    return "".join(
        c if c.isprintable() or c in _JOINERS else c.encode("unicode_escape").decode() for c in text
    )


def printable_lines(text: str) -> str:
    """`printable` applied to each line."""
    return "\n".join(map(printable, text.split("\n")))


_JOINERS = "\u200d\u200c"  # in emoji, and in Persian and Indian scripts


def damaged(path: Path, why: object) -> str:
    """The sentence for a file that cannot be read: the reason and the remedy."""
    home, name = in_folder(path)
    verb = MADE_BY.get(name)
    remedy = f"`hfsae {verb} {home}` makes it again" if verb else "restore an intact copy"
    if path.name == Path(CALLS).name:
        remedy = f"delete the line, and `hfsae explain {home}` asks its question again"
    if name == DOCUMENTS:
        remedy = "delete it, and the comparison's command makes it again"
    if name in _KEPT_BY_COMPARISON:
        remedy = (
            "restore an intact copy; without one, delete it: SAEs without weights are trained again"
        )
    return f"{path} is damaged ({why}); {remedy}"


def opened_tensors(path: str | Path) -> Any:
    """An open safetensors file, for `with`: `keys()`, `get_slice(name)`, `get_tensor(name)`,
    `metadata()`.

    Raises:
        SafetensorError, OSError: the file is damaged or cannot be read.
    """
    return safe_open(path, framework="pt")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file, renamed to `path` at the end of the block unless it failed: no reader gets
    half a file, and of several writers at once one wins.

    Raises:
        OSError: the file cannot be written, for example on a full disk; the old file stays.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        open_to_readers(temporary)
        os.replace(temporary, path)
    except (SafetensorError, OSError) as error:
        why = f"{getattr(error, 'strerror', None) or error}; {free_space(path.parent)}"
        raise OSError(
            f"{path} cannot be written ({why}); make room there, or give a writable folder"
        ) from error
    finally:
        with suppress(OSError):  # there may be no folder; the error above reports it
            temporary.unlink()


def passes(path: Path) -> bool:
    """Whether a file or folder has the name of a lock or temporary file, which exists only while
    hfsae works there, or after it was killed."""
    return path.name in (IN_USE, IN_USE_LOCK) or bool(_UNFINISHED.fullmatch(path.name))


def sweep(folder: Path) -> None:
    """Remove temporary files of killed processes from a folder. Lock it first."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if _UNFINISHED.fullmatch(path.name):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def free_space(folder: Path) -> str:
    """The disk's free space, for errors of writing: libraries report a full disk in other words."""
    existing = next((f for f in (folder, *folder.absolute().parents) if f.is_dir()), folder)
    return f"the disk has {shutil.disk_usage(existing).free / 1e6:,.0f} MB free"


def write_whole(path: Path, text: str) -> None:
    """Write a text file; no reader gets half of it."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def read_tensors(path: Path) -> tuple[dict[str, "Tensor"], dict[str, str]]:
    """The tensors and the metadata of a safetensors file.

    Raises:
        ValueError: the file is damaged; the sentence names it and the remedy.
    """
    try:
        with opened_tensors(path) as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise Damaged(damaged(path, error)) from error


def read_table(
    path: Path, columns: Collection[str], filters: list[Any] | None = None
) -> "pyarrow.Table":
    """Columns of a feature store's table; equal texts share their memory.

    Raises:
        ValueError: the file is damaged, or lacks one of them.
    """
    import pyarrow
    import pyarrow.parquet as pq

    check_columns(path, columns)
    try:
        return pq.read_table(
            path, columns=list(columns), filters=filters, read_dictionary=text_columns()
        )
    except (pyarrow.ArrowException, OSError) as error:
        raise Damaged(damaged(path, error)) from error


def table_metadata(path: Path) -> dict[str, str]:
    """The texts that a parquet file's writer put into its schema.

    Raises:
        ValueError: the file is damaged.
    """
    with reading(path):
        metadata = _schema(path).metadata or {}
        return {key.decode(): value.decode() for key, value in metadata.items()}


def columns_of(path: Path) -> list[str]:
    """The names of a table's columns.

    Raises:
        ValueError: the file is damaged.
    """
    return _schema(path).names


def _schema(path: Path) -> "pyarrow.Schema":
    import pyarrow
    import pyarrow.parquet as pq

    try:
        return pq.read_schema(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise Damaged(damaged(path, error)) from error


def text_columns() -> list[str]:
    """pyarrow's names of the columns with texts; the writer may name list elements either way."""
    return [f"{name}.list.{element}" for name in _TEXTS for element in ("element", "item")]


def check_columns(path: Path, columns: Collection[str]) -> None:
    """Check that a parquet file has these columns.

    Raises:
        ValueError: the file is damaged, or lacks one of them.
    """
    names = columns_of(path)
    if missing := [name for name in columns if name not in names]:
        raise Damaged(damaged(path, f"it lacks the columns {', '.join(missing)}"))


def write_tensors(
    path: Path, tensors: Mapping[str, "Tensor"], metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file; no reader gets half of it; equal content gives equal bytes."""
    from safetensors.torch import save_file

    with replacing(path) as temporary:
        save_file({name: t.contiguous() for name, t in tensors.items()}, temporary, metadata)
        with open(temporary, "r+b") as file:  # the library writes metadata in random order
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
            if "__metadata__" in header:
                header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
                text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
                assert len(text) <= length, "the header would run into the tensors"
                file.seek(8)
                file.write(text.ljust(length))


def open_to_readers(path: Path) -> None:
    """Give a file the usual permissions of this user's files: those from safetensors and mkstemp
    are readable by their owner only."""
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    beside.touch()
    try:
        path.chmod(beside.stat().st_mode)
    finally:
        beside.unlink()


def unreadable(path: Path, error: OSError) -> str:
    """The error sentence for a file that cannot be read."""
    return f"{path} cannot be read ({error}); check it"


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
