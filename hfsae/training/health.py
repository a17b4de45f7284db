"""Why a run is stuck, a JumpReLU run above all, in one sentence with its fix.

Users of every library meet the same few walls: thresholds that do not move, an L0 that will not
fall, a coefficient that does nothing. Each has a cause that shows in numbers the trainer has at
hand: `Readings` takes them at each log line, and `diagnose` names the cause.

L0 control: a warm start with one common threshold, then a controller of lambda; at the end one
factor on all thresholds.

In the warm start (training.warm_start_steps; variants with thresholds) there is no sparsity term:
the controller adjusts one threshold that all latents share. Then lambda starts at the value for
which this threshold is right, rises over the sparsity warm-up, and is controlled from there on.
What is right on batches of training is a few per cent off on other text, so the thresholds of a
trained SAE can be set on activations that training did not read (training.calibration_tokens).
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..models import SAE, Schedule
from ..models.config import l0_goal
from ..ops import Place
from .arguments import TrainingArguments, geometric, in_steps, linear_warmup, steer
from .sharding import whole

logger = logging.getLogger(__name__)
_REACH = 1e4  # largest factor by which the controller changes a coefficient, up or down
_WARM_START_GAIN = 0.1  # a threshold acts on L0 at once; lambda only through many steps
_MOST_FACTOR = 4.0  # by which the thresholds of a trained SAE are moved, up or down
_AT_ONCE = 2**11  # activations


class L0Control:
    """Multiplies the sparsity coefficients by `factor`; in the warm start, moves the threshold."""

    def __init__(self, sae: SAE, args: TrainingArguments) -> None:
        self.sae, self.args, self.factor = sae, args, 1.0
        target = sae.config.target_l0
        self.target = None if target is None else float(target)
        warms = self.target is not None and sae.config.has_thresholds
        self.warm_start_steps = in_steps(args.warm_start_steps, args.total_steps) if warms else 0
        self.warmup_steps = args.warmup_length("sparsity_warmup_steps", self.warm_start_steps)
        most = max(self.target or 0.0, sae.config.d_sae / 2)
        self.first_l0 = min(args.warm_start_l0 * (self.target or 0.0), most)

    @torch.no_grad()
    def begin(self, pre_acts: Float[Tensor, "n d_sae"]) -> None:
        """Set the threshold so that `target` latents a token pass it; reorders pre_acts in place.

        Args:
            pre_acts: pre-activations of a sample, raw units.
        """
        assert self.target is not None
        n = round(self.goal(0) * len(pre_acts))
        values = whole(pre_acts).flatten().cpu().numpy()  # torch's topk needs 16 bytes a number
        values.partition(len(values) - n)
        threshold = float(values[len(values) - n])  # the n-th largest
        # The controller multiplies the threshold, so it could never move one of 0.
        least = float(self.sae.config.initial_threshold)
        self.sae.get_parameter("threshold").fill_(max(threshold / self.sae.latent_scale, least))

    def goal(self, step: int) -> float:
        """L0 to steer to at a step of the warm start: it falls to the target by its middle."""
        assert self.target is not None
        factor = geometric(step, self.warm_start_steps // 2, self.first_l0 / self.target)
        return self.target * factor

    def warmup(self, step: int) -> float:
        """The sparsity warm-up's factor on the coefficients, beside `factor`: it rises to 1."""
        return linear_warmup(step - self.warm_start_steps, self.warmup_steps)

    @torch.no_grad()
    def end_warm_start(self) -> None:
        """Set the lambda for which the warm start's threshold is right."""
        factor = self.sae.config.sparsity_at(
            float(whole(self.sae.get_parameter("threshold")).median())
        )
        if factor is not None:
            self.factor = _within_reach(factor)

    @torch.no_grad()
    def after_step(self, l0: float, step: int) -> None:
        """Raise the threshold or lambda a little where L0 is above the target, else lower it."""
        if self.target is None:
            return
        if step < self.warm_start_steps:
            self.sae.get_parameter("threshold").mul_(
                steer(1.0, l0, self.goal(step), _WARM_START_GAIN)
            )
        elif self.sae.config.steers_itself:
            return
        elif self.warmup(step) == 1.0:  # during the warm-up it would correct for it and wind up
            self.factor = _within_reach(steer(self.factor, l0, self.target, self.args.l0_gain))


@torch.no_grad()
def set_l0_(sae: SAE, x: Float[Tensor, "n d_in"]) -> float | None:
    """Multiply all thresholds by the factor with which target_l0 (or k) latents fire, on average.

    Args:
        sae: with a threshold above 0; others are left as they are.
        x: activations, raw units, on any device.

    Returns:
        The factor, 1/4 to 4; None where the SAE has no such thresholds, or no L0 to go to.
    """
    goal = l0_goal(sae.config.to_dict())
    if goal is None or "threshold" not in sae.state_dict():
        return None
    threshold = sae.get_parameter("threshold")
    if not bool((threshold > 0).any()):
        return None
    near = []  # of each activation and latent, the factor at which it just does not fire
    for part in x.split(_AT_ONCE):
        factors = sae.pre_activations(part.to(sae.device).float()) / (sae.latent_scale * threshold)
        near.append(factors[factors > 1 / _MOST_FACTOR])
    ordered = torch.cat(near).sort(descending=True).values
    n = round(float(goal) * len(x))
    last = ordered[n - 1 : n + 1].mean() if n < len(ordered) else ordered.new_tensor(0.0)
    factor = min(max(float(last), 1 / _MOST_FACTOR), _MOST_FACTOR)
    if factor != float(last):
        logger.warning(
            "L0 is not %g where training did not read, with thresholds %g times as large, the most "
            "by which they are moved",
            goal,
            factor,
        )
    threshold.mul_(factor)
    return factor


def _within_reach(factor: float) -> float:
    return min(max(factor, 1 / _REACH), _REACH)


_MOST = 0.5  # of all latents
_LEAST_VARIANCE = 0.2  # of x/c; 0.5 at a middle block of SmolLM2
_SILENT, _EARLY = 0.1, 0.1
_LEAST_SHARE = 0.1  # of an equal share of L0
_WIDE, _WIDE_FACTOR = 0.05, 4  # in runs that work: 0.016 of pre-activations, 2 median thresholds


@dataclass
class HealthReading:
    """The trainer's readings over the steps since the previous record."""

    steps: int
    """steps since the reading before"""
    steps_left: int
    share_done: float
    """of the run, 0 to 1"""
    l0: float
    previous_l0: float
    target_l0: float | None
    window_hits: float
    """pre-activations inside the STE window, per latent and step"""
    threshold_travel: float
    """median over latents of |threshold now / threshold at the reading before - 1|"""
    sparsity_growth: float
    """factor by which the L0 controller changed the sparsity coefficient since then; 1 if fixed"""
    dead_share: float
    """share of latents that have not fired for the trainer's dead_after_tokens"""
    mean_square: float
    """of x/c, or of its distance from the mean, by training.unit: 1 if activation_scale is right"""
    log_threshold: bool = True
    """whether thresholds are learned through their logarithms, in factors instead of steps"""
    warming_up: bool = False
    """whether sparsity coefficients are still rising from 0, while which the controller rests"""
    decaying: bool = False
    """whether learning rates are on their way to 0 at the end of the run"""
    variance: float = 1.0
    """mean squared distance of x/c from its mean"""
    window_share: float = 0.0
    """share of pre-activations inside the STE window"""
    bandwidth: float = 0.0
    """width of that window, in x/c"""
    threshold: float = 1.0
    """median over latents, in x/c"""

    @property
    def is_off_target(self) -> bool:
        """Whether L0 is more than a fifth above its target, the warm-up past."""
        is_above = self.target_l0 is not None and self.l0 > 1.2 * self.target_l0
        return is_above and not self.warming_up


def diagnose(reading: HealthReading) -> list[str]:
    """Why training is stuck, one sentence per cause, the most fundamental first; empty if nothing
    is wrong."""
    causes: list[str] = []
    if not 0.2 < reading.mean_square < 5:
        causes.append(
            f"activations reach the SAE with mean square {reading.mean_square:.3g} instead of 1, "
            "so bandwidth, thresholds and coefficients mean something else: leave activation_scale "
            "unset and the trainer estimates it"
        )
    elif reading.variance < _LEAST_VARIANCE:
        causes.append(
            f"activations vary by only {reading.variance:.0%} of their mean square, since their "
            "mean carries the rest, so bandwidth, thresholds and coefficients are too large for "
            "what varies: set training.unit=spread"
        )
    if reading.window_share > _WIDE and reading.bandwidth > _WIDE_FACTOR * reading.threshold:
        causes.append(
            f"{reading.window_share:.0%} of all pre-activations fall inside the STE window "
            f"(bandwidth {reading.bandwidth:.2g}, median threshold {reading.threshold:.2g}), so "
            "most gradients of thresholds come from latents far below them: lower sae.bandwidth "
            f"to about {2 * reading.threshold:.1g}"
        )
    if reading.window_hits < 0.02:
        causes.append(
            f"only {reading.window_hits:.2g} pre-activations per latent and step fall inside the "
            "STE window, so thresholds get almost no gradient: raise sae.bandwidth (0.03 suits "
            "runs under 1e8 tokens) or the batch size"
        )
    travel_left = reading.threshold_travel * reading.steps_left / max(reading.steps, 1)
    is_too_slow = travel_left < 0.2 and not reading.decaying
    faster = "raise training.threshold_learning_rate"
    if reading.log_threshold:
        faster = f"set sae.log_threshold=false or {faster}"
    if reading.is_off_target and is_too_slow and reading.steps_left > reading.steps:
        causes.append(
            f"thresholds move {reading.threshold_travel:.1%} in {reading.steps} steps, too slowly "
            f"to bring L0 from {reading.l0:.0f} to {reading.target_l0:.0f} in this run: {faster}"
        )
    if reading.target_l0 is None and is_too_slow and reading.share_done < 0.25:
        causes.append(
            f"thresholds move {reading.threshold_travel:.2%} in {reading.steps} steps: in the rest "
            "of this run they will hardly leave their first value, whatever sae.l0_coefficient is: "
            f"{faster}"
        )
    if reading.l0 < 0.3 * (reading.target_l0 or 1.0):
        goal = f", far below its target of {reading.target_l0:.0f}" if reading.target_l0 else ""
        causes.append(
            f"L0 is {reading.l0:.2g}{goal}: thresholds overshot; lower sae.l0_coefficient, "
            "training.threshold_learning_rate or training.l0_gain"
        )
    is_stuck = reading.l0 > 0.97 * reading.previous_l0
    if reading.is_off_target and reading.sparsity_growth > 1.5 and is_stuck:
        causes.append(
            f"the sparsity coefficient grew {reading.sparsity_growth:.1f}-fold and L0 stayed at "
            f"{reading.l0:.0f}: Adam takes the same step whatever the coefficient once it "
            "dominates, so raise training.threshold_learning_rate instead"
        )
    if reading.dead_share > _MOST:
        causes.append(
            f"{reading.dead_share:.0%} of latents are dead: lengthen "
            "training.sparsity_warmup_steps, or lower sae.l0_coefficient or "
            "training.learning_rate"
        )
    return causes


def diagnose_silent(
    sae: SAE, args: TrainingArguments, dead_share: float, never_share: float, share_done: float
) -> list[str]:
    """Like `diagnose`, for SAEs without trained thresholds, or before these are trained.

    Args:
        dead_share: of latents that have not fired for dead_after_tokens.
        never_share: of latents that have not fired since the start.
        share_done: of the run.
    """
    causes = []
    if dead_share > _MOST:
        could_revive = getattr(sae.config, "aux_coefficient", None) == 0
        revive = ", or revive them with sae.aux_coefficient 0.03125" if could_revive else ""
        causes.append(
            f"{dead_share:.0%} of latents are dead: lower training.learning_rate, or have a token "
            f"fire more latents (sae.k, or sae.target_l0){revive}"
        )
    if args.init_decoder_data and never_share >= _SILENT and share_done >= _EARLY:
        more = "warm_start_l0=2" if args.init_whitening else "init_whitening=0.75"
        causes.append(
            f"{never_share:.0%} of latents have not fired since the start: set training.{more}, or "
            "lower training.init_decoder_data"
        )
    return causes


def diagnose_sources(l0: Mapping[str, float]) -> list[str]:
    """Like `diagnose`, for sources that share one L0: those under a tenth of an equal share.

    Args:
        l0: by place that a source reads.
    """
    share = sum(l0.values()) / len(l0)
    few = {site: value for site, value in l0.items() if value < _LEAST_SHARE * share}
    if not few:
        return []
    shown = ", ".join(f"{site} {value:.2g}" for site, value in few.items())
    return [
        f"of an L0 of {sum(l0.values()):.3g}, an equal share of which is {share:.3g}, sources have "
        f"less than a tenth of theirs ({shown}): what they write is read from others; take these "
        "sites out, or raise sae.k or sae.target_l0"
    ]


class Readings:
    """Readings for the log; `previous` holds those of the line before, empty at first."""

    def __init__(self, sae: SAE, args: TrainingArguments, control: L0Control) -> None:
        self.sae, self.args, self.control = sae, args, control
        self.previous: dict[str, Any] = {}

    @torch.no_grad()
    def line(
        self,
        x: Float[Tensor, "part d_in"],
        pre_acts: Float[Tensor, "..."],
        at: Place,
        l0: float,
        dead_share: float,
        never_share: float,
        schedule: Schedule,
        step: int,
    ) -> dict[str, Any]:
        """The log line's entries on thresholds, where training moves them, and the findings since
        the last line; else on silent latents, if many.

        Args:
            x: inputs of the step's last part, raw units.
            pre_acts: their pre-activations, at the positions `at`.
            dead_share: of latents that have not fired for dead_after_tokens.
            never_share: of latents that have not fired since the start.
        """
        sae, args, total = self.sae, self.args, self.args.total_steps
        learns = sae.config.has_thresholds and sae.get_parameter("threshold").requires_grad
        if step < self.control.warm_start_steps or not learns:
            warnings = diagnose_silent(sae, args, dead_share, never_share, step / total)
            return {"health": warnings} if warnings else {}
        threshold = whole(sae.get_parameter("threshold").detach()).clone()
        before, now = self.previous, {"step": step, "l0": l0, "sparsity": schedule.sparsity}
        self.previous = {**now, "threshold": threshold}
        share = float(whole(sae.window_share(pre_acts, schedule, at)))
        line = {
            "l0_coefficient": sae.config.l0_coefficient * schedule.sparsity,
            "threshold_median": float(threshold.median()),
            "window_share": share,
        }
        if not before:
            return line
        x = whole(x.float() / (sae.read_scale * sae.read_unit))  # a mean squared norm of 1
        variance = root_mean_square_norm(x - x.mean(dim=0)) ** 2
        is_spread = args.unit == "spread"
        former = before["threshold"]
        moved = torch.where(former > 0, threshold / former - 1, threshold)  # one that stays 0: none
        reading = HealthReading(
            steps=step - before["step"],
            steps_left=total - step,
            share_done=step / total,
            l0=l0,
            previous_l0=before["l0"],
            target_l0=self.control.target,
            window_hits=share * args.batch_size,
            threshold_travel=float(moved.abs().median()),
            sparsity_growth=schedule.sparsity / max(before["sparsity"], 1e-30),
            dead_share=dead_share,
            mean_square=variance if is_spread else root_mean_square_norm(x) ** 2,
            log_threshold=sae.config.log_threshold,
            warming_up=self.control.warmup(step) < 1,
            decaying=step >= total - in_steps(args.decay_steps, total) > 0,
            variance=variance,
            window_share=share,
            bandwidth=sae.config.bandwidth * schedule.bandwidth,
            threshold=line["threshold_median"],
        )
        travel = reading.threshold_travel
        return {**line, "threshold_travel": travel, "health": diagnose(reading)}


def root_mean_square_norm(x: Float[Tensor, "n d"]) -> float:
    """The root of the mean over rows of their squared norms."""
    return float(x.float().square().sum(dim=-1).mean().sqrt())
