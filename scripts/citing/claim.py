"""A claim of a paper, put to the test by one command that keeps its figures.

    python scripts/citing/NAME.py [--quick] OUT.json

What scripts of this folder share: the command itself, the models with the SAEs that come with
hfsae, and activations of a text. `--quick` takes less of everything: to see that a script runs, not
for its figures.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import hfsae
from hfsae.comparison import t_interval
from hfsae.evaluation import Interval, around, resampled_means

sys.path.append(str(Path(__file__).parents[1] / "bench"))
from kept import keep

Run = dict[str, Any]


class Subject(NamedTuple):
    """A language model in float32, and an SAE of it."""

    name: str
    lm: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    sae: Any


def to_file(about: str | None, measure: Callable[[bool], Iterable[Run]]) -> None:
    """The command: measure, and keep each run by its "model"; bad input is one sentence.

    Args:
        measure: of whether it is to be quick, runs.
    """
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="less of everything: a trial")
    parser.add_argument("output", type=Path, help="file of results, such as OUT.json")
    args = parser.parse_args()
    try:
        args.output.parent.mkdir(parents=True, exist_ok=True)  # now, not after an hour
        if args.output.exists() and "runs" not in json.loads(args.output.read_text("utf-8")):
            raise ValueError("no runs in it")
    except (ValueError, OSError, TypeError) as error:
        parser.error(f"{args.output} is no file of results ({error}); name a new file")
    start = time.perf_counter()
    try:
        for run in measure(args.quick):
            seconds, start = round(time.perf_counter() - start, 1), time.perf_counter()
            keep(args.output, {**run, "quick": args.quick, "seconds": seconds}, ["model"])
            print(json.dumps(run, indent=1))
    except ValueError as error:
        parser.error(str(error))


def subjects(quick: bool) -> Iterator[Subject]:
    """SmolLM2-135M and, unless it is to be quick, Gemma 3 270M, each with its SAE."""
    folders = [hfsae.packaged.SHIPPED_SAE]
    if not quick:
        folders.append(hfsae.packaged.SEPARATE_SAES["gemma"].folder("gemma"))
    for folder in folders:
        sae = hfsae.load(folder).float()
        sae.config.model_dtype = None  # float32 is meant
        lm, tokenizer, _ = hfsae.load_lm(sae.config.model_name, dtype="float32")
        yield Subject(sae.config.model_name, lm, tokenizer, sae)


@torch.no_grad()
def activations(subject: Subject, texts: Iterable[str], site: str | None = None) -> list[Tensor]:
    """Of each text, the activations [tokens, d] at the SAE's site, or another, without BOS."""
    site, rows = site or subject.sae.config.site, list[Tensor]()
    for text in texts:
        with hfsae.capture(subject.lm, [site], stop_early=True) as seen:
            subject.lm(input_ids=token_ids(subject, text), use_cache=False)
        rows.append(seen[site][0, 1:].float())
    return rows


def token_ids(subject: Subject, text: str) -> Tensor:
    """[1, tokens] BOS and the text."""
    ids = subject.tokenizer(subject.tokenizer.bos_token + text, add_special_tokens=False)
    return torch.tensor([ids["input_ids"]])


def mean(values: Sequence[float], weights: Sequence[float] | None = None) -> Interval:
    """Of independent items, with the 95 % interval by resampled items."""
    weights = [1.0] * len(values) if weights is None else weights
    draws = resampled_means(values, weights, n_resamples=2000, seed=0)
    return around(sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights), draws)


def over_seeds(values: Sequence[float]) -> Interval:
    """The mean over seeds of a training, with its 95 % interval by Student's t."""
    of_seeds = np.array(values)
    return Interval(float(of_seeds.mean()), *t_interval(of_seeds))
