"""Does an SAE whose decoder starts at directions of concepts keep them, so that latents have names
at once? DACO (arXiv:2604.08846) annotates atoms so; how well they keep their meaning is not public.

    python scripts/citing/concept_start.py [--quick] OUT.json

A concept is a set of concept_sets.yaml: texts that have it and as many that do not, half to fit and
half to test. Its direction is the mean activation at the last token of the first less that of the
others. concept_start.yaml trains SAEs on other text, one stream, that start at clusters of
activations, as this package's recipes do; with first latents at these directions and others at
random (`training.init_decoder`); and at directions of the same texts with classes shuffled. "own":
the AUC of the latent that started at the direction, as it is, below .5 too; "best": of the latent
whose AUC is farthest from .5 on texts to fit; both on texts to test, at the last token. "cosine":
of the own latent's decoder row with the direction, after training. "more": less the best latent of
clusters. References: the direction itself and the best dimension. Means over concepts (of means
over seeds) with 95 % intervals over concepts; FVU's are over seeds, by Student's t.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import yaml
from claim import Run, Subject, activations, mean, over_seeds, subjects, to_file
from safetensors.torch import save_file
from scipy.stats import rankdata
from short_training import held_out, trained
from torch import Tensor

from hfsae.evaluation.probing import packaged_tasks
from hfsae.runs import read_recipe

RECIPE, SETS = Path(__file__).with_suffix(".yaml"), Path(__file__).with_name("concept_sets.yaml")
RANDOM = {"init_decoder_data": 0.0, "init_cluster_rounds": 0, "init_whitening": 0.0}


Halves = list[Tensor]  # to fit and to test: activations [2 n, d], first n that have the concept


def read_concepts(subject: Subject, n: int) -> dict[str, Halves]:
    made, rng = {}, np.random.default_rng(0)
    labels = yaml.safe_load(SETS.read_text("utf-8"))
    for task in packaged_tasks([*labels]):
        sides = [rng.permutation(np.flatnonzero(task.labels == has))[: 2 * n] for has in (1, 0)]
        halves = [[task.texts[i] for side in sides for i in side[k::2]] for k in (0, 1)]
        last = [torch.stack([x[-1] for x in activations(subject, of)]) for of in halves]
        made[labels[task.name]] = last
    return made


def auc(x: Tensor) -> np.ndarray:
    """[m] of units [2 n, m]: how often one is higher in a text of the first n than in one of the
    others; equal values count half."""
    n = len(x) // 2
    return (rankdata(x.double().numpy(), axis=0)[:n].sum(0) - n * (n + 1) / 2) / n**2


def of_best(fit: Tensor, test: Tensor) -> float:
    """The AUC on texts to test of the unit that is best on those to fit."""
    on_fit = auc(fit) - 0.5
    best = int(np.abs(on_fit).argmax())
    on_test = float(auc(test[:, [best]])[0])
    return on_test if on_fit[best] > 0 else 1 - on_test


def direction(x: Tensor) -> Tensor:
    """[d] of activations [2 n, d]."""
    with_it, others = x.chunk(2)
    return with_it.mean(0) - others.mean(0)


def of_seed(subject: Subject, concepts: list[Halves], seed: int, quick: bool) -> Run:
    """By arm its FVU and L0, and [concepts] of each the rest."""
    rng, starts = np.random.default_rng(seed), dict[str, Tensor]()
    for arm, order in (("concepts", np.arange), ("shuffled", rng.permutation)):
        starts[arm] = torch.stack([direction(x[order(len(x))]) for x, _ in concepts])
    recipe, saes = read_recipe(RECIPE), {"clusters": {}}
    sae = {**recipe.sae, "site": subject.sae.config.site}
    with tempfile.TemporaryDirectory() as folder:
        for arm, x in starts.items():
            file = f"{folder}/{arm}.safetensors"
            save_file({"directions": x}, file)
            saes[arm] = {"training": {**RANDOM, "init_decoder": file}}
        made = trained(subject.name, replace(recipe, seed=seed, sae=sae, saes=saes), quick)
    rows: Run = held_out(subject, made, recipe.text, quick)
    for arm, sae in made[0].items():
        latents = [[sae.encode(half).detach() for half in of] for of in concepts]
        rows[arm]["own"] = [float(auc(test[:, [i]])[0]) for i, (_, test) in enumerate(latents)]
        rows[arm]["best"] = [of_best(*of) for of in latents]
        x = starts.get(arm, starts["concepts"])
        rows[arm]["cosine"] = torch.cosine_similarity(sae.decoder_rows()[: len(x)], x).tolist()
    return rows


def of_subject(subject: Subject, quick: bool) -> Run:
    known = read_concepts(subject, 10 if quick else 40)
    concepts = [*known.values()]
    seeds = [of_seed(subject, concepts, seed, quick) for seed in range(2 if quick else 3)]
    straight = [float(auc(y @ direction(x)[:, None])[0]) for x, y in concepts]
    best = mean([of_best(*of) for of in concepts])
    rows: dict[str, Run] = {"direction": {"own": mean(straight)}, "dimensions": {"best": best}}
    of = {arm: {k: np.array([s[arm][k] for s in seeds]) for k in seeds[0][arm]} for arm in seeds[0]}
    for arm, row in of.items():
        relative = 100 * np.log(row["fvu"] / of["clusters"]["fvu"])
        row |= {f"{k}, more": row[k] - of["clusters"]["best"] for k in ("own", "best")}
        rows[arm] = {k: mean(x.mean(0).tolist()) for k, x in row.items() if x.ndim == 2}
        over = {"fvu": row["fvu"], "l0": row["l0"], "fvu, relative": relative}
        rows[arm] |= {k: over_seeds(x.tolist()) for k, x in over.items()}
    about = {"model": subject.name, "site": subject.sae.config.site, "seeds": len(seeds)}
    return {**about, "concepts": [*known], "texts": 2 * len(concepts[0][0]), "rows": rows}


def measure(quick: bool) -> Iterator[Run]:
    yield from (of_subject(subject, quick) for subject in subjects(quick))


if __name__ == "__main__":
    to_file(__doc__, measure)
