"""Load SAEs in sparsify's format with sparsify and compare. Needs the sparsify environment.

FOLDER/sparsify/bin/python scripts/interop/read_sparsify.py EXPORTS
finds every folder below EXPORTS that holds sae.safetensors, cfg.json and expected.safetensors, and
prints one JSON line each: {"name", "latents", "recon"}, the largest absolute difference between
sparsify's numbers and those in expected.safetensors; or "error".
"""

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path

from fixture import Encoded, report
from torch import Tensor

with contextlib.redirect_stdout(sys.stderr):  # it prints whether it found Triton
    from sparsify.sparse_coder import SparseCoder


def load(folder: Path) -> Callable[[Tensor], Encoded]:
    """The sparse coder as SparseCoder.load_from_disk gives it; its latents are made dense."""
    sae = SparseCoder.load_from_disk(folder)

    def run(x: Tensor) -> Encoded:
        acts, indices, _ = sae.encode(x)
        latents = x.new_zeros(len(x), sae.num_latents).scatter_(-1, indices, acts)
        if not sae.cfg.multi_topk:
            return latents, sae(x).sae_out
        recon = sae.decode(acts, indices)  # forward would decode the 4k of the extra loss
        return latents, recon if sae.W_skip is None else recon + x @ sae.W_skip.mT

    return run


if __name__ == "__main__":
    report(Path(sys.argv[1]), load)
