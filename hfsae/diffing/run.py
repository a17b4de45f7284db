"""One pass over held-out text; its result, diff.json, beside the SAE; and that in words: a table of
the latents that explain most, and a sentence for each."""

import json
from collections.abc import Callable, Iterable
from itertools import pairwise
from math import isfinite
from pathlib import Path
from statistics import median_low
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..activations import ActivationBatch
from ..evaluation.result import aligned
from ..features import FeatureStore, read_names, show
from ..io.checksums import sealed, stamp
from ..io.errors import Refused
from ..io.file_names import DIFF, META
from ..io.files import printable, read_json, reading, write_whole
from ..lm import LoadedLMs, contract
from ..models import SAE
from ..ops import Download
from ..runs import check_held_out, inputs_of, load_inputs, norm_limits, of_run
from ..runs.inputs import token_bar, with_progress
from ..training.trainer import make_accelerator, sum_products_in_float32
from . import N_TOKENS
from .measures import (
    EVEN,
    FIRST,
    GROUPS,
    LEAST_OWN,
    LITTLE,
    MOST_NU,
    MOSTLY,
    OTHER,
    SECOND,
    SHARED,
    Explained,
    Scaling,
    Sides,
    groups_of,
    in_other,
)

Json = dict[str, Any]
_SHIFT = 32  # bits of a token's id in a pair's key
_COUNTED, _KEPT = 12, 6  # of a latent: "the" and " the" become one
_NAMED = 3  # tokens in a sentence
_FREQUENT = 0.03  # share of its firings from which a latent's token is named
_DESCRIBED = 5  # latents with sentence, tokens and example below the table


def diff(folder: str | Path, n_tokens: int = N_TOKENS) -> Json:
    """Compare the two models of a run's crosscoder on held-out documents; writes diff.json.

    Of each latent it has how much of the change it explains, with the tokens on which it fires and
    a sentence, the group of its share, and latent scaling.

    Args:
        n_tokens: the most tokens to read.

    Raises:
        ValueError: the folder has no run, its SAE not sites of two models, or its text holds out no
            documents.
    """
    if n_tokens < 1:
        raise Refused(f"n_tokens is {n_tokens}; give 1 or more")
    placed = of_run(Path(folder))
    recipe, sae = placed.recipe, placed.sae
    Sides(sae)  # what cannot be compared is refused before a model is loaded
    if recipe.kind == "text":
        check_held_out(placed, "two models are compared on documents")
    sum_products_in_float32()
    loaded = load_inputs(recipe, str(make_accelerator(recipe.training).device))
    inputs = inputs_of(recipe, loaded)
    if isinstance(loaded, LoadedLMs):
        contract.check_models(loaded.lms, sae, loaded.tokenizer)
    sae.to(inputs.device)  # pyright: ignore[reportArgumentType] - transformers' wrapper
    reads, limits = sae.config.reads, norm_limits(sae, placed.folder)
    batches = inputs.source(reads.names, limits).batches(recipe.evaluation.side, n_tokens)
    with token_bar("diff", n_tokens, unit=inputs.unit) as progress:
        tokenizer = loaded.tokenizer if isinstance(loaded, LoadedLMs) else None
        spell = None if tokenizer is None else lambda token: str(tokenizer.decode([token]))
        n_at_once = recipe.evaluation.sae_batch_tokens
        record = compared(sae, with_progress(batches, progress), n_at_once, spell)
    record["models"] |= {name: lm.name for name, lm in recipe.models.items() if recipe.lms}
    record = {"side": recipe.evaluation.side, **record, **stamp(placed.folder)}
    write_whole(placed.folder / DIFF, json.dumps(sealed(record)) + "\n")
    return record


@torch.no_grad()
def compared(
    sae: SAE,
    batches: Iterable[ActivationBatch],
    n_at_once: int = 1024,
    spell: Callable[[int], str] | None = None,
) -> Json:
    """What each latent explains of the change, its shares, cosines and latent scaling, as in
    diff.json.

    Args:
        batches: raw activations at the sites of both models.
        n_at_once: activations that are encoded at once.
        spell: gives the text of a token's id.

    Raises:
        ValueError: there is no activation, or the SAE has not sites of two models.
    """
    sides = Sides(sae)
    groups = groups_of(sides.share)
    are_in = {name: groups == i for i, name in enumerate(GROUPS)}
    of_one = (are_in[FIRST] | are_in[SECOND]).nonzero()[:, 0]
    scaling = Scaling(sides, of_one, are_in[SECOND][of_one])
    explained, tokens = Explained(sides), FiringTokens()
    n_firings = torch.zeros(sae.config.d_sae, dtype=torch.long, device=sae.device)
    n_read, documents = 0, set[int]()
    for batch in batches:
        x = sae.config.reads.joined(batch.activations).to(sae.device, sae.dtype)
        document_of = batch.document.cpu()  # known to the host: sums by document wait for no GPU
        parts = (each.split(n_at_once) for each in (x, document_of))
        fired = [n_firings.new_zeros(0, len(n_firings), dtype=torch.bool)]
        for part, document in zip(*parts, strict=True):
            latents = sides.sae.encode(part)
            recon = sides.sae.decode(latents, part)
            scaling.add(part, recon, latents, document)
            explained.add(part, recon, latents, document)
            fired.append(latents != 0)
            n_firings += fired[-1].sum(dim=0)
        if batch.token is not None:
            tokens.add(torch.cat(fired)[:, explained.latents], batch.token.to(x.device))
        n_read += len(x)
        documents.update(document_of.tolist())
    if not n_read:
        raise Refused("no token is left to compare the models on; give more text")
    change, nu = explained.whole(), scaling.nu()
    frequent = tokens.most(len(explained.latents), spell) if spell else []
    columns = {
        "group": [GROUPS[i] for i in groups.tolist()],
        "share": _plain(sides.share),
        "cosine": _plain(sides.cosine),
        "n_firings": n_firings.tolist(),
        **_columns(explained.by_latent(), explained.latents, len(n_firings)),
        **_columns(nu, of_one, len(n_firings)),
        "in_other": _placed(in_other(nu), of_one, len(n_firings)),
        "tokens": _placed([shares for shares, _ in frequent], explained.latents, len(n_firings)),
        "n_kinds": _placed([n_kinds for _, n_kinds in frequent], explained.latents, len(n_firings)),
    }
    columns["sentence"] = [sentence(columns, i) for i in range(len(n_firings))]
    summary = {}  # of each group its numbers of latents
    for name, inside in are_in.items():
        fired_in = (inside & (n_firings > 0)).nonzero()[:, 0].tolist()
        cosines = [columns["cosine"][i] for i in fired_in if name == SHARED]
        summary[name] = {
            "n": int(inside.sum()),
            "n_fired": len(fired_in),
            "n_little": [columns["in_other"][i] for i in fired_in].count(LITTLE),
            "median_cosine": median_low(cosines) if cosines else None,
        }
    names = sae.config.model_names or {}
    return {
        "models": {name: names.get(name) for name in sides.names},
        "sites": list(sae.config.writes.names),
        "n_dedicated": sae.config.dedicated,
        "n_tokens": n_read,
        "n_documents": len(documents),
        "limits": {"mostly": MOSTLY, "even": list(EVEN), "nu": MOST_NU, "own": LEAST_OWN},
        "change": dict(zip(change, _plain(torch.tensor([*change.values()])), strict=True)),
        "groups": summary,
        "latents": columns,
    }


class FiringTokens:
    """Counts pairs of a latent and a token. Memory: 16 bytes for each pair that a batch has."""

    def __init__(self) -> None:
        self._keys: list[Download] = []
        self._counts: list[Download] = []

    def add(self, fired: Bool[Tensor, "n m"], token: Int[Tensor, " n"]) -> None:
        """Add which of m latents fire on some tokens."""
        at, latent = fired.nonzero(as_tuple=True)
        keys, counts = ((latent << _SHIFT) + token[at]).unique(return_counts=True)
        self._keys.append(Download(keys))
        self._counts.append(Download(counts))

    def most(
        self, n_latents: int, spell: Callable[[int], str]
    ) -> list[tuple[list[tuple[str, float]], int]]:
        """Of each latent its most frequent tokens, by text without spaces around it, with their
        shares of its firings; and the number of different tokens on which it fires.

        Args:
            spell: gives the text of a token's id.
        """
        if not self._keys:
            return []
        pairs = torch.cat([keys.value() for keys in self._keys])
        keys, row = pairs.unique(return_inverse=True)  # in the order of latents
        counts = torch.zeros(len(keys), dtype=torch.long)
        counts.index_add_(0, row, torch.cat([each.value() for each in self._counts]))
        ends = torch.searchsorted(keys, torch.arange(n_latents + 1) << _SHIFT).tolist()
        frequent = []
        for first, end in pairwise(ends):
            of_one, shares = counts[first:end], dict[str, float]()
            counted = of_one.sort(descending=True, stable=True).indices[:_COUNTED].tolist()
            for i in counted:
                text = spell(int(keys[first + i]) & ((1 << _SHIFT) - 1))
                text = text.strip() or text
                shares[text] = shares.get(text, 0) + float(of_one[i] / of_one.sum())
            best = sorted(shares.items(), key=lambda pair: -pair[1])[:_KEPT]
            frequent.append((best, len(of_one) - len(counted) + len(shares)))
        return frequent


def _columns(measured: dict[str, Tensor], latents: Tensor, n: int) -> Json:
    """Of each measure three columns of n latents: its value, and the ends of its interval."""
    return {
        name + end: _placed(_plain(values), latents, n)
        for name, ends in measured.items()
        for end, values in zip(("", "_low", "_high"), ends, strict=True)
    }


def _placed(values: list[Any], latents: Tensor, n: int) -> list[Any]:
    """A value for each of n latents; None for those that have none."""
    by_latent = dict(zip(latents.tolist(), values, strict=False))
    return [by_latent.get(i) for i in range(n)]


def _plain(values: Tensor) -> list[float | None]:
    return [float(f"{value:.6g}") if isfinite(value) else None for value in values.tolist()]


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
    low, control = columns["explained_low"][i], columns["shuffled_high"][i]
    if low is not None and control is not None and low > max(0, control):
        return f"explains {firing} of what changed {where}: {whole} of the whole change"
    return f"{fires}explains no more of the change than as many firings elsewhere"


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
        (first, second), change, columns = record["models"], record["change"], record["latents"]
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
        titles = {
            FIRST: f"mostly {first} (r <= .1)",
            SECOND: f"mostly {second} (r >= .9)",
            SHARED: "both (r .4 to .6)",
            OTHER: "in between",
        }
        lines += ["", f"{'':<26}{'latents':>9}{'fired':>9}"]
        for name, group in record["groups"].items():
            lines.append(f"{titles[name]:<26}{group['n']:>9,}{group['n_fired']:>9,}")
        if n := record.get("n_dedicated"):
            lines += ["", f"the last {n} latents are dedicated to {second}: their r is 1 by design"]
        cosine = record["groups"][SHARED]["median_cosine"]
        if cosine is not None:
            lines += ["", f"median cosine of the two directions of a latent of both: {cosine:.3f}"]
        best = [i for i, value in enumerate(columns["explained"]) if value is not None]
        best = [i for i in best if columns["n_firings"][i]]
        best = sorted(best, key=lambda i: -columns["explained"][i])[:most]
        lines += _listed(columns, best)
    return "\n".join([*lines, *_described(folder, columns, best[:_DESCRIBED])])


_LEGEND = (
    "% of the change: 1 - sum |y - f d|^2 / sum |y|^2 of the change y, with 95 % intervals over",
    "documents; shuffled: where it fires, with f permuted over tokens; nu: how much of a latent of",
    "one model is in the other all the same, by other latents (recon) or left out (error); little:",
    f"both below {MOST_NU:g} in size; some: one above; undetermined: intervals reach too far, or "
    "the latent's",
    f"own coefficient is below {LEAST_OWN:g}",
)


def _listed(columns: Json, best: list[int]) -> list[str]:
    """The table of the latents that explain most."""
    if not best:
        return ["", "no latent that differs between them fired"]

    def interval(name: str, i: int) -> str:  # in per cent, or a nu
        value, *ends = (columns[name + end][i] for end in ("", "_low", "_high"))
        if value is None:
            return "-"
        factor, digits = (1, 2) if name.startswith("nu") else (100, 1)
        rounded = ("?" if x is None else round(factor * x, digits) + 0.0 for x in (value, *ends))
        value, *ends = (x if x == "?" else f"{x:.{digits}f}" for x in rounded)  # -0.0 + 0.0 is 0.0
        return f"{value} ({' to '.join(ends)})"

    heads = ("latent", "r", "firings", "% of the change", "% where it fires", "shuffled")
    names = ("explained", "explained_firing", "nu_recon", "nu_error")
    cells = [[*heads, "nu recon", "nu error", "in the other"]]
    for i in best:
        explained, firing, *nu = (interval(name, i) for name in names)
        shuffled = f"{100 * columns['shuffled_firing'][i]:.1f}"
        share, word = f"{columns['share'][i]:.3f}", columns["in_other"][i] or "-"
        n_firings = f"{columns['n_firings'][i]:,}"
        cells.append([str(i), share, n_firings, explained, firing, shuffled, *nu, word])
    return ["", "latents by how much of the change they explain:", aligned(cells), "", *_LEGEND]


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
