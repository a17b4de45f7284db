"""The order of a text's latents: the most informative ones first.

A latent's score in a text is a product, of numbers at the place where it fires most:

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
from collections.abc import Collection, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from torch import Tensor

from ..features import FeatureStore
from ..features.inspection import Inspection, Ranked

COMMON = 0.02
"""Frequency of a token from which on it is no word of content."""
PER_TOKEN = 2
"""Latents of one token among the first: others come after those of other tokens."""
_FIRST_TOKEN = 0.25
_OWN = 0.5  # of latents whose examples fire on other tokens
_CANDIDATES = 48  # latents whose examples are read
_COUNTED = 4096  # latents whose examples are counted for the frequencies of tokens


class Numbers(NamedTuple):
    """Of an SAE with a feature store, for all its latents."""

    store: FeatureStore
    largest: Float[Tensor, " d_sae"]
    density: Float[Tensor, " d_sae"]
    frequency: Mapping[int, float]
    """{token id: its share of the tokens around firings}"""
    rarest: float
    """the frequency of a token that is not there"""


def numbers(store: FeatureStore) -> Numbers:
    """What the order needs; the frequencies are of the tokens in the store's examples."""
    import pyarrow.compute as pc

    few = pc.field("latent") < _COUNTED
    ids = store.examples.to_table(columns=["token_ids"], filter=few)["token_ids"]
    flat = ids.combine_chunks().flatten().to_numpy()
    token, count = np.unique(flat, return_counts=True)
    shares = (count / max(1, len(flat))).tolist()
    frequency = dict(zip(token.tolist(), shares, strict=True))
    rarest = 1 / max(1, len(flat))
    return Numbers(store, store.max_activations, store.densities, frequency, rarest)


def by_rarity(store: FeatureStore, seen: Inspection, hide: Collection[int] = ()) -> list[Ranked]:
    """The latents of a picture: by their activation over their largest, times -ln of density."""
    largest, density = store.max_activations, store.densities

    def score(r: Ranked) -> float:
        most, share = float(largest[r.latent]), max(float(density[r.latent]), 1e-9)
        return min(1.0, r.max / most) * -math.log(share) if most else 0.0

    return sorted(seen.ranking(hide=hide), key=score, reverse=True)


def by_salience(of: Numbers, seen: Inspection, hide: Collection[int] = ()) -> list[Ranked]:
    """The latents of a text, the most telling first."""
    import pyarrow.compute as pc

    # the score without `own`, and without `word` too: that decides between tokens of no content,
    # and on a single token
    before: dict[int, tuple[float, float]] = {}
    ranking, first = seen.ranking(hide=hide), seen.tokens.special.index(False)
    for r in ranking:
        largest = float(of.largest[r.latent])
        share = min(1.0, r.max / largest) if largest else 0.0  # one that never fired: no examples
        rarity = -math.log(max(float(of.density[r.latent]), 1e-9))
        frequency = of.frequency.get(seen.tokens.ids[r.peak], of.rarest)
        score = share * rarity * (_FIRST_TOKEN if r.peak == first else 1.0)
        before[r.latent] = score * max(0.0, math.log(COMMON / frequency)), score
    ranking.sort(key=lambda r: before[r.latent], reverse=True)
    candidates, rest = ranking[:_CANDIDATES], ranking[_CANDIDATES:]

    # of the first ones, the share of their strongest examples on the token that they peak on
    here = {r.latent: seen.tokens.texts[r.peak].strip().casefold() for r in candidates}
    firings = of.store.firings(pc.field("latent").isin([*here]) & (pc.field("kind") == "top"))
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
