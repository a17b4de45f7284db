"""The windows that are shown to an explainer and put to a judge, by protocol.

ours      as selected: those that test are of other documents, and are checked to be silent
saebench  15 that explain (10 of the 12 strongest, 5 drawn in proportion to the activation squared),
          and 14 that test (the other 2, 2 drawn so, 10 anywhere, unchecked), all of all documents;
          a window below 1 % of the strongest is inactive; as in SAEBench's code
paper     the windows that explain test, too, as in the JumpReLU paper
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from transformers import PreTrainedTokenizerBase

from .arguments import OURS, SAEBENCH, ExplainArguments, ScoreArguments
from .explainers import Spelt, spelt
from .reading import SHOWN, TESTED, Reading
from .scorers import Sample
from .scores import FAR, strata_of
from .windows import Evidence, Window, peaks

_TOP, _TOP_TESTED, _WEIGHTED, _WEIGHTED_TESTED, _RANDOM = 12, 2, 7, 2, 10
_ACTIVE_SHARE = 0.01  # of the strongest activation: a window that stays below it is inactive


def by_protocol(
    reading: Reading, evidence: Evidence, args: ExplainArguments, protocol: str
) -> Evidence:
    """A latent's windows under a protocol."""
    if protocol == OURS:
        return evidence
    if protocol == SAEBENCH:
        return _saebench(reading, evidence, args)
    return evidence._replace(active=evidence.shown, inactive=[])


def _saebench(reading: Reading, evidence: Evidence, args: ExplainArguments) -> Evidence:
    rng = np.random.default_rng([args.seed, evidence.latent + 2**32, 1])
    whole = replace(reading, half=np.full_like(reading.half, SHOWN))
    activations = evidence.activations(len(reading.ids))
    strongest = peaks(whole, activations, evidence.trace, SHOWN, args.window)
    top = [window._replace(kind="top") for window, _ in zip(strongest, range(_TOP), strict=False)]
    limit = min(window.activation for window in top)
    weighted = list(_weighted(reading, evidence, limit, args.window, rng))
    anywhere = rng.choice(np.flatnonzero(reading.computed), _RANDOM, replace=False)
    random = [_around(reading, int(at), 0.0, args.window, "random") for at in anywhere]
    top = [top[i] for i in rng.permutation(len(top))]
    n_top, n_weighted = min(_TOP_TESTED, len(top) - 1), min(_WEIGHTED_TESTED, len(weighted))
    shown = sorted(top[n_top:], key=lambda w: -w.activation) + weighted[n_weighted:]
    limit = _ACTIVE_SHARE * max(window.activation for window in top)
    active, weak = [], []
    for window in top[:n_top] + weighted[:n_weighted]:
        is_active = activations[window.start : window.stop].max() > limit
        (active if is_active else weak).append(window)
    return evidence._replace(shown=shown, active=active, inactive=weak + random)


def _weighted(
    reading: Reading, evidence: Evidence, limit: float, reach: int, rng: np.random.Generator
) -> Iterator[Window]:
    """Windows at firings below a limit, drawn in proportion to the activation squared."""
    token, value = evidence.trace
    token, value = token[value < limit], value[value < limit].astype(np.float64)
    n = min(_WEIGHTED, len(token))
    if n:
        share = value**2 / (value**2).sum()
        for i in rng.choice(len(token), n, replace=False, p=share).tolist():
            yield _around(reading, int(token[i]), float(value[i]), reach, "weighted")


def _around(reading: Reading, at: int, activation: float, reach: int, kind: str) -> Window:
    start = max(int(reading.start[at]), at - reach)
    return Window(start, min(int(reading.stop[at]), at + reach + 1), at, activation, kind)


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
    if asked.protocol == SAEBENCH:  # its random windows are taken to be silent
        texts = [*texts[: len(active)], *map(_silenced, texts[len(active) :])]
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


def _silenced(window: Spelt) -> Spelt:
    return window._replace(activations=(0.0,) * len(window.tokens))


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
