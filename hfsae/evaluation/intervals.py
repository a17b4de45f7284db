"""Means over items, such as latents or tasks, with bootstrap intervals; p-values of several."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from .metrics import bootstrap_weights


class Interval(NamedTuple):
    """A mean over items, and its 95 % percentile bootstrap interval."""

    value: float
    low: float
    high: float


def interval(
    values: Sequence[float], weights: Sequence[float], *, n_resamples: int, seed: int
) -> Interval:
    """A weighted mean, with the percentile bootstrap over items; NaNs are left out."""
    value, weight = (torch.tensor(each, dtype=torch.float64) for each in (values, weights))
    known = ~value.isnan()
    if not known.any():
        return Interval(float("nan"), float("nan"), float("nan"))
    mean = float((value * weight)[known].sum() / weight[known].sum())
    return around(mean, resampled_means(values, weights, n_resamples=n_resamples, seed=seed))


def resampled_means(
    values: Sequence[float], weights: Sequence[float], *, n_resamples: int, seed: int
) -> torch.Tensor:
    """[n_resamples] the weighted mean in each resample of items; NaNs are left out."""
    value, weight = (torch.tensor(each, dtype=torch.float64) for each in (values, weights))
    known = ~value.isnan()
    value, weight = value[known], weight[known]
    if not len(value):
        return torch.full((n_resamples,), torch.nan, dtype=torch.float64)
    table = torch.stack([value * weight, weight], dim=1)
    sums = torch.cat([block @ table for block in bootstrap_weights(len(value), n_resamples, seed)])
    return sums[:, 0] / sums[:, 1]


def around(value: float, draws: torch.Tensor) -> Interval:
    """A value with the 95 % interval of its draws, which holds the value."""
    low, high = torch.quantile(draws, torch.tensor([0.025, 0.975]).double()).tolist()
    return Interval(value, min(low, value), max(high, value))


def holm(ps: Sequence[float]) -> list[float]:
    """P-values corrected for their number (Holm 1979)."""
    corrected, highest = [math.nan] * len(ps), 0.0
    known = sorted((p, i) for i, p in enumerate(ps) if not math.isnan(p))
    for rank, (p, i) in enumerate(known):
        highest = max(highest, min(1.0, p * (len(known) - rank)))
        corrected[i] = highest
    return corrected
