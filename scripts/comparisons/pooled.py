"""One difference from several places: random effects of the place, honest for few of them.

A place is a comparison at a site of its model. Its difference y, with standard error s, is drawn as

    y[place] = mean + of_place[place] + error[place],   of_place ~ N(0, tau^2), error ~ N(0, s^2)

tau^2 is Paule and Mandel's (1982): with weights w = 1 / (s^2 + tau^2) the sum of w (y - mean)^2 is
the number of places less one; 0 where it is smaller at tau = 0. At this tau^2 the variance of
Hartung and Knapp (2001) and of Sidik and Jonkman (2002) is 1 / sum w, and where tau is 0 their
factor, then below 1, is taken as 1 (Rover et al. 2015). So the mean's interval is Student's t with
places - 1 degrees of freedom times this error; a new place's is that of Higgins et al. (2009), t
with places - 2: of new places it holds some 90 % where tau is smaller than the errors (six places,
planted). Errors are taken as known and independent.
"""

from collections.abc import Sequence
from typing import NamedTuple, cast

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtri, stdtr, stdtrit

from hfsae.comparison import LEVEL, Estimate, holm

_UPPER = 0.975
_LEAST = 1e-12


class Verdict(NamedTuple):
    """An arm's difference from the reference of its comparison, over L0s."""

    of: str
    """the comparison: its report's folder, and its site where it has several"""
    arm: str
    """its title"""
    l0s: list[float]
    estimate: Estimate
    n_shown: int
    """of these L0s, at how many a difference is shown in the comparison's own table"""
    reference: str
    """its title"""
    n_seeds: int


class Pooled(NamedTuple):
    """The mean difference over places, in log ratios."""

    value: float
    interval: tuple[float, float]
    """95 %, of the mean over places like these"""
    tau: float
    """standard deviation between places"""
    predicted: tuple[float, float]
    """95 %, of the difference at a new place; NaN for two places"""
    p: float
    """that the mean is 0"""

    @property
    def is_significant(self) -> bool:
        """Whether the mean differs from 0 by its interval and by p."""
        low, high = self.interval
        return (low > 0 or high < 0) and self.p < LEVEL


class OverPlaces(NamedTuple):
    """An arm at all places where it has a difference from one reference."""

    arm: str
    reference: str
    values: list[float]
    """a difference a place, in log ratios"""
    pooled: Pooled


def over_places(verdicts: Sequence[Verdict]) -> list[OverPlaces]:
    """Of a metric's verdicts, the arms with two places or more; each p is corrected for them."""
    groups: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for v in verdicts:
        error = _error(v.estimate, v.n_seeds)
        if np.isfinite(v.estimate.value) and not np.isnan(error):
            groups.setdefault((v.arm, v.reference), []).append((v.estimate.value, error))
    rows = []
    for titles, places in groups.items():
        if len(places) > 1:
            values, errors = map(list, zip(*places, strict=True))
            rows.append(OverPlaces(*titles, values, pooled(values, errors)))
    ps = holm([row.pooled.p for row in rows])
    return [r._replace(pooled=r.pooled._replace(p=p)) for r, p in zip(rows, ps, strict=True)]


def pooled(values: Sequence[float], errors: Sequence[float]) -> Pooled:
    """From differences and their standard errors, of two places or more."""
    y, variances, n = np.array(values), np.square(errors), len(values)
    tau2 = _between(y, variances)
    weights = 1 / (variances + tau2)
    mean, error = float(weights @ y / weights.sum()), float(weights.sum() ** -0.5)
    half = float(stdtrit(n - 1, _UPPER)) * error
    new = float(stdtrit(n - 2, _UPPER)) * (tau2 + error**2) ** 0.5 if n > 2 else float("nan")
    p = float(2 * stdtr(n - 1, -abs(mean) / error))
    return Pooled(mean, (mean - half, mean + half), tau2**0.5, (mean - new, mean + new), p)


def _error(estimate: Estimate, n_seeds: int) -> float:
    """The standard error of a place's difference: the larger one of that over seeds and of that of
    the bootstrap of seeds and documents, by the longer side of its interval; NaN for one seed."""
    if n_seeds < 2:
        return float("nan")
    low, high = estimate.seeds
    of_seeds = (high - low) / 2 / float(stdtrit(n_seeds - 1, _UPPER))
    of_items = max(abs(estimate.value - end) for end in estimate.items) / float(ndtri(_UPPER))
    return float(max(of_seeds, of_items, _LEAST))


def _between(y: np.ndarray, variances: np.ndarray) -> float:
    """Paule and Mandel's variance between places."""

    def excess(tau2: float) -> float:
        weights = 1 / (variances + tau2)
        mean = weights @ y / weights.sum()
        return float(weights @ (y - mean) ** 2) - (len(y) - 1)

    if excess(0.0) <= 0:
        return 0.0
    root = brentq(excess, 0.0, float(np.square(y - y.mean()).sum()))
    return float(cast(float, root))
