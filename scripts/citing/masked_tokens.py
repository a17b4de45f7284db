"""Do SAEs that are trained on text with masked tokens reconstruct other text better? Masked
Regularization (arXiv:2604.06495) has a gap 2.4 % smaller; its share is not public to us.

    python scripts/citing/masked_tokens.py [--quick] OUT.json

masked_tokens.yaml trains on encyclopedia and speeches with a share of tokens masked, and FVU is of
texts without masks: held-out text of the same kinds, and the standard library's Python. The gap is
the second over the first. Each figure is relative to no mask: the mean over seeds of the log ratio,
in %, with its 95 % interval by Student's t over seeds. The paper's absorption is smaller, too: here
SAEBench's, of first letters, as `hfsae probe` has it, beside latents of random directions. Latents
of models and SAEs this small hardly stand for a first letter: their F1 is told.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from claim import Run, Subject, over_seeds, subjects, to_file
from short_training import Trained, held_out, trained

from hfsae.evaluation.probing import ProbeArguments, packaged_tasks, probe
from hfsae.runs import read_recipe

RECIPE = Path(__file__).with_suffix(".yaml")
SHARES = (0.0, 0.1, 0.3)
KINDS = ("same", "other")


def of_seed(subject: Subject, seed: int, quick: bool) -> dict[float, Run]:
    """FVU and L0 by share and kind of text."""
    recipe = read_recipe(RECIPE)
    recipe = replace(recipe, seed=seed, sae={**recipe.sae, "site": subject.sae.config.site})
    saes, limits = {}, {}
    for share in SHARES:
        text = replace(recipe.text, mask_share=share)
        made, own = trained(subject.name, replace(recipe, text=text), quick)
        saes[str(share)], limits = made[""], limits or own  # those of no mask
    python = replace(recipe.text, dataset="packaged:python", held_out_fraction=0.9)
    letters = absorption(subject, (saes, limits))
    figures = {share: letters[str(share)] for share in SHARES}
    for kind, text in (("same", recipe.text), ("other", python)):
        metrics = held_out(subject, (saes, limits), text, quick)
        for share in SHARES:
            of = metrics[str(share)]
            figures[share] |= {f"{name}, {kind}": value for name, value in of.items()}
    return figures


def absorption(subject: Subject, of: Trained) -> dict[str, Run]:
    """By SAE, means over letters, and those of random directions; none where a model knows none."""
    saes, limits = of
    task = next(packaged_tasks(["97_news_class"]))  # `probe` asks for one
    args = ProbeArguments(n_texts=100, k=(1,), bootstrap_samples=1)
    options: Run = {"tokenizer": subject.tokenizer, "norm_limits": limits}
    found: dict[str, Run] = {name: {} for name in saes}
    for row in probe(subject.lm, saes, [task], args, **options).record["absorption"]["rows"]:
        if "refused" not in row:  # a row of an SAE, then one of its random directions
            of_random = ", random" if row["of"] else ""
            figures = {"absorption": row["full"][0], "F1": row["f1_of_main"][0]}
            found[row["of"] or row["features"]] |= {k + of_random: v for k, v in figures.items()}
    return found


def of_subject(subject: Subject, quick: bool) -> Run:
    seeds = [of_seed(subject, seed, quick) for seed in range(2 if quick else 3)]
    rows: dict[str, Run] = {}
    for share in SHARES:
        of = [seed[share] for seed in seeds]
        rows[str(share)] = {key: over_seeds([each[key] for each in of]) for key in of[0]}
        ratios = {
            kind: [
                100 * math.log(each[f"fvu, {kind}"] / seed[0.0][f"fvu, {kind}"])
                for each, seed in zip(of, seeds, strict=True)
            ]
            for kind in KINDS
        }
        ratios["gap"] = [a - b for a, b in zip(ratios["other"], ratios["same"], strict=True)]
        if "absorption" in of[0]:
            pairs = zip(of, seeds, strict=True)
            less = [each["absorption"] - seed[0.0]["absorption"] for each, seed in pairs]
            rows[str(share)]["absorption, more"] = over_seeds(less)
        rows[str(share)]["relative"] = {name: over_seeds(each) for name, each in ratios.items()}
    site = subject.sae.config.site
    return {"model": subject.name, "site": site, "seeds": len(seeds), "rows": rows}


def measure(quick: bool) -> Iterator[Run]:
    yield from (of_subject(subject, quick) for subject in subjects(quick))


if __name__ == "__main__":
    to_file(__doc__, measure)
