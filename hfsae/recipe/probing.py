"""The stage of a run that probes: what a few latents reveal about labelled texts."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..activations import TokenBatch
from ..attribution import uniformity
from ..evaluation.probing import ProbeArguments, Probing, Task, packaged_tasks, probe
from ..evaluation.probing.regression import scikit_learn
from ..evaluation.probing.study import chosen_names, mean_interval
from ..evaluation.probing.tasks import FAULTY, packaged_names
from ..evaluation.untrained import Untrained, firings, sample
from ..lm import LoadedLM, special_ids, unspared
from ..machine.files import read_json, write_whole
from ..machine.names import EVALUATION, PROBING, PROBING_REPORT
from ..machine.plain import finite
from ..machine.refused import Refused
from ..machine.seal import sealed
from ..machine.weights import of_others, stamp
from ..models import SAE, SAEConfig
from ..packaged import PROBES
from .evaluating import with_probing
from .fields import Recipe
from .job import Job

LM_FIELDS = {"model_name": "name", "model_revision": "revision", "model_dtype": "dtype"}
LM_FIELDS |= {"model_attention": "attn_implementation"}
"""Fields of an SAE's config, and their names in a recipe."""


def probe_latents(job: Job) -> None:
    """Probe on packaged sets, with the recipe's number of texts of each, as `hfsae probe` does;
    write probing.json and probing.md, and the means into evaluation.json, if there is one."""
    args = probe_arguments(job.recipe)
    name = job.folder.resolve().name
    tasks = PackagedTasks(args)
    result = probe_loaded(job.with_lm, {name: job.sae}, tasks, len(tasks), args, job.limits)
    lm = lm_of(job.sae, job.recipe, of_a_run=True)
    about = {"tasks_of": tasks.source, "saes": [name], "lm": lm, "sae": name}
    save_probing(result, job.folder, about | {"site": job.sae.config.reads.only_site})


def probe_arguments(recipe: Recipe) -> ProbeArguments:
    """Those of `hfsae probe`, with the recipe's number of texts: the same tasks for every SAE,
    whatever its seed."""
    return ProbeArguments(n_texts=recipe.sizes.probing)


def lm_of(sae: SAE, recipe: Recipe, *, of_a_run: bool) -> dict[str, Any]:
    """The language model of an SAE's recipe, by names in a config; what the recipe leaves open, the
    SAE's config may tell.

    Args:
        of_a_run: the recipe is that of a training; otherwise a dtype may be only its default, and
            is None.
    """
    lm = {key: getattr(recipe.lm, field) for key, field in LM_FIELDS.items()}
    known = {key: getattr(sae.config, key, None) for key in LM_FIELDS}
    if known["model_name"] != lm["model_name"]:
        return lm
    is_open = {key for key, value in lm.items() if value in (None, "auto")}
    is_open |= set() if of_a_run or known["model_dtype"] else {"model_dtype"}
    return {key: known[key] if key in is_open else lm[key] for key in LM_FIELDS}


def check_probing(recipe: Recipe, configs: Mapping[str, SAEConfig]) -> None:
    """Check what probing at the end of a run needs.

    Raises:
        ValueError: an SAE of several sites, a number of texts that no task can have, or a package
            that is missing.
    """
    if not recipe.sizes.probing:
        return
    remedy = "set probe_texts to 0"
    for name, config in configs.items():
        if len(config.reads) > 1:
            raise Refused(
                f"probe_texts is {recipe.probe_texts}, and probing needs SAEs that read one site; "
                f"{f'saes.{name}' if name else 'sae'} reads {config.reads}; {remedy}"
            )
    try:
        probe_arguments(recipe)
        packaged_names()
        scikit_learn()
    except Refused as error:
        raise Refused(f"probe_texts is {recipe.probe_texts}: {error}; or {remedy}") from error


class PackagedTasks:
    """As many packaged sets as are asked for, in their order; the first is read at once, so that a
    missing file is told before a model is loaded. Its length is the number of texts.

    Raises:
        ValueError: the package is not installed.
    """

    source = f"{PROBES}, binary sets without " + ", ".join(
        f"{number} ({why})" for number, why in FAULTY.items()
    )

    def __init__(self, args: ProbeArguments) -> None:
        names = chosen_names(packaged_names(), args)
        self._n_texts = len(names) * args.n_texts
        self._rest = packaged_tasks(names)
        self._first = next(self._rest, None)

    def __len__(self) -> int:
        return self._n_texts

    def __iter__(self) -> Iterator[Task]:
        return chain([self._first] if self._first else [], self._rest)


def probe_loaded(
    loaded: LoadedLM,
    saes: Mapping[str, SAE],
    tasks: Iterable[Task],
    n_texts: int,
    args: ProbeArguments,
    limits: Mapping[str, float],
) -> Probing:
    """Probe SAEs on a language model in memory, and measure how uniform their effects are.

    Args:
        saes: by name, on the model's device.
        n_texts: of all tasks, for the progress bar.
        limits: by site, the largest norm of a kept activation.

    Raises:
        ValueError: as `hfsae.evaluation.probing.probe`.
    """
    texts: list[str] = []
    with tqdm(total=n_texts + args.n_words, desc="probe", unit="text") as bar:
        result = probe(
            loaded.lm,
            saes,
            _noting(tasks, texts, args.seed),
            args,
            tokenizer=loaded.tokenizer,
            norm_limits=limits,
            progress=bar.update,
        )
    if args.uniformity_tokens:
        result.record["uniformity"] = _uniformity(loaded, saes, texts, args, limits)
    return result


def save_probing(result: Probing, folder: Path, about: Mapping[str, Any]) -> None:
    """Write probing.json and probing.md into an SAE's folder, and the means into its evaluation."""
    record = finite({**about, **result.record, "rows": result.rows, **stamp(folder)})
    write_whole(folder / PROBING_REPORT, result.report)
    write_whole(folder / PROBING, json.dumps(sealed(record), indent=1) + "\n")
    if (folder / EVALUATION).is_file() and not any(of_others(folder, [EVALUATION])):
        evaluation = with_probing(read_json(folder / EVALUATION), folder)
        write_whole(folder / EVALUATION, json.dumps(evaluation, indent=1) + "\n")


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
