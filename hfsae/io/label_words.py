"""How a latent goes with a label, in words, from the numbers in features/columns.json."""

from collections.abc import Mapping
from typing import Any

_MEASURES = {"spearman": "Spearman", "auc": "AUC of {}", "eta_squared": "eta squared"}
_FEW_DOCUMENTS = 50  # of which 25 test: an AUC of .75 has an interval of about .2 on both sides


def too_few_to_tell(n_documents: int) -> str:
    """What a table from few documents is worth, and how to get more; empty for enough of them."""
    if n_documents >= _FEW_DOCUMENTS:
        return ""
    return (
        f"{n_documents} documents are too few to tell which latents go with a label; hold out more "
        f"of them (held_out_fraction), or give more: {_FEW_DOCUMENTS} held-out ones or more"
    )


def association_cells(association: Mapping[str, Any]) -> list[str]:
    """A row of a table, as plain text, of what `hfsae.features.Association.to_dict` gives: the
    column, the measure, the best latent, its value, the best raw dimension, its value, the next
    latents."""
    measure = association["measure"]
    bests = [
        cell
        for best in (association["latent"], association["raw"])
        for cell in (_name(measure, best), _measured(best))
    ]
    others = ", ".join(str(best["index"]) for best in association["others"])
    named = _MEASURES[measure].format(association["group"] or "")
    return [str(association["column"]), named, *bests, others]


def _name(measure: str, best: Mapping[str, Any]) -> str:
    use = "" if best["use"] == "value" else f" {best['use']}"
    return f"{best['index']}{use}{', low' if measure == 'auc' and best['sign'] < 0 else ''}"


def _measured(best: Mapping[str, Any]) -> str:
    value, low, high = (best[key] for key in ("value", "low", "high"))
    if value is None:
        return "-"
    return f"{value:.2f}" + (f" ({low:.2f} to {high:.2f})" if low is not None else "")
