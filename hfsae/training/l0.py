"""L0 control: a warm start with one common threshold, then a controller of lambda; at the end one
factor on all thresholds.

In the warm start (training.warm_start_steps; variants with thresholds) there is no sparsity term:
the controller adjusts one threshold that all latents share. Then lambda starts at the value for
which this threshold is right, rises over the sparsity warm-up, and is controlled from there on.
What is right on batches of training is a few per cent off on other text, so the thresholds of a
trained SAE can be set on activations that training did not read (training.calibration_tokens).
"""

import logging

import torch
from jaxtyping import Float
from torch import Tensor

from ..models import SAE
from ..models.config import l0_goal
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

    def sparsity(self, step: int) -> float:
        """Factor on the sparsity coefficients; 0 in the warm start."""
        return 0.0 if step < self.warm_start_steps else self.factor * self.warmup(step)

    def warmup(self, step: int) -> float:
        """The sparsity warm-up's part of that factor: it rises to 1."""
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
