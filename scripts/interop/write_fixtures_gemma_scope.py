"""Write the Gemma Scope and Gemma Scope 2 fixtures. Needs the saelens environment.

FOLDER/saelens/bin/python scripts/interop/write_fixtures_gemma_scope.py OUT
writes OUT/gemma_scope/REPOSITORY/... and OUT/gemma_scope_2/REPOSITORY/... with the folders and
file names of the published repositories. No library writes these files, so the tensors are saved
here by hand; the expected numbers come from SAELens' own loaders, which are given these folders
instead of a download.
"""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import sae_lens
import torch
from fixture import D_IN, D_SAE, fresh, inputs, value, write
from huggingface_hub.utils import EntryNotFoundError
from sae_lens.loading import pretrained_sae_loaders as loaders
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

SHAPES = {
    "W_enc": (D_IN, D_SAE),
    "W_dec": (D_SAE, D_IN),
    "b_enc": (D_SAE,),
    "b_dec": (D_IN,),
    "threshold": (D_SAE,),
}


def below(out: Path) -> Callable[[str, str], Path]:
    """Repositories are folders below `out`."""
    return lambda repo, file: out / repo.split("/")[-1] / file


def local(path: Callable[[str, str], Path]) -> None:
    """Let SAELens' loaders take the file at path(repository, file) instead of a download."""

    def download(repo_id: str, filename: str, subfolder: str = "", **_: Any) -> str:
        found = path(repo_id, f"{subfolder}/{filename}" if subfolder else filename)
        if not found.exists():
            raise EntryNotFoundError(f"no {found}")
        return str(found)

    def shapes(repo_id: str, filename: str) -> dict[str, list[int]]:
        with safe_open(path(repo_id, filename), framework="pt") as file:
            return {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118

    loaders.hf_hub_download = download
    loaders.get_safetensors_tensor_shapes = shapes


def tensors(name: str) -> dict[str, Tensor]:
    """The tensors of one SAE; decoder rows have unit norm, as in every release."""
    made = {key: value(name, key, shape) for key, shape in SHAPES.items()}
    made["W_dec"] /= made["W_dec"].norm(dim=-1, keepdim=True)
    return made


@torch.no_grad()
def check(
    folder: Path,
    loader: str,
    repo: str,
    subfolder: str,
    overrides: dict[str, Any],
    heads: int | None = None,
    embedding: bool = False,
) -> None:
    """Load with SAELens and write what it computes.

    For the embedding SAEs, which were trained on embeddings that are not yet multiplied by
    sqrt(d), SAELens rescales W_enc and W_dec (but not b_dec) to take multiplied ones. There,
    `latents_published` and `recon_published` are what the tensors in the file do to `x` itself.
    """

    def convert(path: Any, device: str, cfg_overrides: Any) -> tuple[Any, Any]:
        named = loaders.NAMED_PRETRAINED_SAE_LOADERS[loader]
        return named(repo, subfolder, device, cfg_overrides=dict(overrides))[:2]

    sae = sae_lens.SAE.load_from_disk(folder, converter=convert)
    x = inputs(folder.name)
    shaped = x if heads is None else x.unflatten(-1, (heads, -1))
    latents, recon = sae.encode(shaped), sae(shaped)
    more = {}
    if embedding:
        scale = math.sqrt(D_IN)
        more["latents_published"] = sae.encode(x * scale)
        more["recon_published"] = (sae(x * scale) - sae.b_dec) / scale + sae.b_dec
    write(folder, x, latents, recon if heads is None else recon.flatten(-2), **more)


def gemma_scope(out: Path) -> None:
    """Gemma 2: params.npz and no config."""
    local(below(out))
    size = {"d_in": D_IN, "d_sae": D_SAE}
    for repo, subfolder, loader, more in (
        ("gemma-scope-2b-pt-res", "layer_1/width_16k/average_l0_5", "gemma_2", {}),
        ("gemma-scope-2b-pt-mlp", "layer_1/width_16k/average_l0_6", "gemma_2", {}),
        ("gemma-scope-2b-pt-att", "layer_1/width_16k/average_l0_7", "gemma_2", {"heads": 3}),
        (
            "gemma-scope-2b-pt-transcoders",
            "layer_1/width_16k/average_l0_8",
            "gemma_2_transcoder",
            {},
        ),
        (
            "gemma-scope-2b-pt-res",
            "embedding/width_4k/average_l0_9",
            "gemma_2",
            {"embedding": True},
        ),
    ):
        folder = fresh(out / repo / subfolder)
        made = tensors(f"{repo}/{subfolder}")
        np.savez(folder / "params.npz", **{key: item.numpy() for key, item in made.items()})
        transcoder = {"d_out": D_IN} if "transcoders" in repo else {}
        check(folder, loader, f"google/{repo}", subfolder, size | transcoder, **more)


def gemma_scope_2(out: Path) -> None:
    """Gemma 3: params.safetensors with lower-case names, and config.json."""
    local(below(out))
    repo = "gemma-scope-2-1b-pt"
    layer = "model.layers.1"
    before = f"{layer}.pre_feedforward_layernorm.output"
    after = f"{layer}.post_feedforward_layernorm.output"
    for site, tag, hooks in (
        ("resid_post", "", (f"{layer}.output",)),
        ("attn_out", "", (f"{layer}.self_attn.o_proj.input",)),
        ("mlp_out", "", (after,)),
        ("transcoder", "", (before, after)),
        ("transcoder", "_affine", (before, after)),
    ):
        subfolder = f"{site}/layer_1_width_16k_l0_small{tag}"
        folder = fresh(out / repo / subfolder)
        made = {key.lower(): item for key, item in tensors(f"{repo}/{subfolder}").items()}
        config: dict[str, Any] = {
            "architecture": "jump_relu",
            "model_name": "gemma-v3-1b-pt",
            "hf_hook_point_in": hooks[0],
        }
        if len(hooks) == 2:
            config |= {"hf_hook_point_out": hooks[1], "affine_connection": bool(tag)}
        if tag:
            key = "affine_skip_connection"
            made[key] = value(f"{repo}/{subfolder}", key, (D_IN, D_IN))
        save_file(made, folder / "params.safetensors")
        (folder / "config.json").write_text(json.dumps(config, indent=2))
        check(folder, "gemma_3", f"google/{repo}", subfolder, {})


def main() -> None:
    """Write them all."""
    out = Path(sys.argv[1])
    gemma_scope(out / "gemma_scope")
    gemma_scope_2(out / "gemma_scope_2")


if __name__ == "__main__":
    main()
