"""Latents that fire on the same tokens as another, by the examples of the feature store."""

from typing import NamedTuple

import numpy as np

from .rows import Json, as_rows
from .subject import Subject

SHOWN = 5
_LEAST = 2  # tokens in common


class ExamplePlaces(NamedTuple):
    """The examples of all latents in the order of the tokens that they fire on."""

    place: np.ndarray
    latent: np.ndarray


def together(subject: Subject, latent: int) -> Json:
    """Latents that have examples on the same tokens as this one, the most such tokens first.

    Returns {"n", the number of its examples; "rows", whose "value" is the share of them}. Examples
    are few of a latent's firings, the strongest and some drawn at random: a latent that is missing
    here may fire beside it all the same.
    """
    if subject.store is None:
        return {"n": 0, "rows": []}
    firings = subject.remembered("firings", lambda: _firings(subject))
    own = firings.place[firings.latent == latent]
    first, last = (np.searchsorted(firings.place, own, side) for side in ("left", "right"))
    beside = [firings.latent[a:b] for a, b in zip(first, last, strict=True)]
    others, n = np.unique(np.concatenate([*beside, [latent]]), return_counts=True)
    kept = (others != latent) & (n >= _LEAST)
    ranked = sorted(zip(n[kept].tolist(), others[kept].tolist(), strict=True), reverse=True)
    rows = [{"latent": int(i), "value": count / len(own)} for count, i in ranked[:SHOWN]]
    return {"n": len(own), "rows": as_rows(subject, rows)}


def _firings(subject: Subject) -> ExamplePlaces:
    assert subject.store is not None
    table = subject.store.examples.to_table(columns=["latent", "row", "position"])
    latent, row, position = (table[name].to_numpy() for name in table.column_names)
    place = row.astype(np.int64) * 2**24 + position
    order = np.argsort(place, kind="stable")
    return ExamplePlaces(place[order], latent[order])
