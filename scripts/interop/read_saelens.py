"""Load SAEs in SAELens' format with SAELens and compare. Needs the saelens environment.

FOLDER/saelens/bin/python scripts/interop/read_saelens.py EXPORTS
finds every folder below EXPORTS that holds sae_weights.safetensors, cfg.json and
expected.safetensors, and prints one JSON line each: {"name", "latents", "recon"}, the largest
absolute difference between SAELens' numbers and those in expected.safetensors; or "error".
"""

import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import sae_lens
from fixture import Encoded, report
from torch import Tensor

HEADS = 3  # how inputs are split where an SAE reads the outputs of attention heads


def load(folder: Path) -> Callable[[Tensor], Encoded]:
    """The SAE as SAE.load_from_disk gives it, in float32."""
    return runner(sae_lens.SAE.load_from_disk(folder, dtype="float32"))


def runner(sae: sae_lens.SAE) -> Callable[[Tensor], Encoded]:
    """From inputs to latents and reconstructions, flat."""

    def run(x: Tensor) -> Encoded:
        if sae.cfg.reshape_activations == "hook_z":
            shaped = x.unflatten(-1, (HEADS, -1))
            return sae.encode(shaped), sae(shaped).flatten(-2)
        return sae.encode(x), sae(x)

    return run


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    report(Path(sys.argv[1]), load)
