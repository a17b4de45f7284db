"""Pure functions of the step: warm-up, decay, and the L0 controller."""

import math

Duration = int | float


def in_steps(duration: Duration, total_steps: int) -> int:
    """A duration in steps: below 1 it is a fraction of all steps, else steps already."""
    return round(duration * total_steps) if duration < 1 else int(duration)


def linear_warmup(step: int, warmup_steps: int) -> float:
    """Linear from just above 0 at step 0 to 1 at step warmup_steps."""
    return min(1.0, (step + 1) / (warmup_steps + 1))


def cosine_warmup(step: int, warmup_steps: int, start: float = 0.1) -> float:
    """Half a cosine from `start` to 1 over warmup_steps (Gemma Scope's learning rate, 3.2)."""
    if step >= warmup_steps:
        return 1.0
    return start + (1 - start) * (1 - math.cos(math.pi * step / warmup_steps)) / 2


def linear_decay(step: int, total_steps: int, decay_steps: int) -> float:
    """1, then linear towards 0 over the last decay_steps."""
    return min(1.0, (total_steps - step) / decay_steps) if decay_steps else 1.0


def geometric(step: int, steps: int, start: float) -> float:
    """From `start` to 1 over `steps`, by equal factors."""
    return start ** max(0.0, 1 - step / steps) if steps else 1.0


def steer(value: float, l0: float, target_l0: float, gain: float) -> float:
    """`value`, larger if l0 is above its target, smaller if below: by at most exp(gain) a step.

    Works for any value that lowers L0 as it grows: the sparsity coefficient, a common threshold.
    """
    error = math.log(max(l0, 1e-9) / target_l0)
    return value * math.exp(gain * max(-1.0, min(1.0, error)))
