"""The tokens that a latent's direction makes likelier or unlikelier: the logit lens.

What one unit of activation would add to the logits if it were written to the last residual stream,
up to the final norm's factor for each token. That is positive: the order of the tokens is exact.
What the layers in between do with the direction is left out.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..lm import Site, find_module, own_passes

FORMULA = (
    "logits of latent i = W_U (gain * W_dec[i]): W_U is the output embedding, gain the final "
    "norm's (1 + weight in Gemma), W_dec[i] less its mean where that norm is a LayerNorm"
)
_BLOCK_LOGITS = 2**24  # 64 MiB of float32


class LensTokens(NamedTuple):
    """Token ids and their logits, the most promoted or most suppressed first."""

    promoted: Int[Tensor, "d_sae k"]
    promoted_logits: Float[Tensor, "d_sae k"]
    suppressed: Int[Tensor, "d_sae k"]
    suppressed_logits: Float[Tensor, "d_sae k"]

    @classmethod
    def none(cls, d_sae: int) -> "LensTokens":
        ids, logits = torch.zeros(d_sae, 0, dtype=torch.long), torch.zeros(d_sae, 0)
        return cls(ids, logits, ids, logits)


def lens_tokens(
    lm: PreTrainedModel, directions: Float[Tensor, "d_sae d_model"], k: int, n_vocab: int
) -> LensTokens:
    """The k most promoted and the k most suppressed of the first n_vocab tokens."""
    W_U = output_embedding(lm)[:n_vocab].float()
    directions = through_final_norm(lm, directions.to(W_U))
    blocks = []
    for block in directions.split(max(1, _BLOCK_LOGITS // len(W_U))):
        logits = block @ W_U.T
        most, least = logits.topk(min(k, len(W_U))), logits.topk(min(k, len(W_U)), largest=False)
        blocks.append((most.indices, most.values, least.indices, least.values))
    return LensTokens(*(torch.cat(column).cpu() for column in zip(*blocks, strict=True)))


def residual_directions(
    lm: PreTrainedModel, W_dec: Float[Tensor, "d_sae d_out"], site: str
) -> Float[Tensor, "d_sae d_model"] | None:
    """W_dec, written at a site, as it reaches the residual stream; None if its width is another.

    From the input of a linear map (`layers.12.self_attn.o_proj:in`) it gets there by that map.
    """
    directions, module = W_dec.detach().float(), find_module(lm, site)
    if Site.parse(site).port == "in" and isinstance(module, nn.Linear | Conv1D):
        weight = module.weight.to(directions)
        directions = directions @ (weight if isinstance(module, Conv1D) else weight.T)
    return directions if directions.shape[1] == output_embedding(lm).shape[1] else None


def output_embedding(lm: PreTrainedModel) -> Float[Tensor, "vocab d_model"]:
    """W_U: what the final norm's output is multiplied by, transposed."""
    head = lm.get_output_embeddings()
    if head is None:
        raise ValueError(f"{type(lm).__name__} has no output embedding; load a causal LM.")
    return head.weight


def through_final_norm(
    lm: PreTrainedModel, directions: Float[Tensor, "n d_model"]
) -> Float[Tensor, "n d_model"]:
    """The directions times the final norm's gain, less their means if that norm takes them off.

    The norm is probed instead of read: that covers LayerNorm, RMSNorm and Gemma's `1 + weight`.
    """
    found = final_norm(lm)
    if found is None:
        return directions
    norm = deepcopy(found).to(directions)
    d_model = directions.shape[1]
    # Of mean 0 and mean square 1e6: what the norm adds to the variance does not show.
    probe = torch.tensor([1e3, -1e3]).repeat((d_model + 1) // 2)[:d_model].to(directions)
    gain = (norm(probe) - norm(-probe)) / 2 * probe.sign()
    shift = (norm(probe.abs()) - norm(-probe.abs())) / 2
    if shift.norm() < 1e-2 * gain.norm():
        directions = directions - directions.mean(1, keepdim=True)
    return gain * directions


def final_norm(lm: PreTrainedModel) -> nn.Module | None:
    """The last norm that a one-token forward pass goes through; families name it differently."""
    with _norms_called(lm.base_model) as called:
        lm(input_ids=torch.zeros(1, 1, dtype=torch.long, device=lm.device), use_cache=False)
    return called[-1] if called else None


@contextmanager
def _norms_called(module: nn.Module) -> Iterator[list[nn.Module]]:
    called: list[nn.Module] = []
    norms = [m for m in module.modules() if "norm" in type(m).__name__.lower()]
    with own_passes() as here, ExitStack() as hooks:

        def note(norm: nn.Module, args: tuple, output: Tensor) -> None:
            if here():
                called.append(norm)

        for norm in norms:
            hooks.callback(norm.register_forward_hook(note).remove)
        yield called
