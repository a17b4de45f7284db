"""Probing: what a few latents reveal about labelled texts, in a run's stage or side by side."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from .. import cards
from ..activations import TokenBatch
from ..attribution import uniformity
from ..evaluation import EvaluationResult
from ..evaluation.probing import ProbeArguments, Probing, Task, packaged_tasks, probe, read_tasks
from ..evaluation.probing.extract import KEY as PROBING_KEY
from ..evaluation.probing.extract import kept_extract
from ..evaluation.probing.regression import scikit_learn
from ..evaluation.probing.study import chosen_names, mean_interval
from ..evaluation.probing.tasks import FAULTY, packaged_names
from ..evaluation.untrained import Untrained, firings, sample
from ..io.checksums import of_others, refuse_changed, refuse_mixture, sealed, stamp
from ..io.errors import Refused
from ..io.file_names import CARD, EVALUATION, PROBING, PROBING_REPORT, TRAINING
from ..io.files import json_safe, read_json, write_whole
from ..lm import LoadedLM, special_ids, unspared
from ..models import SAE, SAEConfig
from ..packaged import PROBES
from ..training.trainer import sum_products_in_float32
from .folder import names_apart, norm_limits
from .inputs import Job, load
from .recipe import LMArguments, Recipe
from .results import locked_run
from .sae_source import SAEInContext, open_folder, refuse_without_text

LM_FIELDS = {"model_name": "name", "model_revision": "revision", "model_dtype": "dtype"}
LM_FIELDS |= {"model_attention": "attn_implementation"}
"""Fields of an SAE's config, and their names in a recipe."""
PACKAGED = "packaged"
_ROWS = 16  # in one batch
_NOTED = 20  # texts of a task
_ABOUT_UNIFORMITY = (
    "Gemma Scope, appendix D.5 (arXiv:2408.05147): the evenness of the effects of a token's "
    "latents on its prediction, 1 where all that fire matter equally, near 1 / L0 where only one "
    "does; mean over tokens of the tasks' texts with 95 % bootstrap intervals over tokens. "
    "untrained: random directions that fire as often on such tokens as the SAE's latents"
)


def stage_probing(job: Job) -> None:
    """Probe on packaged sets, with the recipe's number of texts of each, as `hfsae probe` does;
    write probing.json and probing.md, and the means into evaluation.json, if there is one."""
    args = probe_arguments(job.recipe)
    name = job.folder.resolve().name
    tasks, n_texts, source = read_packaged(args)
    result = probe_loaded(job.with_lm, {name: job.sae}, tasks, n_texts, args, job.limits)
    lm = lm_of(job.sae, job.recipe, of_a_run=True)
    about = {"tasks_of": source, "saes": [name], "lm": lm, "sae": name, **(job.more or {})}
    _save(result, job.folder, about | {"site": job.sae.config.reads.only_site})


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


def read_packaged(args: ProbeArguments) -> tuple[Iterable[Task], int, str]:
    """As many packaged sets as are asked for, in their order, how many texts these have, and where
    they are from. The first is read at once: a missing file is told before a model is loaded."""
    names = chosen_names(packaged_names(), args)
    rest = packaged_tasks(names)
    first = next(rest, None)
    left_out = ", ".join(f"{number} ({why})" for number, why in FAULTY.items())
    source = f"{PROBES}, binary sets without {left_out}"
    return chain([first] if first else [], rest), len(names) * args.n_texts, source


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
    """
    texts: list[str] = []

    def noted() -> Iterator[Task]:
        """The tasks; some texts of each are noted as they pass."""
        rng = np.random.default_rng(args.seed)
        for task in tasks:
            texts.extend(task.texts[i] for i in rng.permutation(len(task.texts))[:_NOTED])
            yield task

    with tqdm(total=n_texts + args.n_words, desc="probe", unit="text") as bar:
        result = probe(
            loaded.lm,
            saes,
            noted(),
            args,
            tokenizer=loaded.tokenizer,
            norm_limits=limits,
            progress=bar.update,
        )
    if not args.uniformity_tokens:
        return result
    # r_L0 at tokens of the tasks' texts, which follow each other in rows
    lm, means = loaded.lm, {}
    how: dict[str, Any] = {"n_tokens": args.uniformity_tokens, "seed": args.seed}
    for name, sae in saes.items():
        bos = getattr(sae.config, "bos", None) != "none"
        ids = packed_rows(loaded.tokenizer, texts, args.max_tokens, bos=bos, seed=args.seed)
        whole = TokenBatch(ids, unspared(ids, special_ids(lm)), torch.zeros_like(ids))
        parts = (part.split(_ROWS) for part in whole)
        rows = (TokenBatch(*part) for part in zip(*parts, strict=True))
        x = sample(lm, sae.config.reads, rows, norm_limits=limits).float()
        # random directions that fire as often on tokens of these rows
        untrained = Untrained(x.cpu(), firings(sae, x).cpu() / len(x), args.seed).as_sae(sae)
        own, drawn = (
            uniformity(lm, one, ids, **how).per_token.tolist() for one in (sae, untrained)
        )
        means[name] = {
            "mean": mean_interval(own, args),
            "n_tokens": len(own),
            "untrained": mean_interval(drawn, args),
        }
    result.record["uniformity"] = {"saes": means, "about": _ABOUT_UNIFORMITY}
    return result


def _save(result: Probing, folder: Path, about: Mapping[str, Any]) -> None:
    """Write probing.json and probing.md into an SAE's folder, and the means into its evaluation."""
    record = json_safe({**about, **result.record, "rows": result.rows, **stamp(folder)})
    write_whole(folder / PROBING_REPORT, result.report)
    write_whole(folder / PROBING, json.dumps(sealed(record), indent=1) + "\n")
    if (folder / EVALUATION).is_file() and not any(of_others(folder, [EVALUATION])):
        evaluation = with_probing(read_json(folder / EVALUATION), folder)
        write_whole(folder / EVALUATION, json.dumps(evaluation, indent=1) + "\n")


def evaluation_text(
    result: EvaluationResult, folder: Path, more: Mapping[str, Any] | None = None
) -> str:
    """Of evaluation.json, for the weights that lie in a folder; it has the means of their probing,
    too, if they were probed."""
    record = with_probing({**result.to_dict(), **stamp(folder), **(more or {})}, folder)
    return json.dumps(record, indent=1) + "\n"


def with_probing(evaluation: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A record of an evaluation with the means of the folder's probing, if there is one, sealed."""
    probing = kept_extract(folder)
    plain = {key: value for key, value in evaluation.items() if key != PROBING_KEY}
    return sealed(plain | ({PROBING_KEY: probing} if probing else {}))


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


def probe_saes(
    placed: Sequence[SAEInContext],
    args: ProbeArguments,
    tasks: str = PACKAGED,
    **columns: Any,
) -> Probing:
    """Probe SAEs side by side; write probing.json and probing.md into the folder of each, its means
    into evaluation.json, where there is one, and a section into its card.

    Args:
        tasks: "packaged", a jsonl file, or a Hub data set.
        columns: `text_column`, `label_column`, `group_column` and `split` of these.

    Raises:
        ValueError: SAEs of different language models, unusable tasks, or a package that is missing.
    """
    for one in placed:
        with open_folder(one):
            pass  # each run's folder is free while texts are read, which takes long
    by_folder = {one.folder.resolve(): one for one in placed}  # one that is named twice, once
    folders, placed = [*by_folder], [*by_folder.values()]
    for one in placed:
        refuse_without_text(one)
    names = names_apart(folders)
    saes = {name: one.sae for name, one in zip(names, placed, strict=True)}
    lms = [lm_of(one.sae, one.recipe, of_a_run=one.home is not None) for one in placed]
    lm = dict(lms[0])  # what one of the SAEs leaves open, another may tell
    for name, theirs in zip(names, lms, strict=True):
        for key, value in theirs.items():
            if None not in (value, lm[key]) and value != lm[key]:
                raise Refused(
                    f"{name} belongs to {theirs['model_name']} and {names[0]} to "
                    f"{lm['model_name']}, or in another precision; probe SAEs of "
                    "one model together"
                )
        lm |= {key: value for key, value in theirs.items() if value is not None}
    left_open = vars(placed[0].recipe.lm)
    lm = {key: lm[key] or left_open[field] for key, field in LM_FIELDS.items()}
    for folder in folders:
        refuse_mixture(folder, [TRAINING])
        refuse_changed(folder, [EVALUATION])  # into which the means go, and which is sealed again
    if tasks == PACKAGED:
        if columns.get("group_column"):
            raise Refused("packaged sets have no groups; give --tasks with --group_column")
        try:
            read, n_texts, source = read_packaged(args)
        except Refused as error:
            raise Refused(f"{error}; or give --tasks FILE.jsonl") from error
    else:
        read = read_tasks(tasks, **columns)
        n_texts = sum(min(args.n_texts, len(task.texts)) for task in read)
        source = Path(tasks).name if Path(tasks).exists() else tasks
    limits: dict[str, float] = {}
    for sae, folder in zip(saes.values(), folders, strict=True):
        if (folder / TRAINING).is_file():
            limits |= norm_limits(sae, folder)
    sum_products_in_float32()
    args_of_lm = {LM_FIELDS[key]: value for key, value in lm.items() if value}
    loaded = load(LMArguments(**args_of_lm))
    for sae in saes.values():
        sae.to(loaded.lm.device)
    result = probe_loaded(loaded, saes, read, n_texts, args, limits)
    about = {"tasks_of": source, "saes": [*saes], "lm": lm}
    for (name, sae), folder in zip(saes.items(), folders, strict=True):
        with locked_run(folder, [folder]):
            own = {"sae": name, "site": sae.config.reads.only_site}
            _save(result, folder, about | own)
            if (folder / CARD).is_file():
                cards.write_card(folder)
    return result
