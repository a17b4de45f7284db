"""Processes of a benchmark that end with it, whatever ends it: an error, Ctrl-C, SIGTERM, a closed
terminal, and on Linux SIGKILL."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

_PR_SET_PDEATHSIG = 1  # of Linux's prctl.h: a signal for when the parent is gone
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def end_on_signals() -> None:
    """Leave by an exception, as Ctrl-C does, so that children are ended on the way out."""

    def leave(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)
    # a shell has its background jobs ignore Ctrl-C, and so would a benchmark that it starts there
    signal.signal(signal.SIGINT, signal.default_int_handler)


def start(command: list[str], **options: Any) -> subprocess.Popen:
    """A process for `end`; options are Popen's."""
    parent = os.getpid()

    def follow_parent() -> None:
        if _LIBC is not None:
            # not SIGKILL: a launcher ends its workers on SIGTERM
            _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != parent:
                os._exit(1)

    # A group of its own can be ended as a whole.
    return subprocess.Popen(command, start_new_session=True, preexec_fn=follow_parent, **options)


def end(process: subprocess.Popen) -> None:
    """The process and all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextmanager
def child(command: list[str], **options: Any) -> Iterator[subprocess.Popen]:
    """A process that lives as long as the block."""
    process = start(command, **options)
    try:
        yield process
    finally:
        end(process)


def run(command: list[str], env: dict[str, str]) -> subprocess.CompletedProcess:
    """What a child printed, and how it ended."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with child(command, env=env, text=True, **pipes) as process:
        out, err = process.communicate()
    return subprocess.CompletedProcess(command, process.returncode, out, err)
