"""Two SAEs on one text: how well each explains it, and which of their latents fire where."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from torch.nn import functional as F

from ..features.inspection import Inspection
from ..features.inspection import inspect as inspect_with
from ..lm import contract
from ..machine.refused import Refused
from ..machine.visible import public
from ..models.site_fields import where_of
from .opening import open_subject
from .others import check_name, place_of
from .reading import inspection_of
from .rows import Json, firing_rows
from .subject import Choice, Subject

_MOST_TOKENS = 80  # in the table of tokens
_CLOSE = 1.1  # times the other's L0: up to here the two are compared at equal L0
_BETTER = 0.99  # times the other's FVU: from here on one wins


def side_by_side(subject: Subject, other: str, text: str) -> Json:
    """Two SAEs of one language model on a text: variance unexplained, L0, and what fires where.

    Args:
        other: the second SAE, as for compare_saes.
        text: some sentences.

    Returns:
        first (dict): of this SAE: {name, kind, site, d_sae, l0, fvu, rows}: latents that fire on a
            token, the fraction of variance that is left unexplained, and the most telling latents.
        second (dict): the same of the other SAE.
        winner (str | None): first or second, the one that leaves clearly less unexplained.
        apart (str): in what the two differ so that none can be better: their models, or their
            sites; empty: in neither.
        equal_l0 (bool): both use about as many latents a token: only then FVU compares fairly.
        tokens (list): {token, l0, latents, activations, cosine}: on each token the strongest latent
            of either SAE, and the cosine of their directions.
    """
    second = other_of(subject, other)
    seen = inspection_of(subject, text), inspect_with(subject.lm, second.sae, subject.tokens(text))
    facts = [_facts(s, i) for s, i in zip((subject, second), seen, strict=True)]
    different = apart(subject, vars(second.sae.config))
    return {
        "first": {**facts[0], "rows": firing_rows(subject, seen[0], [])[0]},
        "second": {**facts[1], "rows": firing_rows(second, seen[1], [])[0]},
        "winner": None if different else _winner(*facts),
        "apart": different,
        "equal_l0": _equal(facts[0]["l0"], facts[1]["l0"]),
        "tokens": _tokens(subject, second, seen),
    }


def apart(subject: Subject, other: Mapping[str, Any]) -> str:
    """Why figures of another SAE, of this config, cannot be ranked beside this one's: they are of
    different models, or of different sites; what is unknown counts as the same."""
    own = vars(subject.sae.config)
    models = [public(config.get("model_name"), "model_name") for config in (own, other)]
    sites = [where_of(config) for config in (own, other)]
    return " and ".join(
        f"{what} ({first} and {second})"
        for what, (first, second) in (("models", models), ("sites", sites))
        if first and second and first != second
    )


def other_of(subject: Subject, other: object) -> Subject:
    """The second SAE, without a language model of its own.

    Raises:
        ValueError: it is none that may be read from here, or one of another language model.
    """
    other = check_name(other)
    if subject.label_home is None:
        raise Refused(
            "a second SAE's weights are not loaded here; run `hfsae demo` on your own machine"
        )
    second = _opened(place_of(subject, other))
    wrong = [
        d
        for d in contract.differences(second.sae.config, subject.lm, subject.tokenizer)
        if d.severity == "error"
    ]
    if wrong:
        raise Refused(f"{other} is not for this language model: {wrong[0]}")
    widths = second.sae.config.d_in, subject.sae.config.d_in
    if widths[0] != widths[1]:
        raise Refused(
            f"{other} reads vectors of {widths[0]:,} numbers, this SAE of {widths[1]:,}; name one "
            "of the same language model"
        )
    return second


@lru_cache(maxsize=2)
def _opened(choice: Choice) -> Subject:
    subject = open_subject(choice, with_lm=False)
    subject.name = f"{subject.name}/{choice.subfolder}".rstrip("/")  # of a suite's several
    return subject


def _facts(subject: Subject, seen: Inspection) -> Json:
    config = subject.sae.config
    return {
        "name": subject.name,
        "kind": config.model_type,
        "site": config.where,
        "d_sae": config.d_sae,
        "l0": sum(seen.l0) / max(1, seen.n_kept),
        "fvu": seen.fvu if seen.fvu == seen.fvu else None,
    }


def _equal(first: float, second: float) -> bool:
    return max(first, second) <= _CLOSE * min(first, second)


def _winner(first: Json, second: Json) -> str | None:
    """Whose reconstructions leave less of the text's variance unexplained."""
    ours, theirs = first["fvu"], second["fvu"]
    if ours is None or theirs is None:
        return None
    if max(ours, theirs) * _BETTER < min(ours, theirs):
        return None
    return "first" if ours < theirs else "second"


def _tokens(first: Subject, second: Subject, seen: tuple[Inspection, Inspection]) -> list[Json]:
    """For each token the strongest latent of either SAE, and the cosine of their directions."""
    rows, tokens = [], seen[0].tokens
    for position, special in enumerate(tokens.special[:_MOST_TOKENS]):
        if special:
            continue
        best = [next(iter(s.on(position, 1)), None) for s in seen]
        row: Json = {"token": tokens.texts[position], "l0": [s.l0[position] for s in seen]}
        row["latents"] = [None if b is None else b.latent for b in best]
        row["activations"] = [None if b is None else b.activation for b in best]
        row["cosine"] = None
        if best[0] and best[1]:
            row["cosine"] = _cosine(first, best[0].latent, second, best[1].latent)
        rows.append(row)
    return rows


def _cosine(first: Subject, a: int, second: Subject, b: int) -> float | None:
    one, other = first.sae.W_dec[a].float(), second.sae.W_dec[b].float()
    if one.shape != other.shape:
        return None
    return float(F.cosine_similarity(one, other.to(one.device), dim=0))
