"""Do a graph's weights say what happens in the model? Rank correlations with real interventions.

    python scripts/circuits_agreement.py FOLDER [--prompts TEXT ...] [--features 30]

FOLDER holds transcoders (`hfsae.load_set`). For each prompt the features of the strongest total
effect on the likeliest token's logit are removed one after another from the real model, and the
change of that logit is compared, by Spearman's rho, with the feature's direct weight on it, with
its total effect through the graph, and with gradient times activation in the real model.
"""

import argparse

import torch
from scipy.stats import spearmanr
from tqdm import tqdm

import hfsae

PROMPTS = [
    "The capital of France is the city of",
    "She put the keys on the table and",
    "In 1969 the first men walked on the",
    "The doctor told the patient that",
    "Water freezes at zero degrees and boils at a",
]


def total_effect(graph: hfsae.circuits.Graph, logit: int) -> torch.Tensor:
    """On one logit through all paths, with signs: what the held model would do if each feature
    answered in proportion."""
    reached = graph.weights[logit].double()
    value = graph.value.clone()
    value[~graph.of_kind("feature")] = torch.inf  # errors and tokens answer to nothing
    table = graph.weights.double() / value[:, None]
    total = reached.clone()
    while bool(reached.abs().max() > 1e-12):
        reached = reached @ table
        total += reached
    return total


def by_gradient(lm, saes: dict, graph: hfsae.circuits.Graph, ids: torch.Tensor) -> list[float]:
    """Gradient times activation of each feature on the likeliest token's logit, less the mean."""
    leaves = {}

    def noted(site: str, x: torch.Tensor) -> torch.Tensor:
        leaves[site] = torch.zeros_like(x).requires_grad_()
        return x + leaves[site]

    sites = [site for sae in saes.values() for site in sae.config.writes.names]
    with torch.enable_grad(), hfsae.patch(lm, {s: lambda x, s=s: noted(s, x) for s in sites}):
        logits = lm(input_ids=ids).logits[0, -1]
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder")
    parser.add_argument("--prompts", nargs="+", default=PROMPTS)
    parser.add_argument("--features", type=int, default=30)
    args = parser.parse_args()
    saes = hfsae.load_set(args.folder)
    name = next(iter(saes.values())).config.model_name
    lm, _, _ = hfsae.load_lm(name, dtype="float32")
    print("| prompt | features | weight | through the graph | gradient x activation |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for prompt in tqdm(args.prompts, unit="prompt", leave=False):
        graph = hfsae.graph(lm, saes, prompt)
        logit = next(i for i, node in enumerate(graph.nodes) if node.kind == "logit")
        features = graph.of_kind("feature")
        total = total_effect(graph, logit) * features
        chosen = total.abs().argsort(descending=True)[: args.features].tolist()
        ids = graph.input_ids
        gradient = by_gradient(lm, saes, graph, ids)
        real = [
            -float(graph.intervene(i, 0.0, real=True).logits[0]) for i in tqdm(chosen, leave=False)
        ]
        estimates = (
            [float(graph.weights[logit, i]) for i in chosen],
            [float(total[i]) for i in chosen],
            [gradient[i] for i in chosen],
        )
        cells = [f"{spearmanr(estimate, real).statistic:.2f}" for estimate in estimates]
        tqdm.write(f"| {prompt} | {graph.n_active} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
