"""One pass over held-out text, and its result, diff.json, beside the SAE."""

import json
from collections.abc import Callable, Iterable
from functools import partial
from itertools import pairwise
from math import isfinite
from pathlib import Path
from statistics import median_low
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..activations import ActivationBatch
from ..io.checksums import sealed, stamp
from ..io.errors import Refused
from ..io.file_names import DIFF
from ..io.files import write_whole
from ..lm import LoadedLMs, contract
from ..models import SAE
from ..runs import check_held_out, inputs_of, load_inputs, norm_limits, of_run
from ..runs.inputs import counted, token_bar
from ..training.trainer import make_accelerator, sum_products_in_float32
from . import N_TOKENS
from .measures import LEAST_OWN, LITTLE, MOST_NU, Explained, Scaling, in_other
from .report import sentence
from .sides import EVEN, FIRST, GROUPS, MOSTLY, SECOND, SHARED, Sides, groups_of

Json = dict[str, Any]
_SHIFT = 32  # bits of a token's id in a pair's key
_COUNTED, _KEPT = 12, 6  # of a latent: "the" and " the" become one


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
        n_at_once, spell = recipe.evaluation.sae_batch_tokens, None
        if isinstance(loaded, LoadedLMs):
            spell = partial(_token_text, loaded.tokenizer)
        record = compared(sae, counted(batches, progress), n_at_once, spell)
    record["models"] |= {name: lm.name for name, lm in recipe.models.items() if recipe.lms}
    record = {"side": recipe.evaluation.side, **record, **stamp(placed.folder)}
    write_whole(placed.folder / DIFF, json.dumps(sealed(record)) + "\n")
    return record


def _token_text(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    return str(tokenizer.decode([token]))


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
    of_one = groups.are(FIRST, SECOND).nonzero()[:, 0]
    scaling = Scaling(sides, of_one, groups.are(SECOND)[of_one])
    explained, tokens = Explained(sides), FiringTokens()
    n_firings = torch.zeros(sae.config.d_sae, dtype=torch.long, device=sae.device)
    n_read, documents = 0, set[int]()
    for batch in batches:
        x = sae.config.reads.joined(batch.activations).to(sae.device, sae.dtype)
        parts = (each.split(n_at_once) for each in (x, batch.document.to(x.device)))
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
        documents.update(batch.document.tolist())
    if not n_read:
        raise Refused("no token is left to compare the models on; give more text")
    change, nu = explained.whole(), scaling.nu()
    frequent = tokens.most(len(explained.latents), spell) if spell else []
    columns = {
        "group": groups.names,
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
    for name in GROUPS:
        inside = groups.are(name)
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
        self._keys: list[Tensor] = []
        self._counts: list[Tensor] = []

    def add(self, fired: Bool[Tensor, "n m"], token: Int[Tensor, " n"]) -> None:
        """Add which of m latents fire on some tokens."""
        at, latent = fired.nonzero(as_tuple=True)
        keys, counts = ((latent << _SHIFT) + token[at]).unique(return_counts=True)
        self._keys.append(keys.cpu())
        self._counts.append(counts.cpu())

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
        keys, row = torch.cat(self._keys).unique(return_inverse=True)  # in the order of latents
        counts = torch.zeros(len(keys), dtype=torch.long)
        counts.index_add_(0, row, torch.cat(self._counts))
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
