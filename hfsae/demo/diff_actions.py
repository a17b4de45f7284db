"""Latents of one of two language models, and of both.

It is diff.json, which `hfsae diff` writes (`hfsae.diffing`).
"""

from typing import Annotated, Any

from ..io.errors import Refused
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


def check_diff(record: dict[str, Any], d_sae: int) -> None:
    """Raises an error that `reading` reports as damage, if the file is none of `hfsae diff`."""
    _, _ = record["models"]
    kinds = dict.fromkeys((*_NUMBERS, "n_firings"), (int, float))
    for name, kind in {**kinds, **dict.fromkeys((*_WORDS, "group"), str)}.items():
        column = record["latents"][name]
        if len(column) != d_sae or any(not isinstance(v, kind) for v in column if v is not None):
            raise Refused(f"{name} is no column of {d_sae:,} latents")
    for value in (record["n_tokens"], *(record["change"][name] for name in _CHANGE)):
        _ = None if value is None else float(value)


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
    group = validate.choice(group, "group", CHOICES)
    by = validate.choice(by, "by", tuple(ORDERS))
    columns, rows = subject.diff["latents"], []
    names = ("group", *_NUMBERS, *_WORDS, "n_firings")
    for latent, values in enumerate(zip(*(columns[name] for name in names), strict=True)):
        row = {"latent": latent, **dict(zip(names, values, strict=True))}
        if row["n_firings"]:
            rows.append(row)

    def rank(row: Json) -> tuple[bool, float]:
        """Rows without the number come last."""
        share, nus = row["share"], [row["nu_recon"], row["nu_error"]]
        value = {
            "explained": None if row["explained"] is None else -row["explained"],
            "apart": None if share is None else -abs(share - 0.5),
            "firings": -row["n_firings"],
            "share": None if share is None else -share,
            "cosine": row["cosine"],
            "nu": None if None in nus else max(map(abs, nus)),
        }[by]
        return value is None, value or 0.0

    groups = []
    for name in GROUPS:
        inside = [row for row in rows if row["group"] == name]
        n_little = sum(row["in_other"] == "little" for row in inside)
        counts = {"n": columns["group"].count(name), "n_fired": len(inside), "n_little": n_little}
        groups.append({"name": name, **counts})
    hits = [row for row in rows if not group or group in (row["group"], row["in_other"])]
    hits.sort(key=rank)
    return {
        "models": [*subject.diff["models"]],
        "n_tokens": subject.diff["n_tokens"],
        "n_dedicated": subject.sae.config.dedicated or 0,
        "change": {name: subject.diff["change"][name] for name in _CHANGE},
        "groups": groups,
        "n_hits": len(hits),
        "found": as_rows(subject, hits[:MOST]),
    }
