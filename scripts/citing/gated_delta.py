"""What the heads of a gated delta rule write into their states, and how later positions read it.

    S_t = a_t (1 - b_t k_t k_t^T) S_{t-1} + b_t k_t v_t^T,    o_t = S_t^T q_t

is Qwen3-Next's, with S_t [d_k, d_v] and k_t of unit norm. A matrix M added to S_s changes o_t by
exactly M^T r_t, where r_t^T = q_t^T A_t A_{t-1} ... A_{s+1} with A_u = a_u (1 - b_u k_u k_u^T): as
long as queries, keys and gates stay, which they do, since they are made from the layer's input.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import silu, softplus
from transformers import PreTrainedModel

import hfsae


class Recurrence(NamedTuple):
    """Of a layer's heads; each is [rows, ctx, heads, ...]."""

    queries: Tensor
    """[..., d_k]"""
    writes: Tensor
    """b_t k_t v_t^T [..., d_k, d_v]"""
    kept: Tensor
    """a_t (1 - b_t k_t k_t^T) [..., d_k, d_k]"""


@torch.no_grad()
def recurrence(lm: PreTrainedModel, ids: Tensor, layer: int) -> Recurrence:
    """What a layer's heads write and read on rows of tokens.

    Raises:
        ValueError: the layer has no gated delta rule as Qwen3-Next's.
    """
    mixer: Any = getattr(lm.base_model.layers[layer], "linear_attn", None)
    if not hasattr(mixer, "fix_query_key_value_ordering"):
        raise hfsae.Refused(
            f"layers.{layer} of {type(lm).__name__} has no recurrent state that this script can "
            "read; give a layer with the gated delta rule of Qwen3NextForCausalLM"
        )
    sites = [f"layers.{layer}.linear_attn.in_proj_{name}" for name in ("qkvz", "ba")]
    with hfsae.capture(lm, sites, stop_early=True) as seen:
        lm(input_ids=ids, use_cache=False)
    q, k, v, _, b, a = mixer.fix_query_key_value_ordering(*(seen[site] for site in sites))
    x = mixer.conv1d(torch.cat([part.flatten(2) for part in (q, k, v)], -1).mT)
    q, k, v = silu(x[..., : ids.shape[1]]).mT.split([mixer.key_dim] * 2 + [mixer.value_dim], -1)
    shared = mixer.num_v_heads // mixer.num_k_heads
    q, k = (x.unflatten(-1, (-1, mixer.head_k_dim)).repeat_interleave(shared, 2) for x in (q, k))
    q, k = (x * (x.square().sum(-1, keepdim=True) + 1e-6).rsqrt() for x in (q, k))
    decay = torch.exp(-mixer.A_log.exp() * softplus(a + mixer.dt_bias))[..., None, None]
    beta, v = b.sigmoid()[..., None, None], v.unflatten(-1, (-1, mixer.head_v_dim))
    kept = decay * (torch.eye(k.shape[-1]).to(k) - beta * k[..., None] * k[..., None, :])
    return Recurrence(q / k.shape[-1] ** 0.5, beta * k[..., None] * v[..., None, :], kept)


def states(of: Recurrence) -> Tensor:
    """S_t after each position, [rows, ctx, heads, d_k, d_v]."""
    state, every = torch.zeros_like(of.writes[:, 0]), list[Tensor]()
    for t in range(of.writes.shape[1]):
        state = of.kept[:, t] @ state + of.writes[:, t]
        every.append(state)
    return torch.stack(every, 1)


def matrices(lm: PreTrainedModel, rows: Tensor, documents: Tensor, layer: int) -> dict[str, Tensor]:
    """States and writes of all heads at every eighth position [n, d_k d_v], and documents [n]."""
    parts: dict[str, list[Tensor]] = {"states": [], "writes": [], "document": []}
    for ids, numbers in zip(rows.split(32), documents.split(32), strict=True):
        of = recurrence(lm, ids, layer)
        for name, x in (("states", states(of)), ("writes", of.writes)):
            parts[name].append(x[:, 7::8].flatten(3).flatten(0, 2))
        parts["document"].append(numbers.repeat_interleave(len(parts["writes"][-1]) // len(ids)))
    return {name: torch.cat(part) for name, part in parts.items()}


def reading(of: Recurrence, s: int) -> Tensor:
    """r_t [rows, ctx - s, heads, d_k] of the positions from s on."""
    through, every = torch.eye(of.queries.shape[-1]).to(of.queries), list[Tensor]()
    for t in range(s, of.queries.shape[1]):
        through = of.kept[:, t] @ through if t > s else through
        every.append((of.queries[:, t, :, None] @ through)[..., 0, :])
    return torch.stack(every, 1)


@torch.no_grad()
def divergences(
    lm: PreTrainedModel, ids: Tensor, layer: int, s: int, head: int, changes: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """By name of a change [rows, d_k, d_v] of the head's state at s, the KL [rows, ctx - s] of the
    next token's distribution from the model's own, at s and behind it, in nats."""
    read = reading(recurrence(lm, ids, layer), s)[:, :, head]

    def log_probabilities(change: Tensor | None) -> Tensor:
        def shifted(outputs: Tensor) -> Tensor:  # [rows * ctx * heads, d_v]
            by_head = outputs.clone().view(*ids.shape, -1, outputs.shape[-1])
            if change is not None:
                by_head[:, s:, head] += read @ change
            return by_head.view_as(outputs)

        with hfsae.patch(lm, {f"layers.{layer}.linear_attn.norm:in": shifted}):
            return lm(input_ids=ids, use_cache=False).logits[:, s:].double().log_softmax(-1)

    own = log_probabilities(None)
    others = {name: log_probabilities(change) for name, change in changes.items()}
    return {name: (own.exp() * (own - other)).sum(-1) for name, other in others.items()}
