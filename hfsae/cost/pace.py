"""How fast this machine does a recipe's work: pieces of the real code, timed on random input.

Nothing is loaded: language models are cut to a block or two without their weights, dictionaries to
a few thousand latents, and times are scaled up in proportion. It takes seconds; the result holds
for a machine that does nothing else.
"""

import copy
import logging
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel

from .. import training
from ..activations import TokenBatch
from ..features import CollectArguments
from ..features.summary import Seen
from ..lm import widths_of
from ..machine.processor import spare_bfloat16_
from ..models import SAEConfig
from ..training import TrainingArguments
from ..training.clusters import residual_clusters_, sizes_of_rounds
from ..training.run import Run
from ..training.start import sample_size

_VOCABULARY = 4096  # of a cut language model
_LATENTS = (4096, 8192)  # of cut dictionaries
_CLUSTERED = 4096  # activations
_ROWS_A_BLOCK = 4
_L0 = 100.0  # for a recipe without a target


class LMPace(NamedTuple):
    """Seconds a token."""

    block: float
    rest: float
    """Of a forward pass without its blocks and its head."""
    head: float
    """The unembedding, and the log-probabilities of its logits."""


@torch.no_grad()
def lm_pace(
    lm: PreTrainedModel,
    dtype: torch.dtype,
    rows: int,
    context: int,
    device: str,
    attention: str | None = None,
) -> LMPace:
    """Of a language model (weights are not looked at) on batches of rows * context tokens; with its
    own attention, if None is named."""
    one, two = (_cut(lm, n, dtype, device, attention) for n in (1, 2))
    ids = torch.randint(0, _VOCABULARY, (rows, context), device=device)
    first, second = (
        _seconds(lambda m=m: m.base_model(input_ids=ids, use_cache=False), device)
        for m in (one, two)
    )
    hidden = one.base_model(input_ids=ids, use_cache=False).last_hidden_state
    head = _seconds(lambda: _log_probs(one, hidden), device)
    vocabulary = lm.config.get_text_config().vocab_size / _VOCABULARY
    block = second - first
    times = (block, max(0.0, first - block), head * vocabulary)
    return LMPace(*(each / ids.numel() for each in times))


def blocks(lm: PreTrainedModel) -> nn.ModuleList:
    """The decoder's."""
    return max((m for m in lm.modules() if isinstance(m, nn.ModuleList)), key=len)


@torch.no_grad()
def _cut(
    lm: PreTrainedModel,
    n_blocks: int,
    dtype: torch.dtype,
    device: str,
    attention: str | None = None,
) -> PreTrainedModel:
    config = copy.deepcopy(lm.config.get_text_config())
    config.num_hidden_layers, config.vocab_size = n_blocks, _VOCABULARY
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(config, name, None)
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:n_blocks]
    named = {"attn_implementation": attention or lm.config._attn_implementation}
    with torch.device("meta"):
        cut = AutoModelForCausalLM.from_config(config, dtype=dtype, **named).eval()
    cut.to_empty(device=device)
    for tensor in (*cut.parameters(), *cut.buffers()):
        tensor.fill_(0.01)  # random numbers would take longer than the products
    spare_bfloat16_(cut)
    return cut


def _log_probs(lm: PreTrainedModel, hidden: torch.Tensor) -> None:
    head = lm.get_output_embeddings()
    assert isinstance(head, nn.Module)
    for logits in head(hidden):
        log_probs = logits.float().log_softmax(-1)
        log_probs.exp()


def step_seconds(config: SAEConfig, args: TrainingArguments, batch: int, device: str) -> float:
    """Seconds of a training step on `batch` activations, at the config's L0."""
    less, more = (min(d, config.d_sae) for d in _LATENTS)
    time_of_more = _step_seconds(_narrowed(config, more), args, batch, device)
    if more == config.d_sae:
        return time_of_more
    time_of_less = _step_seconds(_narrowed(config, less), args, batch, device)
    a_latent = (time_of_more - time_of_less) / (more - less)
    return time_of_more + a_latent * (config.d_sae - more)


def _narrowed(config: SAEConfig, d_sae: int) -> SAEConfig:
    narrow = copy.deepcopy(config)
    narrow.d_sae = d_sae
    if getattr(narrow, "selection", None) == "groupmax" and d_sae < config.d_sae:  # k groups
        narrow.d_sae = max(narrow.k, d_sae // narrow.k * narrow.k)
    if narrow.is_causal:  # as many latents for each source
        narrow.d_sae -= d_sae % len(narrow.reads)
    if narrow.l0_goal is None:
        narrow.target_l0 = min(_L0, d_sae / 8)
    return narrow


def _step_seconds(config: SAEConfig, args: TrainingArguments, batch: int, device: str) -> float:
    args = replace(args, n_tokens=1000 * batch, batch_size=batch, warm_start_steps=0.5)
    # there is a small sample of noise, and no data
    args = replace(args, init_decoder_data=0.0, init_cluster_rounds=0, init_whitening=0.0)
    widths = widths_of(config).items()
    sample = {at: torch.randn(max(batch, 2048), d, device=device) for at, d in widths}
    steps = iter(range(1000))
    with _without_notes():
        run = Run(AutoModel.from_config(config), args, Accelerator(cpu=device == "cpu"))
        run.initialise(sample)
        return _seconds(
            lambda: run.step({k: x[:batch] for k, x in sample.items()}, next(steps)), device
        )


@contextmanager
def _without_notes() -> Iterator[None]:
    """Leave out what a training logs: its lines would be about these few steps."""
    log = logging.getLogger(training.__name__)
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(level)


@torch.no_grad()
def start_seconds(config: SAEConfig, args: TrainingArguments, device: str) -> float:
    """Seconds to find the clusters at which latents start; 0 where they start elsewhere."""
    if not args.init_cluster_rounds:
        return 0.0
    n_latents = min(config.d_sae, _LATENTS[0])
    x, target = (torch.randn(_CLUSTERED, d, device=device) for d in (config.d_in, config.d_out))
    if not config.is_transcoder:
        target = x
    a_round = _seconds(lambda: residual_clusters_(x, target, n_latents, rounds=1), device)
    sizes = sizes_of_rounds(sample_size(args), config.d_sae // 2, args.init_cluster_rounds)
    times = sum(sizes) / _CLUSTERED
    return a_round * times * config.d_sae / n_latents


class SAEPace(NamedTuple):
    """Seconds a token."""

    encode: float
    collect: float
    """Encoding, and keeping the examples of what fires."""


@torch.no_grad()
def sae_pace(config: SAEConfig, args: CollectArguments, context: int, device: str) -> SAEPace:
    """Pace of evaluating and collecting with a trained SAE, on rows of `context` tokens."""
    d_sae, n = min(config.d_sae, _LATENTS[0]), _ROWS_A_BLOCK * context
    l0 = config.l0_goal or _L0
    sae = AutoModel.from_config(_narrowed(config, d_sae)).to(device)
    x = torch.randn(n, config.d_in, device=device)
    latents = torch.where(torch.rand(n, d_sae, device=device) < l0 / config.d_sae, 1.0, 0.0)
    ids = torch.zeros(_ROWS_A_BLOCK, context, dtype=torch.long)
    tokens = TokenBatch(ids, ids == 0, ids)
    row, position = (part.to(device) for part in tokens.keep.nonzero(as_tuple=True))
    sizes = {name: getattr(args, name) for name in ("top", "reservoir", "window")}
    seen = Seen(d_sae, **sizes, seed=0, device=torch.device(device))
    encode = _seconds(lambda: sae.encode(x), device)
    keep = _seconds(lambda: seen.add_block_(latents, row, position, tokens), device)
    size = config.d_sae / d_sae / n
    return SAEPace(encode * size, (encode + keep) * size)


def _seconds(work: Callable[[], object], device: str, *, at_least: float = 0.1) -> float:
    """The median of as many runs as fit into `at_least`, after a warm-up run."""
    times: list[float] = []
    while len(times) < 2 or sum(times) < at_least:
        start = time.perf_counter()
        work()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])
