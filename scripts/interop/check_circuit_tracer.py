"""Compare hfsae's files for circuit-tracer with what its own classes compute from them.

    pip install --no-deps circuit-tracer==0.5.0      # beside hfsae: its classes need no more
    python scripts/interop/check_circuit_tracer.py

Writes a cross-layer transcoder and a set of transcoders with skip connections; loads them by
circuit-tracer; and has circuit-tracer write the first, for hfsae to read. Prints the
largest differences of latents and of reconstructions, relative to the largest reconstruction, and
exits with status 1 where one is 1e-4 or more.
"""

import importlib.util
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

import hfsae
from hfsae import JumpReLUCLT, JumpReLUCLTConfig, ReLUSAE, ReLUSAEConfig
from hfsae.convert import save_set_as

LAYERS, D, D_SAE, N = 4, 16, 64, 32
READ = [f"layers.{i}.mlp:in" for i in range(LAYERS)]
WRITTEN = [f"layers.{i}.mlp" for i in range(LAYERS)]
MODEL, CPU = "HuggingFaceTB/SmolLM2-135M", torch.device("cpu")
LIMIT = 1e-4

Difference = tuple[str, Tensor, Tensor, Tensor, Tensor]
"""a title; latents and reconstructions of hfsae, then those of circuit-tracer"""


def moved(sae: hfsae.SAE) -> hfsae.SAE:
    """Weights other than those that a start gives, as after training."""
    with torch.no_grad():
        for p in sae.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return sae.eval().folded()


def cross_layer(folder: Path) -> Iterator[Difference]:
    from circuit_tracer.transcoder.cross_layer_transcoder import load_clt

    places = {"sites": READ, "target_sites": WRITTEN, "model_name": MODEL}
    sizes = {"d_in": LAYERS * D, "d_sae": LAYERS * D_SAE, "initial_threshold": 0.3}
    sae = moved(JumpReLUCLT(JumpReLUCLTConfig(**places, **sizes)))
    hfsae.save_as(sae, folder, "circuit_tracer_clt")
    x = torch.randn(LAYERS, N, D)
    side_by_side = torch.cat([*x], dim=-1)
    latents = sae.encode(side_by_side)
    recon = sae.decode(latents)
    for lazy in (True, False):
        theirs = load_clt(str(folder), dtype=torch.float32, device=CPU, lazy_decoder=lazy)
        found = theirs.encode(x)
        wrote = theirs.decode(found)
        of_them = (torch.cat([*found], dim=-1), torch.cat([*wrote], dim=-1))
        yield f"CLT, {'lazy' if lazy else 'whole'}", latents, recon, *of_them
        if not lazy:
            again = folder.with_name("again")
            theirs.to_safetensors(str(again))
            shutil.copy(folder / "config.yaml", again)
            read = hfsae.load(again)
            found = read.encode(side_by_side)
            yield "CLT, written by circuit-tracer", latents, recon, found, read.decode(found)


def transcoders(folder: Path) -> Iterator[Difference]:
    from circuit_tracer.transcoder.single_layer_transcoder import load_relu_transcoder

    saes = []
    for site, target in zip(READ, WRITTEN, strict=True):
        places = {"site": site, "target_site": target, "model_name": MODEL}
        sizes = {"d_in": D, "d_sae": D_SAE, "skip_connection": True}
        saes.append(moved(ReLUSAE(ReLUSAEConfig(**places, **sizes))))
    save_set_as(saes, folder, "circuit_tracer")
    for i, sae in enumerate(saes):
        path, x = folder / f"layer_{i}.safetensors", torch.randn(N, D)
        theirs = load_relu_transcoder(str(path), i, dtype=torch.float32, device=CPU)
        latents, found = sae.encode(x), theirs.encode(x)
        yield f"transcoder {i}", latents, sae.decode(latents, x), found, theirs.decode(found, x)


@torch.no_grad()
def main() -> int:
    torch.manual_seed(0)
    worst = 0.0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "set")
        folder.mkdir()
        made = (*cross_layer(Path(temporary, "clt")), *transcoders(folder))
        for title, *values in made:
            latents, recon, found, wrote = values
            assert (latents > 0).any() and (latents == 0).any()
            pairs, size = ((latents, found), (recon, wrote)), float(recon.abs().max())
            off = [float((own - other).abs().max()) / size for own, other in pairs]
            print(f"{title}: latents {off[0]:.1e}, reconstructions {off[1]:.1e}")
            worst = max(worst, *off)
    return int(worst >= LIMIT)


if __name__ == "__main__":
    if importlib.util.find_spec("circuit_tracer") is None:
        print("circuit-tracer is missing: pip install --no-deps circuit-tracer", file=sys.stderr)
        sys.exit(2)
    sys.exit(main())
