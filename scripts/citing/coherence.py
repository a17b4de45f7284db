"""Is each latent of a crosscoder driven by one or two sites, and do shared profiles mend it?
fmxcoders (arXiv:2605.09438); their ranks, and how they factorise, are not public to us.

    python scripts/citing/coherence.py [--quick] OUT.json

coherence.yaml trains four crosscoders of three sites on one stream: free weights, a fifth of the
sites dropped while training, and profiles shared by all latents, of rank 2 and 1. Coherence is the
number of sites that a latent is read from, 1 to 3: (sum m)^2 / sum m^2, m the mean |x W_enc| of a
site where the latent fires. Evenness is the same number of a decoder row's shares. Both are means
over latents. FVU is the mean over sites. Each figure is the mean over seeds of weights, with its
95 % interval by Student's t.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from claim import Run, Subject, over_seeds, subjects, to_file
from short_training import held_out, trained

import hfsae
from hfsae.models import register_variants
from hfsae.runs import read_recipe

HERE = Path(__file__).parent
RECIPE = HERE / "coherence.yaml"


def sites_of(subject: Subject) -> list[str]:
    """The SAE's block, and one before and one behind it."""
    block = int(subject.sae.config.site.rpartition(".")[2])
    apart = max(1, subject.lm.config.get_text_config().num_hidden_layers // 9)
    return [f"layers.{block + by}" for by in (-apart, 0, apart)]


def evenness(sae: hfsae.SAE) -> float:
    """Number of sites that a latent's decoder row is spread over, the mean of all latents."""
    return float((sae.shares.sum(1).square() / sae.shares.square().sum(1)).nanmean())


def of_subject(subject: Subject, quick: bool) -> Run:
    recipe, seeds, sites = read_recipe(RECIPE), [], sites_of(subject)
    for seed in range(2 if quick else 3):
        own = replace(recipe, seed=seed, sae={**recipe.sae, "sites": sites})
        saes_and_limits = trained(subject, own, quick)
        figures = held_out(subject, saes_and_limits, recipe.text, quick)
        for name, sae in saes_and_limits[0].items():
            figures[name]["evenness"] = evenness(sae)
        seeds.append(figures)
    rows = {
        name: {key: over_seeds([seed[name][key] for seed in seeds]) for key in figures[name]}
        for name in recipe.saes
    }
    return {"model": subject.name, "sites": sites, "seeds": len(seeds), "rows": rows}


def measure(quick: bool) -> Iterator[Run]:
    register_variants(str(HERE / "variants" / "shared_basis.py"))
    yield from (of_subject(subject, quick) for subject in subjects(quick))


if __name__ == "__main__":
    to_file(__doc__, measure)
