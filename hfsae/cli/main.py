"""The `hfsae` command. Bad input is one sentence and exit code 2.

The verbs are imported when one is named: what needs no tensors imports no torch.
"""

import ctypes
import errno
import logging
import os
import re
import signal
import sys
import warnings
from importlib import import_module
from importlib.metadata import version
from itertools import pairwise
from textwrap import wrap

from ..io.errors import Refused, one_line
from ..io.files import printable, printable_lines
from ..io.importing import after_importing
from .table import ABOUT_FIELDS, EXAMPLES, VERBS, with_names

_plain_warning = warnings.formatwarning
# Of glibc's malloc.h; 32 MiB is the largest value that every glibc accepts.
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1
_OF_MALLOC = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)


class _PrintableFormatter(logging.Formatter):
    """Plain messages without control characters: they quote files and listings of others."""

    def format(self, record: logging.LogRecord) -> str:
        return printable_lines(super().format(record))


def main(argv: list[str] | None = None) -> int:
    """Run one command: 0 when it is done, 2 for bad input, 130 for Ctrl-C."""
    argv = list(sys.argv[1:] if argv is None else argv)
    warnings.formatwarning = lambda *args, **kwargs: printable_lines(
        _plain_warning(*args, **kwargs)
    )
    argv = [argv[1], "--help"] if argv[:1] == ["help"] and argv[1:] else argv
    try:
        if not argv or argv[0] in ("-h", "--help", "help"):
            print(_help())
        elif argv[0] == "--version":
            print(f"hfsae {version('hfsae')}")
        elif argv[0] in VERBS:
            _prepare(argv)
            getattr(import_module(".verbs", __package__), f"{argv[0]}_verb")(argv[1:])
        else:
            raise Refused(with_names(f"unknown verb {argv[0]!r}", argv[0], list(VERBS)))
    except BrokenPipeError:  # `hfsae show FOLDER | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # and stay silent at exit
    except (ValueError, OSError) as error:
        if os.environ.get("HFSAE_DEBUG"):
            raise
        is_full = isinstance(error, OSError) and error.errno in _FULL  # with a bare message
        remedy = "; make room there, or give a folder that can be written to" if is_full else ""
        print(f"hfsae: error: {printable(one_line(error))}{remedy}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if (error.name or "hfsae").startswith("hfsae"):
            raise
        needs = f"hfsae {argv[0]} needs {error.name}: pip install 'hfsae[train]'"
        print(f"hfsae: error: {needs}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # ignore a second Ctrl-C
        then = VERBS[argv[0]].when_stopped if argv[:1] and argv[0] in VERBS else "nothing ran"
        print(f"hfsae: stopped; {then}", file=sys.stderr)
        return 130
    return 0


def _prepare(argv: list[str]) -> None:
    """Memory, log and variants of a process that does a verb."""
    keep_freed_memory()
    log = logging.StreamHandler()
    log.setFormatter(_PrintableFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[log])
    for noisy in ("httpx", "httpx2", "datasets", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.WARNING)

    def quieten_transformers() -> None:
        import_module("transformers.utils.logging").disable_progress_bar()  # it would hide hfsae's
        for handler in logging.getLogger("transformers").handlers:  # its messages quote configs
            handler.setFormatter(_PrintableFormatter())

    after_importing("transformers.utils.logging", quieten_transformers, own="hfsae")
    # recipes and folders cannot name modules to import: they may come from anybody
    for flag, value in pairwise([*argv, ""]):
        module = value if flag == "--import" and not value.startswith("-") else ""
        if flag.startswith("--import="):
            module = flag.partition("=")[2]
        if module:
            from ..models import register_variants

            register_variants(module)


def _help() -> str:
    lines = [
        "usage: hfsae VERB ... | --version",
        "",
        "Sparse autoencoders as Hugging Face models. `hfsae VERB --help` explains one.",
        "",
    ]
    width = max(map(len, VERBS)) + 2
    for name, verb in VERBS.items():
        head, *rest = wrap(re.split(r"(?<=\.) ", verb.about)[0], 96 - width)
        lines += [f"  {name:<{width}}{head}", *(" " * (width + 2) + line for line in rest)]
    examples = [f"  {example}" for example in EXAMPLES]
    return "\n".join([*lines, "", "examples:", *examples, "", ABOUT_FIELDS])


def keep_freed_memory() -> bool:
    """Make this process keep freed blocks of up to 32 MiB for the next tensors, 1 GiB in all;
    returns whether it does.

    By default glibc returns a language model's temporaries to the system, which zeroes them again,
    page by page. Other C libraries and settings in the environment stay unchanged.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is None or any(name in os.environ for name in _OF_MALLOC):
        return False
    return bool(mallopt(_MMAP_THRESHOLD, 2**25)) and bool(mallopt(_TRIM_THRESHOLD, 2**30))
