"""Write the sparsify fixtures, with sparsify's own code. Needs the sparsify environment.

FOLDER/sparsify/bin/python scripts/interop/write_fixtures_sparsify.py OUT
writes OUT/sparsify/NAME/. `run` has the layout of a training run: config.json above a folder for
each hookpoint. Names that start with `refuse_` have no expected.safetensors.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from fixture import D_IN, D_SAE, fill, fresh, inputs, write
from safetensors.torch import load_file, save_file
from sparsify.config import SparseCoderConfig, TrainConfig
from sparsify.sparse_coder import SparseCoder
from torch import Tensor


def computed(sae: SparseCoder, x: Tensor) -> tuple[Tensor, Tensor]:
    """The latents, dense, and the reconstruction from them."""
    acts, indices, _ = sae.encode(x)
    latents = x.new_zeros(len(x), sae.num_latents).scatter_(-1, indices, acts)
    recon = sae.decode(acts, indices)
    if sae.W_skip is not None:
        recon = recon + x @ sae.W_skip.mT
    return latents, recon


@torch.no_grad()
def saved(folder: Path, name: str, **config: Any) -> Path:
    """One sparse coder, saved by sparsify, and what it computes once loaded again."""
    config = {"num_latents": D_SAE, "k": 4} | config
    sae = SparseCoder(D_IN, SparseCoderConfig(**config))
    fill(name, sae)
    if config.get("normalize_decoder", True):
        sae.set_decoder_norm_to_unit_norm()
    fresh(folder)
    sae.save_to_disk(folder)
    check(folder, name)
    return folder


@torch.no_grad()
def check(folder: Path, name: str) -> None:
    """Load, compute, and compare with forward, which is what users call."""
    sae = SparseCoder.load_from_disk(folder)
    x = inputs(name)
    latents, recon = computed(sae, x)
    whole = sae(x)
    more = {}
    if sae.cfg.multi_topk:  # forward then returns the 4k latents of the extra loss
        wide = torch.zeros_like(latents).scatter_(-1, whole.latent_indices, whole.latent_acts)
        more = {"latents_4k": wide, "recon_4k": whole.sae_out}
    else:
        torch.testing.assert_close(whole.sae_out, recon)
    write(folder, x, latents, recon, **more)


def change(folder: Path, **more: Any) -> None:
    """Add keys to cfg.json."""
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps(config | more))


def main() -> None:
    """Write them all."""
    out = Path(sys.argv[1]) / "sparsify"
    for name, config in (
        ("topk", {}),
        ("topk_decoder_norms", {"normalize_decoder": False}),
        ("expansion_factor", {"num_latents": 0, "expansion_factor": 2}),
        ("topk_wide", {"k": 20}),  # k above what is positive
        ("groupmax", {"activation": "groupmax"}),
        ("multi_topk", {"multi_topk": True}),
        ("skip_connection", {"skip_connection": True}),
        ("transcode", {"transcode": True}),
        ("transcode_skip_connection", {"transcode": True, "skip_connection": True}),
    ):
        saved(out / name, name, **config)
    name = "older_signed_false"  # a key of the first releases, dropped on load
    folder = saved(out / name, name)
    change(folder, signed=False)
    check(folder, name)
    folder = fresh(out / "run")
    coder = SparseCoderConfig(num_latents=D_SAE, k=4)
    hookpoints = ["layers.1", "layers.1.mlp"]
    TrainConfig(coder, hookpoints=hookpoints, run_name="run").save_json(folder / "config.json")
    for hookpoint in hookpoints:
        saved(folder / hookpoint, hookpoint)
    folder = saved(out / "refuse_signed", "refuse_signed")
    change(folder, signed=True)
    (folder / "expected.safetensors").unlink()
    folder = saved(out / "refuse_without_decoder", "refuse_without_decoder")
    tensors = load_file(folder / "sae.safetensors")
    del tensors["W_dec"]
    save_file(tensors, folder / "sae.safetensors")
    (folder / "expected.safetensors").unlink()


if __name__ == "__main__":
    main()
