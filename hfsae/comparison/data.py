"""What a comparison's SAEs were trained and measured on, in words."""

from collections.abc import Sequence
from hashlib import blake2b

from ..activations import Split, TextArguments, documents, is_hub
from ..evaluation.result import KINDS_OF_DOCUMENTS
from ..machine.markdown import table
from ..machine.units import TOKEN, Unit, section_of, unit_of
from . import results
from .arms import Comparison
from .results import Measured


def model_of(comparison: Comparison) -> str:
    """What makes the activations: a model, with its dtype, or files."""
    lm = comparison.lm
    return "activation files" if comparison.kind == "files" else f"{lm.name} ({lm.dtype})"


def evaluated_on(comparison: Comparison, measured: Sequence[Measured]) -> str:
    """How many activations the SAEs were measured on, as "300 held-out rows": of text the recipe's
    number; other inputs often have fewer, so they are counted."""
    n, unit = comparison.evaluation.n_tokens, unit_of(measured[0].recipe)
    if n is None or unit != TOKEN:
        n = int(measured[0].sums["fidelity.tokens"].sum())
    return f"{n:,} {KINDS_OF_DOCUMENTS[comparison.evaluation.side]} {unit.many}"


def about_data(comparison: Comparison, measured: Sequence[Measured]) -> str:
    """The documents on each side, the activations that were kept, and whether all SAEs saw the
    same."""
    c, record, unit = comparison, measured[0].record["harvested"], unit_of(measured[0].recipe)
    inputs = _text(c.text, record) if unit == TOKEN else _inputs(measured[0], unit)
    shuffled = f"Shuffled in buckets of {c.shuffle.bucket_tokens:,}."
    return (
        f"{inputs}; the evaluation follows the same rules. {shuffled}{_harvests(c.kind, measured)}"
    )


def _text(text: TextArguments, record: dict[str, int]) -> str:
    return (
        f"{_documents(text)}; rows of {text.context_size} tokens; BOS at the start of each "
        f"{text.bos}. Positions of the training text: {record['kept']:,} kept, "
        f"{record['dropped_special']:,} special tokens and {record['dropped_outliers']:,} norm "
        "outliers dropped"
    )


def _inputs(m: Measured, unit: Unit) -> str:
    given, record = m.recipe[section_of(m.recipe)], m.record["harvested"]
    files = given["files"] or given.get("folder") or given.get("packaged")
    names = ", ".join(f"`{name}`" for name in ([files] if isinstance(files, str) else files))
    held_out, validation = (given[f"{side}_fraction"] for side in ("held_out", "validation"))
    return (
        f"{names}, split by document (by a hash, {100 * held_out:g} % held out, "
        f"{100 * validation:g} % for validation). {unit.many.capitalize()} read in training, "
        f"repeats included: {record['kept']:,} kept, {record['dropped_special']:,} left out and "
        f"{record['dropped_outliers']:,} norm outliers dropped"
    )


def _harvests(kind: str, measured: Sequence[Measured]) -> str:
    found, n = results.harvests(measured), results.n_harvests(measured)
    if n == 1:
        hashes = ", ".join(" ".join(each.digests) for each in found if each.digests)
        return f" All saw the same activations, to the bit (hash {hashes})." if hashes else ""
    apart = "; ".join(
        f"{n_saes} SAEs: {' '.join((*(f'{x:.6g}' for x in each.norm_limits), *each.digests))}"
        for each, n_saes in found.most_common()
    )
    if kind == "files":
        return (
            f" The files held {n} different sets of activations (by the hash of all that were "
            f"read: {apart}), so arms were not all trained on the same."
        )
    subject = "text was" if kind == "text" else "inputs were"
    return (
        f" The {subject} harvested {n} times with different rounding (norm limits above which "
        f"outliers were dropped, then the hash of all activations, if recorded: {apart}), so "
        "activations are equal only up to rounding."
    )


def _documents(text: TextArguments) -> str:
    """The documents on each side. Of a Hub data set only the name: reading it is slow."""
    split = f"`{text.dataset}`, split by document before tokenisation"
    if is_hub(text.dataset):
        return (
            f"{split} (configuration {text.dataset_config or 'by default'}, split "
            f"{text.dataset_split}, revision {text.dataset_revision or 'main'}; by a hash of their "
            f"text, {100 * text.held_out_fraction:g} % held out, "
            f"{100 * text.validation_fraction:g} % for validation)"
        )
    rows = [["side", "documents", "digest of their hashes"]]
    names: dict[Split, str] = {"train": "train", "test": "held-out"}
    if text.validation_fraction:
        names["validation"] = "validation"
    sides: list[set[str]] = []
    for side, name in names.items():
        sides.append({document.id for document in documents(text, side)})
        digest = blake2b("".join(sorted(sides[-1])).encode(), digest_size=8).hexdigest()
        rows.append([name, f"{len(sides[-1]):,}", f"`{digest}`"])
    shared = sum(map(len, sides)) - len(set().union(*sides))
    return f"{table(rows)}\n\n{split} (documents on both sides: {shared})"
