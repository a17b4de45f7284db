"""Probe SAEs: read texts, rank features on training texts, score on others, beside controls."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...activations import HarvestArguments, Harvester, TokenBatch
from ...io.errors import Refused
from ...lm import contract, tokenizer_of
from ...models import SAE
from ..statistics import Interval, interval
from ..untrained import Untrained, firings
from .absorption import first_letters, no_letters, read_words, words_of
from .arguments import LEAST_WORDS, ProbeArguments
from .regression import LEAST, SCORES, rank, rank_dense, regress, split
from .report import report_of
from .tasks import Task

logger = logging.getLogger(__name__)
ALL = "all"
UNTRAINED, DIMENSIONS, TOKENS = "untrained", "model's dimensions", "bag of tokens"
ABOUT = (
    "Features at the last token of a text; ranked by the difference of the classes' means on "
    "training texts, in units of a latent's mean when active (of a dimension's standard "
    "deviation); logistic regression, C chosen within training texts; scores on two fifths of the "
    "texts; means over tasks with 95 % bootstrap intervals over tasks. untrained: random "
    "directions that fire as often as the SAE's latents"
)
GROUPED = "texts of a group are all on one side of each split"
_ROWS = 16  # texts of about the same length in one forward pass
_POOLED = 8192  # activations on which densities are measured
_N_NAMED = 5  # latents that a result names


@dataclass
class Probing:
    """Scores of all tasks, features and numbers of features."""

    rows: list[dict[str, Any]]
    """one for each task, features and k: auc, f1, accuracy, and the first latents"""
    record: dict[str, Any]
    saes: list[str]

    @property
    def report(self) -> str:
        """Markdown."""
        return report_of(self.rows, self.record, self.saes)


def probe(
    lm: PreTrainedModel,
    saes: Mapping[str, SAE],
    tasks: Iterable[Task],
    args: ProbeArguments | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    norm_limits: Mapping[str, float] | None = None,
    progress: Callable[[int], object] = lambda n: None,
) -> Probing:
    """How well k latents tell two classes of texts apart, beside controls.

        tasks = hfsae.evaluation.probing.read_tasks("mine.jsonl")
        print(probe(lm, {"mine": sae}, tasks).report)

    Beside the latents of each SAE stand those of random directions that fire as often, the model's
    own dimensions at the SAE's site, and the tokens of the text. Activations are those of a text's
    last token, harvested once for all SAEs. Then first-letter absorption, on words of the
    tokenizer's vocabulary.

    Args:
        saes: by name; all of this model.
        norm_limits: by site, the largest norm of a kept activation.
        progress: called with the number of further texts and words.

    Raises:
        ValueError: no SAE or no task is given, scikit-learn is missing, or `lm.contract` refuses.
    """
    args, tokenizer = args or ProbeArguments(), tokenizer or tokenizer_of(lm)
    if not saes:
        raise Refused("no SAE is given; give one or more")
    for sae in saes.values():
        contract.check_model(lm, sae, tokenizer)
    sites = {name: sae.config.reads.only_site for name, sae in saes.items()}
    bos = {name: getattr(sae.config, "bos", None) != "none" for name, sae in saes.items()}
    if len({*bos.values()}) > 1:
        raise Refused(
            f"these SAEs differ in whether texts begin with BOS ({bos}); probe each alone"
        )
    distinct = [*dict.fromkeys(sites.values())]
    how: Any = {"bos": next(iter(bos.values())), "norm_limits": norm_limits, "progress": progress}
    read = []
    for task in tasks:
        drawn = draw(task, args.n_texts, args.seed)
        n = args.max_tokens
        last = last_tokens(lm, tokenizer, drawn.texts, distinct, max_tokens=n, **how)
        read.append((drawn, last))
    if not read:
        raise Refused("no task is given; give texts with two classes")
    controls = {}  # random directions with the densities of an SAE on these texts
    for name, sae in saes.items():
        x = torch.cat([acts[sites[name]][is_read] for _, (acts, _, is_read) in read])
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(args.seed))
        x = x[order[:_POOLED]]
        controls[name] = Untrained(x, firings(sae, x).cpu() / len(x), args.seed)
    rows = [row for task in read for row in _rows(task, saes, sites, controls, args)]
    if not rows:
        raise Refused("no task has enough texts that could be read; give longer or other texts")
    keys = dict.fromkeys((row["features"], row["of"], row["k"]) for row in rows)
    values = {
        key: {r["task"]: r for r in rows if (r["features"], r["of"], r["k"]) == key} for key in keys
    }
    means = []
    for (kind, of, k), by_task in values.items():
        entry: dict[str, Any] = {"features": kind, "of": of, "k": k, "n_tasks": len(by_task)}
        for name in SCORES:
            entry[name] = mean_interval([r[name] for r in by_task.values()], args)
        if kind in saes:
            control = values[UNTRAINED, kind, k]
            gains = [by_task[task]["auc"] - control[task]["auc"] for task in by_task]
            entry["auc_above_untrained"] = mean_interval(gains, args)
        means.append(entry)
    are_grouped = any(task.groups is not None for task, _ in read)
    record = {
        "arguments": asdict(args) | {"k": list(args.k)},
        "tasks": {task.name: len(task.texts) for task, _ in read},
        "means": means,
        "about": f"{ABOUT}; {GROUPED}" if are_grouped else ABOUT,
    }
    n_words = len(words_of(tokenizer)) if args.n_words else 0
    if args.n_words and n_words < LEAST_WORDS:
        record["absorption"] = no_letters(saes, n_words)
    elif args.n_words:
        n, seed = args.n_words, args.seed
        words = read_words(lm, tokenizer, distinct, n_words=n, seed=seed, **how)
        mean = partial(mean_interval, args=args)
        record["absorption"] = first_letters(words, saes, UNTRAINED, controls, mean)
    return Probing(rows, record, list(saes))


LastTokens = tuple[dict[str, Float[Tensor, "n _"]], list[list[int]], list[bool]]
"""What a language model has read of texts: by site, the activations at the last token of each whose
norm is no outlier; each text's tokens, as far as they were read; whether a text has such a token:
where not, its activations are zeros."""


@torch.no_grad()
def last_tokens(
    lm: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    sites: Sequence[str],
    *,
    bos: bool,
    max_tokens: int,
    norm_limits: Mapping[str, float] | None = None,
    progress: Callable[[int], object] = lambda n: None,
) -> LastTokens:
    """Read texts; of longer ones only the end.

    Args:
        bos: begin each with the tokenizer's BOS token.
        max_tokens: of a text, BOS included.
        norm_limits: by site, the largest norm of a kept activation.
        progress: called with the number of further texts.
    """
    encoded = tokenizer(list(texts), add_special_tokens=False, verbose=False)
    first: Any = tokenizer.bos_token_id if bos else None
    before: list[int] = [] if first is None else [first]
    tokens: list[list[int]] = [ids[len(before) - max_tokens :] for ids in encoded["input_ids"]]
    order = sorted(range(len(texts)), key=lambda index: len(tokens[index]))
    harvester = Harvester(lm, sites, HarvestArguments(), norm_limits=norm_limits)
    kept: dict[int, dict[str, Tensor]] = {}
    for start in range(0, len(order), _ROWS):
        members = order[start : start + _ROWS]
        # Rows are padded on the right, where a causal model does not look.
        width = len(before) + max(1, *(len(tokens[index]) for index in members))
        ids = torch.zeros(len(members), width, dtype=torch.long)
        keep = torch.zeros(ids.shape, dtype=torch.bool)
        for number, index in enumerate(members):
            stop = len(before) + len(tokens[index])
            ids[number, :stop] = torch.tensor([*before, *tokens[index]], dtype=torch.long)
            keep[number, len(before) : stop] = True
        read = harvester(TokenBatch(ids, keep, torch.zeros_like(ids)))
        last_of_row = {row: at for at, row in enumerate(read.row.tolist())}
        for row, at in last_of_row.items():
            kept[members[row]] = {s: read.activations[s][at].float().cpu() for s in sites}
        progress(len(members))
    activations = {}
    for site in sites:
        empty = torch.zeros(len(next(iter(kept.values()))[site]) if kept else 0)
        of_texts = [kept[i][site] if i in kept else empty for i in range(len(texts))]
        activations[site] = torch.stack(of_texts)
    return activations, tokens, [index in kept for index in range(len(texts))]


def draw(task: Task, n_texts: int, seed: int) -> Task:
    """As many texts of the class as without it, in random order."""
    rng = np.random.default_rng(seed)
    n = min(n_texts // 2, int(task.labels.sum()), int((~task.labels).sum()))
    sides = [rng.permutation(np.flatnonzero(task.labels == side))[:n] for side in (True, False)]
    chosen = rng.permutation(np.concatenate(sides))
    texts, groups = [task.texts[index] for index in chosen], task.groups
    return Task(task.name, texts, task.labels[chosen], None if groups is None else groups[chosen])


def _rows(
    read: tuple[Task, LastTokens],
    saes: Mapping[str, SAE],
    sites: Mapping[str, str],
    controls: Mapping[str, Untrained],
    args: ProbeArguments,
) -> Iterator[dict[str, Any]]:
    task, (activations, ids_of, kept) = read
    is_read = np.array(kept)
    labels = task.labels[is_read]
    groups = None if task.groups is None else task.groups[is_read]
    train, n_choosing, test = split(labels, groups, args.seed)
    sides = (train, LEAST), (test, LEAST), (train[-n_choosing:], 1)
    if any(min(labels[of].sum(), (~labels[of]).sum()) < least for of, least in sides):
        logger.info("%s is left out: too few of its texts could be read or split", task.name)
        return
    dense = {site: activations[site][kept] for site in {*sites.values()}}
    features: dict[tuple[str, str], np.ndarray] = {}
    for name, sae in saes.items():
        x = dense[sites[name]]
        with torch.no_grad():
            features[name, ""] = sae.encode(x.to(sae.W_dec)).float().cpu().numpy()
        features[UNTRAINED, name] = controls[name].encode(x).numpy()
    for site, x in dense.items():
        features[DIMENSIONS, site] = x.numpy()
    tokens = [ids for ids, is_kept in zip(ids_of, is_read, strict=True) if is_kept]
    kinds = {kind: column for column, kind in enumerate(sorted({i for ids in tokens for i in ids}))}
    features[TOKENS, ""] = np.zeros((len(tokens), len(kinds)), dtype=np.float32)
    for bag, ids in zip(features[TOKENS, ""], tokens, strict=True):
        bag[[kinds[kind] for kind in ids]] = 1  # whether a text has a token
    for (kind, of), values in features.items():
        varies = np.flatnonzero((values[train] != values[train[0]]).any(axis=0))
        if not len(varies):
            varies = np.arange(1)  # nothing fires: a constant feature, at chance
        varying = values[:, varies]
        ranked = rank_dense if kind == DIMENSIONS else rank
        order = ranked(varying[train], labels[train])
        named = {"latents": varies[order[:_N_NAMED]].tolist()} if kind in saes else {}
        for k in [ALL] if kind == TOKENS else [*args.k, ALL]:
            chosen = varying[:, order[: None if k == ALL else k]]
            sides = chosen[train], labels[train], chosen[test], labels[test]
            scores = dict(zip(SCORES, regress(*sides, n_choosing), strict=True))
            yield {"task": task.name, "features": kind, "of": of, "k": k} | scores | named


def mean_interval(values: Sequence[float], args: ProbeArguments) -> Interval:
    """The mean over items, such as tasks, with its percentile interval."""
    how = {"n_resamples": args.bootstrap_samples, "seed": args.seed}
    return interval(values, [1.0] * len(values), **how)


def chosen_names(names: Sequence[str], args: ProbeArguments) -> list[str]:
    """Names of as many packaged sets as are asked for, drawn at random, in their order."""
    if args.n_tasks == "all" or args.n_tasks >= len(names):
        if args.n_tasks != "all" and args.n_tasks > len(names):
            logger.warning("there are %d tasks, not %d: all are taken", len(names), args.n_tasks)
        return list(names)
    order = np.random.default_rng(args.seed).permutation(len(names))
    return [names[int(index)] for index in sorted(order[: args.n_tasks])]
