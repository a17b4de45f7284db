"""How often the intervals of a study's report hold the truth, in simulated studies.

    python scripts/studies/coverage.py --n_studies 1000

A study has latents of a true quality, raters who see it with errors and say no, maybe or yes, and a
score that correlates with the quality. Three tables, on standard output: Spearman's correlation
corrected for the raters, by Cronbach's alpha (clipped to 1) and as `hfsae.study` has it; the AUC of
yes against no, with a percentile bootstrap and as there; and the mean rating over raters and
latents. One core, some minutes.
"""

import argparse
import math
from collections.abc import Iterator
from itertools import product

import numpy as np
from scipy import stats

from hfsae.evaluation.statistics import Interval
from hfsae.machine.markdown import table
from hfsae.study.correlation import auc_interval, corrected
from hfsae.study.estimates import over_both, over_latents

CUTS = (-0.8, 0.2)
"""Quality, with a rater's errors, above which an answer is maybe, and yes."""
ERROR = 0.7
"""Standard deviation of a rater's errors; that of the quality is 1."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--n_studies", type=int, default=1000, help="of each row")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn")
    args = parser.parse_args()
    for rows in (of_corrected, of_auc, of_both):
        print(table([*rows(args.n_studies, np.random.default_rng(args.seed))]), end="\n\n")


def of_corrected(n_studies: int, rng: np.random.Generator) -> Iterator[list[str]]:
    """Rows of the corrected correlation."""
    head = ["raters", "at random", "latents", "truth", "by alpha", "it is 1.00"]
    yield [*head, "corrected", "coverage", "cannot be estimated"]
    settings = [(2, 0, 40), (3, 0, 30), (3, 0, 40), (3, 0, 100), (5, 0, 40)]
    settings += [(2, 1, 40), (3, 1, 30), (3, 1, 40), (3, 1, 100), (5, 1, 40), (5, 2, 40)]
    for correlation in (0.7, 0.0, 0.95):
        truth = 6 / math.pi * math.asin(correlation / 2)  # Spearman's of a normal distribution
        for n_raters, n_random, n in settings if correlation == 0.7 else [(3, 0, 40), (3, 1, 40)]:
            studies = [study(n_raters, n_random, n, correlation, rng) for _ in range(n_studies)]
            alpha = np.array([by_alpha(*each) for each in studies])
            ours = [corrected(*each) for each in studies]
            known = [each for each in ours if not math.isnan(each.value)]
            yield [
                *(str(number) for number in (n_raters, n_random, n)),
                f"{truth:.2f}",
                spread(alpha[~np.isnan(alpha)]),
                f"{(alpha == 1).mean():.0%}",
                spread(np.array([each.value for each in known])),
                f"{covered(known, truth):.3f}",
                f"{1 - len(known) / n_studies:.0%}",
            ]


def study(
    n_raters: int, n_random: int, n: int, correlation: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Ratings [raters, latents] and scores; the last raters answer at random."""
    quality = rng.normal(size=n)
    scores = correlation * quality + math.sqrt(1 - correlation**2) * rng.normal(size=n)
    ratings = np.digitize(quality + ERROR * rng.normal(size=(n_raters, n)), CUTS).astype(float)
    ratings[n_raters - n_random :] = rng.integers(3, size=(n_random, n))
    return ratings, scores


def by_alpha(ratings: np.ndarray, scores: np.ndarray) -> float:
    """Spearman's correlation over the root of Cronbach's alpha, at most 1."""
    n = len(ratings)
    alpha = n / (n - 1) * (1 - ratings.var(1).sum() / ratings.sum(0).var())
    spearman = float(stats.spearmanr(ratings.mean(0), scores).statistic)  # pyright: ignore
    return float(np.clip(spearman / math.sqrt(alpha), -1, 1)) if alpha > 0 else math.nan


def of_auc(n_studies: int, rng: np.random.Generator) -> Iterator[list[str]]:
    """Rows of the AUC: scores are normal, and as widely spread in both classes or not."""
    yield ["yes", "no", "spread, yes : no", "AUC", "bootstrap", "coverage", "width"]
    spreads = [(1.0, 1.0), (1.0, 2.0), (2.0, 1.0), (1.0, 3.0), (3.0, 1.0)]
    numbers = [(5, 8), (15, 15), (22, 8), (25, 5)]
    for (one, other), (n_yes, n_no), truth in product(spreads, numbers, [0.5, 0.75, 0.95]):
        apart = float(stats.norm.ppf(truth)) * math.hypot(one, other)
        yes = rng.normal(apart, one, size=(n_studies, n_yes))
        no = rng.normal(0, other, size=(n_studies, n_no))
        ours = [auc_interval(*each) for each in zip(yes, no, strict=True)]
        plain = [bootstrapped(*each, rng) for each in zip(yes, no, strict=True)]
        yield [
            *(str(n_yes), str(n_no), f"{one:g} : {other:g}", f"{truth:g}"),
            *(f"{covered(each, truth):.3f}" for each in (plain, ours)),
            width(ours),
        ]


def bootstrapped(yes: np.ndarray, no: np.ndarray, rng: np.random.Generator) -> Interval:
    """The AUC with a percentile bootstrap within both classes."""
    above = (yes[:, None] > no).astype(float)
    drawn = [rng.multinomial(n, np.full(n, 1 / n), size=500) / n for n in above.shape]
    low, high = np.quantile(np.einsum("by,yn,bn->b", drawn[0], above, drawn[1]), [0.025, 0.975])
    return Interval(float(above.mean()), float(low), float(high))


def of_both(n_studies: int, rng: np.random.Generator) -> Iterator[list[str]]:
    """Rows of the mean rating: raters have biases; one rating of 20 is missing."""
    yield ["raters", "latents", "bias", "quality", "over latents", "over raters too", "width"]
    settings = [(2, 10, 0.3), (2, 30, 0.0), (2, 30, 0.3), (2, 30, 0.6), (3, 10, 0.3)]
    settings += [(3, 30, 0.0), (3, 30, 0.3), (3, 30, 0.6), (5, 30, 0.3), (5, 100, 0.3)]
    for quality in (0.0, 1.0):
        for n_raters, n, bias in settings:
            # the truth is the mean over all latents and all raters
            scale = math.sqrt(1 + ERROR**2 + bias**2)
            truth = sum(float(stats.norm.sf((cut - quality) / scale)) for cut in CUTS)
            intervals = []
            for number in range(n_studies):
                ratings = biased(n_raters, n, bias, quality, rng)
                intervals.append((over_latents(ratings, number), over_both(ratings, number)))
            alone, both = ([pair[i] for pair in intervals] for i in (0, 1))
            yield [
                *(str(n_raters), str(n), f"{bias:g}", f"{quality:g}"),
                *(f"{covered(each, truth):.3f}" for each in (alone, both)),
                width(both),
            ]


def biased(
    n_raters: int, n: int, bias: float, quality: float, rng: np.random.Generator
) -> np.ndarray:
    """Ratings [raters, latents] of raters of whom some say yes more readily."""
    seen = rng.normal(quality, 1, size=n) + bias * rng.normal(size=(n_raters, 1))
    ratings = np.digitize(seen + ERROR * rng.normal(size=(n_raters, n)), CUTS).astype(float)
    ratings[rng.random(ratings.shape) < 0.05] = math.nan
    return ratings


def covered(intervals: list[Interval], truth: float) -> float:
    """Share of intervals that hold the truth; NaN without any."""
    held = [low <= truth <= high for _, low, high in intervals]
    return sum(held) / len(held) if held else math.nan


def width(intervals: list[Interval]) -> str:
    """Median width."""
    return f"{np.nanmedian([high - low for _, low, high in intervals]):.2f}"


def spread(values: np.ndarray) -> str:
    """Mean and standard deviation."""
    return f"{values.mean():.2f} ± {values.std():.2f}"


if __name__ == "__main__":
    main()
