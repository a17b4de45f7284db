"""Run SAEs in OpenAI's format as its package does and compare. Needs only torch and safetensors.

python scripts/interop/read_openai.py EXPORTS
finds every folder below EXPORTS that holds a .pt file and expected.safetensors, and prints one JSON
line each: {"name", "latents", "recon"}, the largest absolute difference between the published
forward pass, as write_fixtures_openai.py restates it, and expected.safetensors; or "error".
"""

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from fixture import Encoded, report
from torch import Tensor
from write_fixtures_openai import computed


def load(folder: Path) -> Callable[[Tensor], Encoded]:
    """The published forward pass of the one state dict in the folder."""
    (file,) = folder.glob("*.pt")
    tensors = torch.load(file, weights_only=True)
    return lambda x: computed(tensors, x)


if __name__ == "__main__":
    report(Path(sys.argv[1]), load)
