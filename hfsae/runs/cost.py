"""The cost of a recipe before anything is loaded or written: memory, stage by stage, and disk.

Memory peaks at one of a run's stages: harvesting, estimating scales, a training step, writing a
checkpoint or the trained SAE, evaluation, collecting examples; probing and presets need less. So
the largest arrays of each stage are counted, and the largest stage is what a process needs. With a
GPU, its memory and main memory are counted apart, each with its own largest stage.

Sizes are exact (parameters, buckets, batches); how many copies are alive at once was measured on a
CPU (`scripts/bench/plan.py`), where torch allocates and frees as it does on a GPU. Seconds are not
predicted: they depend on the machine, and a run shows them after its first steps.
"""

import copy
import logging
import os
from typing import Literal, NamedTuple

import torch
from torch import nn
from transformers import AutoModel

from ..activations import check_files
from ..evaluation.arguments import PREDICTIONS_AT_ONCE, rows_at_once
from ..features.logit_lens import LENS_EMBEDDING
from ..features.summary import BLOCK_LATENTS, HISTOGRAM_EDGES
from ..io.errors import Refused
from ..io.processor import gpu_memory, main_memory
from ..lm import widths_of
from ..models import SAE, SAEConfig
from ..training.arguments import in_steps
from ..training.run import SPARSE_BELOW, SPARSE_FROM
from ..training.sharding import check_spread
from ..training.start import sample_size
from .checks import check, with_lone_site
from .inputs import Models
from .recipe import Recipe, bucket_tokens
from .results import refuse_another_training

logger = logging.getLogger(__name__)
Number = int | float
Parts = dict[str, Number]
Memory = tuple[Parts, Parts]
"""one process's main memory by part, and that of its GPU, empty without one: of a stage, or at the
stages that need most"""
Part = tuple[str, Number, Literal["main", "gpu"]]
"""of a stage's memory: its name, its bytes, and where; "gpu" is the device of the SAE"""

_FLOAT, _BFLOAT = 4, 2  # bytes
_PYTHON = 0.6e9
_CUDA = 1.0e9  # context, cuBLAS, NCCL and the allocator's waste; an assumption
_COPIES_BESIDE_A_GRADIENT = 3  # of [batch, d_sae], while a matrix's gradient is added to the last
_AUTOCAST_COPIES = 1.0  # more, in bfloat16
_LOOK_COPIES = 2.25  # of pre-activations, while their density is taken
_BATCH_COPIES = 8  # [batch, d]: input, target, reconstruction, errors, gradients
_SCORES = 2**23  # pairs that a sparse step scores at a time
_ENTRY = 100  # bytes that a sparse step needs for one entry
_ENTRIES_A_FIRING = 2.0  # the kernel's window and the screen select more than fires
_SURELY = 1.25  # times the memory there is: plans are inexact, a run that fits is not refused
_REMEDIES = {  # by the stage that needs the memory
    "activation bucket": "lower shuffle.bucket_tokens",
    "one step, dense": "make a step in parts (training.gradient_accumulation_steps)",
    "one step, sparse": "make a step in parts (training.gradient_accumulation_steps)",
    "decoder by least squares": "set training.refit_ridge to null",
    "evaluation": "lower evaluation.sae_batch_tokens or harvest.rows",
    "one batch of text": "lower harvest.rows or text.context_size",
    "examples": "lower collect.top, collect.reservoir or collect.window",
    "language model": "take a smaller language model",
    "loading the language model": "take a smaller language model",
}


class RunCost(NamedTuple):
    """The cost of a recipe: `lines` to print, and the sums that they show."""

    lines: list[str]
    memory_bytes: Number
    """main memory of each process"""
    gpu_bytes: Number
    """GPU memory of each process; 0 without one"""
    disk_bytes: Number


def plan(recipe: Recipe) -> RunCost:
    """Estimates for each of `training.num_processes` processes, on this machine.

    Raises:
        ValueError: as for `hfsae.runs.check`; or so many processes cannot share the work.
    """
    recipe = with_lone_site(recipe)
    lms, configs = check(recipe)
    t, n = recipe.training, recipe.training.num_processes or 1
    t.check_shares(n)
    needed = in_main, on_gpu = memory(recipe, lms, configs, on_gpu=torch.cuda.is_available())
    on_disk = disk(recipe, lms, configs)

    def short(dataset: str | list[str]) -> str:
        return dataset if isinstance(dataset, str) else f"{len(dataset)} documents"

    what = "language model" if recipe.kind == "text" else "model"
    lines = []
    for name, one in lms.items():
        args = recipe.models[name]
        full = f"{name}: {args.name}" if name else args.name
        n_parameters = sum(p.numel() for p in one.parameters())
        lines.append(f"{what:<16}{full}, {n_parameters / 1e6:.0f} M parameters, {args.dtype}")
    if recipe.kind == "files":
        lines.append(f"activations     {short(recipe.activations.files)}")
    elif recipe.kind == "text":
        rows = f"rows of {recipe.text.context_size} tokens"
        lines.append(f"text            {short(recipe.text.dataset)}, {rows}")
    else:
        lines.append(f"pictures        {short(recipe.images.files or recipe.images.folder)}")
    for name, config in configs.items():
        goal = f", target L0 {config.target_l0}" if config.target_l0 else ""
        sides = (config.reads, config.writes) if config.is_transcoder else (config.reads,)
        place = " to ".join(", ".join(f"{site} ({d} wide)" for site, d in side) for side in sides)
        lines.append(
            f"SAE {name or '':<11} {config.model_type}, {config.d_sae:,} latents, {place}{goal}"
        )
    read = f"from {t.n_tokens / recipe.shuffle.passes:,.0f} harvested"
    if recipe.kind == "files":
        args = recipe.activations
        of_training = 1 - args.held_out_fraction - args.validation_fraction
        n_rows = of_training * check_files(args, recipe.sites).n_rows
        times = t.n_tokens / max(n_rows, 1)
        read = f"from some {n_rows:,.0f} rows, each read {times:.2g} times"
    lines += [
        f"training        {t.n_tokens:,} activations in {t.total_steps:,} steps of {t.batch_size}, "
        + read,
        f"output          {t.output_dir}",
    ]
    try:
        refuse_another_training(recipe)
    except ValueError as error:  # what is in its output folder
        lines.append(f"note            it would be refused: {error}")

    together = f"   {n} processes: {n * sum(in_main.values()) / 1e9:.1f} GB" if n > 1 else ""
    lines.append("")
    if on_gpu:
        lines.append(_sum_line("GPU memory" if n == 1 else "each GPU", on_gpu))
    main = "memory each" if n > 1 else "main memory" if on_gpu else "memory"
    lines.append(_sum_line(main, in_main) + together)
    short_of = shortages(recipe, lms, configs, needed, n)
    lines += [f"note            {sentence}" for sentence, _ in short_of]
    lines += [
        _sum_line("disk", on_disk),
        "time            not predicted; a run shows what is left after its first steps",
    ]
    every = (in_main, on_gpu, on_disk)
    return RunCost(lines, *(sum(parts.values()) for parts in every))


def _sum_line(name: str, parts: Parts) -> str:
    listed = ", ".join(f"{part} {amount / 1e9:.2f}" for part, amount in parts.items())
    return f"{name:<15} {sum(parts.values()) / 1e9:.1f} GB   ({listed})"


def check_memory(
    recipe: Recipe, lms: Models, configs: dict[str, SAEConfig], device: torch.device
) -> None:
    """Before anything is allocated, warn where the plan needs more than is free at present.

    Raises:
        ValueError: the recipe needs more memory than this machine has.
    """
    needed = memory(recipe, lms, configs, on_gpu=device.type == "cuda")
    n_here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    for sentence, is_sure in shortages(recipe, lms, configs, needed, n_here):
        if is_sure:
            raise Refused(sentence)
        logger.warning("%s, or the system may end the run", sentence)


def shortages(
    recipe: Recipe, lms: Models, configs: dict[str, SAEConfig], needed: Memory, n_here: int
) -> list[tuple[str, bool]]:
    """For each kind of memory of which `n_here` processes on this machine need more than is free, a
    sentence with a remedy (less of the largest part, or a narrower SAE, by half, a quarter and so
    on), and whether they need more than all that there is, by more than a plan's error."""
    kinds = [("main memory", n_here, needed[0], main_memory())]
    if needed[1]:
        kinds.append(("GPU memory", 1, needed[1], gpu_memory()))
    found = []
    for kind, n_sharing, parts, (free, total) in kinds:
        all_ = n_sharing * sum(parts.values())
        if all_ <= free:
            continue
        is_gpu, largest = kind == "GPU memory", max(parts, key=lambda name: parts[name])
        ways = [_REMEDIES[largest]] if largest in _REMEDIES else []
        if is_gpu and (not ways or largest == "one step, dense"):
            ways = [
                "spread latents over more cards (training.num_processes, training.shard_latents)"
            ]
        narrow, widest = configs, max(config.d_sae for config in configs.values())
        while all(config.d_sae >= 2 * config.d_in for config in narrow.values()):
            narrow = copy.deepcopy(narrow)
            for config in narrow.values():
                config.d_sae //= 2
            try:
                then = memory(recipe, lms, narrow, on_gpu=bool(needed[1]))
            except ValueError:  # latents that do not divide evenly among processes
                continue
            if n_sharing * sum(then[is_gpu].values()) <= free:
                d_sae = max(config.d_sae for config in narrow.values())
                ways.append(f"lower sae.d_sae: {d_sae:,} instead of {widest:,} would fit")
                break
        amounts = [f"{n / 1e9:,.1f} GB" for n in (all_, total, free)]
        has = f"{amounts[1]} ({amounts[2]} free)" if free < total else amounts[1]
        remedy = ", or ".join(ways or ["train fewer SAEs at a time"])
        sentence = f"about {amounts[0]} of {kind} needed, but this machine has {has}; {remedy}"
        found.append((sentence, all_ > _SURELY * total))
    return found


def memory(recipe: Recipe, lms: Models, configs: dict[str, SAEConfig], *, on_gpu: bool) -> Memory:
    """Memory of one process: of process 0, which needs most."""
    every = stages(recipe, lms, configs, on_gpu=on_gpu)
    if not on_gpu:
        every = [(main | gpu, {}) for main, gpu in every]
    main, gpu = (max(of, key=lambda parts: sum(parts.values())) for of in zip(*every, strict=True))
    return main, gpu | {"CUDA": _CUDA} if on_gpu else {}


def disk(recipe: Recipe, lms: Models, configs: dict[str, SAEConfig]) -> Parts:
    """Disk space while it runs; at the end checkpoints are removed."""
    t, n = recipe.training, sum(parameters(config)[0] for config in configs.values())
    every = in_steps(t.save_steps, t.total_steps) or t.total_steps
    n_checkpoints = -(-t.total_steps // every)
    if t.save_total_limit is not None:  # one more, while the next is written
        n_checkpoints = min(n_checkpoints, t.save_total_limit + 1)
    parts: Parts = {"checkpoints": 3 * _FLOAT * n * n_checkpoints, "trained SAE": _FLOAT * n}
    if recipe.harvest.cache is not None:
        token = _number_bytes(recipe, lms) * sum(widths_of(*configs.values()).values())
        harvested = t.n_tokens / recipe.shuffle.passes * token
        parts["activation cache"] = min(harvested, 1e9 * recipe.harvest.cache_gb)
    return parts


def stages(
    recipe: Recipe, lms: Models, configs: dict[str, SAEConfig], *, on_gpu: bool
) -> list[Memory]:
    """Memory in use at each stage: `gpu` is that of the device of the SAE, whichever it is, and
    `main` what is always in main memory."""
    t, n = recipe.training, recipe.training.num_processes or 1
    spread = t.shard_latents and n > 1
    for config in configs.values() if spread else ():
        check_spread(config, n)
    counts = [parameters(config, n if spread else 1) for config in configs.values()]
    all_, here = (sum(count[i] for count in counts) for i in (0, 1))
    largest = max(count[0] for count in counts)

    item = _number_bytes(recipe, lms)
    token = item * sum(widths_of(*configs.values()).values())
    lm_bytes = item * sum(p.numel() for one in lms.values() for p in one.parameters())
    libraries: Part = ("Python and libraries", _PYTHON, "main")
    model: list[Part] = [("language model", lm_bytes, "gpu")] if lm_bytes else []
    always = [libraries, *model]
    n_buckets, size = 1 + recipe.shuffle.prefetch, bucket_tokens(recipe)
    in_main = not on_gpu or not recipe.shuffle.device.startswith("cuda")
    bucket = n_buckets * size * token
    streaming: list[Part] = [*always, ("activation bucket", bucket, "main" if in_main else "gpu")]
    if n > 1 and not spread:
        streaming.append(("buckets of gradients", _FLOAT * here, "gpu"))
    training: list[Part] = [*streaming, ("SAE, gradients, Adam", 4 * _FLOAT * here, "gpu")]

    # Once: weights of a safetensors file are its pages, mapped. In another dtype, and of a .gguf
    # file, they are made one by one, and pages of files are given back where memory is short.
    loading: Part = ("loading the language model", lm_bytes, "main")
    each = [_step(recipe, config, on_gpu) for config in configs.values()]
    # The trained SAEs, and for one of them the folded state and a copy of its encoder.
    last: list[Part] = [("folding", _FLOAT * (all_ + 1.5 * largest), "main" if spread else "gpu")]
    if t.refit_ridge is not None:  # products of latents, their factor, what a part adds
        squares = 3 * _FLOAT * max(config.d_sae for config in configs.values()) ** 2
        last.append(("decoder by least squares", squares, "main" if spread else "gpu"))
    n_sample = min(sample_size(t), size)  # from which scales and variances are estimated
    of_sample = n_sample * _FLOAT * sum(widths_of(*configs.values()).values())
    sample: Part = ("sample of activations", of_sample, "main")
    every: list[list[Part]] = [
        [loading, libraries],
        [*training, _harvest(recipe, lms, configs, item, token)],
        [*streaming, ("SAE", _FLOAT * here, "gpu"), sample],
        [*training, max(each, key=lambda part: part[1])],
        [*training, *last],
    ]
    if spread:  # weights and moments are gathered, to be written
        every.append([*training, ("checkpoint", 3 * _FLOAT * all_, "main")])
    for parts in _after_training(recipe, lms, configs, item):
        every.append([*always, ("SAE", _FLOAT * largest, "gpu"), *parts])
    memories = list[Memory]()
    for stage in every:
        main, gpu = ({p: size for p, size, at in stage if at == kind} for kind in ("main", "gpu"))
        memories.append((main, gpu))
    return memories


def _harvest(
    recipe: Recipe, lms: Models, configs: dict[str, SAEConfig], item: int, token: int
) -> Part:
    """A block's forward pass, or the exchange of harvested activations, whichever needs more.

    Args:
        item: bytes of a number.
        token: bytes of one token's activations at all sites.
    """
    first = next(iter(lms.values()), None)
    if first is None or recipe.kind != "text":  # several models run one after the other
        return "a block of the file", recipe.activations.block * token, "main"
    rows, context = recipe.harvest.rows, recipe.text.context_size
    tokens, n = rows * context, recipe.training.num_processes or 1
    config = first.config.get_text_config()
    blocks = max((m for m in first.modules() if isinstance(m, nn.ModuleList)), key=len)
    widest = max(max(p.shape) for p in blocks[0].parameters() if p.ndim > 1)
    mlp = 3 * tokens * widest * item  # gate, up and their product
    named = next(iter(recipe.models.values())).attn_implementation
    attention = 0
    if (named or first.config._attn_implementation) == "eager":
        # scores, soft-capped scores, float32 softmax, its copy
        attention = rows * config.num_attention_heads * context**2 * (3 * item + _FLOAT)
    forward = max(mlp, attention) + 4 * tokens * config.hidden_size * item
    widest_site = max(max(c.d_in, c.d_out) for c in configs.values())
    gather = (2 * n + 1) * tokens * widest_site * item if n > 1 else 0
    return "one batch of text", 2 * tokens * token + max(forward, gather), "gpu"


def _step(recipe: Recipe, config: SAEConfig, on_gpu: bool) -> Part:
    """Memory of one SAE's step beyond parameters, gradients and moments."""
    t, n = recipe.training, recipe.training.num_processes or 1
    spread = t.shard_latents and n > 1
    batch = t.batch_size // t.gradient_accumulation_steps // (1 if spread else n)
    n_sources = len(config.reads) if config.is_causal else 1
    inputs = _BATCH_COPIES * _FLOAT * batch * max(config.d_in, config.d_out)
    first_l0 = config.d_sae / 2  # of the start, where L0 is highest, unless it is kept low
    in_warm_start = config.has_thresholds and in_steps(t.warm_start_steps, t.total_steps) > 0
    if config.target_l0 is None or in_warm_start:
        first_l0 = float(config.l0_goal or first_l0)
    # Whether steps are sparse, as far as is known before any activation is seen. Steps on a GPU
    # count as dense, which need more memory: there it has not been measured when sparse ones pay.
    is_sparse = not (on_gpu or spread or t.sparse == "never")
    if is_sparse:
        with torch.device("meta"):
            is_sparse = AutoModel.from_config(config).can_be_sparse
    if is_sparse and t.sparse != "always":
        few = SPARSE_BELOW * config.d_sae
        is_sparse = config.d_sae >= SPARSE_FROM and first_l0 < few
    if is_sparse:
        # See `hfsae.ops.screening`: X and W of the bound, a block of scores and of what they pick;
        # a source at a time, whose gradients of the encoder are then put together.
        d, d_sae = config.d_in // n_sources, config.d_sae // n_sources
        work = _BFLOAT * (batch + d_sae) * (d + 4) + (_BFLOAT + 1) * max(256 * d_sae, _SCORES)
        work += _ENTRY * _ENTRIES_A_FIRING * batch * min(first_l0, d_sae / 2)
        if config.is_causal:
            work += _FLOAT * d * d_sae
        if n > 1:  # DDP's gradients are copies of those that a step computes
            work += _FLOAT * config.d_sae * (config.d_in // n_sources + config.d_out)
        return "one step, sparse", inputs + work, "gpu"
    latents = _FLOAT * batch * config.d_sae // (n if spread else 1)
    if spread and config.is_causal:  # latents by source come from all processes, and encoder rows
        latents *= n
        inputs += 2 * _FLOAT * config.d_sae * config.d_in // n_sources
    matrix = max(config.d_in, config.d_out) * config.d_sae
    if config.is_causal:  # rows of the first source write everywhere
        matrix = config.d_out * config.d_sae // n_sources
    gradient = _FLOAT * matrix // (n if spread else 1)
    copies = config.dense_copies
    if t.bf16:
        copies += _AUTOCAST_COPIES
        inputs += _BFLOAT * parameters(config, n if spread else 1)[1]  # of the weights
    work = max(copies * latents, _COPIES_BESIDE_A_GRADIENT * latents + gradient)
    return "one step, dense", inputs + work, "gpu"


def _after_training(
    recipe: Recipe, lms: Models, configs: dict[str, SAEConfig], item: int
) -> list[list[Part]]:
    """Evaluation and examples, those of them that a run has."""
    sizes, context = recipe.sizes, recipe.text.context_size
    d_sae = max(config.d_sae for config in configs.values())
    config, parts = None, list[list[Part]]()
    if recipe.kind == "text":
        config = next(iter(lms.values())).config.get_text_config()

    if sizes.evaluation != 0:
        # Logits of two arms and five float32 copies of some predictions', or, if logits are capped,
        # a copy of the second arm's; before that, latents beside the first arm's.
        at_once = recipe.evaluation.sae_batch_tokens
        if config is None or recipe.lms:  # no language model's loss
            work = _LOOK_COPIES * _FLOAT * at_once * d_sae
        else:
            rows = min(recipe.harvest.rows, rows_at_once(context, config.vocab_size))
            logits = rows * context * config.vocab_size * item
            capped = logits if getattr(config, "final_logit_softcapping", None) else 0
            latents = _FLOAT * min(recipe.harvest.rows * context, at_once) * d_sae
            few = 5 * _FLOAT * PREDICTIONS_AT_ONCE * config.vocab_size
            comparing = 2 * logits + max(capped, few)
            work = max(comparing, logits + _LOOK_COPIES * latents)
        parts.append([("evaluation", work, "gpu")])

    if sizes.examples != 0:
        # Each latent's record, beside a block of latents while it grows, or at the end promoted
        # tokens: the unembedding and W_dec anew.
        a, wide = recipe.collect, max(configs.values(), key=lambda c: c.d_sae * c.d_out)
        a_window = 16 + _FLOAT * (2 * a.window + 1)  # key, peak, row, position, what is around it
        a_latent = (a.top + a.reservoir) * a_window + _FLOAT * (len(HISTOGRAM_EDGES) - 1) + 8
        block = _LOOK_COPIES * _FLOAT * max(BLOCK_LATENTS, context * wide.d_sae)
        is_input = any(site.endswith(":in") for site in wide.writes.names)
        lens = _FLOAT * wide.d_sae * wide.d_out * (2 if is_input else 1)
        if config is not None:
            lens += _FLOAT * min(config.vocab_size * config.hidden_size, LENS_EMBEDDING)
        kept = wide.d_sae * a_latent + max(block, lens)
        parts.append([("examples", kept, "gpu")])

    return parts


def parameters(config: SAEConfig, n_processes: int = 1) -> tuple[int, int]:
    """An SAE's parameters: all, and those that one process holds if latents are spread."""
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


def _number_bytes(recipe: Recipe, lms: Models) -> int:
    """Bytes of a number of weights and activations: in the language model's dtype, where "auto" is
    that of its weights; of files in float32, the largest that they can have."""
    if not lms:
        return _FLOAT
    name, lm = next(iter(lms.items()))
    dtype = recipe.models[name].dtype
    return (lm.dtype if dtype == "auto" else getattr(torch, dtype)).itemsize
