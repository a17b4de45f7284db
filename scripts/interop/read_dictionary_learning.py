"""Load SAEs in dictionary_learning's format with it and compare. Needs its environment.

FOLDER/dictionary_learning/bin/python scripts/interop/read_dictionary_learning.py EXPORTS
finds every folder below EXPORTS that holds ae.pt, config.json and expected.safetensors, and prints
one JSON line each: {"name", "latents", "recon"}, the largest absolute difference between the
library's numbers and those in expected.safetensors; or "error".
"""

import sys
from collections.abc import Callable
from pathlib import Path

from dictionary_learning.utils import load_dictionary
from fixture import Encoded, report
from torch import Tensor


def load(folder: Path) -> Callable[[Tensor], Encoded]:
    """The dictionary as load_dictionary gives it, which scales AutoEncoder to unit norms."""
    sae, _ = load_dictionary(str(folder), "cpu")
    return lambda x: (sae.encode(x), sae(x))


if __name__ == "__main__":
    report(Path(sys.argv[1]), load)
