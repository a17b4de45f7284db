"""Tables of latents that lie beside an SAE: by labels of documents, and by language model.

features/columns.json, which a run with labels writes (`hfsae.features.label_table`), has latents
that go with labels: they are chosen on one half of the documents and measured on the other.
diff.json, which `hfsae diff` writes (`hfsae.diffing`), has latents of one of two language models,
and of both.
"""

from typing import Annotated, Any

from ..io.errors import Refused
from ..io.labels import too_few_to_tell
from . import validate
from .rows import Json, as_rows
from .subject import Subject

_MOST_LABELS, _MOST_OF_MODELS = 1000, 200  # rows
MEASURES = {"auc": "AUC", "spearman": "Spearman", "eta_squared": "eta squared"}
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


def label_rows(columns: dict[str, Any], d_sae: int) -> list[Json]:
    """The rows of the file; an error that `reading` reports as damage, if one is none."""
    rows = []
    for row in columns["associations"]:
        best, raw, group = row["latent"], row.get("raw") or {}, row.get("group")
        _ = MEASURES[row["measure"]]
        rows.append(
            {
                "column": str(row["column"]),
                "class": None if group is None else str(group),
                "measure": row["measure"],
                "latent": range(d_sae)[best["index"]],
                "value": float(best["value"]),
                "low": best.get("low"),
                "high": best.get("high"),
                "use": best.get("use") or "",
                "sign": best.get("sign") or 1,
                "raw_dimension": raw.get("index"),
                "raw_value": raw.get("value"),
            }
        )
    return rows


def labels(subject: Subject, query: str = "") -> Json:
    """Latents that go with labels of the documents, beside the best single number of the
    activations: one for each class of a column of classes, and for each column of numbers.

    Args:
        query: a word of a column or class; empty: all.

    Returns:
        by (str): what a label is of: document or row.
        n_documents (int | None): documents that have labels and were read.
        few (str): why so few documents tell nothing; empty where there are enough.
        n_rows (int): rows of the whole table.
        found (list[Latent]): of each row the latent, with "column", "class" (null: of the whole
            column), "measure" (auc: the chance that it is larger in the class than elsewhere;
            spearman: correlation with numbers; eta_squared: share of its variance that lies between
            classes), "value" on documents that it was not chosen on, with its 95 % interval "low"
            to "high", "use" (max or mean over a document), "sign" (-1: it is smaller in the class),
            and "raw_dimension" with its "raw_value".
    """
    query = validate.text(query, "the search", empty=None).strip().casefold()
    rows, n = subject.label_rows, subject.columns.get("n_documents")
    if not rows:
        raise Refused("this SAE comes without a table of labels; a run with labels writes one")
    hits = [row for row in rows if query in label_of(row).casefold()]
    return {
        "by": "row" if subject.columns.get("by") == "row" else "document",
        "n_documents": n,
        "few": "" if n is None else too_few_to_tell(n),
        "n_rows": len(rows),
        "found": as_rows(subject, hits[:_MOST_LABELS]),
    }


def best_rows(subject: Subject) -> list[Json]:
    """The rows of the table, those with the largest values first."""
    return sorted(subject.label_rows, key=lambda row: -abs(row["value"]))


def rows_of_latent(subject: Subject, latent: int) -> list[Json]:
    """The rows of the table that a latent is in, the best first."""
    return [row for row in best_rows(subject) if row["latent"] == latent]


def rows_of_label(subject: Subject, word: str) -> list[Json]:
    """The rows whose class, or column, is this word."""
    word = word.strip().casefold()
    names = ((row, (row["class"] or row["column"], label_of(row))) for row in subject.label_rows)
    return [row for row, its in names if word in map(str.casefold, its)]


def label_of(row: Json) -> str:
    """A row's label in words: "kind = cat", or "age"."""
    return row["column"] if row["class"] is None else f"{row['column']} = {row['class']}"


def score_text(row: Json) -> str:
    """The value of a row with the name of its measure: "AUC 0.97"."""
    return f"{MEASURES[row['measure']]} {row['value']:.2f}"


def check_diff(record: dict[str, Any], d_sae: int) -> None:
    """Raises an error that `reading` reports as damage, if the file is none of `hfsae diff`."""
    _ = record["models"], record["n_tokens"], [record["change"][name] for name in _CHANGE]
    for name in (*_NUMBERS, *_WORDS, "group", "n_firings"):
        if len(record["latents"][name]) != d_sae:
            raise Refused(f"{name} is no column of {d_sae:,} latents")


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
        "found": as_rows(subject, hits[:_MOST_OF_MODELS]),
    }
