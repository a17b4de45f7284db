"""The tokens that a latent's direction makes more or less likely: the logit lens.

The change of the logits per unit of activation, if it were written to the last residual stream, up
to the final norm's factor for each token. That factor is positive, so the order of the tokens is
exact. The effect of the layers in between is left out.
"""

import re
from collections.abc import Sequence
from contextlib import ExitStack
from copy import deepcopy
from inspect import signature
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..io.errors import Refused
from ..lm import Site, find_module, own_passes
from ..models import SAE

FORMULA = (
    "logits of latent i = W_U (gain * W_dec[i]): W_U is the output embedding, gain the final "
    "norm's (1 + weight in Gemma), W_dec[i] less its mean where that norm is a LayerNorm; where a "
    "sublayer's output is normed before it is added (Gemma 2), times that norm's gain first"
)
_BLOCK_LOGITS = 2**24  # 64 MiB of float32
LENS_EMBEDDING = 2**26
"""numbers of the output embedding that are in float32 at once"""


LensTokens = tuple[
    Int[Tensor, "d_sae k"],
    Float[Tensor, "d_sae k"],
    Int[Tensor, "d_sae k"],
    Float[Tensor, "d_sae k"],
]
"""Promoted tokens and their logits, the most promoted first; and suppressed ones, likewise."""


def lens_tokens(
    lm: PreTrainedModel, directions: Float[Tensor, "d_sae d_model"], k: int, n_vocab: int
) -> LensTokens:
    """The k most promoted and the k most suppressed of the first n_vocab tokens. The embedding is
    brought to float32 piece by piece, since that of a large vocabulary fills memory."""
    W_U = output_embedding(lm)[:n_vocab]
    directions = through_final_norm(lm, directions.to(W_U.device, torch.float32))
    pieces, first = [], 0
    for piece in W_U.split(max(1, LENS_EMBEDDING // W_U.shape[1])):
        embedding, n, blocks = piece.float(), min(k, len(piece)), []
        for block in directions.split(max(1, _BLOCK_LOGITS // len(piece))):
            logits = block @ embedding.T
            most, least = logits.topk(n), logits.topk(n, largest=False)
            blocks.append((most.indices + first, most.values, least.indices + first, least.values))
        pieces.append([torch.cat(column) for column in zip(*blocks, strict=True)])
        first += len(piece)
    promoted, high, suppressed, low = (torch.cat(c, dim=1) for c in zip(*pieces, strict=True))
    most, least = high.topk(min(k, high.shape[1])), low.topk(min(k, low.shape[1]), largest=False)
    promoted, suppressed = promoted.gather(1, most.indices), suppressed.gather(1, least.indices)
    return promoted.cpu(), most.values.cpu(), suppressed.cpu(), least.values.cpu()


@torch.no_grad()
def lens_of(lm: PreTrainedModel, sae: SAE, latent: int, k: int, n_vocab: int) -> LensTokens:
    """`lens_tokens` of one latent, d_sae 1.

    Raises:
        ValueError: the SAE does not write to the residual stream.
    """
    return lens_tokens(lm, written_directions(lm, sae, [latent]), k, n_vocab)


def written_directions(
    lm: PreTrainedModel, sae: SAE, latents: Sequence[int] | slice = slice(None)
) -> Float[Tensor, "n d_model"]:
    """What some latents, or all, write into the residual stream at the last site that they write.

    Raises:
        ValueError: the SAE does not write to the residual stream.
    """
    site, rows = last_written(sae)
    if (directions := residual_directions(lm, rows[latents], site)) is None:
        raise Refused(
            f"site {site!r} does not write to the residual stream, so there is no logit lens; "
            "use an SAE that does, such as one at layers.12"
        )
    return directions


def last_written(sae: SAE) -> tuple[str, Float[Tensor, "d_sae d_site"]]:
    """The last site that an SAE writes at, and its decoder rows there: what reaches the output."""
    return list(sae.split(sae.W_dec).items())[-1]


def residual_directions(
    lm: PreTrainedModel, W_dec: Float[Tensor, "d_sae d_out"], site: str
) -> Float[Tensor, "d_sae d_model"] | None:
    """W_dec as it reaches the residual stream from a site; None if its width differs.

    From the input of a linear map (`layers.12.self_attn.o_proj:in`) it passes through that map, and
    from a sublayer whose output is normed before it is added (Gemma 2), through that norm.
    """
    directions, module = W_dec.detach().float(), find_module(lm, site)
    is_input = Site.parse(site).port == "in"
    if is_input and isinstance(module, nn.Linear | Conv1D):
        weight = module.weight.to(directions)
        directions = directions @ (weight if isinstance(module, Conv1D) else weight.T)
        is_input = False
    if directions.shape[1] != output_embedding(lm).shape[1]:
        return None
    norm = None if is_input else _norm_behind(lm, module)
    return directions if norm is None else _through(norm, directions)


def output_embedding(lm: PreTrainedModel) -> Float[Tensor, "vocab d_model"]:
    """W_U: what the final norm's output is multiplied by, transposed."""
    head = lm.get_output_embeddings()
    if head is None:
        raise Refused(f"{type(lm).__name__} has no output embedding; load a causal LM")
    return head.weight


def through_final_norm(
    lm: PreTrainedModel, directions: Float[Tensor, "n d_model"]
) -> Float[Tensor, "n d_model"]:
    """The directions times the final norm's gain, less their means if that norm subtracts them.

    The norm is probed instead of read: that covers LayerNorm, RMSNorm and Gemma's `1 + weight`.
    """
    # the last one that a pass over one token goes through: families name it differently
    called = _calls(lm, _norms(lm.base_model))
    return _through(called[-1][0], directions) if called else directions


def _through(norm: nn.Module, directions: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    norm = deepcopy(norm).to(directions)
    d_model = directions.shape[1]
    # Of mean 0 and mean square 1e6: the norm's epsilon is negligible beside it.
    probe = torch.tensor([1e3, -1e3]).repeat((d_model + 1) // 2)[:d_model].to(directions)
    gain = (norm(probe) - norm(-probe)) / 2 * probe.sign()
    shift = (norm(probe.abs()) - norm(-probe.abs())) / 2
    if shift.norm() < 1e-2 * gain.norm():
        directions = directions - directions.mean(1, keepdim=True)
    return gain * directions


def _norm_behind(lm: PreTrainedModel, module: nn.Module) -> nn.Module | None:
    """The norm that reads just what a module within a block writes, if its block has one."""
    names = {m: name for name, m in lm.base_model.named_modules()}
    block = re.match(r"(.*?\.\d+\.)", names[module] + ".")
    if block is None or names[module] + "." == block[1]:  # a block's output also bypasses the norm
        return None
    if "residual" in signature(module.forward).parameters:  # Bloom's: they add it themselves
        return None
    norms = [m for m in _norms(lm.base_model) if names[m].startswith(block[1])]
    written = None
    for called, read, output in _calls(lm, [module, *norms]):
        if called is module:
            written = output
        elif written is not None and read is written:
            return called
    return None


def _norms(module: nn.Module) -> list[nn.Module]:
    return [m for m in module.modules() if "norm" in type(m).__name__.lower()]


def _calls(
    lm: PreTrainedModel, modules: Sequence[nn.Module]
) -> list[tuple[nn.Module, Tensor | None, Tensor]]:
    """These modules in the order that a pass over one token calls them, with input and output."""
    calls: list[tuple[nn.Module, Tensor | None, Tensor]] = []
    with own_passes("the norms") as passes, ExitStack() as hooks:

        def note(module: nn.Module, args: tuple, output: Any) -> None:
            if passes.reached():
                read = args[0] if args else None
                calls.append((module, read, output[0] if isinstance(output, tuple) else output))

        for module in modules:
            hooks.callback(module.register_forward_hook(note).remove)
        ids = torch.zeros(1, 1, dtype=torch.long, device=lm.device)
        lm(input_ids=ids, use_cache=False)
    return calls
