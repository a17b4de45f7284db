"""The log line's entries on thresholds, and the findings of `diagnose` since the last line."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..models import SAE, SAEConfig, Schedule
from ..ops import Place
from .arguments import TrainingArguments
from .health import (
    HealthReading,
    diagnose,
    diagnose_dead,
    diagnose_silent,
    diagnose_sources,
)
from .l0 import L0Control
from .schedules import in_steps
from .sharding import whole

_ITERATIONS = 10


class StepOutput(NamedTuple):
    """Results of a step's forward passes."""

    x: Float[Tensor, "part d_in"]
    """inputs of the last part"""
    pre_acts: Float[Tensor, "..."]
    """pre-activations of the last part"""
    at: Place
    """...and their positions"""
    losses: dict[str, Tensor]
    """means over this process's share of the batch"""
    fired: Tensor
    """[d_sae], how often each latent fired in this process's share"""
    n_entries: Tensor
    """(token, latent) pairs in that share that could have a value or a gradient"""


class Silence(NamedTuple):
    """Shares of silent latents."""

    dead: float
    """not fired for dead_after_tokens"""
    never: float
    """not fired since the start"""


class Readings:
    """Readings for the log; `previous` holds those of the line before, empty at first."""

    def __init__(self, sae: SAE, args: TrainingArguments, control: L0Control) -> None:
        self.sae, self.args, self.control = sae, args, control
        self.previous: dict[str, Any] = {}

    @torch.no_grad()
    def line(
        self, out: StepOutput, l0: float, silent: Silence, schedule: Schedule, step: int
    ) -> dict[str, Any]:
        """Entries on thresholds, where training moves them; else on silent latents, if many."""
        if step >= self.control.warm_start_steps and self._learns_thresholds:
            return self._of_thresholds(out, l0, silent.dead, schedule, step)
        could_revive = getattr(self.sae.config, "aux_coefficient", None) == 0
        warnings = diagnose_dead(silent.dead, could_revive=could_revive)
        if self.args.init_decoder_data:
            done, whitening = step / self.args.total_steps, self.args.init_whitening
            warnings += diagnose_silent(silent.never, done, whitening=whitening)
        return {"health": warnings} if warnings else {}

    @property
    def _learns_thresholds(self) -> bool:
        has_thresholds = self.sae.config.has_thresholds
        return has_thresholds and self.sae.get_parameter("threshold").requires_grad

    def _of_thresholds(
        self, out: StepOutput, l0: float, dead_share: float, schedule: Schedule, step: int
    ) -> dict[str, Any]:
        sae, total = self.sae, self.args.total_steps
        threshold = whole(sae.get_parameter("threshold").detach()).clone()
        before, now = self.previous, {"step": step, "l0": l0, "sparsity": schedule.sparsity}
        self.previous = {**now, "threshold": threshold}
        share = float(whole(sae.window_share(out.pre_acts, schedule, out.at)))
        line = {
            "l0_coefficient": sae.config.l0_coefficient * schedule.sparsity,
            "threshold_median": float(threshold.median()),
            "window_share": share,
        }
        if not before:
            return line
        x = whole(out.x.float() / sae.input_scale)
        variance = root_mean_square_norm(x - x.mean(dim=0)) ** 2
        is_spread = self.args.unit == "spread"
        reading = HealthReading(
            steps=step - before["step"],
            steps_left=total - step,
            share_done=step / total,
            l0=l0,
            previous_l0=before["l0"],
            target_l0=self.control.target,
            window_hits=share * self.args.batch_size,
            threshold_travel=_median_travel(threshold, before["threshold"]),
            sparsity_growth=schedule.sparsity / max(before["sparsity"], 1e-30),
            dead_share=dead_share,
            mean_square=variance if is_spread else root_mean_square_norm(x) ** 2,
            log_threshold=sae.config.log_threshold,
            warming_up=self.control.warmup(step) < 1,
            decaying=step >= total - in_steps(self.args.decay_steps, total) > 0,
            variance=variance,
            window_share=share,
            bandwidth=sae.config.bandwidth * schedule.bandwidth,
            threshold=line["threshold_median"],
        )
        travel = reading.threshold_travel
        return {**line, "threshold_travel": travel, "health": diagnose(reading)}


def of_sources(
    l0: Float[Tensor, " d_sae"], line: Mapping[str, Any], config: SAEConfig
) -> dict[str, Any]:
    """The log line's L0 by source, and its findings with one for sources that are left out.

    Args:
        l0: firings of each latent, per token.
    """
    reads = config.reads.names
    by_source = [float(part.sum()) for part in l0.chunk(len(reads))]
    found = [*line.get("health", ()), *diagnose_sources(dict(zip(reads, by_source, strict=True)))]
    return {"l0_by_source": by_source, **({"health": found} if found else {})}


def root_mean_square_norm(x: Float[Tensor, "n d"]) -> float:
    """The root of the mean over rows of their squared norms."""
    return float(x.float().square().sum(dim=-1).mean().sqrt())


def leading_share(x: Float[Tensor, "n d"]) -> float:
    """The share of the variance about the mean along the direction that holds most of it, by power
    iteration from the row of the largest norm."""
    x = x.float() - x.float().mean(dim=0)
    direction = x[x.norm(dim=1).argmax()]
    for _ in range(_ITERATIONS):
        direction = nn.functional.normalize(x.T @ (x @ direction), dim=0)
    total = float(x.square().sum())
    return float((x @ direction).square().sum()) / total if total else 0.0


def _median_travel(now: Float[Tensor, " d_sae"], before: Float[Tensor, " d_sae"]) -> float:
    moved = torch.where(before > 0, now / before - 1, now)  # a threshold that stays 0: no travel
    return float(moved.abs().median())
