"""All latents as points on a map, with how often each fires, and what it is."""

import math

import torch

from ..features import NEAR, nearest_rows, plane
from . import validate
from .rows import SHOWN, Json, as_rows
from .subject import Subject
from .word_search import find

MOST_HITS = 400
_ENDS = (0.02, 0.98)
"""Quantiles of the densities of living latents: the ends of the scale of colours."""
_NAME = 60  # characters


def latent_map(subject: Subject) -> Json:
    """Places (whole numbers, mostly 0 to 1000), shades (0 rare to 100 frequent; -1 never fired; 50
    if that is unknown) and names of all latents, and what the ends of the scale are."""
    density, rare, frequent = subject.density(), 1e-5, 1e-1
    fires = density[density > 0].sort().values
    if len(fires):
        low, high = (float(fires[round(share * (len(fires) - 1))]) for share in _ENDS)
        rare, frequent = low, max(high, 1.01 * low)

    def shade(one: float) -> int:
        if not subject.is_counted:
            return 50
        if one <= 0:
            return -1
        return round(100 * min(1.0, max(0.0, math.log(one / rare) / math.log(frequent / rare))))

    places = (500 + 480 * places_of(subject).clamp(-1.6, 1.6)).round().int().tolist()
    shades = map(shade, density.tolist())
    names = (" ".join(name.split()) for name in names_of(subject))
    return {
        "points": " ".join(f"{x} {y} {s}" for (x, y), s in zip(places, shades, strict=True)),
        "names": "\n".join(n if len(n) <= _NAME else f"{n[: _NAME - 1]}…" for n in names),
        "n": subject.d_sae,
        "counted": subject.is_counted,
        "rare": rare,
        "frequent": frequent,
    }


def find_on_map(subject: Subject, query: str) -> Json:
    """The latents that a search by a word or a subject finds.

    Args:
        query: a word or a subject.

    Returns:
        query (str): what was looked for.
        hits (list[int]): indices of at most 400 latents.
        rows (list[Latent]): the first of them; "value" is their match, at most 1.
    """
    hits = find(subject, validate.text(query), MOST_HITS)
    rows = [{"latent": hit.latent, "value": hit.score} for hit in hits[:SHOWN]]
    return {"query": query, "hits": [hit.latent for hit in hits], "rows": as_rows(subject, rows)}


def places_of(subject: Subject) -> torch.Tensor:
    """The feature store's map, else one that is made here; [d_sae, 2], mostly -1 to 1."""
    stored = None if subject.store is None else subject.store.places
    if stored is not None:
        return stored

    def make() -> torch.Tensor:
        rows = subject.sae.W_dec.detach().float()
        return plane(rows, *nearest_rows(rows, NEAR))

    return subject.cached("map", make)


def names_of(subject: Subject) -> list[str]:
    """Of each latent its label, or automatic name, or else the tokens that it fires on most."""
    import pyarrow.compute as pc

    def fires_on() -> list[str]:
        names: list[list[str]] = [[] for _ in range(subject.d_sae)]
        if subject.store is not None:
            strongest = (pc.field("kind") == "top") & (pc.field("rank") < 4)
            firings = subject.store.firings(strongest)
            for latent, token in zip(firings.latent, firings.token, strict=True):
                token = subject.unit.short(token.strip())
                if token and token.casefold() not in map(str.casefold, names[latent]):
                    names[latent].append(token)
        return [", ".join(tokens) for tokens in names]

    names = list(subject.cached("tokens", fires_on))
    for latent, name in subject.names.items():
        if latent < len(names):
            names[latent] = name
    return names
