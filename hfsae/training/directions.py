"""Known directions in which decoder rows start, such as those of concepts (DACO, arXiv:2604.08846).

The file: one safetensors tensor, [n, d_out] or [d_out], raw units, and in its metadata `labels`, a
JSON list of n names; without it, latents get no names. `hfsae.save_steering_vector` writes such
files.
"""

import json
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from ..io.errors import Refused
from ..io.files import read_tensors
from ..io.labels import checked_label
from ..models import SAE, SAEConfig
from .sharding import local, part, whole

DIRECTIONS = "directions"
"""Key of training.json: the names of the directions, and the cosines of rows with them."""


def read_directions(path: str, config: SAEConfig) -> tuple[Float[Tensor, "n d_out"], list[str]]:
    """The directions of a file, float32 and raw units, and the label of each, or no labels.

    Raises:
        ValueError: the file cannot be read, or it does not fit the SAE.
    """
    what = f"training.init_decoder {path!r}"
    if not Path(path).is_file():
        raise Refused(f"{what} is not a file; give a .safetensors file of directions")
    tensors, metadata = read_tensors(Path(path))
    x = next(iter(tensors.values()), torch.empty(0))
    if len(tensors) != 1 or x.ndim not in (1, 2) or not x.is_floating_point():
        shapes = ", ".join(f"{name} {[*tensor.shape]}" for name, tensor in tensors.items())
        raise Refused(f"{what} has {shapes or 'no tensor'}; give one of numbers, [n, d] or [d]")
    x = x.float().reshape(-1, x.shape[-1])
    d_out = config.d_out or config.d_in
    if config.is_causal and config.has_several_sites:
        raise Refused(
            f"{what} has directions for decoder rows, and those of a {config.model_type} write at "
            "later sites alone, each at others; leave it out"
        )
    if x.shape[1] != d_out:
        raise Refused(f"{what} has directions of width {x.shape[1]}, and the SAE writes {d_out}")
    if not 0 < len(x) <= config.d_sae:
        raise Refused(
            f"{what} has {len(x)} directions, and sae.d_sae is {config.d_sae}; give 1 to d_sae"
        )
    if not x.isfinite().all() or not x.any(dim=1).all():
        raise Refused(f"{what} has a direction that is zero or not finite; leave it out")
    try:
        labels = json.loads(metadata.get("labels", "[]"))
        labels = [checked_label(label).strip() for label in labels]
    except (ValueError, TypeError) as error:
        raise Refused(f"the labels of {what} are no JSON list of names ({error})") from error
    if labels and len(labels) != len(x):
        raise Refused(f"{what} has {len(labels)} labels for {len(x)} directions; give each one")
    return x, labels


@torch.no_grad()
def start_at_(sae: SAE, x: Float[Tensor, "n d_out"]) -> None:
    """Turn the first n decoder rows to directions, raw units, and the encoder's rows with them but
    in a transcoder, which reads something else. Norms stay as they were."""
    scale, n = sae.write_scale, len(x)
    turned = normalize(x.to(sae.W_dec.device) / (whole(scale) if isinstance(scale, Tensor) else 1))
    decoder, encoder = sae.decoder_rows().detach(), sae.encoder_rows().detach()
    rows, read = whole(decoder).clone(), whole(encoder).clone()
    rows[:n] = (sae.row_norms(rows[:n]) / sae.row_norms(turned))[:, None] * turned
    local(decoder).copy_(part(rows, like=decoder))
    if not sae.config.is_transcoder:
        read[:n] = read[:n].norm(dim=1, keepdim=True) * turned
        local(encoder).copy_(part(read, like=encoder))


@torch.no_grad()
def cosines(sae: SAE, x: Float[Tensor, "n d_out"]) -> list[float]:
    """Of the first n decoder rows of a folded SAE with the directions in which they started."""
    rows = sae.decoder_rows()[: len(x)].float().cpu()
    return [round(value, 4) for value in cosine_similarity(rows, x, dim=1).tolist()]
