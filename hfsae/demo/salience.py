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


def rare_and_strong(
    store: FeatureStore, seen: Inspection, hide: Collection[int] = ()
) -> list[Ranked]:
    """The latents of a picture: by their activation over their largest, times -ln of density."""
    largest, density = store.max_activations, store.densities

    def score(r: Ranked) -> float:
        most, share = float(largest[r.latent]), max(float(density[r.latent]), 1e-9)
        return min(1.0, r.max / most) * -math.log(share) if most else 0.0

    return sorted(seen.ranking(hide=hide), key=score, reverse=True)


def telling(of: Numbers, seen: Inspection, hide: Collection[int] = ()) -> list[Ranked]:
    """The latents of a text, the most telling first."""
    ranking = seen.ranking(hide=hide)
    before = {r.latent: _before(of, seen, r) for r in ranking}
    ranking.sort(key=lambda r: before[r.latent], reverse=True)
    candidates, rest = ranking[:_CANDIDATES], ranking[_CANDIDATES:]
    own = _own(of.store, seen, candidates)

    def score(r: Ranked) -> tuple[float, float]:
        with_word, without = before[r.latent]
        return own[r.latent] * with_word, own[r.latent] * without

    return _spread(sorted(candidates, key=score, reverse=True)) + rest


def _before(of: Numbers, seen: Inspection, r: Ranked) -> tuple[float, float]:
    """The score without `own`, and without `word` too: that decides between tokens of no content,
    and on a single token."""
    largest = float(of.largest[r.latent])
    share = min(1.0, r.max / largest) if largest else 0.0  # one that never fired has no examples
    rarity = -math.log(max(float(of.density[r.latent]), 1e-9))
    frequency = of.frequency.get(seen.tokens.ids[r.peak], of.rarest)
    word = max(0.0, math.log(COMMON / frequency))
    is_first = r.peak == seen.tokens.special.index(False)
    score = share * rarity * (_FIRST_TOKEN if is_first else 1.0)
    return score * word, score


def _own(store: FeatureStore, seen: Inspection, ranking: list[Ranked]) -> dict[int, float]:
    """For each latent 1/2 + the share of its strongest examples on the token that it peaks on."""
    import pyarrow.compute as pc

    which = pc.field("latent").isin([r.latent for r in ranking]) & (pc.field("kind") == "top")
    firings = store.firings(which)
    here = {r.latent: _plain(seen.tokens.texts[r.peak]) for r in ranking}
    n, same = dict.fromkeys(here, 0), dict.fromkeys(here, 0)
    for latent, token in zip(firings.latent, firings.token, strict=True):
        n[latent] += 1
        same[latent] += _plain(token) == here[latent]
    return {latent: _OWN + same[latent] / max(1, n[latent]) for latent in here}


def _plain(token: str) -> str:
    return token.strip().casefold()


def _spread(ranking: list[Ranked]) -> list[Ranked]:
    """The first of each token before further ones."""
    n: dict[int, int] = {}
    first, further = [], []
    for r in ranking:
        n[r.peak] = n.get(r.peak, 0) + 1
        (first if n[r.peak] <= PER_TOKEN else further).append(r)
    return first + further
