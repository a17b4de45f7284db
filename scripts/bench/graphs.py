"""Do a graph's weights say what happens in the model? Rank correlations with real interventions.

    python scripts/bench/graphs.py FOLDER [--prompts TEXT ...] [--features 30] [--output FILE]

FOLDER holds transcoders (`hfsae.load_set`). For each prompt, features are removed one after another
from the real model: those of the strongest total effect on the likeliest token's logit. The change
of that logit, less that of the mean of all, is compared by Spearman's rho with

    weight                 the feature's own in the graph
    graph                  its effect through all paths of the graph
    gradient               gradient times activation in the real model
    gradient, MLPs held    the same where what MLPs add is held, but attention and norms are not
"""

import argparse
import re
import time
from pathlib import Path

import torch
from kept import keep
from scipy.stats import spearmanr
from torch import Tensor
from tqdm import tqdm

import hfsae
from hfsae.circuits import Graph

PROMPTS = [
    "The capital of France is the city of",
    "She put the keys on the table and",
    "In 1969 the first men walked on the",
    "The doctor told the patient that",
    "Water freezes at zero degrees and boils at a",
]


def through_graph(graph: Graph, logit: int) -> Tensor:
    """On one logit through all paths, with signs: what the held model would do if each feature
    answered in proportion."""
    value = graph.value.clone()
    value[~graph.of_kind("feature")] = torch.inf  # errors and tokens answer to nothing
    table = graph.weights.double() / value[:, None]
    reached = graph.weights[logit].double()
    total = reached.clone()
    while bool(reached.abs().max() > 1e-12):
        reached = reached @ table
        total += reached
    return total


def by_gradient(lm, saes: dict, graph: Graph, *, held: bool) -> list[float]:
    """Gradient times activation of each feature, in their order, on the likeliest token's logit
    less the mean.

    Args:
        held: whether what MLPs add is constant but for the features themselves.
    """
    leaves: dict[str, Tensor] = {}
    written = [site for sae in saes.values() for site in sae.config.writes.names]
    n_blocks = lm.config.get_text_config().num_hidden_layers
    every = {re.sub(r"\d+", str(block), written[0], count=1) for block in range(n_blocks)}

    def replaced(site: str, x: Tensor) -> Tensor:
        x = x.detach() if held else x
        if site not in written:
            return x
        leaves[site] = torch.zeros_like(x).requires_grad_()
        return x + leaves[site]

    sites = every | {*written} if held else {*written}
    patches = {site: lambda x, site=site: replaced(site, x) for site in sites}
    with torch.enable_grad(), hfsae.patch(lm, patches):
        logits = lm(input_ids=graph.input_ids).logits[0, -1]
    target = next(node.index for node in graph.nodes if node.kind == "logit")
    slopes = torch.autograd.grad(logits[target] - logits.mean(), list(leaves.values()))
    by_site = dict(zip(leaves, slopes, strict=True))
    effects = []
    for node in graph.nodes:
        if node.kind == "feature":
            sae = saes[node.sae]
            rows = sae.split(sae.decoder_rows()[node.index] * node.value)
            effects.append(sum(float(by_site[s][0, node.position] @ r) for s, r in rows.items()))
    return effects


def row_of(lm, saes: dict, prompt: str, n_features: int) -> dict:
    """One prompt's figures."""
    start = time.perf_counter()
    graph = hfsae.graph(lm, saes, prompt)
    row: dict = {"prompt": prompt, "seconds": round(time.perf_counter() - start, 1)}
    row |= {"firing": graph.n_active, "check": graph.check()}
    row |= {"replacement": graph.replacement_score, "completeness": graph.completeness_score}
    logit = int(graph.of_kind("logit").nonzero()[0])
    total = through_graph(graph, logit) * graph.of_kind("feature")
    chosen = total.abs().argsort(descending=True)[:n_features].tolist()
    removed = (graph.intervene(i, real=True) for i in tqdm(chosen, leave=False))
    real = [-float(effect.logits[0]) for effect in removed]
    estimates = {
        "weight": [float(graph.weights[logit, i]) for i in chosen],
        "graph": [float(total[i]) for i in chosen],
    }
    for name, held in (("gradient", False), ("gradient, MLPs held", True)):
        effects = by_gradient(lm, saes, graph, held=held)
        estimates[name] = [effects[i] for i in chosen]
    return row | {name: spearmanr(values, real).statistic for name, values in estimates.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder")
    parser.add_argument("--prompts", nargs="+", default=PROMPTS)
    parser.add_argument("--features", type=int, default=30)
    parser.add_argument("--output", type=Path, help="file of results")
    args = parser.parse_args()
    saes = hfsae.load_set(args.folder)
    name = next(iter(saes.values())).config.model_name
    lm, _, _ = hfsae.load_lm(name, dtype="float32")
    rows = []
    for prompt in tqdm(args.prompts, unit="prompt", leave=False):
        rows.append(row_of(lm, saes, prompt, args.features))
        tqdm.write(str(rows[-1]))
    if args.output is not None:
        sites = [site for sae in saes.values() for site in sae.config.writes.names]
        kinds = sorted({sae.config.model_type for sae in saes.values()})
        run = {"model": name, "kinds": kinds, "sites": sites, "n_features": args.features}
        keep(args.output, run | {"rows": rows}, [*run])


if __name__ == "__main__":
    main()
