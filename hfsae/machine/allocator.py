"""The C library's memory: what it keeps of the blocks that are freed."""

import ctypes
import os

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # of glibc's malloc.h
_KEPT, _KEPT_TOGETHER = 2**25, 2**30  # bytes; 32 MiB is the largest value that every glibc accepts
_SETTINGS = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Make this process keep freed blocks of up to 32 MiB for the next tensors, 1 GiB in all;
    returns whether it does.

    By default glibc returns a language model's temporaries to the system, which zeroes them again,
    page by page. Other C libraries and settings in the environment stay unchanged.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is None or any(name in os.environ for name in _SETTINGS):
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _KEPT)) and bool(mallopt(_TRIM_THRESHOLD, _KEPT_TOGETHER))
