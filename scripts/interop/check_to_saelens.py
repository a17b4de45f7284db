"""Compare sae.to_saelens() with the SAE. Needs the saelens environment, and hfsae importable in it.

PYTHONPATH=. FOLDER/saelens/bin/python scripts/interop/check_to_saelens.py SAES
finds every folder below SAES that holds an SAE in hfsae's own format and expected.safetensors, and
prints one JSON line each: {"name", "latents", "recon"}, the largest absolute difference between the
numbers of the sae_lens.SAE and those in expected.safetensors; or "error".
"""

import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import sae_lens
from fixture import Encoded, report
from read_saelens import runner
from torch import Tensor
from transformers import AutoModel

import hfsae


def load(folder: Path) -> Callable[[Tensor], Encoded]:
    """What to_saelens() returns."""
    sae = AutoModel.from_pretrained(folder)
    if not isinstance(sae, hfsae.SAE):
        raise TypeError(f"{folder} holds a {type(sae).__name__}")
    made = sae.to_saelens()
    if not isinstance(made, sae_lens.SAE):
        raise TypeError(f"to_saelens() returned a {type(made).__name__}")
    return runner(made)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    report(Path(sys.argv[1]), load)
