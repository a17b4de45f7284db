"""PyTorch's kernels for matrices of each shape: how many are kept."""

import os

_KEPT = 128
_SETTINGS = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")


def keep_few_kernels() -> None:
    """Make this process keep the kernels of 128 shapes of matrices, in place of 1,024.

    In bfloat16 each number of tokens has its own kernels, of some 0.6 MB a shape, and texts that
    people write have any number. oneDNN keeps half of that once, PyTorch's layer above it the other
    half in each thread. A forward pass needs about seven shapes. Both read their setting before
    their first kernel; what the environment says of them stays.
    """
    for name in _SETTINGS:
        os.environ.setdefault(name, str(_KEPT))
