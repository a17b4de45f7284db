"""Load SAEs in Gemma Scope's formats with SAELens and compare. Needs the saelens environment.

FOLDER/saelens/bin/python scripts/interop/read_gemma_scope.py EXPORTS
finds every folder below EXPORTS that holds params.npz (Gemma Scope), or params.safetensors and
config.json (Gemma Scope 2), and expected.safetensors, and prints one JSON line each: {"name",
"latents", "recon"}, the largest absolute difference between the numbers of SAELens' own loaders and
those in expected.safetensors; or "error". Those loaders tell from published paths what is an SAE
and what a transcoder, which alone can have a skip connection; here the folder's name tells.
"""

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import sae_lens
from fixture import Encoded, report
from sae_lens.loading import pretrained_sae_loaders as loaders
from torch import Tensor
from write_fixtures_gemma_scope import local


def published(folder: Path) -> tuple[str, str, str, dict[str, Any]]:
    """Loader, repository and path as of a published SAE, and what the file overrides of it."""
    transcoder = "transcoder" in folder.name or "skip" in folder.name
    if not (folder / "params.npz").exists():
        kind = "transcoder" if transcoder else "resid_post"
        return "gemma_3", "google/gemma-scope-2-1b-pt", f"{kind}/layer_1_width_16k_l0_small", {}
    with np.load(folder / "params.npz") as arrays:
        (d_in, d_sae), d_out = arrays["W_enc"].shape, arrays["W_dec"].shape[1]
    size = {"d_in": d_in, "d_sae": d_sae}
    path = "layer_1/width_16k/average_l0_5"
    if transcoder:
        repo = "google/gemma-scope-2b-pt-transcoders"
        return "gemma_2_transcoder", repo, path, size | {"d_out": d_out}
    return "gemma_2", "google/gemma-scope-2b-pt-res", path, size


def load(folder: Path) -> Callable[[Tensor], Encoded]:
    """The SAE as SAELens' loader gives it, had these files been published."""
    loader, repo, path, overrides = published(folder)
    local(lambda _, file: folder / Path(file).name)

    def convert(_: Any, device: str, cfg_overrides: Any) -> tuple[Any, Any]:
        named = loaders.NAMED_PRETRAINED_SAE_LOADERS[loader]
        return named(repo, path, device, cfg_overrides=dict(overrides))[:2]

    sae = sae_lens.SAE.load_from_disk(folder, converter=convert)
    return lambda x: (sae.encode(x), sae(x))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    report(Path(sys.argv[1]), load)
