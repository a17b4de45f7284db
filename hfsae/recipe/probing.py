"""Probing of SAEs in their folders, on one language model."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .. import cards
from ..activations import TokenBatch
from ..attribution import uniformity
from ..evaluation.probing import ProbeArguments, Probing, Task, packaged_tasks, probe, read_tasks
from ..evaluation.probing.study import chosen_names, mean_interval
from ..evaluation.probing.tasks import FAULTY, packaged_names
from ..evaluation.untrained import Untrained, firings, sample
from ..lm import LoadedLM, special_ids, unspared
from ..machine.files import read_json, write_whole
from ..machine.names import CARD, EVALUATION, PROBING, PROBING_REPORT, TRAINING
from ..machine.plain import finite
from ..machine.refused import Refused
from ..machine.seal import refuse_changed, sealed
from ..machine.weights import of_others, refuse_mixture, stamp
from ..models import SAE
from ..packaged import PROBES
from ..training.trainer import sum_products_in_float32
from .evaluating import with_probing
from .fields import LMArguments
from .folder import locked_run, names_apart, norm_limits
from .opening import load
from .placed import PlacedSAE, refuse_without_text

PACKAGED = "packaged"
_FIELDS = {"model_name": "name", "model_revision": "revision", "model_dtype": "dtype"}
_FIELDS |= {"model_attention": "attn_implementation"}
"""Fields of an SAE's config, and their names in a recipe."""


def probe_saes(
    placed: Sequence[PlacedSAE],
    args: ProbeArguments,
    tasks: str = PACKAGED,
    **columns: str | None,
) -> Probing:
    """Probe SAEs side by side; write probing.json and probing.md into the folder of each, its means
    into evaluation.json, where there is one, and a section into its card.

    Args:
        tasks: "packaged", a jsonl file, or a Hub data set.
        columns: `text_column`, `label_column`, `group_column` and `split` of these.

    Raises:
        ValueError: SAEs of different language models, unusable tasks, or a package that is missing.
    """
    by_folder = {one.folder.resolve(): one for one in placed}  # one that is named twice, once
    folders, placed = [*by_folder], [*by_folder.values()]
    for one in placed:
        refuse_without_text(one)
    names = names_apart(folders)
    saes = {name: one.sae for name, one in zip(names, placed, strict=True)}
    lm_of = _common_lm(dict(zip(names, placed, strict=True)))
    for folder in folders:
        refuse_mixture(folder, [TRAINING])
        refuse_changed(folder, [EVALUATION])  # into which the means go, and which is sealed again
    read, total = _tasks(tasks, args, columns)
    limits: dict[str, float] = {}
    for sae, folder in zip(saes.values(), folders, strict=True):
        if (folder / TRAINING).is_file():
            limits |= norm_limits(sae, folder)
    sum_products_in_float32()
    loaded = load(LMArguments(**{_FIELDS[key]: value for key, value in lm_of.items() if value}))
    for sae in saes.values():
        sae.to(loaded.lm.device)
    texts: list[str] = []
    total = None if total is None else total + args.n_words
    with tqdm(total=total, desc="probe", unit="text") as bar:
        result = probe(
            loaded.lm,
            saes,
            _noting(read, texts, args.seed),
            args,
            tokenizer=loaded.tokenizer,
            norm_limits=limits,
            progress=lambda n: bar.update(n),
        )
    if args.uniformity_tokens:
        result.record["uniformity"] = _uniformity(loaded, saes, texts, args, limits)
    about = {"tasks_of": _source(tasks), "saes": [*saes], "lm": lm_of}
    for (name, sae), folder in zip(saes.items(), folders, strict=True):
        _save(result, folder, {**about, "sae": name, "site": sae.config.reads.only_site})
    return result


def _common_lm(placed: Mapping[str, PlacedSAE]) -> dict[str, Any]:
    """The language model of all the SAEs, by the names in a config; what one of them leaves open,
    another may tell."""
    (first, common), *others = ((name, _lm_of(one)) for name, one in placed.items())
    for name, theirs in others:
        for key, value in theirs.items():
            if None not in (value, common[key]) and value != common[key]:
                raise Refused(
                    f"{name} belongs to {theirs['model_name']} and {first} to "
                    f"{common['model_name']}, or in another precision; probe SAEs of "
                    "one model together"
                )
        common |= {key: value for key, value in theirs.items() if value is not None}
    left_open = vars(placed[first].recipe.lm)
    return {key: common[key] or left_open[field] for key, field in _FIELDS.items()}


def _lm_of(placed: PlacedSAE) -> dict[str, Any]:
    """The language model of an SAE's recipe; None for what is only the recipe's default."""
    lm = {key: getattr(placed.recipe.lm, field) for key, field in _FIELDS.items()}
    known = {key: getattr(placed.sae.config, key, None) for key in _FIELDS}
    if known["model_name"] != lm["model_name"]:
        return lm
    is_default = placed.home is None and known["model_dtype"] is None
    is_open = {key for key, value in lm.items() if value in (None, "auto")}
    is_open |= {"model_dtype"} if is_default else set()
    return {key: known[key] if key in is_open else lm[key] for key in _FIELDS}


def _tasks(
    tasks: str, args: ProbeArguments, columns: Mapping[str, Any]
) -> tuple[Iterable[Task], int | None]:
    """The tasks, and how many texts will be read."""
    if tasks == PACKAGED:
        if columns.get("group_column"):
            raise Refused("packaged sets have no groups; give --tasks with --group_column")
        names = chosen_names(packaged_names(), args)
        read = packaged_tasks(names)
        first = next(read, None)  # a missing file fails before the model is loaded
        return chain([first] if first else [], read), len(names) * args.n_texts
    own = read_tasks(tasks, **columns)
    return own, sum(min(args.n_texts, len(task.texts)) for task in own)


def _noting(tasks: Iterable[Task], texts: list[str], seed: int) -> Iterator[Task]:
    """The tasks; some texts of each are noted as they pass."""
    rng = np.random.default_rng(seed)
    for task in tasks:
        texts += [task.texts[i] for i in rng.permutation(len(task.texts))[:_NOTED]]
        yield task


def _uniformity(
    loaded: LoadedLM,
    saes: Mapping[str, SAE],
    texts: Sequence[str],
    args: ProbeArguments,
    norm_limits: Mapping[str, float],
) -> dict[str, Any]:
    """r_L0 of each SAE, and of untrained latents, at tokens of the tasks' texts, which follow each
    other in rows."""
    results = {}
    for name, sae in saes.items():
        bos = getattr(sae.config, "bos", None) != "none"
        ids = packed_rows(loaded.tokenizer, texts, args.max_tokens, bos=bos, seed=args.seed)
        own = _evenness(loaded.lm, sae, ids, args)
        untrained = _untrained(loaded.lm, sae, ids, args.seed, norm_limits)
        results[name] = {
            "mean": mean_interval(own, args),
            "n_tokens": len(own),
            "untrained": mean_interval(_evenness(loaded.lm, untrained, ids, args), args),
        }
    return {"saes": results, "about": _ABOUT_UNIFORMITY}


def _evenness(
    lm: PreTrainedModel, sae: SAE, ids: torch.Tensor, args: ProbeArguments
) -> list[float]:
    n = args.uniformity_tokens
    return uniformity(lm, sae, ids, n_tokens=n, seed=args.seed).per_token.tolist()


def _untrained(
    lm: PreTrainedModel, sae: SAE, ids: torch.Tensor, seed: int, norm_limits: Mapping[str, float]
) -> SAE:
    """Latents of random directions that fire as often on tokens of these rows."""
    keep = unspared(ids, special_ids(lm))
    whole = TokenBatch(ids, keep, torch.zeros_like(ids))
    parts = (part.split(_ROWS) for part in whole)
    rows = (TokenBatch(*part) for part in zip(*parts, strict=True))
    x = sample(lm, sae.config.reads, rows, norm_limits=norm_limits).float()
    densities = firings(sae, x).cpu() / len(x)
    return Untrained(x.cpu(), densities, seed).as_sae(sae)


_ROWS = 16  # in one batch
_NOTED = 20  # texts of a task
_ABOUT_UNIFORMITY = (
    "Gemma Scope, appendix D.5 (arXiv:2408.05147): the evenness of the effects of a token's "
    "latents on its prediction, 1 where all that fire matter equally, near 1 / L0 where only one "
    "does; mean over tokens of the tasks' texts with 95 % bootstrap intervals over tokens. "
    "untrained: random directions that fire as often on such tokens as the SAE's latents"
)


def packed_rows(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], width: int, *, bos: bool, seed: int
) -> torch.Tensor:
    """[rows, width] tokens of texts in random order, behind a BOS token in each row."""
    order = np.random.default_rng(seed).permutation(len(texts))
    encoded = tokenizer([texts[int(i)] for i in order], add_special_tokens=False, verbose=False)
    ids = torch.tensor(list(chain.from_iterable(encoded["input_ids"])), dtype=torch.long)
    first = torch.tensor([tokenizer.bos_token_id] if bos else [], dtype=torch.long)
    width = min(width, len(first) + len(ids))
    rows = ids[: len(ids) // (width - len(first)) * (width - len(first))]
    rows = rows.reshape(-1, width - len(first))
    return torch.cat([first.expand(len(rows), -1), rows], dim=1)


def _source(tasks: str) -> str:
    if tasks == PACKAGED:
        left_out = ", ".join(f"{number} ({why})" for number, why in FAULTY.items())
        return f"{PROBES}, binary sets without {left_out}"
    return Path(tasks).name if Path(tasks).exists() else tasks


def _save(result: Probing, folder: Path, more: dict[str, Any]) -> None:
    record = finite({**more, **result.record, "rows": result.rows, **stamp(folder)})
    with locked_run(folder, [folder]):
        write_whole(folder / PROBING_REPORT, result.report)
        write_whole(folder / PROBING, json.dumps(sealed(record), indent=1) + "\n")
        if (folder / EVALUATION).is_file() and not any(of_others(folder, [EVALUATION])):
            evaluation = with_probing(read_json(folder / EVALUATION), folder)
            write_whole(folder / EVALUATION, json.dumps(evaluation, indent=1) + "\n")
        if (folder / CARD).is_file():
            cards.write_card(folder)
