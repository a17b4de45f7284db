"""Do latents whose decoder rows start at concepts stay with them, and tell them better? DACO
(arXiv:2604.08846) starts an SAE at 15,000 directions of concepts; how is not public to us.

    python scripts/citing/concept_start.py [--quick] OUT.json

Concepts are the 25 last binary sets of sae-probes; the direction of one is the difference of means
of both kinds over half of its texts, and the other half measures. concept_start.yaml trains SAEs on
one stream: rows start at nothing in particular, at clusters of data, at the concepts, or at random
directions. AUC is of a latent's mean over a text's tokens: "own" of the row with the concept's
number, "best" of the latent that is best on the first half. Intervals of AUCs are over concepts
(means over seeds), of cosines and FVU over seeds, by Student's t.
"""

import random
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
import yaml
from claim import Run, Subject, activations, mean, over_seeds, subjects, to_file
from scipy.stats import rankdata
from short_training import held_out, trained
from torch import Tensor
from torch.nn.functional import cosine_similarity

import hfsae
from hfsae.runs import read_recipe

RECIPE = Path(__file__).with_suffix(".yaml")
SETS = yaml.safe_load(RECIPE.with_name("concept_sets.yaml").read_text("utf-8"))
N_TOKENS = 48


class Concept:
    """Activations of 4n texts: n of each kind to find the direction, and n to measure."""

    def __init__(self, subject: Subject, name: str, n: int) -> None:
        rows = hfsae.packaged.probe_rows(f"cleaned_data/{name}")
        by_kind = [[r["prompt"] for r in rows if r["target"] == kind] for kind in ("1", "0")]
        drawn = [random.Random(0).sample(texts, 2 * n) for texts in by_kind]
        texts = [text for half in (0, n) for kind in drawn for text in kind[half : half + n]]
        tokens = [x[:N_TOKENS] for x in activations(subject, texts)]
        self.n, self.flat, self.lengths = n, torch.cat(tokens), [len(x) for x in tokens]
        means = self.by_text(self.flat)
        self.direction = means[:n].mean(0) - means[n : 2 * n].mean(0)

    def by_text(self, units: Tensor) -> Tensor:
        """[4n, m] means over a text's tokens of units [tokens, m]."""
        return torch.stack([part.mean(0) for part in units.split(self.lengths)])

    def aucs(self, units: Tensor, half: int) -> Tensor:
        """[m] of units [tokens, m], averaged over a text's tokens, on one half."""
        values = self.by_text(units)[2 * self.n * half : 2 * self.n * (half + 1)]
        ranks = torch.from_numpy(rankdata(values.numpy(), axis=0))  # of equal ones the mean
        return (ranks[: self.n].sum(0) - self.n * (self.n + 1) / 2) / self.n**2


@torch.no_grad()
def aucs(sae: hfsae.SAE, concepts: list[Concept]) -> Run:
    """Of each concept, on the second half: of its own latent, and of the best of the first half."""
    found: Run = {"own": [], "best": []}
    for i, concept in enumerate(concepts):
        latents = sae.encode(concept.flat)
        first, second = concept.aucs(latents, 0), concept.aucs(latents, 1)
        found["own"].append(float(second[i]))
        found["best"].append(float(second[first.argmax()]))
    return found


def of_seed(subject: Subject, concepts: list[Concept], seed: int, quick: bool) -> Run:
    """The figures of each SAE, and with known directions the mean cosine of rows with them."""
    directions = torch.stack([concept.direction for concept in concepts])
    generator = torch.Generator().manual_seed(seed)
    starts = {"concepts": directions, "random": torch.randn(directions.shape, generator=generator)}
    recipe, own = read_recipe(RECIPE), {}
    with tempfile.TemporaryDirectory() as folder:
        for name, rows in starts.items():
            file, labelled = (
                Path(folder) / f"{name}.safetensors",
                {str(i): r for i, r in enumerate(rows)},
            )
            hfsae.save_steering_vector(file, labelled, site=subject.sae.config.site)
            own[name] = {"training": {"init_decoder": str(file)}}
        sae = {**recipe.sae, "site": subject.sae.config.site}
        made = trained(
            subject, replace(recipe, seed=seed, sae=sae, saes={**recipe.saes, **own}), quick
        )
    figures: Run = held_out(subject, made, recipe.text, quick)
    for name, sae in made[0].items():
        figures[name] |= aucs(sae, concepts)
        if name in starts:
            ends = sae.W_dec.detach()[: len(directions)]
            figures[name]["cosine"] = float(cosine_similarity(ends, starts[name]).mean())
    return figures


def of_subject(subject: Subject, quick: bool) -> Run:
    names = SETS[:3] if quick else SETS
    concepts = [Concept(subject, name, 4 if quick else 24) for name in names]
    seeds = [of_seed(subject, concepts, seed, quick) for seed in range(2 if quick else 3)]
    rows = {
        arm: {key: over_seeds([of[arm][key] for of in seeds]) for key in seeds[0][arm]}
        for arm in seeds[0]
    }
    projected = [float(c.aucs((c.flat @ c.direction)[:, None], 1)) for c in concepts]
    about = {"model": subject.name, "site": subject.sae.config.site, "concepts": len(concepts)}
    return {**about, "seeds": len(seeds), "rows": rows, "direction": mean(projected)}


def measure(quick: bool) -> Iterator[Run]:
    yield from (of_subject(subject, quick) for subject in subjects(quick))


if __name__ == "__main__":
    to_file(__doc__, measure)
