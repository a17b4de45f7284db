"""Latents of one of two language models, and of both.

It is diff.json, which `hfsae diff` writes (`hfsae.diffing`). Damaged rows are left out.
"""

from math import isfinite
from typing import Annotated, Any

from ..machine.refused import Refused
from . import validate
from .rows import Json, as_rows
from .subject import Subject

MOST = 200  # rows
GROUPS = ("first", "second", "shared", "other")
CHOICES = ("", "little", *GROUPS)
ORDERS = {
    "explained": "how much of the change it explains",
    "apart": "how far its share is from one half",
    "firings": "how often it fires",
    "share": "its share in the second model",
    "cosine": "how alike its two directions are",
    "nu": "how little of it is in the other model",
}
_INTERVALS = ("explained", "explained_firing", "nu_recon", "nu_error")
_NUMBERS = (
    "share",
    "cosine",
    "shuffled_firing",
    *(f"{name}{end}" for name in _INTERVALS for end in ("", "_low", "_high")),
)
_WORDS = ("in_other", "sentence")
_CHANGE = ("difference", "shift", "explained")


def diff(
    subject: Subject,
    group: Annotated[str, CHOICES] = "",
    by: Annotated[str, tuple(ORDERS)] = "explained",
) -> Json:
    """Latents by the language model, of two, that they are of.

    Args:
        group: first or second (of that model, mostly), shared (of both alike), other (in between),
            or little (of one model, and latent scaling finds little of it in the other); empty:
            all.
        by: the order: explained (of the change from one model to the other, most first), apart
            (share farthest from one half first), firings (most first), share (of the second model,
            largest first), cosine (of its directions in the two models, smallest first) or nu (the
            larger of both, by its size, smallest first).

    Returns:
        models (list[str]): the names of the first and of the second.
        n_tokens (int | None): held-out tokens that were read.
        n_dedicated (int): the last latents, which training lets write in the second model alone.
        change (dict): "difference" (squared, of the activations, as a share of
            their spread), "shift" (the share of it that is the same on all tokens) and "explained"
            (the share of the rest, the change, that all latents together explain).
        groups (list): of each group its "name", and how many latents it has ("n"), how many
            fired ("n_fired") and of how many little is in the other model ("n_little").
        n_hits (int): latents of the group that fired.
        found (list[Latent]): of those the first 200, with "group", "share" (0: only the first
            model, 1: only the second), "cosine", "n_firings"; "sentence", what it explains in
            words; "explained" of the change, "explained_firing" where it fires and
            "shuffled_firing" with firings permuted over tokens; "nu_recon", "nu_error" and
            "in_other", what latent scaling finds of it in the other model (null where it is of
            both). Ends of 95 % intervals over documents have the endings "_low" and "_high".
    """
    if not subject.diff:
        raise Refused("this SAE comes without diff.json; `hfsae diff` writes one")
    if not isinstance(subject.diff.get("change"), dict):
        raise Refused("diff.json is of an earlier hfsae; `hfsae diff` writes it again")
    group = validate.choice(group, "group", CHOICES)
    by = validate.choice(by, "by", tuple(ORDERS))
    every = _rows(subject)
    hits = [row for row in every if _is_of(row, group)]
    hits.sort(key=lambda row: _rank(row, by))
    n_tokens = subject.diff.get("n_tokens")
    return {
        "models": models_of(subject),
        "n_tokens": n_tokens if isinstance(n_tokens, int) else None,
        "n_dedicated": subject.sae.config.dedicated or 0,
        "change": {key: _number(subject.diff["change"].get(key)) for key in _CHANGE},
        "groups": [_summary(every, name, subject) for name in GROUPS],
        "n_hits": len(hits),
        "found": as_rows(subject, hits[:MOST]),
    }


def models_of(subject: Subject) -> list[str]:
    """The names of the two models, as sites have them."""
    names = subject.diff.get("models")
    names = [*names] if isinstance(names, dict) else []
    return names if len(names) == 2 else ["the first model", "the second model"]


def _is_of(row: Json, group: str) -> bool:
    return not group or (group in (row["group"], row["in_other"]))


def _rank(row: Json, by: str) -> tuple[bool, float]:
    """Rows without the number come last."""
    share = row["share"]
    value = {
        "explained": None if row["explained"] is None else -row["explained"],
        "apart": None if share is None else -abs(share - 0.5),
        "firings": -row["n_firings"],
        "share": None if share is None else -share,
        "cosine": row["cosine"],
        "nu": _nu(row),
    }[by]
    return value is None, value or 0.0


def _nu(row: Json) -> float | None:
    both = [row["nu_recon"], row["nu_error"]]
    return None if None in both else max(map(abs, both))


def _summary(rows: list[Json], name: str, subject: Subject) -> Json:
    inside = [row for row in rows if row["group"] == name]
    listed = _columns(subject).get("group")
    n = listed.count(name) if isinstance(listed, list) else len(inside)
    n_little = sum(row["in_other"] == "little" for row in inside)
    return {"name": name, "n": n, "n_fired": len(inside), "n_little": n_little}


def _columns(subject: Subject) -> dict[str, Any]:
    columns = subject.diff.get("latents")
    return columns if isinstance(columns, dict) else {}


def _rows(subject: Subject) -> list[Json]:
    """The latents that fired."""
    columns = _columns(subject)
    names = ("group", *_NUMBERS, *_WORDS, "n_firings")
    lists = [columns.get(name) for name in names]
    if not all(isinstance(one, list) and len(one) == subject.d_sae for one in lists):
        return []
    rows = []
    for latent, values in enumerate(zip(*(one or [] for one in lists), strict=True)):
        row = {"latent": latent, **dict(zip(names, values, strict=True))}
        row |= {name: _number(row[name]) for name in _NUMBERS}
        row |= {name: row[name] if isinstance(row[name], str) else None for name in _WORDS}
        is_count = type(row["n_firings"]) is int and row["n_firings"] > 0
        if is_count and row["group"] in GROUPS:
            rows.append(row)
    return rows


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        return None
    return float(value)
