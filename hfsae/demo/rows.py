"""Latents as rows of a table: each with a value, and a description for the reader.

Those of a text come in an order, the most informative ones first. A latent's score in a text is a
product, of numbers at the place where it fires most:

    share       its activation over its largest in the feature store, at most 1
    rarity      -ln of its density: a latent that fires everywhere tells nothing
    word        -ln of the token's frequency, less that of a token on 2 % of text: below, 0
    own         1/2 + the share of its strongest examples that fire on this very token
    first       1/4 on the first token of a text, whose activations are outliers; else 1

So rare latents come first that fire on words of content as strongly as ever, and on the words that
describe them. scripts/telling.py compares this order with others. Without a feature store, latents
come by activation. Of a picture, whose patches have no words, `share` and `rarity` decide.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from ..features import FeatureStore
from ..features.inspection import Inspection, Ranked
from .subject import Subject

SHOWN = 12  # rows of a table
_HINTS = 4  # tokens that describe a latent
DENSE = 0.05
"""Latents on more than this share of tokens are in most texts of 14 tokens: they come last."""
COMMON = 0.02
"""Frequency of a token from which on it is no word of content."""
PER_TOKEN = 2
"""Latents of one token among the first: others come after those of other tokens."""
_FIRST_TOKEN = 0.25
_OWN = 0.5  # of latents whose examples fire on other tokens
_CANDIDATES = 48  # latents whose examples are read
_COUNTED = 4096  # latents whose examples are counted for the frequencies of tokens

Json = dict[str, Any]


def as_rows(subject: Subject, latents: Iterable[Json]) -> list[Json]:
    """Latents with their values, labels, automatic names, and facts from the feature store."""
    import pyarrow.compute as pc

    rows = [
        {
            **row,
            "label": subject.labels.get(row["latent"], ""),
            "auto": subject.automatic.get(row["latent"], ""),
            "source": subject.sources.get(row["latent"], ""),
            "doubtful": row["latent"] in subject.doubtful,
        }
        for row in latents
    ]
    store = subject.store
    if store is None or not rows:
        return rows
    # the tokens on which each of these fires most, strongest first, each once
    fires_on: dict[int, list[str]] = {row["latent"]: [] for row in rows}
    firings = store.firings(pc.field("latent").isin([*fires_on]) & (pc.field("kind") == "top"))
    for _, latent, token in sorted(zip(firings.rank, firings.latent, firings.token, strict=True)):
        tokens, token = fires_on[latent], subject.unit.short(token.strip())
        if token and token.casefold() not in map(str.casefold, tokens):
            tokens.append(token)
    density = subject.density()
    for row in rows:
        index = row["latent"]
        row["fires_on"] = fires_on[index][:_HINTS]
        row["promotes"] = store.latents["promoted_tokens"][index].as_py()[:_HINTS]
        row["density"] = float(density[index])
    return rows


def firing_rows(subject: Subject, seen: Inspection) -> tuple[list[Json], Json]:
    """The latents of a text or of a token, the most telling first (see `by_salience`), and apart
    those that fire in most texts: {"n", "rows"}."""
    ranking = ranked(subject, seen)
    density = subject.density()  # 0 where it is unknown
    dense = [r for r in ranking if density[r.latent] > DENSE]
    if len(dense) == len(ranking):
        dense = []
    apart = {r.latent for r in dense}
    rest = [r for r in ranking if r.latent not in apart]
    rows = []
    for part in (rest, dense):
        of_part = []
        for r in part[:SHOWN]:  # each latent's largest activation, also as a share of that anywhere
            most = largest_of(subject, r.latent)
            row = {"latent": r.latent, "value": r.max, "share": r.max / most if most else None}
            of_part.append(row | {"n_tokens": r.n_tokens, "peak": r.peak})
        rows.append(as_rows(subject, of_part))
    return rows[0], {"n": len(dense), "rows": rows[1], "n_rest": len(rest)}


def facts_of(subject: Subject, seen: Inspection, latent: int | None) -> Json:
    """What an answer has of a text or a picture beside its latents: the latent that colours it, and
    how much the SAE explains."""
    return {
        "latent": latent,
        "label": "" if latent is None else subject.name_of(latent),
        "usual_max": largest_of(subject, latent),
        "l0": sum(seen.l0) / max(1, seen.n_kept),
        "fvu": seen.fvu if seen.fvu == seen.fvu else None,
    }


def trace_of(seen: Inspection, latent: int | None) -> list[float]:
    """A latent's activation on each token or patch; without one, zeros."""
    return [0.0] * len(seen.tokens.ids) if latent is None else seen.trace(latent)


def token_rows(seen: Inspection, latent: int | None, largest: float | None) -> list[Json]:
    """Each token with a latent's activation, raw and as a share of its largest in the feature
    store, which an activation here may exceed; without one, of the largest here."""
    trace = trace_of(seen, latent)
    most = largest or max([*trace, 0.0]) or 1.0
    rows = zip(seen.tokens.texts, seen.tokens.special, seen.l0, trace, strict=True)
    return [
        {"text": text, "special": special, "l0": l0, "activation": a}
        | {"share": max(0.0, a / most)}
        for text, special, l0, a in rows
    ]


def largest_of(subject: Subject, latent: int | None) -> float | None:
    """A latent's largest activation in the feature store, raw units; None where it is unknown."""
    largest = subject.largest()
    if largest is None or latent is None:
        return None
    return float(largest[latent]) or None


def threshold_of(subject: Subject, latent: int) -> float | None:
    """The threshold of its pre-activation, raw units; None if the SAE has no thresholds."""
    threshold = getattr(subject.sae, "threshold", None)
    if not isinstance(threshold, torch.Tensor):
        return None
    one = threshold if threshold.ndim == 0 else threshold[latent]  # BatchTopK has one for all
    return float(one) * subject.sae.latent_scale


def ranked(subject: Subject, seen: Inspection) -> list[Ranked]:
    """The latents of a text or a picture, the most telling first; without a feature store, by
    activation."""
    store = subject.store
    if store is None:
        return seen.ranking()
    if subject.unit.is_text:
        frequencies = subject.cached("frequencies", lambda: token_frequencies(store))
        return by_salience(store, frequencies, seen)
    largest, density = store.max_activations, store.densities

    def score(r: Ranked) -> float:
        most, share = float(largest[r.latent]), max(float(density[r.latent]), 1e-9)
        return min(1.0, r.max / most) * -math.log(share) if most else 0.0

    return sorted(seen.ranking(), key=score, reverse=True)


def token_frequencies(store: FeatureStore) -> dict[int, float]:
    """{token id: its share of the tokens in the store's examples}; at -1 the frequency of a token
    that is not there."""
    import pyarrow.compute as pc

    few = pc.field("latent") < _COUNTED
    ids = store.examples.to_table(columns=["token_ids"], filter=few)["token_ids"]
    flat = ids.combine_chunks().flatten().to_numpy()
    token, count = np.unique(flat, return_counts=True)
    shares = (count / max(1, len(flat))).tolist()
    return dict(zip(token.tolist(), shares, strict=True)) | {-1: 1 / max(1, len(flat))}


def by_salience(
    store: FeatureStore, frequencies: Mapping[int, float], seen: Inspection
) -> list[Ranked]:
    """The latents of a text, the most telling first; frequencies: see `token_frequencies`."""
    import pyarrow.compute as pc

    # the score without `own`, and without `word` too: that decides between tokens of no content,
    # and on a single token
    before: dict[int, tuple[float, float]] = {}
    ranking, first = seen.ranking(), seen.tokens.special.index(False)
    most, density = store.max_activations, store.densities
    for r in ranking:
        largest = float(most[r.latent])
        share = min(1.0, r.max / largest) if largest else 0.0  # one that never fired: no examples
        rarity = -math.log(max(float(density[r.latent]), 1e-9))
        frequency = frequencies.get(seen.tokens.ids[r.peak], frequencies[-1])
        score = share * rarity * (_FIRST_TOKEN if r.peak == first else 1.0)
        before[r.latent] = score * max(0.0, math.log(COMMON / frequency)), score
    ranking.sort(key=lambda r: before[r.latent], reverse=True)
    candidates, rest = ranking[:_CANDIDATES], ranking[_CANDIDATES:]

    # of the first ones, the share of their strongest examples on the token that they peak on
    here = {r.latent: seen.tokens.texts[r.peak].strip().casefold() for r in candidates}
    firings = store.firings(pc.field("latent").isin([*here]) & (pc.field("kind") == "top"))
    n, same = dict.fromkeys(here, 0), dict.fromkeys(here, 0)
    for latent, token in zip(firings.latent, firings.token, strict=True):
        n[latent] += 1
        same[latent] += token.strip().casefold() == here[latent]
    own = {latent: _OWN + same[latent] / max(1, n[latent]) for latent in here}
    candidates.sort(key=lambda r: tuple(own[r.latent] * b for b in before[r.latent]), reverse=True)

    # the first of each token before further ones
    shown: dict[int, int] = {}
    leading, further = [], []
    for r in candidates:
        shown[r.peak] = shown.get(r.peak, 0) + 1
        (leading if shown[r.peak] <= PER_TOKEN else further).append(r)
    return leading + further + rest
