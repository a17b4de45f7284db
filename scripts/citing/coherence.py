"""Do a crosscoder's latents lean on one or two layers, and do shared profiles or hidden layers mend
it? fmxcoders (arXiv:2605.09438); its formulas, ranks and rates are not public to us.

    python scripts/citing/coherence.py [--quick] OUT.json

coherence.yaml trains crosscoders of three layers on one stream, from clusters: free weights; a
layer hidden from the encoder with probability 0.1 (`site_dropout`); two profiles over layers that
all latents share (`variants/shared_basis.py`); and free weights from a random start. The coherence
of a latent (ours) is (sum m)^2 / sum m^2, m of a layer the mean of |x W_enc|, what is read there,
over held-out positions where it fires: from 1, a layer alone, to 3, all alike. "net": m is |mean of
x W_enc|, in which what cancels over positions does not count. "decoder": m is the decoder row's
norm. Controls: another latent's encoder row at the same positions ("shuffled"); random directions
of the row's norm at each layer, where their sum is highest, as often as the latent fires
("random"). Means over latents that fire, with 95 % intervals by Student's t over seeds, and once
over latents of all seeds. The claim, as we read it: free latents have a coherence under 2 while
decoder rows are even, and the other arms a higher one.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from claim import Run, Subject, mean, over_seeds, subjects, to_file
from short_training import held_out, trained
from torch import Tensor

import hfsae
from hfsae.activations import HarvestArguments, Harvester, PackedRows, TextArguments
from hfsae.runs import read_recipe

RECIPE = Path(__file__).with_suffix(".yaml")
VARIANT = Path(__file__).parent / "variants" / "shared_basis.py"


def sites_of(subject: Subject) -> list[str]:
    """Of each third of the blocks, the middle one."""
    n = subject.lm.config.num_hidden_layers
    return [f"layers.{part * n // 6}" for part in (1, 3, 5)]


def positions(subject: Subject, text: TextArguments, limits: Run, n: int) -> dict[str, Tensor]:
    """By site, activations [about n, d] of held-out text, without outliers."""
    harvester = Harvester(subject.lm, sites_of(subject), HarvestArguments(), norm_limits=limits)
    rows = PackedRows(subject.tokenizer, text, "test", rows=8, max_tokens=n)
    parts = [harvester(batch).activations for batch in rows]
    return {site: torch.cat([part[site] for part in parts]).float() for site in parts[0]}


def sites_read(parts: Tensor) -> Tensor:
    """[m] coherences of what latents read at sites [m, S]."""
    return parts.sum(1).square() / parts.square().sum(1).clamp(min=1e-30)


@torch.no_grad()
def coherences(sae: hfsae.SAE, x: Tensor, seed: int) -> dict[str, Tensor]:
    """By kind, [m] coherences of the latents that fire at some of the positions x [n, d_in]."""
    generator = torch.Generator().manual_seed(seed)
    fires = (sae.encode(x) > 0).float()
    live = fires.sum(0) > 0
    fires, rows = fires[:, live], sae.split(sae.encoder_rows()[live], "read")
    read = sae.split(sae.encoder_input(x), "read")
    order = torch.randperm(fires.shape[1], generator=generator)
    drawn = {site: torch.randn(row.shape, generator=generator) for site, row in rows.items()}
    drawn = {s: d * (rows[s].norm(dim=1) / d.norm(dim=1))[:, None] for s, d in drawn.items()}
    sums = sum(read[site] @ drawn[site].T for site in read)
    rank = (len(x) - fires.sum(0)).long()
    highest = (sums >= sums.sort(0).values.gather(0, rank[None])).float()

    def at_sites(rows: dict[str, Tensor], fires: Tensor, net: bool = False) -> Tensor:
        of = (read[site] @ rows[site].T for site in read)
        return torch.stack([((z if net else z.abs()) * fires).sum(0).abs() for z in of], 1)

    return {
        "coherence": sites_read(at_sites(rows, fires)),
        "net": sites_read(at_sites(rows, fires, net=True)),
        "decoder": sites_read(sae.shares[live]),
        "shuffled": sites_read(at_sites({s: row[order] for s, row in rows.items()}, fires)),
        "random": sites_read(at_sites(drawn, highest)),
    }


def of_seed(subject: Subject, seed: int, quick: bool) -> tuple[dict[str, Run], dict[str, Tensor]]:
    """By arm, figures, and the coherence of each latent."""
    recipe = read_recipe(RECIPE)
    sae, shuffle = {**recipe.sae, "sites": sites_of(subject)}, replace(recipe.shuffle, seed=seed)
    recipe = replace(recipe, seed=seed, shuffle=shuffle, sae=sae)
    saes, limits = trained(subject.name, recipe, quick)
    rows, latents = held_out(subject, (saes, limits), recipe.text, quick), {}
    by_site = positions(subject, recipe.text, limits, 300 if quick else 10_000)
    for name, sae in saes.items():
        of = coherences(sae, sae.join(by_site), seed)
        latents[name], free = of["coherence"], rows["free"]
        rows[name] |= {kind: float(values.mean()) for kind, values in of.items()}
        rows[name]["below 2"] = float((latents[name] < 2).float().mean())
        rows[name]["live"] = len(latents[name])
        rows[name]["more"] = rows[name]["coherence"] - free["coherence"]
        rows[name]["fvu, relative"] = 100 * math.log(rows[name]["fvu"] / free["fvu"])
    return rows, latents


def of_subject(subject: Subject, quick: bool) -> Run:
    n_seeds = 2 if quick else 3
    seeds, latents = zip(*(of_seed(subject, i, quick) for i in range(n_seeds)), strict=True)
    rows: dict[str, Run] = {}
    for name, first in seeds[0].items():
        rows[name] = {key: over_seeds([seed[name][key] for seed in seeds]) for key in first}
        rows[name]["over latents"] = mean(torch.cat([of[name] for of in latents]).tolist())
    return {"model": subject.name, "sites": sites_of(subject), "seeds": len(seeds), "rows": rows}


def measure(quick: bool) -> Iterator[Run]:
    hfsae.models.register_variants(str(VARIANT))
    yield from (of_subject(subject, quick) for subject in subjects(quick))


if __name__ == "__main__":
    to_file(__doc__, measure)
