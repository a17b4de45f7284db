"""The windows that are shown to an explainer and put to a judge, by protocol.

ours   as selected: those that test are of other documents, and are checked to be silent
paper  the windows that explain test, too, as in the JumpReLU paper
"""

from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from .arguments import OURS, ExplainArguments, ScoreArguments
from .explainers import spelt
from .reading import TESTED, Reading
from .scorers import Sample
from .scores import FAR, strata_of
from .windows import Evidence, Window


def by_protocol(evidence: Evidence, protocol: str) -> Evidence:
    """A latent's windows under a protocol."""
    if protocol == OURS:
        return evidence
    return evidence._replace(active=evidence.shown, inactive=[])


def sample_of(
    reading: Reading,
    evidence: Evidence,
    args: ExplainArguments,
    asked: ScoreArguments,
    tokenizer: PreTrainedTokenizerBase,
    takes_all: bool = False,
) -> Sample:
    """The judged windows of a latent, as text, with the numbers that weight its scores.

    Args:
        takes_all: all that test, not `asked.windows` of them.
    """
    active, inactive = evidence.active, evidence.inactive
    if asked.protocol == OURS and not takes_all:
        active, inactive = _judged(evidence, asked.windows // 2)
    activations = evidence.activations(len(reading.ids))
    strata, tested, share = _strata(reading, activations, args.window)
    texts = [spelt(reading, w, tokenizer, activations) for w in (*active, *inactive)]
    return Sample(
        evidence.latent,
        args.seed,
        texts[: len(active)],
        texts[len(active) :],
        share,
        [strata[w.start : w.stop] for w in (*active, *inactive)],
        np.bincount(strata[tested], minlength=FAR + 1),
    )


def _judged(evidence: Evidence, n: int) -> tuple[list[Window], list[Window]]:
    """n active windows over all quantiles, and n inactive ones, half of which are hard."""
    hard = [window for window in evidence.inactive if window.kind == "hard"]
    easy = [window for window in evidence.inactive if window.kind != "hard"]
    hard = spread(hard, n // 2)
    return spread(evidence.active, n), hard + spread(easy, n - len(hard))


def spread(windows: Sequence[Window], n: int) -> list[Window]:
    """n windows at equal distances in the sequence; all if there are no more."""
    if len(windows) <= n:
        return list(windows)
    return [windows[i * len(windows) // n] for i in range(n)]


def _strata(
    reading: Reading, activations: np.ndarray, reach: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """Strata of all tokens; which are of the tested half; the share of its windows that fire."""
    at = np.arange(len(reading.ids))
    fires = activations > 0
    count = np.concatenate([[0], fires.cumsum()])
    start = np.maximum(reading.start, at - reach)
    stop = np.minimum(reading.stop, at + reach + 1)
    near = count[stop] > count[start]
    tested = (reading.half == TESTED) & reading.computed
    return strata_of(fires, near), tested, float(near[tested].mean())
