"""What a recipe will cost, before anything is loaded or written: memory, disk, time.

Sizes are counted; times are counts over the pace of this machine, which `hfsae.pace` measures.
"""

from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from .lm import capture
from .models import SAEConfig
from .pace import lm_pace, sae_pace, step_seconds
from .recipe import Recipe, check, stale_stages

Number = int | float
_ADAM_COPIES = 4  # weights, gradients, two moments
_DENSE_COPIES = 6  # [batch, d_sae] tensors alive at once in a step
_PYTHON_BYTES = 0.6e9


class Plan(NamedTuple):
    lines: list[str]
    memory_bytes: Number
    disk_bytes: Number
    seconds: Number


def plan(recipe: Recipe) -> Plan:
    """Estimates for one process on this machine's default device.

    Raises:
        ValueError: as `hfsae.recipe.check`.
    """
    lm, configs = check(recipe)
    dtype = torch.float32 if recipe.lm.dtype == "auto" else getattr(torch, recipe.lm.dtype)
    t, n_sites_wide = recipe.training, sum(_widths(recipe, configs).values())
    n_lm = sum(p.numel() for p in lm.parameters())
    n_sae = [c.d_sae * (c.d_in + c.d_out + 2) + c.d_out for c in configs.values()]
    n_harvested = t.n_tokens / recipe.shuffle.passes
    part = t.batch_size // t.gradient_accumulation_steps
    memory = {
        "language model": n_lm * dtype.itemsize,
        "activation bucket": recipe.shuffle.bucket_tokens * n_sites_wide * dtype.itemsize,
        "SAE, gradients, Adam": 4 * _ADAM_COPIES * sum(n_sae),
        "one step's latents": 4 * _DENSE_COPIES * part * max(c.d_sae for c in configs.values()),
        "Python and libraries": _PYTHON_BYTES,
    }
    n_checkpoints = (t.save_total_limit or 10) + 1  # one more while the next is being written
    disk: dict[str, Number] = {
        "checkpoints": 12 * sum(n_sae) * n_checkpoints,
        "trained SAE": 4 * sum(n_sae),
    }
    if recipe.harvest.cache is not None:
        harvested_bytes = n_harvested * n_sites_wide * dtype.itemsize
        disk["activation cache"] = min(harvested_bytes, 1e9 * recipe.harvest.cache_gb)
    seconds = _seconds(recipe, lm, configs, dtype)
    lines = [
        f"language model  {recipe.lm.name}, {n_lm / 1e6:.0f} M parameters, {recipe.lm.dtype}",
        f"text            {_short(recipe.text.dataset)}, rows of {recipe.text.context_size} tokens",
        *(_sae_line(name, config) for name, config in configs.items()),
        f"training        {t.n_tokens:,} activations in {t.total_steps:,} steps of {t.batch_size}, "
        f"from {n_harvested:,.0f} harvested",
        f"output          {t.output_dir}",
        *_clash(recipe),
        "",
        _sum_line("memory", memory, 1e9, "GB"),
        _sum_line("disk", disk, 1e9, "GB"),
        _sum_line("time", seconds, 60, "min") + "   if the machine does nothing else",
    ]
    return Plan(lines, sum(memory.values()), sum(disk.values()), sum(seconds.values()))


def _seconds(
    recipe: Recipe, lm: PreTrainedModel, configs: dict[str, SAEConfig], dtype: torch.dtype
) -> dict[str, Number]:
    """By stage, from the pace of each on this machine."""
    t, context = recipe.training, recipe.text.context_size
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pace = lm_pace(lm, dtype, recipe.harvest.rows, context, device)
    blocks = _blocks(lm)
    n_blocks = len(blocks)
    of_one = sum(p.numel() for p in blocks[0].parameters() if p.ndim > 1)
    n_below = parameters_used(lm, recipe.sites) / of_one
    to_site = n_below * pace.block + pace.rest
    whole = n_blocks * pace.block + pace.rest + pace.head
    again = (n_blocks - n_below) * pace.block + pace.rest + pace.head
    kept = (context - (recipe.text.bos != "none")) / context
    n_rows_tokens = t.n_tokens / recipe.shuffle.passes / kept
    steps = encode = keep = 0.0
    for config, n in _alike(configs):
        look = sae_pace(config, recipe.collect, context, device)
        encode, keep = encode + n * look.encode, keep + n * look.collect
        steps += n * step_seconds(config, t, t.batch_size // (t.num_processes or 1), device)
    n_saes, n_evaluated = len(configs), recipe.evaluation.n_tokens or 0
    return {
        "harvest": n_rows_tokens * to_site / (t.num_processes or 1),
        "training": t.total_steps * steps,
        "evaluation": n_evaluated * (n_saes * (whole + 3 * again + to_site) + encode),
        "examples": recipe.collect_tokens * (n_saes * to_site + keep),
    }


def _alike(configs: dict[str, SAEConfig]) -> list[tuple[SAEConfig, int]]:
    """One SAE of each kind and size, and how many there are."""
    kinds: dict[tuple, list[SAEConfig]] = {}
    for c in configs.values():
        l0 = getattr(c, "target_l0", None) or getattr(c, "k", None)
        kinds.setdefault((c.model_type, c.d_in, c.d_out, c.d_sae, l0), []).append(c)
    return [(alike[0], len(alike)) for alike in kinds.values()]


def _blocks(lm: PreTrainedModel) -> nn.ModuleList:
    """The decoder's."""
    return max((m for m in lm.modules() if isinstance(m, nn.ModuleList)), key=len)


def _clash(recipe: Recipe) -> list[str]:
    """What would keep this recipe from running in its output folder, as a note."""
    try:
        stale_stages(recipe)
    except ValueError as error:
        return [f"note            it would be refused: {error}"]
    return []


def parameters_used(lm: PreTrainedModel, sites: list[str]) -> int:
    """Parameters of the matrix products on the way to the last of `sites`."""
    used: dict[str, int] = {}

    def note(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any) -> None:
            used[name] = sum(p.numel() for p in module.parameters() if p.ndim > 1)

        return hook

    leaves = [(n, m) for n, m in lm.base_model.named_modules() if not list(m.children())]
    handles = [
        module.register_forward_pre_hook(note(name))
        for name, module in leaves
        if not isinstance(module, nn.Embedding)
    ]
    try:
        with torch.no_grad(), capture(lm, sites, stop_early=True):
            lm(input_ids=torch.zeros(1, 1, dtype=torch.long, device=lm.device))
    finally:
        for handle in handles:
            handle.remove()
    return sum(used.values())


def _widths(recipe: Recipe, configs: dict[str, SAEConfig]) -> dict[str, int]:
    widths = {}
    for config in configs.values():
        widths[config.site] = config.d_in
        if config.is_transcoder:
            widths[config.target_site] = config.d_out
    return widths


def _sae_line(name: str, config: SAEConfig) -> str:
    l0 = getattr(config, "target_l0", None)
    goal = f", target L0 {l0}" if l0 else ""
    place = f"{config.site} ({config.d_in} wide)"
    if config.is_transcoder:
        place += f" to {config.target_site} ({config.d_out} wide)"
    return f"SAE {name or '':<11} {config.model_type}, {config.d_sae:,} latents, {place}{goal}"


def _short(dataset: str | list[str]) -> str:
    return dataset if isinstance(dataset, str) else f"{len(dataset)} documents"


def _sum_line(name: str, parts: dict[str, Number], unit: Number, word: str) -> str:
    listed = ", ".join(f"{part} {amount / unit:.2f}" for part, amount in parts.items())
    return f"{name:<15} {sum(parts.values()) / unit:.1f} {word}   ({listed})"
