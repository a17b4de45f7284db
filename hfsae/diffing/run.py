"""One pass over held-out text, and its result, diff.json, beside the SAE."""

import json
from collections.abc import Callable, Iterable
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..activations import ActivationBatch
from ..lm import LoadedLMs, contract
from ..machine.files import read_json, reading, write_whole
from ..machine.names import DIFF
from ..machine.refused import Refused
from ..machine.seal import sealed
from ..machine.weights import stamp
from ..models import SAE
from ..recipe import check_held_out, inputs_of, load_inputs, norm_limits, of_run
from ..recipe.text import counted, token_bar
from ..training.trainer import make_accelerator, sum_products_in_float32
from .groups import EVEN, FIRST, GROUPS, MOST_NU, MOSTLY, SECOND, SHARED, Groups, groups_of
from .scaling import Scaling
from .sides import Sides

N_TOKENS = 100_000
Json = dict[str, Any]


def diff(folder: str | Path, n_tokens: int = N_TOKENS) -> Json:
    """Compare the two models of a run's crosscoder on held-out documents; writes diff.json.

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
        contract.hold_together(loaded.lms, sae, loaded.tokenizer)
    sae.to(inputs.device)  # pyright: ignore[reportArgumentType] - transformers' wrapper
    reads, limits = sae.config.reads, norm_limits(sae, placed.folder)
    batches = inputs.source(reads.names, limits).batches(recipe.evaluation.side, n_tokens)
    with token_bar("diff", n_tokens, unit=inputs.unit) as progress:
        record = compared(sae, counted(batches, progress), recipe.evaluation.sae_batch_tokens)
    record["models"] |= {name: lm.name for name, lm in recipe.models.items() if recipe.lms}
    record = {"side": recipe.evaluation.side, **record, **stamp(placed.folder)}
    write_whole(placed.folder / DIFF, json.dumps(sealed(record)) + "\n")
    return record


@torch.no_grad()
def compared(sae: SAE, batches: Iterable[ActivationBatch], n_at_once: int = 1024) -> Json:
    """Shares, cosines and latent scaling of all latents, as in diff.json.

    Args:
        batches: raw activations at the sites of both models.
        n_at_once: activations that are encoded at once.

    Raises:
        ValueError: there is no activation, or the SAE has not sites of two models.
    """
    sides = Sides(sae)
    share = sides.share
    groups = groups_of(share)
    alone = groups.are(FIRST, SECOND)
    of_one = alone.nonzero()[:, 0]
    scaling = Scaling(sides, of_one, groups.are(SECOND)[of_one])
    n_firings, n_read = torch.zeros(len(share), dtype=torch.long, device=share.device), 0
    for batch in batches:
        x = sae.config.reads.joined(batch.activations)
        for part in x.to(sae.device, sae.dtype).split(n_at_once):
            latents = sides.sae.encode(part)
            scaling.add(part, sides.sae.decode(latents, part), latents)
            n_firings += (latents != 0).sum(dim=0)
        n_read += len(x)
    if not n_read:
        raise Refused("no token is left to compare the models on; give more text")
    nu = {
        f"nu_{kind}": torch.full_like(share, torch.nan).index_copy(0, of_one, values)
        for kind, values in scaling.nu()._asdict().items()
    }
    is_exclusive = alone & (n_firings > 0)
    for values in nu.values():
        is_exclusive &= values.abs() < MOST_NU
    columns = {"share": share, "cosine": sides.cosine, **nu}
    names = sae.config.model_names or {}
    return {
        "models": {name: names.get(name) for name in sides.names},
        "sites": list(sae.config.writes.names),
        "n_dedicated": sae.config.dedicated,
        "n_tokens": n_read,
        "limits": {"mostly": MOSTLY, "even": list(EVEN), "nu": MOST_NU},
        "groups": _summary(groups, n_firings, columns["cosine"], is_exclusive),
        "latents": {
            "group": groups.names,
            **{name: _plain(values) for name, values in columns.items()},
            "n_firings": n_firings.tolist(),
            "exclusive": is_exclusive.tolist(),
        },
    }


def _summary(groups: Groups, n_firings: Tensor, cosine: Tensor, is_exclusive: Tensor) -> Json:
    """Of each group its numbers of latents: all, those that fired, and those that are exclusive."""
    summary = {}
    for name in GROUPS:
        inside = groups.are(name)
        fired = inside & (n_firings > 0)
        n_fired = int(fired.sum())
        summary[name] = {
            "n": int(inside.sum()),
            "n_fired": n_fired,
            "n_exclusive": int((inside & is_exclusive).sum()),
            "median_cosine": float(cosine[fired].median()) if n_fired and name == SHARED else None,
        }
    return summary


def _plain(values: Tensor) -> list[float | None]:
    return [value if isfinite(value) else None for value in values.tolist()]


def table(folder: str | Path, most: int = 10) -> str:
    """The groups of a folder's diff.json in words and numbers, and of each model the latents that
    are its own alone, those that fire most first.

    Raises:
        ValueError: the file is damaged.
    """
    path = Path(folder) / DIFF
    record = read_json(path)
    with reading(path):
        return _table(record, most)


def _table(record: Json, most: int) -> str:
    first, second = record["models"]
    titles = {
        FIRST: f"mostly {first} (r <= .1)",
        SECOND: f"mostly {second} (r >= .9)",
        SHARED: "both (r .4 to .6)",
        "other": "in between",
    }
    lines = [
        f"{first} and {second}, {record['n_tokens']:,} held-out tokens; r: the share of a latent "
        f"that is {second}'s",
        "",
        f"{'':<26}{'latents':>9}{'fired':>9}{'exclusive':>11}",
    ]
    for name, group in record["groups"].items():
        exclusive = f"{group['n_exclusive']:,}" if name in (FIRST, SECOND) else "-"
        lines.append(f"{titles[name]:<26}{group['n']:>9,}{group['n_fired']:>9,}{exclusive:>11}")
    if n := record.get("n_dedicated"):
        lines += ["", f"the last {n} latents are dedicated to {second}: their r is 1 by design"]
    cosine = record["groups"][SHARED]["median_cosine"]
    if cosine is not None:
        lines += ["", f"median cosine of the two directions of a latent of both: {cosine:.3f}"]
    columns = record["latents"]
    for name, model in ((FIRST, first), (SECOND, second)):
        mostly = [i for i, its in enumerate(columns["group"]) if its == name]
        own = [i for i in mostly if columns["exclusive"][i]]
        fired = [i for i in mostly if columns["n_firings"][i]]
        if own or not fired:
            lines += _listed(columns, own, f"exclusive to {model}, most frequent first", most)
        else:
            title = f"none is exclusive to {model}; mostly {model}, most frequent first"
            lines += _listed(columns, fired, title, most)
    return "\n".join([*lines, "", _EXCLUSIVE])


_EXCLUSIVE = (
    f"exclusive: both |nu| < {MOST_NU:g}, so that the other model has little of the latent, "
    "neither in other latents (nu of the reconstruction) nor left out (nu of the error)"
)


def _listed(columns: Json, chosen: list[int], title: str, most: int) -> list[str]:
    if not chosen:
        return []
    lines = ["", f"{title}:", f"{'latent':>8}{'r':>8}{'firings':>10}"]
    lines[-1] += f"{'nu recon':>10}{'nu error':>10}"
    for i in sorted(chosen, key=_by(columns["n_firings"]))[:most]:
        nu = "".join(_number(columns[f"nu_{kind}"][i]) for kind in ("recon", "error"))
        lines.append(f"{i:>8}{columns['share'][i]:>8.3f}{columns['n_firings'][i]:>10,}{nu}")
    return lines


def _number(value: float | None) -> str:
    return f"{'-':>10}" if value is None else f"{value:>10.3f}"


def _by(n_firings: list[int]) -> Callable[[int], int]:
    return lambda i: -n_firings[i]
