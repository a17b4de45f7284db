"""Latents as rows of a table: each with a value, and a description for the reader."""

from collections.abc import Iterable
from typing import Any

import torch

from ..features.inspection import Inspection
from ..io.errors import Refused
from . import validate
from .how_to_make import without_examples
from .subject import Subject

SHOWN = 12  # rows of a table
_HINTS = 4  # tokens that describe a latent
DENSE = 0.05
"""Latents on more than this share of tokens are in most texts of 14 tokens: they come last."""

Json = dict[str, Any]


def check_latent(subject: Subject, index: object) -> int:
    """A valid latent index."""
    return validate.latent(index, subject.d_sae)


def denser_than(subject: Subject, max_density: object) -> list[int]:
    """Latents that fire on more than this share of tokens."""
    limit = validate.number(max_density, "max_density", *validate.SHARE)
    if limit >= 1:
        return []
    if not subject.is_counted:
        raise Refused(
            "this SAE's densities are unknown, so the density filter cannot be used: "
            f"{without_examples(subject)}"
        )
    return (subject.density() > limit).nonzero()[:, 0].tolist()


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


def firing_rows(subject: Subject, seen: Inspection, hide: list[int]) -> tuple[list[Json], Json]:
    """The latents of a text or of a token, the most telling first (see `by_salience`), and apart
    those that fire in most texts: {"n", "rows"}."""
    ranking = subject.ranking(seen, hide)
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


def token_rows(seen: Inspection, trace: list[float], largest: float | None = None) -> list[Json]:
    """Each token with an activation, raw and as a share of the latent's largest in the feature
    store, which an activation here may exceed; without one, of the largest here."""
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
