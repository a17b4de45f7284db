"""Settings of a training: budget, optimiser, schedules, checkpoints. Names follow transformers.

At the end the pure functions of the step that they set: warm-up, decay, and the L0 controller.
"""

import math
from dataclasses import dataclass, fields
from typing import Literal, get_origin

from ..io.bounds import MOST_TOKENS, check_least, check_most, check_type
from ..io.errors import Refused

Duration = int | float
# Arguments that do not change the result.
FREE = {
    "output_dir",
    "logging_steps",
    "save_steps",
    "save_total_limit",
    "report_to",
    "num_processes",
    "shard_latents",
}
# What SAEs on one stream have in common; they may differ in the others.
SHARED = FREE | {"n_tokens", "batch_size", "gradient_accumulation_steps", "calibration_tokens"}


@dataclass
class TrainingArguments:
    """Budget, optimiser, schedules, start and checkpoints of a training.

    Defaults are Gemma Scope's (arXiv:2408.05147, 3.2). A duration (..._steps) is a whole number of
    steps or, below 1, a fraction of all of the run's steps."""

    output_dir: str = "sae"
    """Folder for checkpoints, logs and the trained SAE."""
    n_tokens: int = 4_000_000_000
    """Activations to train on. Each of `shuffle.passes` over the same ones counts: 3 passes over
    a million are 3,000,000. A short run learns most where one bucket (`shuffle.bucket_tokens`)
    holds all activations, so that each pass goes over all of them; then a further pass costs less
    than new text, and new text is worth more."""
    batch_size: int = 4096
    """Activations in an optimiser step, over all processes and accumulated parts."""
    gradient_accumulation_steps: int = 1
    """Parts in which a batch goes through the SAE, to save memory. The same step as one large
    batch, except for batch-wise terms (BatchTopK's cut, quadratic and frequency penalties), which
    are taken per part."""
    learning_rate: float = 7e-5
    """Adam's learning rate after warm-up."""
    threshold_learning_rate: float | None = None
    """For JumpReLU thresholds (or their logarithms); None: the same as learning_rate."""
    decoder_rate_factor: float = 1.0
    """Factor on learning_rate for decoder rows: short runs do better with 2."""
    adam_beta1: float = 0.0
    """Decay of Adam's first moment: 0 in the paper; runs under 1e8 tokens do better with 0.9."""
    adam_beta2: float = 0.999
    """Decay of Adam's second moment."""
    adam_epsilon: float = 1e-8
    """Adam's epsilon."""
    max_grad_norm: float | None = None
    """Clip each SAE's gradient to this norm; the paper does not."""
    warmup_steps: Duration = 1000
    """Learning rates rise over these steps along half a cosine from a tenth. Below 1: a fraction of
    all. At most half of the steps after the warm start are used."""
    decay_steps: Duration = 0
    """Learning rates fall linearly to 0 over the last steps. Below 1: a fraction of all."""
    sparsity_warmup_steps: Duration = 10_000
    """Sparsity coefficients rise linearly from 0 over these steps. Below 1: a fraction of all. At
    most half of the steps after the warm start are used, so that short runs reach the full value.
    """
    bandwidth_start: float = 1.0
    """Factor on the STE bandwidth at the start, which falls to 1 geometrically."""
    bandwidth_steps: Duration = 0
    """Steps over which that factor falls to 1. Below 1: a fraction of all."""
    warm_start_steps: Duration = 0
    """SAEs with a target_l0 first train for this many steps with one common threshold that is
    adjusted to the target (in effect a BatchTopK SAE); then Adam and warm-ups restart, and lambda
    starts at that threshold's square. It helps short runs. Below 1: a fraction of all."""
    warm_start_l0: float = 1.0
    """L0 at the start of the warm start, as a factor on the target; it falls to the target by the
    warm start's middle. More latents then learn before few may fire, and fewer end silent."""
    l0_gain: float = 0.05
    """Speed of the L0 controller: it changes lambda by at most a factor exp(l0_gain) each step."""
    unit: Literal["norm", "spread"] = "norm"
    """c, the unit of activations that bandwidth, thresholds and coefficients count in: the root of
    the mean squared norm (the paper) or of the mean squared distance from the mean. They differ
    where the mean carries most of the norm, and there only "spread" keeps a recipe's meaning. It
    needs init_b_dec="mean" and sae.subtract_b_dec, which take the mean out of what is encoded."""
    init_b_dec: Literal["zeros", "mean"] = "zeros"
    """Start the decoder's bias at zero (the paper) or at the mean activation."""
    init_decoder_data: float = 0.0
    """Share of data in the directions in which decoder rows and encoder columns start: row = share
    * token + (1 - share) * random, both of length 1, the token an activation less the mean. The
    paper: 0. At 131k tokens 0.7 lowers FVU by 4 %, and leaves more latents silent."""
    init_decoder: str = ""
    """A .safetensors file of directions with labels (`training/directions.py`): the first decoder
    rows and encoder columns start there, the others at random, and the labels become the latents'
    names. DACO (arXiv:2604.08846). The cosines of rows with their start, after training, are in
    training.json and on the card."""
    init_cluster_rounds: int = 0
    """Rounds of k-means after which the data that a latent starts at are a cluster of activations,
    or of what clusters leave (`training/start.py`), instead of one token; 0: one token. 4 rounds
    at a share of 0.9 lower FVU by 6 % at 131k tokens, by 3 % at 524k."""
    init_whitening: float = 0.0
    """Power p of the covariance S in which tokens and clusters for the start are found, from 0 to
    1: decoder rows start at patterns, S^(p/2) c, encoder columns at their detectors, S^(-p/2) c
    (`training/start.py`). Fewer latents end silent, above all where one direction holds much
    of the variance."""
    init_encoder_scale: float = 1.0
    """Norm of encoder columns at the start, as a factor on that of decoder rows (the paper: 1)."""
    refit_ridge: float | None = None
    """After the last step, fit decoder rows and bias by least squares to the activations that the
    stream still holds, its last bucket. The trained rows count as if they fitted this many times as
    many activations (`training/refit.py`). 0.1 lowers FVU by 4 to 7 % in one pass over 131k tokens,
    by less than 1 % in the quickstart. None: no refit. SAEs whose loss has several reconstructions
    (Matryoshka) are left as they are."""
    calibration_tokens: int = 0
    """After the last step, multiply all thresholds by one factor, so that L0 is target_l0 (or k) on
    so many activations of the validation side, which validation_fraction makes: text that training
    did not read. 0: thresholds stay as they were trained."""
    dead_after_tokens: int = 10_000_000
    """A latent that has not fired for this many tokens counts as dead."""
    bf16: bool = False
    """Matrix products in bfloat16; parameters, thresholds and losses stay float32."""
    sparse: Literal["auto", "always", "never"] = "auto"
    """Steps over the few entries that matter (same loss and gradients, several times faster on a
    CPU) instead of dense ones. auto: while fewer than about a tenth of all entries matter."""
    shard_latents: bool = False
    """With several processes, spread each SAE's latents over them instead of the batch: for
    dictionaries too wide for one device."""
    logging_steps: int = 50
    """Steps between lines of log.jsonl."""
    save_steps: Duration = 0.1
    """Steps between checkpoints. Below 1: a fraction of all; 0: only the last."""
    save_total_limit: int | None = 2
    """Checkpoints that are kept, newest first; None: all."""
    report_to: Literal["none", "tensorboard", "trackio", "wandb"] = "none"
    """Experiment tracker, through accelerate."""
    num_processes: int | None = None
    """Number of processes that this run must have; None: as many as were launched."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type is float and type(value) is int:  # YAML's 0, where a library wants 0.0
                setattr(self, field.name, float(value))
            if get_origin(field.type) is Literal:
                check_type(f"training.{field.name}", value, field.type)
        if not self.output_dir.strip():
            raise Refused(
                f"training.output_dir is {self.output_dir!r}; name a folder, such as runs/mine"
            )
        counts = ("n_tokens", "batch_size", "gradient_accumulation_steps", "logging_steps")
        for name in (*counts, "dead_after_tokens"):
            check_least(self, "training.", **{name: 1})
            check_most(f"training.{name}", getattr(self, name), MOST_TOKENS)
        check_least(self, "training.", calibration_tokens=0, init_cluster_rounds=0)
        check_least(self, "training.", num_processes=1, save_total_limit=1)
        for name in ("init_decoder_data", "init_whitening"):
            if not 0 <= getattr(self, name) <= 1:
                raise Refused(f"training.{name} must lie in [0, 1], got {getattr(self, name)}")
        for name in ("init_cluster_rounds", "init_whitening"):
            if getattr(self, name) and not self.init_decoder_data:
                raise Refused(
                    f"training.{name} is {getattr(self, name)}, which has no effect "
                    "while training.init_decoder_data, the share of data at the "
                    f"start, is 0; set that to 0.9, or training.{name} to 0"
                )
        if self.init_decoder and self.init_decoder_data:
            raise Refused(
                f"training.init_decoder ({self.init_decoder!r}) and training.init_decoder_data "
                f"({self.init_decoder_data}) both say where decoder rows start; give one of them"
            )
        for name in ("adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise Refused(f"training.{name} must lie in [0, 1), got {getattr(self, name)}")
        if self.n_tokens < self.batch_size:
            raise Refused(
                f"training.n_tokens ({self.n_tokens}) is less than one batch ({self.batch_size})"
            )
        durations = ("warmup", "decay", "sparsity_warmup", "bandwidth", "warm_start", "save")
        for name in (f"{duration}_steps" for duration in durations):
            value = getattr(self, name)
            if not (0 <= value < 1 or (value > 0 and value % 1 == 0)):
                raise Refused(
                    f"training.{name} must be a whole number of steps, or a fraction of all steps "
                    f"from 0 up to but not including 1, got {value}"
                )
        positive = ("learning_rate", "threshold_learning_rate", "decoder_rate_factor")
        positive += ("max_grad_norm", "l0_gain", "init_encoder_scale", "warm_start_l0")
        positive += ("refit_ridge",)
        for name in (*positive, "bandwidth_start", "adam_epsilon"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise Refused(f"training.{name} must be positive and finite, got {value}")
        if in_steps(self.warm_start_steps, self.total_steps) >= self.total_steps:
            raise Refused(
                f"training.warm_start_steps ({self.warm_start_steps}) uses all "
                f"{self.total_steps} steps, so thresholds would not be learned; 0.5 is half of them"
            )
        self.check_shares(1)

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the run."""
        return self.n_tokens // self.batch_size

    def warmup_length(self, name: str, warm_start_steps: int) -> int:
        """A warm-up's length in steps: at most half of those after the warm start."""
        given = in_steps(getattr(self, name), self.total_steps)
        return min(given, (self.total_steps - warm_start_steps) // 2)

    def check_shares(self, n_processes: int) -> None:
        """Refuse a batch that this number of processes cannot share equally.

        Raises:
            ValueError: batch_size is not divisible by processes times accumulated parts.
        """
        parts = n_processes * self.gradient_accumulation_steps
        if self.batch_size % parts:
            raise Refused(
                f"training.batch_size ({self.batch_size}) is not divisible by processes times "
                f"gradient_accumulation_steps ({parts})"
            )


def in_steps(duration: Duration, total_steps: int) -> int:
    """A duration in steps: below 1 it is a fraction of all steps, else steps already."""
    return round(duration * total_steps) if duration < 1 else int(duration)


def linear_warmup(step: int, warmup_steps: int) -> float:
    """Linear from just above 0 at step 0 to 1 at step warmup_steps."""
    return min(1.0, (step + 1) / (warmup_steps + 1))


def cosine_warmup(step: int, warmup_steps: int) -> float:
    """Half a cosine from a tenth to 1 over warmup_steps (Gemma Scope's learning rate, 3.2)."""
    if step >= warmup_steps:
        return 1.0
    return 0.1 + (1 - 0.1) * (1 - math.cos(math.pi * step / warmup_steps)) / 2


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
