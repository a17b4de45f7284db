"""In how many directions does a site move what the model predicts, along its depth? "Causal
dimensionality of transformer representations" (arXiv:2605.08740): the same at all depths.

    python scripts/citing/causal_dimensionality.py [--quick] OUT.json

g is the gradient of the log-probability of the next token by the activation at its token, at eight
depths, over tokens of Wikipedia leads (one of each text). The participation ratio of E[g g'] is
(sum l)^2 / sum l^2 of its eigenvalues l, the paper's lower bound: from pairs of different texts,
(sum |g_i|^2 |g_j|^2) / (sum (g_i . g_j)^2), so that few texts give no lower figure. "unit" is that
of gradients of unit norm: without it texts with a wrong prediction count most. 95 % intervals by
resampled texts. Controls: as many gradients in random directions of the same norms (the width is
the right answer), and the participation ratio of the activations themselves. The paper's count by
the width of SAEs is left out: the SAEs that come with hfsae have one width each.
"""

import random
from collections.abc import Iterator

import torch
from claim import Run, Subject, subjects, to_file, token_ids
from torch import Tensor

import hfsae
from hfsae.evaluation import Interval, around, bootstrap_weights


def participation_ratio(vectors: Tensor, n_resamples: int = 1000) -> Interval:
    """Of E[v v'], from vectors [n, d] of independent texts, with its interval."""
    gram = vectors.double() @ vectors.double().T
    squares = gram.diagonal()
    traces, products = torch.outer(squares, squares), gram.square()
    traces.fill_diagonal_(0), products.fill_diagonal_(0)

    def ratio(weight: Tensor) -> Tensor:
        sums = [torch.einsum("bi,ij,bj->b", weight, each, weight) for each in (traces, products)]
        return sums[0] / sums[1]

    draws = [ratio(block) for block in bootstrap_weights(len(vectors), n_resamples, seed=0)]
    value = ratio(torch.ones(1, len(vectors), dtype=torch.float64))
    return around(float(value), torch.cat(draws))


def gradients(subject: Subject, ids: Tensor, sites: list[str]) -> tuple[list[Tensor], list[Tensor]]:
    """At the last token but one, by site: of the last token's log-probability; and activations."""
    leaves, seen = {}, {}

    def with_leaf(site: str, x: Tensor) -> Tensor:
        leaves[site], seen[site] = torch.zeros_like(x, requires_grad=True), x.detach()
        return x + leaves[site]

    def at(site: str):
        return lambda x: with_leaf(site, x)

    with hfsae.patch(subject.lm, {site: at(site) for site in sites}):
        out = subject.lm(input_ids=ids, use_cache=False, logits_to_keep=2)
    logits = out.logits[0, 0].float()
    logits.log_softmax(-1)[ids[0, -1]].backward()
    return [leaves[site].grad[0, -2] for site in sites], [seen[site][0, -2] for site in sites]


def of_subject(subject: Subject, texts: list[str], n_tokens: int) -> Run:
    n_layers = subject.lm.config.num_hidden_layers
    depths = sorted({round(i * (n_layers - 2) / 7) for i in range(8)})
    sites, rng = [f"layers.{depth}" for depth in depths], random.Random(0)
    subject.lm.requires_grad_(False)
    by_text = []
    for text in texts:
        ids = token_ids(subject, text)
        last = rng.randrange(min(ids.shape[1], n_tokens) // 2, min(ids.shape[1], n_tokens))
        by_text.append(gradients(subject, ids[:, : last + 1], sites))
    rows, width = [], 0
    for i, site in enumerate(sites):
        own, x = (torch.stack([both[kind][i] for both in by_text]) for kind in (0, 1))
        norms, width = own.norm(dim=1, keepdim=True), own.shape[1]
        noise = torch.randn(own.shape, generator=torch.Generator().manual_seed(i))
        rows.append(
            {
                "site": site,
                "ratio": participation_ratio(own),
                "unit": participation_ratio(own / norms),
                "random": participation_ratio(noise / noise.norm(dim=1, keepdim=True) * norms),
                "activations": participation_ratio(x - x.mean(0)),
                "norm": float(norms.square().mean().sqrt()),
            }
        )
    return {"model": subject.name, "width": width, "texts": len(texts), "rows": rows}


def measure(quick: bool) -> Iterator[Run]:
    texts = hfsae.packaged.packaged_text("wiki")
    for subject in subjects(quick):
        chosen = random.Random(0).sample(texts, 12 if quick else 300)
        yield of_subject(subject, chosen, n_tokens=24)


if __name__ == "__main__":
    to_file(__doc__, measure)
