"""The values from which training starts: the unit of activations, the bias, encoder and decoder.

Defaults are the paper's. Short runs gain from other ones (scripts/recipes/README.md).
"""

import torch
from jaxtyping import Float
from torch import Tensor

from ..machine.refused import Refused
from ..models import SAE
from .arguments import TrainingArguments
from .readings import root_mean_square_norm
from .sharding import local, part, whole


@torch.no_grad()
def start_(
    sae: SAE, args: TrainingArguments, x: Float[Tensor, "n d_in"], target: Float[Tensor, "n d_out"]
) -> float:
    """Set what is estimated from a sample of activations, raw units.

    Returns:
        The variance of the target: mean of |target - its mean|^2 / c^2.
    """
    config, means = sae.config, (x.mean(dim=0), target.mean(dim=0))
    centred = x - means[0], target - means[1]
    sized = centred if args.unit == "spread" else (x, target)
    if config.activation_scale is None:
        config.activation_scale = root_mean_square_norm(sized[0])
    if config.is_transcoder and config.target_scale is None:
        config.target_scale = root_mean_square_norm(sized[1])
    if args.init_b_dec == "mean":
        sae.b_dec.copy_(means[1] / sae.scale)
    if args.init_decoder == "data":
        _take_rows_(sae, *map(whole, centred))
    if args.init_encoder_scale != 1:
        sae.W_enc.mul_(args.init_encoder_scale)
    return float(centred[1].square().sum(-1).mean()) / sae.scale**2


def _take_rows_(sae: SAE, x: Float[Tensor, "n d_in"], target: Float[Tensor, "n d_out"]) -> None:
    """Let each latent point to a token of the sample: its decoder row to the target less its mean,
    its encoder column to the input less its mean. Norms stay as they were."""
    d_sae = sae.config.d_sae
    if len(x) < d_sae:
        raise Refused(
            f"training.init_decoder='data' takes {d_sae} rows from a sample, which has {len(x)} "
            "activations; leave it 'random'"
        )
    for weight, rows in ((sae.W_dec, target), (sae.W_enc.T, x)):
        weight = weight.detach()
        norms = whole(weight).norm(dim=1, keepdim=True)
        rows = rows[:d_sae] / rows[:d_sae].norm(dim=1, keepdim=True).clamp(min=1e-12)
        local(weight).copy_(part(norms * rows, like=weight))
