"""The cost of a recipe, before anything is loaded or written: memory, disk, time.

Sizes are counted (`hfsae.cost.footprint`). Times are counts times paces: measured on this machine
(`hfsae.cost.pace`), or by formula for a named GPU (`hfsae.cost.formula`).
"""

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from ..activations import check_files
from ..lm import by_model, capture, widths_of
from ..machine.processor import Room
from ..machine.refused import Refused
from ..models import SAEConfig
from ..recipe import (
    EmptyLMs,
    Model,
    Recipe,
    check,
    first_model,
    probe_arguments,
    stale_stages,
    with_lone_site,
)
from ..recipe.fields import bucket_tokens
from . import formula
from .cards import CARDS, Card
from .footprint import (
    Memory,
    attention_of,
    count_of,
    disk,
    is_spread,
    lm_dtype,
    memory,
    parameters,
    token_bytes,
)
from .pace import LMPace, SAEPace, blocks, lm_pace, sae_pace, start_seconds, step_seconds
from .shortage import Shortage, remedy, shortages

Number = int | float


class RunCost(NamedTuple):
    """The cost of a recipe: `lines` to print, and the sums that they show."""

    lines: list[str]
    memory_bytes: Number
    """main memory of each process"""
    gpu_bytes: Number
    """GPU memory of each process; 0 without one"""
    disk_bytes: Number
    seconds: Number


class _Paces(NamedTuple):
    lm: LMPace | None
    """None: the time of a forward pass is unknown, or there is none"""
    step: Callable[[SAEConfig], float]
    """seconds of a training step"""
    start: Callable[[SAEConfig], float]
    """seconds before the first"""
    look: Callable[[SAEConfig], SAEPace]


def plan(recipe: Recipe, gpu: str | None = None) -> RunCost:
    """Estimates for each of `training.num_processes` processes.

    Args:
        gpu: a GPU of `hfsae.cost.formula.CARDS`, one for each process; None: this machine.

    Raises:
        ValueError: as for `hfsae.recipe.check`; the GPU is unknown; or so many processes cannot
            share the work.
    """
    if gpu is not None and gpu not in CARDS:
        raise Refused(f"--gpu must be {' or '.join(CARDS)}, got {gpu!r}")
    recipe = with_lone_site(recipe)
    return estimate(recipe, *check(recipe), None if gpu is None else CARDS[gpu])


def estimate(
    recipe: Recipe, lm: Model, configs: dict[str, SAEConfig], card: Card | None
) -> RunCost:
    """The plan of a recipe whose model and SAEs are known."""
    t, n = recipe.training, recipe.training.num_processes or 1
    t.check_shares(n)
    on_gpu = card is not None or torch.cuda.is_available()
    needed = memory(recipe, lm, configs, on_gpu=on_gpu)
    short = shortages(needed, n) if card is None else _shortages_of(card, needed)
    on_disk = disk(recipe, lm, configs)
    how, seconds = "", dict[str, Number]()
    if card is None and not any(shortage.is_sure for shortage in short):
        seconds = _seconds(recipe, lm, configs, _measured(recipe, lm, on_gpu))
    elif card is not None:
        seconds = _seconds(recipe, lm, configs, _by_formula(recipe, lm, card))
        seconds["activations to and from buckets"] = _moving(recipe, lm, configs, card)
        how = card.assumptions
    lines = [
        *_input_lines(recipe, lm),
        *(_sae_line(name, config) for name, config in configs.items()),
        f"training        {t.n_tokens:,} activations in {t.total_steps:,} steps of {t.batch_size}, "
        + _read_how_often(recipe),
        f"output          {t.output_dir}",
        *_clash(recipe),
        "",
        *_memory_lines(needed, n),
        *(f"{'note':<15} {s}; {remedy(recipe, lm, configs, needed, s)}" for s in short),
        _sum_line("disk", on_disk, 1e9, "GB"),
        _time_line(seconds, how),
    ]
    if recipe.sizes.evaluation is None:
        lines.append(f"{'':<16}plus the evaluation of all held-out text, of unknown length")
    totals = (sum(parts.values()) for parts in (*needed, on_disk, seconds))
    return RunCost(lines, *totals)


def _read_how_often(recipe: Recipe) -> str:
    n = recipe.training.n_tokens
    if recipe.kind != "files":
        return f"from {n / recipe.shuffle.passes:,.0f} harvested"
    args = recipe.activations
    of_training = 1 - args.held_out_fraction - args.validation_fraction
    n_rows = of_training * check_files(args, recipe.sites).n_rows
    return f"from some {n_rows:,.0f} rows, each read {n / max(n_rows, 1):.2g} times"


def _input_lines(recipe: Recipe, lm: Model) -> list[str]:
    text = recipe.text
    if recipe.kind == "files":
        return [f"activations     {_short(recipe.activations.files)}"]
    every = [(args.name, args.dtype, lm) for args in recipe.models.values()]
    if isinstance(lm, EmptyLMs):
        each = zip(recipe.models.items(), lm.each.values(), strict=True)
        every = [(f"{name}: {args.name}", args.dtype, one) for (name, args), one in each]
    what = "language model" if recipe.kind == "text" else "model"
    if recipe.kind == "text":
        read = f"text            {_short(text.dataset)}, rows of {text.context_size} tokens"
    else:
        read = f"{recipe.kind:<16}{_short(recipe.images.files or recipe.images.folder)}"
    return [
        *(
            f"{what:<16}{name}, {count_of(one) / 1e6:.0f} M parameters, {dtype}"
            for name, dtype, one in every
        ),
        read,
    ]


def _measured(recipe: Recipe, lm: Model, on_gpu: bool) -> _Paces:
    """Of this machine."""
    t, context, device = recipe.training, recipe.text.context_size, "cuda" if on_gpu else "cpu"
    rows, attention = recipe.harvest.rows, attention_of(recipe, lm)
    batch = t.batch_size // (1 if is_spread(recipe) else t.num_processes or 1)
    of_lm = None
    if (first := first_model(lm)) is not None and recipe.kind == "text":
        of_lm = lm_pace(first, lm_dtype(recipe, lm), rows, context, device, attention)
    return _Paces(
        of_lm,
        lambda config: step_seconds(_here(recipe, config), t, batch, device),
        lambda config: start_seconds(config, t, device),
        lambda config: sae_pace(config, recipe.collect, context, device),
    )


def _by_formula(recipe: Recipe, lm: Model, card: Card) -> _Paces:
    t, context = recipe.training, recipe.text.context_size
    n_spread = (t.num_processes or 1) if is_spread(recipe) else 1
    attention, rows = attention_of(recipe, lm), recipe.harvest.rows
    of_lm = None
    if (first := first_model(lm)) is not None and recipe.kind == "text":
        of_lm = formula.lm_pace(first, lm_dtype(recipe, lm), rows, context, attention, card)
    return _Paces(
        of_lm,
        lambda config: formula.step_seconds(config, parameters(config, n_spread)[1], t, card),
        lambda config: formula.start_seconds(config, t, card),
        lambda config: formula.sae_pace(config, recipe.collect, context, card),
    )


def _here(recipe: Recipe, config: SAEConfig) -> SAEConfig:
    """The part of the SAE that one process holds: its share, if latents are spread."""
    if not is_spread(recipe):
        return config
    share = copy.deepcopy(config)
    share.d_sae //= recipe.training.num_processes or 1
    return share


def _seconds(
    recipe: Recipe, lm: Model, configs: dict[str, SAEConfig], paces: _Paces
) -> dict[str, Number]:
    """By stage, from the pace of each; stages that run a model of unknown pace are left out."""
    t = recipe.training
    training = encode = keep = 0.0
    for config, n in _alike(configs):
        look = paces.look(config)
        encode, keep = encode + n * look.encode, keep + n * look.collect
        training += n * (paces.start(config) + t.total_steps * paces.step(config))
    if t.refit_ridge is not None:  # it encodes a bucket once more
        training += bucket_tokens(recipe) * encode
    training += t.calibration_tokens * encode
    of_saes = SAEPace(encode, keep)
    if lm is None or paces.lm is None:
        return _seconds_of_saes(recipe, training, of_saes)
    if isinstance(lm, EmptyLMs):
        return _seconds_with_several(recipe, lm, configs, paces.lm, training, of_saes)
    return _seconds_with_lm(recipe, lm, configs, paces.lm, training, of_saes)


def _seconds_of_saes(recipe: Recipe, training: float, of_saes: SAEPace) -> dict[str, Number]:
    evaluation = (recipe.sizes.evaluation or 0) * of_saes.encode
    examples = recipe.sizes.examples * of_saes.collect
    return {"training": training, "evaluation": evaluation, "examples": examples}


def _seconds_with_lm(
    recipe: Recipe,
    lm: PreTrainedModel,
    configs: dict[str, SAEConfig],
    pace: LMPace,
    training: float,
    of_saes: SAEPace,
) -> dict[str, Number]:
    t, context, n_saes, sizes = (
        recipe.training,
        recipe.text.context_size,
        len(configs),
        recipe.sizes,
    )
    n_blocks = len(blocks(lm))
    of_one = sum(p.numel() for p in blocks(lm)[0].parameters() if p.ndim > 1)
    n_below = parameters_used(lm, [*widths_of(*configs.values())]) / of_one
    to_site = n_below * pace.block + pace.rest
    whole = n_blocks * pace.block + pace.rest + pace.head
    again = (n_blocks - n_below) * pace.block + pace.rest + pace.head
    kept = (context - (recipe.text.bos != "none")) / context
    n_rows_tokens = (t.n_tokens / recipe.shuffle.passes + t.calibration_tokens) / kept
    n_evaluated = sizes.evaluation or 0
    if sizes.evaluation != 0:
        n_evaluated += len(recipe.evaluation.texts) * recipe.evaluation.n_foreign_tokens
    seconds = {
        "harvest": n_rows_tokens * to_site / (t.num_processes or 1),
        "training": training,
        "evaluation": n_evaluated * (n_saes * (whole + 3 * again + to_site) + of_saes.encode),
        "examples": sizes.examples * (n_saes * to_site + of_saes.collect),
    }
    if sizes.names:
        seconds["names"] = sizes.names * (n_saes * to_site + of_saes.encode)
    if sizes.probing:
        seconds["probing"] = n_saes * _probing(recipe, to_site, whole)
    if sizes.presets:
        seconds["presets"] = n_saes * sizes.presets
    return seconds


def _probing(recipe: Recipe, to_site: float, whole: float) -> float:
    """Of one SAE: reading texts and words, the uniformity of effects, and regressions.

    Args:
        to_site, whole: seconds of a token, up to the site and through the whole model.
    """
    a = probe_arguments(recipe)
    n_tasks = int(a.n_tasks)
    n_read = n_tasks * a.n_texts * _TEXT_TOKENS + a.n_words * _WORD_TOKENS
    n_passes = 2 * 3 * a.uniformity_tokens * a.max_tokens  # two kinds of latents; there and back
    return n_read * to_site + n_passes * whole + n_tasks * _FIT_SECONDS


_TEXT_TOKENS = 50  # of the 20 packaged sets that are drawn, at most 128 of a text
_WORD_TOKENS = 6  # as many tokens take the time of a word, which is read behind others' cache
_FIT_SECONDS = 2.5  # of a task's regressions on two cores, for 100 texts as for 500


def _seconds_with_several(
    recipe: Recipe,
    several: EmptyLMs,
    configs: dict[str, SAEConfig],
    pace: LMPace,
    training: float,
    of_saes: SAEPace,
) -> dict[str, Number]:
    """Every stage runs each model up to its last site; a block of one is as fast as of another,
    parameter by parameter."""
    of_one = sum(
        p.numel() for p in blocks(next(iter(several.each.values())))[0].parameters() if p.ndim > 1
    )
    places = by_model(widths_of(*configs.values()), several.each)
    n_used = [parameters_used(several.each[m], [*paths.values()]) for m, paths in places.items()]
    to_sites = sum(n / of_one * pace.block + pace.rest for n in n_used)
    context, sizes = recipe.text.context_size, recipe.sizes
    kept = (context - (recipe.text.bos != "none")) / context
    n_read = recipe.training.n_tokens / recipe.shuffle.passes / kept
    n_saes, n_evaluated = len(configs), sizes.evaluation or 0
    if sizes.evaluation != 0:
        n_evaluated += len(recipe.evaluation.texts) * recipe.evaluation.n_foreign_tokens
    return {
        "harvest": n_read * to_sites / (recipe.training.num_processes or 1),
        "training": training,
        "evaluation": n_evaluated * (n_saes * to_sites + of_saes.encode),
        "examples": sizes.examples * (n_saes * to_sites + of_saes.collect),
    }


def _moving(recipe: Recipe, lm: Model, configs: dict[str, SAEConfig], card: Card) -> float:
    """Seconds to move activations into all processes' buckets, and out of them in batches."""
    t, n = recipe.training, recipe.training.num_processes or 1
    size, in_main = token_bytes(recipe, lm, configs), not recipe.shuffle.device.startswith("cuda")
    exchange = formula.exchange_seconds(size, n, in_main, card) / recipe.shuffle.passes
    draw = formula.draw_seconds(size, lm_dtype(recipe, lm).itemsize, n, in_main, card)
    return t.n_tokens * (exchange + draw)


def _alike(configs: dict[str, SAEConfig]) -> list[tuple[SAEConfig, int]]:
    """One SAE of each kind and size, and how many there are."""
    kinds: dict[tuple, list[SAEConfig]] = {}
    for c in configs.values():
        kinds.setdefault((c.model_type, c.d_in, c.d_out, c.d_sae, c.l0_goal), []).append(c)
    return [(alike[0], len(alike)) for alike in kinds.values()]


def _clash(recipe: Recipe) -> list[str]:
    """A note on what would keep this recipe from running in its output folder."""
    try:
        stale_stages(recipe)
    except ValueError as error:
        return [f"note            it would be refused: {error}"]
    return []


def parameters_used(lm: PreTrainedModel, sites: list[str]) -> int:
    """Parameters of the matrix products on the way to the last of `sites`."""
    used: dict[str, int] = {}

    def note(name: str) -> Callable[[nn.Module, object], None]:
        def hook(module: nn.Module, inputs: object) -> None:
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


def _sae_line(name: str, config: SAEConfig) -> str:
    goal = f", target L0 {config.target_l0}" if config.target_l0 else ""
    sides = (config.reads, config.writes) if config.is_transcoder else (config.reads,)
    place = " to ".join(", ".join(f"{site} ({d} wide)" for site, d in side) for side in sides)
    return f"SAE {name or '':<11} {config.model_type}, {config.d_sae:,} latents, {place}{goal}"


def _short(dataset: str | list[str]) -> str:
    return dataset if isinstance(dataset, str) else f"{len(dataset)} documents"


def _shortages_of(card: Card, needed: Memory) -> list[Shortage]:
    """Shortage of GPU memory only: the card's machine is unknown."""
    bytes_ = int(card.memory)
    each = Shortage("GPU memory", sum(needed.gpu.values()), Room(bytes_, bytes_), f"an {card.name}")
    return [each] if each.needed > bytes_ else []


def _memory_lines(needed: Memory, n: int) -> list[str]:
    main, gpu = needed
    together = f"   {n} processes: {n * sum(main.values()) / 1e9:.1f} GB" if n > 1 else ""
    if not gpu:
        each = "memory" if n == 1 else "memory each"
        return [_sum_line(each, main, 1e9, "GB") + together]
    return [
        _sum_line("GPU memory" if n == 1 else "each GPU", gpu, 1e9, "GB"),
        _sum_line("main memory" if n == 1 else "memory each", main, 1e9, "GB") + together,
    ]


def _time_line(seconds: dict[str, Number], how: str) -> str:
    if not seconds:
        return f"{'time':<15} not measured: not enough memory"
    unit, word = (60, "min") if sum(seconds.values()) < 2 * 3600 else (3600, "h")
    threads = "" if torch.cuda.is_available() else f"on {torch.get_num_threads()} threads, "
    after = f"\n{'':<16}{how}" if how else f"   {threads}if the machine does nothing else"
    return _sum_line("time", seconds, unit, word) + after


def _sum_line(name: str, parts: dict[str, Number], unit: Number, word: str) -> str:
    listed = ", ".join(f"{part} {amount / unit:.2f}" for part, amount in parts.items())
    return f"{name:<15} {sum(parts.values()) / unit:.1f} {word}   ({listed})"
