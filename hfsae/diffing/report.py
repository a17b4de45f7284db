"""diff.json in words: a table of the latents that explain most, and a sentence for each."""

from pathlib import Path
from typing import Any

from ..evaluation.result import aligned
from ..features import FeatureStore, read_names, show
from ..io.file_names import DIFF, META
from ..io.files import printable, read_json, reading
from .measures import LEAST_OWN, MOST_NU
from .sides import FIRST, SECOND, SHARED

_NAMED = 3  # tokens in a sentence
_FREQUENT = 0.03  # share of its firings from which a latent's token is named
_DESCRIBED = 5  # latents with sentence, tokens and example below the table
Json = dict[str, Any]


def sentence(columns: Json, i: int) -> str | None:
    """What a latent explains, in one sentence; None for one that writes the same in both models, or
    did not fire."""
    if columns["explained"][i] is None or columns["explained_firing"][i] is None:
        return None
    tokens, n_kinds = columns["tokens"][i], columns["n_kinds"][i]
    fires, where = "", "where it fires"
    if tokens:
        frequent = [text for text, share in tokens[:_NAMED] if share >= _FREQUENT]
        words = [f"`{printable(text)}`" for text in frequent or [tokens[0][0]]]
        if n_kinds > len(words):
            n_more = n_kinds - len(words)
            words.append(f"{n_more:,} other token{'s' * (n_more > 1)}")
        where = f"on {' and '.join([', '.join(words[:-1]), words[-1]] if words[1:] else words)}"
        fires = f"fires {where}, and "
    whole, firing = (percent(columns[name][i]) for name in ("explained", "explained_firing"))
    if explains(columns, i):
        return f"explains {firing} of what changed {where}: {whole} of the whole change"
    return f"{fires}explains no more of the change than as many firings elsewhere"


def explains(columns: Json, i: int) -> bool:
    """Whether a latent explains more than nothing, and more than its firings would elsewhere,
    intervals included."""
    low, control = columns["explained_low"][i], columns["shuffled_high"][i]
    return low is not None and control is not None and low > max(0, control)


def percent(share: float) -> str:
    """71 %, 7.1 %, 0.07 %."""
    value = 100 * share
    return f"{value:.{0 if abs(value) >= 10 else 1 if abs(value) >= 1 else 2}f} %"


def table(folder: str | Path, most: int = 10) -> str:
    """A folder's diff.json in words and numbers: how much changed, groups of latents, and those
    that explain most of the change, with names and examples where the folder has them.

    Raises:
        ValueError: the file is damaged.
    """
    folder = Path(folder)
    record = read_json(folder / DIFF)
    with reading(folder / DIFF):
        if "change" not in record:
            return f"{folder / DIFF} is of an earlier hfsae; `hfsae diff {folder}` makes it again"
        columns = record["latents"]
        best = [i for i, value in enumerate(columns["explained"]) if value is not None]
        best = [i for i in best if columns["n_firings"][i]]
        best = sorted(best, key=lambda i: -columns["explained"][i])[:most]
        lines = [*_head(record), *_listed(record, best)]
    return "\n".join([*lines, *_described(folder, columns, best[:_DESCRIBED])])


def _head(record: Json) -> list[str]:
    """How much changed, and the groups."""
    first, second = record["models"]
    change = record["change"]
    titles = {
        FIRST: f"mostly {first} (r <= .1)",
        SECOND: f"mostly {second} (r >= .9)",
        SHARED: "both (r .4 to .6)",
        "other": "in between",
    }
    lines = [
        f"{first} and {second}, {record['n_tokens']:,} held-out tokens of "
        f"{record['n_documents']:,} documents; r: the share of a latent that is {second}'s",
        "",
    ]
    if change["difference"]:
        shift = change["shift"]
        same = f"{percent(shift)} of it is the same on all tokens (b_dec)"
        if shift < 0:  # latents write where the mean would
            same = f"the difference of b_dec, taken off first, adds {percent(-shift)} to it"
        lines += [
            f"squared difference of their activations: {percent(change['difference'])} of the "
            f"spread of {first}'s;",
            f"{same}; of what is left, the change, all latents together explain "
            f"{percent(change['explained'])}",
        ]
    else:
        lines.append("both have the same activations here, to the bit: nothing changed")
    lines += ["", f"{'':<26}{'latents':>9}{'fired':>9}"]
    for name, group in record["groups"].items():
        lines.append(f"{titles[name]:<26}{group['n']:>9,}{group['n_fired']:>9,}")
    if n := record.get("n_dedicated"):
        lines += ["", f"the last {n} latents are dedicated to {second}: their r is 1 by design"]
    cosine = record["groups"][SHARED]["median_cosine"]
    if cosine is not None:
        lines += ["", f"median cosine of the two directions of a latent of both: {cosine:.3f}"]
    return lines


_LEGEND = (
    "% of the change: 1 - sum |y - f d|^2 / sum |y|^2 of the change y, with 95 % intervals over",
    "documents; shuffled: where it fires, with f permuted over tokens; nu: how much of a latent of",
    "one model is in the other all the same, by other latents (recon) or left out (error); little:",
    f"both below {MOST_NU:g} in size; some: one above; undetermined: intervals reach too far, or "
    "the latent's",
    f"own coefficient is below {LEAST_OWN:g}",
)


def _listed(record: Json, best: list[int]) -> list[str]:
    """The table of the latents that explain most."""
    if not best:
        return ["", "no latent that differs between them fired" if record["change"] else ""]
    columns = record["latents"]
    heads = ("latent", "r", "firings", "% of the change", "% where it fires", "shuffled")
    names = ("explained", "explained_firing", "nu_recon", "nu_error")
    cells = [[*heads, "nu recon", "nu error", "in the other"]]
    for i in best:
        explained, firing, *nu = (_interval(columns, name, i) for name in names)
        shuffled = f"{100 * columns['shuffled_firing'][i]:.1f}"
        share, word = f"{columns['share'][i]:.3f}", columns["in_other"][i] or "-"
        n_firings = f"{columns['n_firings'][i]:,}"
        cells.append([str(i), share, n_firings, explained, firing, shuffled, *nu, word])
    return ["", "latents by how much of the change they explain:", aligned(cells), "", *_LEGEND]


def _interval(columns: Json, name: str, i: int) -> str:
    """A value with its interval: in percent, or a nu."""
    value, *ends = (columns[name + end][i] for end in ("", "_low", "_high"))
    if value is None:
        return "-"
    factor, digits = (1, 2) if name.startswith("nu") else (100, 1)
    rounded = ("?" if x is None else round(factor * x, digits) + 0.0 for x in (value, *ends))
    value, *ends = (x if x == "?" else f"{x:.{digits}f}" for x in rounded)  # -0.0 + 0.0 is 0.0
    return f"{value} ({' to '.join(ends)})"


def _described(folder: Path, columns: Json, latents: list[int]) -> list[str]:
    """Of each latent its sentence, and its tokens; its name and an example, if the folder has any.

    Raises:
        ValueError: the examples are damaged.
    """
    names = read_names(folder)
    store = FeatureStore.load(folder) if (folder / META).is_file() else None
    lines = []
    for i in latents:
        name = f" ({printable(names[i])})" if i in names else ""
        lines += ["", f"latent {i}{name} {columns['sentence'][i]}"]
        if columns["tokens"][i]:
            shares = [f"`{printable(t)}` {percent(share)}" for t, share in columns["tokens"][i]]
            lines.append(f"  fires on  {', '.join(shares)}")
        if store is not None and (examples := store[i].examples):
            first = show(store[i]._replace(examples=examples[:1]))
            lines.append(f"  example {first.splitlines()[-1]}")
    return lines
