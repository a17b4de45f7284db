"""What the fixture writers and the export readers share. Imported by them, not run.

A fixture is a folder with one SAE in a peer's own files and `expected.safetensors`, which holds
inputs `x` [16, d_in], the `latents` [16, d_sae] and the reconstruction `recon` [16, d_out] that
the peer's code computes after loading those files, all in float32. An export that a reader checks
has the same layout, with `expected.safetensors` computed by hfsae.

Only torch and safetensors are needed, so that each peer's own environment can import this.
"""

import contextlib
import json
import math
import shutil
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

D_IN = 12
D_SAE = 24
D_OUT = 10
ROWS = 16
EXPECTED = "expected.safetensors"

Encoded = tuple[Tensor, Tensor]


def generator(name: str) -> torch.Generator:
    """A random source that depends on the name alone."""
    return torch.Generator().manual_seed(zlib.crc32(name.encode()))


def inputs(name: str, width: int = D_IN, rows: int = ROWS) -> Tensor:
    """Inputs as a residual stream has them: a common offset and norms that differ tenfold."""
    source = generator(name + "/x")
    offset = 0.5 * torch.randn(width, generator=source)
    direction = nn.functional.normalize(torch.randn(rows, width, generator=source), dim=-1)
    norm = math.sqrt(width) * torch.exp(0.6 * torch.randn(rows, 1, generator=source))
    return offset + direction * norm


def value(name: str, key: str, shape: tuple[int, ...]) -> Tensor:
    """Distinctive numbers for one tensor of an SAE, with a scale that suits its name."""
    source = generator(f"{name}/{key}")
    last = key.lower()
    if (len(shape) == 2 and shape == (shape[0], shape[0])) or "skip" in last:
        return 0.2 * torch.randn(shape, generator=source)
    if len(shape) == 2:
        weight = torch.randn(shape, generator=source) / math.sqrt(D_IN)
        if "dec" in last:  # norms per latent between 0.5 and 2, whichever axis the latents are on
            spread = torch.exp(0.4 * torch.randn(D_SAE, generator=source)).clamp(0.5, 2)
            weight = weight * (spread[:, None] if shape[0] == D_SAE else spread)
        return weight
    if "log_threshold" in last:
        return torch.log(0.1 + torch.rand(shape, generator=source))
    if "threshold" in last:
        return 0.1 + torch.rand(shape, generator=source)
    if "r_mag" in last:
        return 0.3 * torch.randn(shape, generator=source)
    return 0.25 * torch.randn(shape, generator=source)


@torch.no_grad()
def fill(name: str, module: nn.Module) -> None:
    """Give every parameter of a peer's module its distinctive numbers."""
    for key, parameter in module.named_parameters():
        parameter.copy_(value(name, key, tuple(parameter.shape)))


def fresh(folder: Path) -> Path:
    """An empty folder."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    return folder


def write(folder: Path, x: Tensor, latents: Tensor, recon: Tensor, **more: Tensor) -> None:
    """Save what the peer computed, after a check that the case can tell right from wrong."""
    latents, recon = latents.detach().float(), recon.detach().float()
    on = (latents != 0).float().mean().item()
    if not 0.02 < on < 0.98:
        raise ValueError(f"{folder}: {on:.0%} of the latents are on, which tests nothing")
    if not (latents.isfinite().all() and recon.isfinite().all()):
        raise ValueError(f"{folder}: not finite")
    tensors = {"x": x, "latents": latents, "recon": recon, **more}
    tensors = {key: tensor.detach().float().contiguous() for key, tensor in tensors.items()}
    save_file(tensors, folder / EXPECTED)
    print(f"{folder.parent.name}/{folder.name}: {on:.0%} on")


def exports(folder: Path) -> Iterator[tuple[Path, dict[str, Tensor]]]:
    """Every folder below this one that has an expected.safetensors, and what it holds."""
    for path in sorted(folder.rglob(EXPECTED)):
        yield path.parent, load_file(path)


def report(folder: Path, load: Callable[[Path], Callable[[Tensor], Encoded]]) -> None:
    """Print one JSON line for each export: how far the peer's numbers are from ours.

    `load` takes a folder and returns a function from inputs to (latents, reconstruction).
    """
    for path, expected in exports(folder):
        line: dict[str, object] = {"name": str(path.relative_to(folder))}
        try:
            # What a library prints goes to stderr, so that stdout holds the lines only.
            with torch.no_grad(), contextlib.redirect_stdout(sys.stderr):
                latents, recon = load(path)(expected["x"])
            for key, found in (("latents", latents), ("recon", recon)):
                if found.shape != expected[key].shape:
                    raise ValueError(
                        f"{key} are {list(found.shape)}, ours {list(expected[key].shape)}"
                    )
                line[key] = (found.float() - expected[key]).abs().max().item()
        except Exception as problem:
            line["error"] = f"{type(problem).__name__}: {problem}"
        print(json.dumps(line))
