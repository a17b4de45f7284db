"""Labels of latents, and of documents: the content of `features/labels.json`, {"labels": {"1234":
"the sea"}}; and in words how a latent goes with a label of documents, from the numbers in
`features/columns.json`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import Refused
from .files import parse_json

MAX_LENGTH = 200
"""Characters of a label."""
_MEASURES = {"spearman": "Spearman", "auc": "AUC of {}", "eta_squared": "eta squared"}
_FEW_DOCUMENTS = 50  # of which 25 test: an AUC of .75 has an interval of about .2 on both sides


def labels_in(path: Path) -> dict[int, str]:
    """{latent: label} of a file of labels.

    Raises:
        ValueError: the file is damaged, or is not a file of labels.
    """
    try:
        labels = parse_json(path)["labels"]
        return {int(latent): checked_label(label) for latent, label in labels.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        form = '{"labels": {"1234": "text"}}'
        why = 'it has no "labels"' if isinstance(error, KeyError) else error
        raise Refused(f"{path} holds no labels: it must look like {form} ({why})") from error


def checked_label(label: object) -> str:
    """The label, if it is one line of printable text that is not too long.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(label, str):
        raise Refused(f"a label is text, not {label!r}")
    if len(label.strip()) > MAX_LENGTH:
        raise Refused(f"a label has at most {MAX_LENGTH} characters, this one {len(label)}")
    for character in label.strip():
        if not character.isprintable():
            raise Refused(
                f"a label is one line of printable text; this one has {character!r} in it"
            )
    return label


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
    named = _MEASURES[measure].format(association["group"] or "")
    cells = [str(association["column"]), named]
    for best in (association["latent"], association["raw"]):
        use = "" if best["use"] == "value" else f" {best['use']}"
        side = ", low" if measure == "auc" and best["sign"] < 0 else ""
        value, low, high = (best[key] for key in ("value", "low", "high"))
        interval = f" ({low:.2f} to {high:.2f})" if low is not None else ""
        cells += [f"{best['index']}{use}{side}", "-" if value is None else f"{value:.2f}{interval}"]
    return [*cells, ", ".join(str(best["index"]) for best in association["others"])]
