"""In which order should the latents of a text be shown?  python scripts/telling.py [FOLDER]

Twenty texts are read with an SAE that has a feature store (by default the quickstart's, else the
packaged one), and their latents ranked in seven orders; the last is the app's. Of the first eight
latents of each:

    on words       peak on a word of content: not on a function word, a sign or the first token
    own word       their strongest example fires on the word that they peak on here
    words          different words that they peak on
    density        median, per cent of tokens

Prints a table of means over texts, and the first latents of three texts: telling.md, of the
quickstart's SAE.
"""

import math
import statistics
import sys
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from hfsae.demo import (
    Choice,
    Subject,
    by_salience,
    default_source,
    open_subject,
    token_frequencies,
)
from hfsae.features import Inspection, Ranked

TEXTS = (
    "The president told Congress that the war with the Soviet Union was over.",
    "Marie Curie was born in Warsaw and won the Nobel Prize in Physics in 1903.",
    "The river flows south through the mountains into the Black Sea.",
    "Our taxes are too high, and small businesses cannot find workers.",
    "The band released its second album in 1994, and the single reached number one.",
    "Doctors in the hospital treat patients with heart disease.",
    "In chess, the queen moves along rows, columns and diagonals.",
    "She studied law at Harvard before she became a judge of the Supreme Court.",
    "The film was directed by a young woman from Brazil.",
    "A prime number has no divisors but one and itself.",
    "The army crossed the river at night and took the city without a fight.",
    "Bread is made of flour, water, salt and yeast.",
    "Tonight I ask every school in America to teach our children to read.",
    "The church was built of stone in the twelfth century and burned down in 1666.",
    "Light from the nearest star takes four years to reach the Earth.",
    "The football club won the cup three times in a row.",
    "Oil prices fell, unemployment rose, and the government borrowed money.",
    "The king married a French princess, and their son became emperor.",
    "Whales are mammals that live in the ocean and eat fish.",
    "The company sold computers and software in Japan and Germany.",
)
N = 8
COMMON = 0.02
"""Frequency of a token from which on it is no word of content."""
DENSE = 0.05
"""Density from which on the app shows latents apart."""
SHOWN = (0, 1, 11)
_FUNCTION_WORDS = """
a an the and or but not no nor so yet if that which who whom whose this these those it its he she
his her him they their them we our us i my me you your of in on at by to from with without into
through over along before after for as than too is are was were be been being has have had do does
did can cannot could will would may might must shall should became become every there then when
where while how what why up down out off about
"""
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())


class Peak(NamedTuple):
    """Where latents peak in a text, and what the language model thought of these tokens."""

    subject: Subject
    seen: Inspection
    surprise: Tensor
    """-ln p(token) of each token by the language model, nats; 0 for the first"""
    frequencies: dict[int, float]
    """of tokens"""

    def share(self, r: Ranked) -> float:
        return min(1.0, r.max / float(self.subject.largest()[r.latent].clamp(min=1e-30)))

    def word(self, r: Ranked) -> float:
        """-ln of the token's frequency, less that of a token on 2 % of text; at least 0."""
        token = self.seen.tokens.ids[r.peak]
        frequency = self.frequencies.get(token, self.frequencies[-1])
        return max(0.0, math.log(COMMON / frequency))

    def rarity(self, r: Ranked) -> float:
        return -float(self.subject.density()[r.latent].clamp(min=1e-6).log())


ORDERS: dict[str, Callable[[Peak, Ranked], float] | None] = {
    "peak activation": lambda p, r: r.max,
    "share of own maximum": lambda p, r: p.share(r),
    "share x -ln density": lambda p, r: p.share(r) * p.rarity(r),
    "share x surprise": lambda p, r: p.share(r) * float(p.surprise[r.peak]),
    "share x -ln density x surprise": lambda p, r: (
        p.share(r) * p.rarity(r) * float(p.surprise[r.peak])
    ),
    "share x -ln density x word": lambda p, r: p.share(r) * p.rarity(r) * p.word(r),
    "the app's": None,
}


@torch.no_grad()
def peaks(subject: Subject, of: dict[int, float], text: str) -> Peak:
    seen = subject.inspection(text, False)
    ids = torch.tensor([seen.tokens.ids])
    logs = subject.lm(input_ids=ids, use_cache=False).logits[0].float().log_softmax(-1)
    surprise = -logs[:-1].gather(1, ids[0, 1:, None])[:, 0]
    return Peak(subject, seen, torch.cat([torch.zeros(1), surprise]), of)


def order(peak: Peak, key: Callable[[Peak, Ranked], float] | None, folds: bool) -> list[Ranked]:
    """The first latents by a key, or in the app's order."""
    density = peak.subject.density()
    ranking = peak.seen.ranking()
    if key is None:
        assert peak.subject.store is not None
        ranking = by_salience(peak.subject.store, peak.frequencies, peak.seen)
    ranking = [r for r in ranking if not folds or density[r.latent] <= DENSE]
    if key is not None:
        ranking.sort(key=lambda r: -key(peak, r))
    return ranking[:N]


def word_at(seen: Inspection, position: int) -> str:
    """The word around a token, in small letters."""
    texts, first, last = seen.tokens.texts, position, position + 1
    while first > 1 and texts[first][:1].isalnum() and texts[first - 1][-1:].isalnum():
        first -= 1
    while last < len(texts) and texts[last][:1].isalnum() and texts[last - 1][-1:].isalnum():
        last += 1
    return "".join(texts[first:last]).strip().casefold()


def measures(peak: Peak, ranking: list[Ranked], strongest: dict[int, str]) -> list[float]:
    seen = peak.seen
    first = seen.tokens.special.index(False)
    words = [word_at(seen, r.peak) for r in ranking]
    content = [
        r.peak > first and word[:1].isalnum() and word not in FUNCTION_WORDS
        for r, word in zip(ranking, words, strict=True)
    ]
    own = [seen.tokens.texts[r.peak].strip().casefold() == strongest.get(r.latent) for r in ranking]
    density = peak.subject.density()
    return [
        100 * sum(content) / len(ranking),
        100 * sum(own) / len(ranking),
        len(set(words)),
        100 * statistics.median(float(density[r.latent]) for r in ranking),
    ]


def strongest_words(subject: Subject) -> dict[int, str]:
    """{latent: the token that its strongest example fires on}."""
    firings = subject.store.firings() if subject.store is not None else None
    if firings is None:
        raise SystemExit(f"{subject.name} has no feature store; run hfsae collect first")
    best: dict[int, tuple[float, str]] = {}
    for latent, activation, token in zip(
        firings.latent, firings.activation, firings.token, strict=True
    ):
        best[latent] = max(best.get(latent, (0.0, "")), (activation, token.strip().casefold()))
    return {latent: token for latent, (_, token) in best.items()}


def main(folder: str) -> None:
    subject = open_subject(Choice(folder))
    strongest = strongest_words(subject)
    assert subject.store is not None
    of = token_frequencies(subject.store)
    read = [peaks(subject, of, text) for text in TEXTS]
    print(f"{subject.name}: the first {N} latents of {len(TEXTS)} texts, means\n")
    print(f"| order | on words | own word | words of {N} | density |\n|---|---:|---:|---:|---:|")
    orders = [(folds, *item) for folds in (False, True) for item in ORDERS.items()]
    for folds, name, key in orders:
        rows = [measures(p, order(p, key, folds), strongest) for p in read]
        means = [statistics.mean(column) for column in zip(*rows, strict=True)]
        cells = f"{means[0]:.0f} % | {means[1]:.0f} % | {means[2]:.1f} | {means[3]:.2f} %"
        print(f"| {name}{', dense ones apart' if folds else ''} | {cells} |")
    for i in SHOWN:
        print(f"\n{TEXTS[i]}")
        for _, name, key in orders[len(ORDERS) :]:
            ranking = order(read[i], key, True)
            words = ", ".join(
                f"{word_at(read[i].seen, r.peak)} ({strongest.get(r.latent, '')})" for r in ranking
            )
            print(f"  {name}: {words}")
    print("\nDense ones apart. In brackets: what the latent's strongest example fires on.")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else default_source())
