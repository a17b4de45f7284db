"""How fast a GPU elsewhere would do a recipe's work: by formula, never measured.

The work is counted: floating-point operations of matrix products, and bytes that move through
memory, between cards, or between a card and main memory. It is divided by an assumed share of a
card's published figures (`Card.assumptions`). Expect the right order of magnitude, and ratios
between recipes; not the right minute.
"""

import torch
from transformers import PreTrainedModel

from ..features import CollectArguments
from ..models import SAEConfig
from ..training import TrainingArguments
from ..training.clusters import sizes_of_rounds
from ..training.start import sample_size
from .cards import HOST, LINK_SHARE, LM_SHARE, MEMORY_SHARE, SAE_SHARE, Card
from .pace import LMPace, SAEPace, blocks

_FLOAT = 4

# Reads and writes outside matrix products, counted from the code.
_STEP_A_LATENT = 24  # of [batch, d_sae]: bias, comparisons, STE kernels and their gradients, counts
_STEP_A_PARAMETER = 14  # gradient cleared and added to, projection, Adam 7, norms
_LOOK_A_LATENT = 6  # of [tokens, d_sae] in encoding
_COLLECT_A_LATENT = 20
_EAGER_A_SCORE = 40  # bytes of [heads, ctx, ctx]: scale, soft cap, mask, float32 softmax
_A_LOGIT = 24  # bytes: soft cap, float32 log-probabilities, their exponentials


def lm_pace(
    lm: PreTrainedModel,
    dtype: torch.dtype,
    rows: int,
    context: int,
    attention: str | None,
    on: Card,
) -> LMPace:
    """Two operations per parameter and token, attention's products, and eager attention's
    traffic."""
    config, block = lm.config.get_text_config(), blocks(lm)[0]
    peak = LM_SHARE * (on.float32 if dtype == torch.float32 else on.bf16)
    bandwidth = MEMORY_SHARE * on.bandwidth
    n_block = sum(p.numel() for p in block.parameters() if p.ndim > 1)
    heads, d = config.num_attention_heads, config.hidden_size
    head_dim = getattr(config, "head_dim", None) or d // heads
    products = 2 * n_block + 4 * context * heads * head_dim
    read_each_time = n_block * dtype.itemsize / (rows * context)
    moved = read_each_time + 20 * d * dtype.itemsize  # norms and residual sums
    if attention == "eager":
        moved += _EAGER_A_SCORE * heads * context
    n_head = d * config.vocab_size
    return LMPace(
        block=products / peak + moved / bandwidth,
        rest=4 * d * dtype.itemsize / bandwidth,
        head=2 * n_head / peak + _A_LOGIT * config.vocab_size / bandwidth,
    )


def step_seconds(config: SAEConfig, n_here: int, args: TrainingArguments, on: Card) -> float:
    """Seconds of one dense step: an upper bound, since sparse steps are unmeasured on GPUs.

    Args:
        n_here: parameters of the SAE that one process holds.
    """
    n = args.num_processes or 1
    spread = n if args.shard_latents else 1
    batch, d_sae = args.batch_size / (1 if args.shard_latents else n), config.d_sae / spread
    # Forward, one product per matrix; backward, one for each matrix, one for what is between them,
    # and one more for b_dec where it is subtracted from the input.
    widths = 2 * config.d_in + 3 * config.d_out + (config.d_in if config.subtract_b_dec else 0)
    peak = SAE_SHARE * (on.bf16 if args.bf16 else on.float32)
    moved = _FLOAT * (_STEP_A_LATENT * batch * d_sae + _STEP_A_PARAMETER * n_here)
    if args.shard_latents:  # the reconstruction is summed, its gradient and the batch are shared
        crossing = _FLOAT * batch * (2 * config.d_out + config.d_in)
        if config.is_causal:  # latents by source, and encoder rows, there and back
            rows = 2 * config.d_in / len(config.reads)
            crossing += _FLOAT * config.d_sae * (rows + 2 * batch)
    else:
        crossing = 2 * _FLOAT * n_here
    return (
        2 * batch * d_sae * widths / peak
        + moved / (MEMORY_SHARE * on.bandwidth)
        + crossing * (n - 1) / n / (LINK_SHARE * on.link)
    )


def start_seconds(config: SAEConfig, args: TrainingArguments, on: Card) -> float:
    """Seconds of the products that find the clusters at which latents start."""
    rows = sum(sizes_of_rounds(sample_size(args), config.d_sae // 2, args.init_cluster_rounds))
    return 2 * rows * config.d_sae * config.d_in / (SAE_SHARE * on.bf16)


def sae_pace(config: SAEConfig, args: CollectArguments, context: int, on: Card) -> SAEPace:
    """Seconds per token to run a trained SAE: float32, a product each way, passes over latents."""
    products = 2 * config.d_sae * (config.d_in + config.d_out) / (SAE_SHARE * on.float32)
    a_pass = _FLOAT * config.d_sae / (MEMORY_SHARE * on.bandwidth)
    encode = products + _LOOK_A_LATENT * a_pass
    return SAEPace(encode, encode + _COLLECT_A_LATENT * a_pass)


def exchange_seconds(token_bytes: int, n: int, in_main_memory: bool, on: Card) -> float:
    """Seconds per harvested token: to all n processes, and there into the bucket."""
    crossing = token_bytes * (n - 1) / n / (LINK_SHARE * on.link)
    return crossing + token_bytes / (HOST if in_main_memory else MEMORY_SHARE * on.bandwidth)


def draw_seconds(token_bytes: int, itemsize: int, n: int, in_main_memory: bool, on: Card) -> float:
    """Seconds per activation to train on: each process draws its share, in float32."""
    moved = (token_bytes + 2 * _FLOAT * token_bytes / itemsize) / n
    return moved / (HOST if in_main_memory else MEMORY_SHARE * on.bandwidth)
