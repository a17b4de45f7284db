"""Where a recipe needs more memory than there is, and what would help."""

import copy
import logging
import os
from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch

from ..machine.processor import Room, gpu_memory, main_memory
from ..machine.refused import Refused
from ..models import SAEConfig
from ..recipe import Model, Recipe
from .footprint import Memory, Number, memory, sum_of

logger = logging.getLogger(__name__)
_SURELY = 1.25  # times the memory there is: plans are inexact, a run that fits is not refused
_REMEDIES = {  # by the stage that needs the memory
    "activation bucket": "lower shuffle.bucket_tokens",
    "one step, dense": "make a step in parts (training.gradient_accumulation_steps)",
    "one step, sparse": "make a step in parts (training.gradient_accumulation_steps)",
    "decoder by least squares": "set training.refit_ridge to null",
    "evaluation": "lower evaluation.sae_batch_tokens or harvest.rows",
    "one batch of text": "lower harvest.rows or text.context_size",
    "examples": "lower collect.top, collect.reservoir or collect.window",
    "probing": "set probe_texts to 0, and give `hfsae probe` fewer --n_words",
    "presets": "set preset_seconds to 0",
    "language model": "take a smaller language model",
    "loading the language model": "take a smaller language model",
}


class Shortage(NamedTuple):
    """A kind of memory that a plan needs more of than is free."""

    kind: Literal["main memory", "GPU memory"]
    needed: Number
    room: Room
    place: str = "this machine"

    @property
    def is_sure(self) -> bool:
        """Whether it exceeds even the total, by more than a plan's error."""
        return self.needed > _SURELY * self.room.total

    def __str__(self) -> str:
        needed, total, free = (f"{n / 1e9:,.1f} GB" for n in (self.needed, *self.room[::-1]))
        is_used = self.room.free < self.room.total
        has = f"{total} ({free} free)" if is_used else total
        return f"about {needed} of {self.kind} needed, but {self.place} has {has}"


def shortages(memory: Memory, n_here: int) -> list[Shortage]:
    """Shortages of this machine, for `n_here` processes that share its main memory."""
    every = [Shortage("main memory", n_here * sum_of(memory.main), main_memory())]
    if memory.gpu:
        every.append(Shortage("GPU memory", sum_of(memory.gpu), gpu_memory()))
    return [shortage for shortage in every if shortage.needed > shortage.room.free]


def check_memory(
    recipe: Recipe, lm: Model, configs: dict[str, SAEConfig], device: torch.device
) -> None:
    """Before anything is allocated, warn where the plan needs more than is free at present.

    Raises:
        ValueError: the recipe needs more memory than this machine has.
    """
    needed = memory(recipe, lm, configs, on_gpu=device.type == "cuda")
    for shortage in shortages(needed, int(os.environ.get("LOCAL_WORLD_SIZE", 1))):
        sentence = f"{shortage}; {remedy(recipe, lm, configs, needed, shortage)}"
        if shortage.is_sure:
            raise Refused(sentence)
        logger.warning("%s, or the system may end the run", sentence)


def remedy(
    recipe: Recipe,
    lm: Model,
    configs: dict[str, SAEConfig],
    needed: Memory,
    shortage: Shortage,
) -> str:
    """The remedy: less of the largest part, or a narrower SAE."""
    is_gpu = shortage.kind == "GPU memory"
    parts = needed.gpu if is_gpu else needed.main
    largest = max(parts, key=lambda name: parts[name])
    ways = [_REMEDIES[largest]] if largest in _REMEDIES else []
    if is_gpu and (not ways or largest == "one step, dense"):
        ways = ["spread latents over more cards (training.num_processes, training.shard_latents)"]
    n_sharing = shortage.needed / sum_of(parts)
    widest = max(config.d_sae for config in configs.values())
    for narrow in _narrower(configs):
        try:
            then = memory(recipe, lm, narrow, on_gpu=bool(needed.gpu))
        except ValueError:  # latents that do not divide evenly among processes
            continue
        if n_sharing * sum_of(then.gpu if is_gpu else then.main) <= shortage.room.free:
            d_sae = max(config.d_sae for config in narrow.values())
            ways.append(f"lower sae.d_sae: {d_sae:,} instead of {widest:,} would fit")
            break
    return ", or ".join(ways or ["train fewer SAEs at a time"])


def _narrower(configs: dict[str, SAEConfig]) -> Iterator[dict[str, SAEConfig]]:
    """A half, a quarter, and so on of the latents, while there are more of them than dimensions."""
    while all(config.d_sae >= 2 * config.d_in for config in configs.values()):
        configs = copy.deepcopy(configs)
        for config in configs.values():
            config.d_sae //= 2
        yield configs
