"""Are labels found on latents when they are only those of length? GeoSAE (arXiv:2605.01829) takes
age out by partial correlations, since it confounds nearly every clinical variable.

    python scripts/citing/confounded_labels.py [--quick] OUT.json

Real texts (news), cut to 8 to 48 tokens, with a table that is planted: `by_length` is the length
with noise, so that each latent that goes with it is a false discovery once length is taken out;
`by_text` is whether the report is of one class, whose texts are cut longer. A unit is the maximum
of a latent over a text. Spearman's correlation, and the partial one: of ranks less what the rank of
length predicts; p by Student's t, Benjamini-Hochberg at 5 %. Over plantings: the share of latents
that go with each column. `by_text` has a reference: the latents that go with it when the same
lengths are given to other texts at random, so that classes differ in none; told is the share of
these that is found, and of the others. Control: the column in another order.
"""

from collections.abc import Iterator

import numpy as np
import torch
from claim import Run, Subject, activations, mean, subjects, to_file
from class_signal import news
from scipy.stats import false_discovery_control, rankdata, t

SHORT, LONG, RATE = 8, 48, 0.05


def correlations(units: np.ndarray, column: np.ndarray, out: np.ndarray | None = None):
    """[m] Spearman's rho of units [n, m] with a column [n], and p; `out`: a column [n] to take
    out."""
    ranks, known = rankdata(units, axis=0), np.ones((len(column), 1))
    if out is not None:
        known = np.column_stack([known, rankdata(out)])
    left = ranks - known @ np.linalg.lstsq(known, ranks, rcond=None)[0]
    right = rankdata(column)
    right = right - known @ np.linalg.lstsq(known, right, rcond=None)[0]
    size = np.sqrt((left**2).sum(0) * (right**2).sum())
    rho = np.divide(left.T @ right, size, out=np.zeros(units.shape[1]), where=size > 1e-9)
    free = len(column) - 1 - known.shape[1]
    return rho, 2 * t.sf(np.abs(rho) * np.sqrt(free / (1 - rho**2).clip(1e-12)), free)


def goes_with(units: np.ndarray, column: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """[m] which units go with a column at a false discovery rate of 5 %."""
    return false_discovery_control(correlations(units, column, out)[1]) < RATE


def of_subject(subject: Subject, n: int, n_plantings: int) -> Run:
    texts, classes = news(n)
    is_class, of_text = (classes == 0).numpy(), []
    for x in activations(subject, texts):
        with torch.no_grad():
            of_text.append(subject.sae.encode(x[:LONG]).float().numpy())

    def maxima(lengths: np.ndarray) -> np.ndarray:
        return np.stack([z[:k].max(0) for z, k in zip(of_text, lengths, strict=True)])

    kept = (maxima(np.full(len(texts), SHORT)) > 0).mean(0) > 0.02  # they fire in some short texts
    shares: dict[str, list[float]] = {}
    for seed in range(n_plantings):
        rng = np.random.default_rng(seed)
        longer = rng.uniform(0, 1, len(texts)) ** np.where(is_class, 0.5, 2.0)
        cut = (SHORT + longer * (LONG - SHORT)).astype(int)
        units, lengths = maxima(cut)[:, kept], np.minimum(cut, [len(z) for z in of_text])
        reference = goes_with(maxima(rng.permutation(cut))[:, kept], is_class)
        by_length = lengths + rng.normal(0, lengths.std(), len(texts))
        for how, out in (("plain", None), ("partial", lengths)):
            by_text = goes_with(units, is_class, out)
            for name, passed in (
                ("by_length", goes_with(units, by_length, out)),
                ("by_length, shuffled", goes_with(units, rng.permutation(by_length), out)),
                ("by_text, of the reference's", by_text[reference]),
                ("by_text, of others", by_text[~reference]),
            ):
                share = float(passed.mean()) if len(passed) else 0.0
                shares.setdefault(f"{name}, {how}", []).append(share)
    return {
        "model": subject.name,
        "site": subject.sae.config.site,
        "texts": len(texts),
        "plantings": n_plantings,
        "latents": int(kept.sum()),
        "rows": {name: mean(values) for name, values in shares.items()},
    }


def measure(quick: bool) -> Iterator[Run]:
    for subject in subjects(quick):
        yield of_subject(subject, *((8, 2) if quick else (100, 20)))


if __name__ == "__main__":
    to_file(__doc__, measure)
