"""A tiny recurrent language model of bytes, which a script of this folder trains itself."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel, Qwen3NextConfig, Qwen3NextForCausalLM

import hfsae

D_K, D_V, N_HEADS, N_LAYERS = 16, 32, 4, 4


def windows(
    texts: Sequence[str], digits: range, ctx: int, most: int | None = None
) -> tuple[Tensor, Tensor]:
    """Bytes [n, ctx], at most so many windows of each document whose number ends in these digits,
    and that number [n]."""
    rows, numbers = list[Tensor](), list[int]()
    for i, text in enumerate(texts):
        raw = torch.tensor([*text.encode()])
        if i % 10 in digits and len(raw) >= ctx:
            own = raw.unfold(0, ctx, ctx)[:most]
            rows, numbers = [*rows, *own], [*numbers, *[i] * len(own)]
    return torch.stack(rows), torch.tensor(numbers)


def trained(rows: Tensor, steps: int) -> PreTrainedModel:
    """Four layers of Qwen3-Next's gated delta rule, without attention, trained on rows of bytes."""
    torch.manual_seed(0)
    config = Qwen3NextConfig(
        vocab_size=256, hidden_size=128, intermediate_size=256, num_hidden_layers=N_LAYERS,
        layer_types=["linear_attention"] * N_LAYERS, mlp_only_layers=[*range(N_LAYERS)],
        linear_num_key_heads=N_HEADS, linear_num_value_heads=N_HEADS, linear_key_head_dim=D_K,
        linear_value_head_dim=D_V, tie_word_embeddings=True,
    )  # fmt: skip
    lm = Qwen3NextForCausalLM(config)
    for layer in lm.base_model.layers:  # steps from .002 to .13: transformers' forget in a token
        torch.nn.init.uniform_(layer.linear_attn.dt_bias, -6, -2)
    optimizer = torch.optim.AdamW(lm.parameters(), betas=(0.9, 0.95), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps)
    for _ in range(steps):
        batch = rows[torch.randint(len(rows), (32,))]
        lm(input_ids=batch, labels=batch, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(lm.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return lm.eval()


@torch.no_grad()
def losses(lm: PreTrainedModel, rows: Tensor, held_out: Tensor, layer: int) -> dict[str, float]:
    """In nats a byte of held-out rows: of the model, of it without what the layer reads from its
    states, and of counts of pairs of bytes, and of bytes, in `rows`."""
    pairs = torch.bincount((rows[:, :-1] * 256 + rows[:, 1:]).flatten(), minlength=65536)
    counts = pairs.view(256, 256) + 0.1
    before, after = held_out[:, :-1].flatten(), held_out[:, 1:].flatten()
    of_pairs, of_bytes = ((c / c.sum(-1, keepdim=True)).log() for c in (counts, counts.sum(0)))
    values = {"bigram": -of_pairs[before, after].mean(), "unigram": -of_bytes[after].mean()}
    values["model"] = lm(input_ids=held_out, labels=held_out, use_cache=False).loss
    with hfsae.patch(lm, {f"layers.{layer}.linear_attn.norm:in": torch.zeros_like}):
        values["no states"] = lm(input_ids=held_out, labels=held_out, use_cache=False).loss
    return {name: float(value) for name, value in values.items()}
