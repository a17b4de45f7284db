"""What speaks against using an SAE, from its records: the card's limits, the command's notes."""

from typing import Any

from ..io.units import TOKEN, unit_of
from ..models import SAE
from ..models.config import l0_goal
from ..models.registry import class_of

Json = dict[str, Any]
_FAR_FVU = 1.3  # times the FVU in training; on similar held-out text it is within a tenth
_SLOW = "the controller needs about 500 steps after the warm start; raise training.n_tokens"
_UNLIKE = "{0} unlike the training {1}, so the metrics are not those of the SAE on such {1}"
_NAMES = {True: ("this text is", "text"), False: ("these inputs are", "inputs")}
_LAGS = (
    "its threshold follows the batches by sae.threshold_rate a step; train for more steps, or "
    "raise that"
)
_TOO_FEW = "fewer pre-activations than k are above 0; lower k"
_NOTHING_MOVES = "its variant has no `sparsity_losses`, so nothing moves L0; leave target_l0 out"


def reasons_against(config: Json, record: Json, evaluation: Json) -> list[str]:
    """One sentence each: L0 off its goal, an FVU that is far too high, dead latents, ..."""
    metrics, target = evaluation.get("metrics", {}), l0_goal(config) or 0
    by_k = config.get("target_l0") is None
    l0, fvu, dead = (
        metrics.get(name, {}).get("value") or 0.0 for name in ("l0", "fvu", "dead_share")
    )
    reasons = []
    is_off = bool(metrics and target) and abs(l0 / target - 1) > (0.12 if by_k else 0.05)
    if is_off:
        kind = class_of(config.get("model_type"))
        stands = kind is not None and kind.sparsity_losses is SAE.sparsity_losses
        why = _NOTHING_MOVES if stands else _SLOW
        if by_k:
            why = _LAGS if "threshold_rate" in config else _TOO_FEW
        goal = "k" if by_k else "target"
        reasons.append(f"L0 is {l0:.1f}, {l0 / target - 1:+.0%} off its {goal} of {target}: {why}")
    if undefined := [name for name, m in metrics.items() if m.get("value", 0) is None]:
        reasons.append(f"{', '.join(undefined)} cannot be computed: each is a division by 0")
    if fvu >= 1:
        reasons.append(f"FVU is {fvu:.3g}, no better than the mean alone: lower the learning rates")
    trained = record.get("fvu_in_training")
    if trained and fvu > _FAR_FVU * trained and not is_off:
        reasons.append(
            f"FVU is {fvu:.3g}, {fvu / trained:.1f} times that at the end of training: "
            + _UNLIKE.format(*_NAMES[unit_of(record) == TOKEN])
        )
    if evaluation.get("side") == "validation":
        reasons.append(
            "the metrics are of validation documents, on which settings may have been chosen: "
            "measure results with --evaluation.side test"
        )
    if dead > 0.5:
        reasons.append(
            f"{dead:.0%} of latents never fired on the evaluation's {unit_of(record).many}"
        )
    return reasons
