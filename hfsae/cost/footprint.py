"""Bytes that a recipe takes, in one process and on disk: counted, stage by stage.

Memory peaks at one of a run's stages: harvesting, estimating scales, a training step, writing a
checkpoint or the trained SAE, evaluation, collecting examples. So memory is listed by stage, and
the largest stage is what a process needs. With a GPU, its memory and main memory are counted apart,
each with its own largest stage.

Sizes are exact (parameters, buckets, batches); how many copies are alive at once was measured on a
CPU (`scripts/bench/plan.py`), where torch allocates and frees as it does on a GPU.
"""

from typing import NamedTuple

import torch
from transformers import AutoModel, PreTrainedModel

from ..activations.cache import SHARD_BYTES
from ..evaluation.fidelity import rows_at_once
from ..features.logit_lens import LENS_EMBEDDING
from ..features.summary import BLOCK_LATENTS, HISTOGRAM_EDGES
from ..lm import widths_of
from ..machine.refused import Refused
from ..models import SAE, SAEConfig
from ..presets.search import PROMPTS, SEEDS, PresetArguments, together
from ..recipe import EmptyLMs, Model, Recipe, bucket_tokens, first_model, probe_arguments
from ..training.kind import SPARSE_BELOW, SPARSE_FROM
from ..training.run import FIRST_LOOK
from ..training.schedules import in_steps
from ..training.sharding import check_spread
from ..training.start import sample_size
from .pace import blocks

Number = int | float
Parts = dict[str, Number]

_FLOAT, _BFLOAT = 4, 2  # bytes
_PYTHON = 0.6e9
_CUDA = 1.0e9  # context, cuBLAS, NCCL and the allocator's waste; an assumption
_COPIES_BESIDE_A_GRADIENT = 3  # of [batch, d_sae], while a matrix's gradient is added to the last
_AUTOCAST_COPIES = 1.0  # more, in bfloat16
_LOOK_COPIES = 2.25  # of pre-activations, while their density is taken
_WORD_COPIES = 2.1  # of the latents that fire on some word, at all words
_BATCH_COPIES = 8  # [batch, d]: input, target, reconstruction, errors, gradients
_SCORES = 2**23  # pairs that a sparse step scores at a time
_ENTRY = 100  # bytes that a sparse step needs for one entry
_ENTRIES_A_FIRING = 2.0  # the kernel's window and the screen select more than fires
_EXAMPLE_TOKEN = 55  # bytes of a token of an example, while tables of them are made
_SHARD_COPIES = 2  # of the cache's shard, while its entries are put together


class Memory(NamedTuple):
    """One process's memory by part, at the stage that needs most."""

    main: Parts
    gpu: Parts
    """empty without a GPU"""


class _Stage(NamedTuple):
    """Memory in use: on the SAE's device, and always in main memory."""

    device: Parts
    main: Parts = {}  # noqa: RUF012 - never written


class _Sizes(NamedTuple):
    """Parameter counts."""

    of_all: list[int]
    """parameters of each SAE"""
    here: int
    """parameters of all SAEs that one process holds"""

    @property
    def largest(self) -> int:
        """Parameters of the largest SAE."""
        return max(self.of_all)


def memory(recipe: Recipe, lm: Model, configs: dict[str, SAEConfig], *, on_gpu: bool) -> Memory:
    """Memory of one process: of process 0, which needs most.

    Raises:
        ValueError: the recipe spreads latents that cannot be spread.
    """
    stages = _stages(recipe, lm, configs, on_gpu)
    if not on_gpu:
        return Memory(max((_joined(s.main, s.device) for s in stages), key=sum_of), {})
    main, gpu = ([part[i] for part in stages] for i in (1, 0))
    with_cuda = [_joined(parts, {"CUDA": _CUDA}) for parts in gpu]
    return Memory(max(main, key=sum_of), max(with_cuda, key=sum_of))


def disk(recipe: Recipe, lm: Model, configs: dict[str, SAEConfig]) -> Parts:
    """Disk space while it runs; at the end checkpoints are removed."""
    t, n = recipe.training, sum(parameters(config)[0] for config in configs.values())
    every = in_steps(t.save_steps, t.total_steps) or t.total_steps
    n_checkpoints = -(-t.total_steps // every)
    if t.save_total_limit is not None:  # one more, while the next is written
        n_checkpoints = min(n_checkpoints, t.save_total_limit + 1)
    parts: Parts = {"checkpoints": 3 * _FLOAT * n * n_checkpoints, "trained SAE": _FLOAT * n}
    if recipe.harvest.cache is not None:
        harvested = t.n_tokens / recipe.shuffle.passes * token_bytes(recipe, lm, configs)
        parts["activation cache"] = min(harvested, 1e9 * recipe.harvest.cache_gb)
    return parts


def lm_dtype(recipe: Recipe, lm: Model) -> torch.dtype:
    """The dtype of activations in this run: the language model's, where "auto" is that of its
    weights; of files float32, the largest that they can have."""
    if (first := first_model(lm)) is None:
        return torch.float32
    dtype = next(iter(recipe.models.values())).dtype
    return first.dtype if dtype == "auto" else getattr(torch, dtype)


def count_of(lm: Model) -> int:
    """The model's parameters, or those of several; 0 without one."""
    if isinstance(lm, EmptyLMs):
        return sum(map(count_of, lm.each.values()))
    return 0 if lm is None else sum(p.numel() for p in lm.parameters())


def token_bytes(recipe: Recipe, lm: Model, configs: dict[str, SAEConfig]) -> int:
    """Bytes of one token's activations at all sites."""
    return sum(widths_of(*configs.values()).values()) * lm_dtype(recipe, lm).itemsize


def parameters(config: SAEConfig, n_processes: int = 1) -> tuple[int, int]:
    """An SAE's parameters: all, and those that one process holds if latents are spread.

    Raises:
        ValueError: torch cannot count so many.
    """
    try:
        with torch.device("meta"):
            sae: SAE = AutoModel.from_config(config)
    except (RuntimeError, TypeError) as error:
        raise Refused(
            f"sae.d_sae {config.d_sae} is more than any machine can hold; 8 to 32 times d_in is "
            "usual"
        ) from error
    every = sum(p.numel() for p in sae.parameters())
    spread = sum(sae.get_parameter(name).numel() for name in sae.latent_dims)
    return every, every - spread + spread // n_processes


def is_spread(recipe: Recipe) -> bool:
    """Whether latents are spread over processes."""
    return recipe.training.shard_latents and (recipe.training.num_processes or 1) > 1


def takes_sparse_steps(recipe: Recipe, config: SAEConfig, *, on_gpu: bool) -> bool:
    """Whether steps are sparse, as far as is known before any activation is seen. Steps on a GPU
    count as dense, which need more memory: there it has not been measured when sparse ones pay."""
    t = recipe.training
    with torch.device("meta"):
        can_be_sparse = AutoModel.from_config(config).can_be_sparse
    if on_gpu or is_spread(recipe) or t.sparse == "never" or not can_be_sparse:
        return False
    if t.sparse == "always":
        return True
    l0 = _l0(config, recipe)
    return config.d_sae >= SPARSE_FROM and l0 < SPARSE_BELOW * config.d_sae


def _l0(config: SAEConfig, recipe: Recipe) -> float:
    """L0 at the start of training, where it is highest: half of all latents, unless kept low."""
    is_steered_there = config.target_l0 is not None and not _has_warm_start(config, recipe)
    return config.d_sae / 2 if is_steered_there else float(config.l0_goal or config.d_sae / 2)


def _has_warm_start(config: SAEConfig, recipe: Recipe) -> bool:
    steps = in_steps(recipe.training.warm_start_steps, recipe.training.total_steps)
    return config.has_thresholds and bool(config.target_l0) and steps > 0


def _stages(recipe: Recipe, lm: Model, configs: dict[str, SAEConfig], on_gpu: bool) -> list[_Stage]:
    n = recipe.training.num_processes or 1
    spread = is_spread(recipe)
    for config in configs.values():
        if spread:
            check_spread(config, n)
    counts = [parameters(config, n if spread else 1) for config in configs.values()]
    sizes = _Sizes([all_ for all_, _ in counts], sum(here for _, here in counts))
    lm_bytes = count_of(lm) * lm_dtype(recipe, lm).itemsize
    always = _Stage(
        {"language model": lm_bytes} if lm_bytes else {}, {"Python and libraries": _PYTHON}
    )
    bucket: Parts = {
        "activation bucket": (1 + recipe.shuffle.prefetch)
        * bucket_tokens(recipe)
        * token_bytes(recipe, lm, configs)
    }
    in_main = not on_gpu or not recipe.shuffle.device.startswith("cuda")
    streaming = _and(always, _Stage({}, bucket) if in_main else _Stage(bucket))
    if n > 1 and not spread:
        streaming = _and(streaming, _Stage({"buckets of gradients": _FLOAT * sizes.here}))
    weights = _Stage({"SAE": _FLOAT * sizes.here})
    trained = _Stage({"SAE, gradients, Adam": 4 * _FLOAT * sizes.here})
    step = max((_step(recipe, c, on_gpu) for c in configs.values()), key=lambda s: sum_of(s.device))
    made = {"SAE as it is made": _FLOAT * (_all(sizes) + sizes.largest / 2)}
    lm = first_model(lm) if recipe.kind == "text" else None  # several run one after the other
    # A file's pages and a copy of them; GGUF is unpacked to float32 first.
    loading = _Stage({}, {"loading the language model": (1 if on_gpu else 2) * lm_bytes})
    return [
        _and(loading, _Stage({}, always.main)),
        _and(always, _Stage({}, made)),
        _and(streaming, trained, _harvest(recipe, lm, configs)),
        _and(streaming, weights, _look(recipe, lm, configs, on_gpu)),
        _and(streaming, trained, step),
        _and(streaming, trained, _checkpoint(sizes, spread)),
        _and(streaming, trained, _folding(sizes, spread)),
        _and(streaming, trained, _folding(sizes, spread), _refit(recipe, configs, spread)),
        _and(always, _Stage({"SAE": _FLOAT * sizes.largest}), _evaluation(recipe, lm, configs)),
        _and(always, _Stage({"SAE": _FLOAT * sizes.largest}), _examples(recipe, lm, configs)),
        _and(always, _Stage({"SAE": _FLOAT * sizes.largest}), _probing(recipe, configs)),
        _and(always, _Stage({"SAE": _FLOAT * sizes.largest}), _presets(recipe, lm)),
    ]


def _harvest(recipe: Recipe, lm: PreTrainedModel | None, configs: dict[str, SAEConfig]) -> _Stage:
    """A block's forward pass, or the exchange of harvested activations, whichever needs more."""
    if lm is None:
        return _Stage(
            {}, {"a block of the file": recipe.activations.block * token_bytes(recipe, lm, configs)}
        )
    rows, context, item = (
        recipe.harvest.rows,
        recipe.text.context_size,
        lm_dtype(recipe, lm).itemsize,
    )
    tokens, n = rows * context, recipe.training.num_processes or 1
    config = lm.config.get_text_config()
    widest = max(max(p.shape) for p in blocks(lm)[0].parameters() if p.ndim > 1)
    mlp = 3 * tokens * widest * item  # gate, up and their product
    attention = 0
    if attention_of(recipe, lm) == "eager":  # scores, soft-capped scores, float32 softmax, its copy
        scores = rows * config.num_attention_heads * context**2
        attention = scores * (3 * item + _FLOAT)
    forward = max(mlp, attention) + 4 * tokens * config.hidden_size * item
    captured = tokens * token_bytes(recipe, lm, configs)
    widest_site = max(max(c.d_in, c.d_out) for c in configs.values())
    gather = (2 * n + 1) * tokens * widest_site * item if n > 1 else 0
    device: Parts = {"one batch of text": 2 * captured + max(forward, gather)}
    if recipe.harvest.cache is None:
        return _Stage(device)
    in_bucket = bucket_tokens(recipe) * token_bytes(recipe, lm, configs)
    shard = min(SHARD_BYTES, in_bucket // n) + captured  # the batch that makes it full
    return _Stage(device, {"activation cache": _SHARD_COPIES * shard})


def _look(recipe: Recipe, lm: Model, configs: dict[str, SAEConfig], on_gpu: bool) -> _Stage:
    """Scales and variances from a sample, then pre-activations of a part of it."""
    n = min(sample_size(recipe.training), bucket_tokens(recipe))
    sample = n * _FLOAT * token_bytes(recipe, lm, configs) // lm_dtype(recipe, lm).itemsize
    copies = 3 if on_gpu else 2
    largest = 0.0
    for config in configs.values():
        work = copies * _FLOAT * n * max(config.d_in, config.d_out)
        if len(config.reads) > 1:  # put side by side first
            work += _FLOAT * n * (config.d_in + (config.d_out if config.is_causal else 0))
        is_looked_at = _has_warm_start(config, recipe) or _may_be_sparse(recipe, config, on_gpu)
        if is_looked_at:
            pre_acts = _FLOAT * min(n, FIRST_LOOK) * config.d_sae
            work = max(work, _LOOK_COPIES * pre_acts)
        largest = max(largest, work)
    return _Stage({"first look at activations": largest}, {"sample of activations": sample})


def _may_be_sparse(recipe: Recipe, config: SAEConfig, on_gpu: bool) -> bool:
    if on_gpu or is_spread(recipe):
        return False
    with torch.device("meta"):
        return AutoModel.from_config(config).can_be_sparse


def _step(recipe: Recipe, config: SAEConfig, on_gpu: bool) -> _Stage:
    """Memory of one SAE's step beyond parameters, gradients and moments."""
    t, n = recipe.training, recipe.training.num_processes or 1
    spread = is_spread(recipe)
    batch = t.batch_size // t.gradient_accumulation_steps // (1 if spread else n)
    inputs = _BATCH_COPIES * _FLOAT * batch * max(config.d_in, config.d_out)
    if takes_sparse_steps(recipe, config, on_gpu=on_gpu):
        return _Stage({"one step, sparse": inputs + _sparse(recipe, config, batch, n)})
    latents = _FLOAT * batch * config.d_sae // (n if spread else 1)
    if spread and config.is_causal:  # latents by source come from all processes, and encoder rows
        latents *= n
        inputs += 2 * _FLOAT * config.d_sae * config.d_in // len(config.reads)
    gradient = _FLOAT * _largest_matrix(config) // (n if spread else 1)
    copies = config.dense_copies
    if t.bf16:
        copies += _AUTOCAST_COPIES
        inputs += _BFLOAT * parameters(config, n if spread else 1)[1]  # of the weights
    work = max(copies * latents, _COPIES_BESIDE_A_GRADIENT * latents + gradient)
    return _Stage({"one step, dense": inputs + work})


def _largest_matrix(config: SAEConfig) -> int:
    """Numbers in the largest of an SAE's matrices."""
    if not config.is_causal:
        return max(config.d_in, config.d_out) * config.d_sae
    n = len(config.reads)  # rows of the first source write everywhere
    return config.d_out * config.d_sae // n


def _sparse(recipe: Recipe, config: SAEConfig, batch: int, n_processes: int) -> Number:
    """See `hfsae.ops.screening`: X and W of the bound, a block of scores and of what they pick."""
    d, d_sae, joined = config.d_in, config.d_sae, 0
    if config.is_causal:  # a source at a time; then the encoder's gradient is put together
        n = len(config.reads)
        d, d_sae, joined = d // n, d_sae // n, _FLOAT * d * d_sae // n
    bound = _BFLOAT * (batch + d_sae) * (d + 4)
    scores = (_BFLOAT + 1) * max(256 * d_sae, _SCORES)
    entries = _ENTRY * _ENTRIES_A_FIRING * batch * min(_l0(config, recipe), d_sae / 2)
    # DDP's gradients are copies of those that a step computes.
    again = _FLOAT * config.d_sae * (d + config.d_out) if n_processes > 1 else 0
    return bound + scores + entries + joined + again


def _checkpoint(sizes: _Sizes, spread: bool) -> _Stage:
    """Weights and moments are written from where they are, or gathered first if they are spread."""
    if not spread:
        return _Stage({})
    matrix = _FLOAT * sizes.largest / 2
    return _Stage({"a matrix put together": 2 * matrix}, {"checkpoint": 3 * _FLOAT * _all(sizes)})


def _folding(sizes: _Sizes, spread: bool) -> _Stage:
    """The trained SAEs, and for one of them the folded state and a copy of its encoder."""
    result = {"folding": _FLOAT * (_all(sizes) + 1.5 * sizes.largest)}
    if spread:
        return _Stage({}, {**result, "SAE put together": _FLOAT * sizes.largest})
    return _Stage(result)


def _refit(recipe: Recipe, configs: dict[str, SAEConfig], spread: bool) -> _Stage:
    """The products of latents, the matrix's factor, and what a part of the activations adds."""
    if recipe.training.refit_ridge is None:
        return _Stage({})
    d_sae = max(config.d_sae for config in configs.values())
    needed: Parts = {"decoder by least squares": 3 * _FLOAT * d_sae**2}
    return _Stage({}, needed) if spread else _Stage(needed)


def _evaluation(
    recipe: Recipe, lm: PreTrainedModel | None, configs: dict[str, SAEConfig]
) -> _Stage:
    """Logits of two arms and five float32 copies of one row of them, or, if logits are capped, a
    copy of the second arm's; before that, latents beside the first arm's."""
    if recipe.sizes.evaluation == 0:
        return _Stage({})
    d_sae = max(config.d_sae for config in configs.values())
    if lm is None or recipe.lms:  # no language model's loss
        return _Stage(
            {"evaluation": _LOOK_COPIES * _FLOAT * recipe.evaluation.sae_batch_tokens * d_sae}
        )
    config = lm.config.get_text_config()
    context, vocabulary = recipe.text.context_size, config.vocab_size
    tokens = recipe.harvest.rows * context
    at_once = min(recipe.harvest.rows, rows_at_once(context, vocabulary)) * context
    logits = at_once * vocabulary * lm_dtype(recipe, lm).itemsize
    capped = logits if getattr(config, "final_logit_softcapping", None) else 0
    comparing = 2 * logits + max(capped, 5 * _FLOAT * context * vocabulary)
    latents = _FLOAT * min(tokens, recipe.evaluation.sae_batch_tokens) * d_sae
    return _Stage({"evaluation": max(comparing, logits + _LOOK_COPIES * latents)})


def _examples(recipe: Recipe, lm: PreTrainedModel | None, configs: dict[str, SAEConfig]) -> _Stage:
    """Memory of each latent's record, beside a block of latents while it grows. At the end,
    promoted tokens: the unembedding and W_dec anew; and tables of examples, in main memory."""
    if recipe.sizes.examples == 0:
        return _Stage({})
    a, largest = recipe.collect, max(configs.values(), key=lambda c: c.d_sae * c.d_out)
    a_window = 16 + _FLOAT * (2 * a.window + 1)  # key, peak, row, position, what is around it
    a_latent = (a.top + a.reservoir) * a_window + _FLOAT * (len(HISTOGRAM_EDGES) - 1) + 8
    kept = largest.d_sae * a_latent
    block = _LOOK_COPIES * _FLOAT * max(BLOCK_LATENTS, recipe.text.context_size * largest.d_sae)
    unembedding = 0
    if lm is not None:
        config = lm.config.get_text_config()
        unembedding = _FLOAT * min(config.vocab_size * config.hidden_size, LENS_EMBEDDING)
    is_input = any(site.endswith(":in") for site in largest.writes.names)
    copies = 2 if is_input else 1  # brought to the residual stream first
    directions = copies * _FLOAT * largest.d_sae * largest.d_out
    work = max(block, directions + unembedding)
    return _Stage({"examples": kept + work}, {"tables of examples": _tables(recipe, largest)})


def _probing(recipe: Recipe, configs: dict[str, SAEConfig]) -> _Stage:
    """Latents and untrained ones at a task's texts, or at words, where at most all latents fire."""
    if recipe.sizes.probing == 0:
        return _Stage({})
    a, d_sae = probe_arguments(recipe), max(config.d_sae for config in configs.values())
    return _Stage({}, {"probing": _FLOAT * d_sae * max(2 * a.n_texts, _WORD_COPIES * a.n_words)})


def _presets(recipe: Recipe, lm: PreTrainedModel | None) -> _Stage:
    """Logits of a batch of steered texts, in float32, and those of the model as it is."""
    if recipe.sizes.presets == 0 or lm is None:
        return _Stage({})
    n, vocabulary = PresetArguments().n_tokens, lm.config.get_text_config().vocab_size
    rows = together(vocabulary, n) * len(PROMPTS) * len(SEEDS)
    return _Stage({"presets": rows * n * vocabulary * (_FLOAT + lm_dtype(recipe, lm).itemsize)})


def _tables(recipe: Recipe, config: SAEConfig) -> Number:
    """Bytes of the tables: limited per latent by rows, and in total by the number of firings."""
    a, n_tokens, context = recipe.collect, recipe.sizes.examples, recipe.text.context_size
    most = min(a.top + a.quantiles * min(a.per_quantile, a.reservoir), -(-n_tokens // context))
    l0 = config.l0_goal or config.d_sae
    n_examples = min(most * config.d_sae, n_tokens * l0)
    ids = 2 * 8 * n_tokens  # of tokens and documents, in batches and concatenated
    return ids + _EXAMPLE_TOKEN * n_examples * min(2 * a.window + 1, context)


def attention_of(recipe: Recipe, lm: Model) -> str | None:
    """The attention implementation that the language model runs with; None without one."""
    if (first := first_model(lm)) is None:
        return None
    given = next(iter(recipe.models.values())).attn_implementation
    return given or first.config._attn_implementation


def _all(sizes: _Sizes) -> int:
    return sum(sizes.of_all)


def _and(*stages: _Stage) -> _Stage:
    device, main = (_joined(*parts) for parts in zip(*stages, strict=True))
    return _Stage(device, main)


def _joined(*each: Parts) -> Parts:
    """Add up parts of the same name."""
    total: Parts = {}
    for parts in each:
        for name, amount in parts.items():
            total[name] = total.get(name, 0) + amount
    return total


def sum_of(parts: Parts) -> Number:
    """All parts together."""
    return sum(parts.values())
