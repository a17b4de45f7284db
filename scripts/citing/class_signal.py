"""Do classes of texts stand out more on latents than on activations? SAGE (arXiv:2604.19031) has a
signal to noise 12.7 times as high; how it is defined is not public to us.

    python scripts/citing/class_signal.py [--quick] OUT.json

News of four classes, units averaged over a text's tokens. Signal to noise of a unit (ours): the
variance of class means, less what chance gives them, over the mean variance within classes. The 20
units with the highest on half of the texts are measured on the other half, and the other way round:
their mean, with a 95 % interval by texts resampled in their class. Units: latents; dimensions of
activations; as many random directions as latents; and random latents, which fire where such a
direction is highest, as often as a latent.
"""

import random
from collections import defaultdict
from collections.abc import Iterator

import torch
from claim import Run, Subject, activations, subjects, to_file
from torch import Tensor

import hfsae
from hfsae.evaluation import Interval, around, bootstrap_weights

BEST, N_TOKENS = 20, 48


def news(n: int) -> tuple[list[str], Tensor]:
    """n texts of each class, and the number of each one's class."""
    by_class = defaultdict(dict)
    for row in hfsae.packaged.probe_rows("cleaned_data/97_news_class"):
        by_class[row["target"]][row["prompt"].strip()] = None
    texts, classes = [], []
    for i, name in enumerate(sorted(by_class)):
        texts += random.Random(0).sample([*by_class[name]], n)
        classes += [i] * n
    return texts, torch.tensor(classes)


def signal_to_noise(units: Tensor, classes: Tensor, weight: Tensor) -> Tensor:
    """[m] of units [n, m] in texts that count weight [n] times: var(class means) / mean var."""
    one_hot = torch.nn.functional.one_hot(classes).double() * weight[:, None]  # [n, classes]
    counts = one_hot.sum(0)[:, None]
    means = one_hot.T @ units / counts
    within = (one_hot.T @ units.square() / counts - means.square()).clamp(min=0)
    within = within * counts / (counts - 1)
    by_chance = (within / counts).mean(0)
    return (means.var(0) - by_chance) / within.mean(0).clamp(min=1e-12)


def of_best(units: Tensor, classes: Tensor, n_resamples: int) -> Interval:
    """The mean of the 20 best of one half, on the other half, both ways."""
    units = units.double()[:, units.std(0) > 1e-6]
    values, draws = [], []
    for half in (0, 1):
        chosen = torch.arange(len(units)) % 2 == half
        ones = torch.ones(len(classes), dtype=torch.float64)
        order = signal_to_noise(units[chosen], classes[chosen], ones[chosen]).argsort().flip(0)
        best, others = units[~chosen][:, order[:BEST]], classes[~chosen]
        values.append(signal_to_noise(best, others, ones[~chosen]).mean())
        weights = torch.empty(n_resamples, len(best), dtype=torch.float64)
        for i in others.unique().tolist():  # texts of a class take each other's place
            n, seed = int((others == i).sum()), 2 * i + half
            weights[:, others == i] = torch.cat([*bootstrap_weights(n, n_resamples, seed)])
        draws.append(torch.stack([signal_to_noise(best, others, w).mean() for w in weights]))
    return around(float(sum(values) / 2), (draws[0] + draws[1]) / 2)


def of_subject(subject: Subject, n: int, n_resamples: int) -> Run:
    texts, classes = news(n)
    tokens = [x[:N_TOKENS] for x in activations(subject, texts)]
    ends, flat = [len(x) for x in tokens], torch.cat(tokens)
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(flat.shape[1], subject.sae.config.d_sae, generator=generator)
    with torch.no_grad():
        latents = torch.cat([subject.sae.encode(part) for part in flat.split(2048)])
    projections = (flat - flat.mean(0)) @ directions
    density = (latents > 0).float().mean(0).sort().values  # a random latent for each latent
    rank = ((1 - density) * (len(flat) - 1)).long()
    limits = projections.sort(dim=0).values.gather(0, rank[None])
    kinds = {
        "latents": latents,
        "dimensions": flat,
        "random directions": projections,
        "random latents": (projections - limits).relu(),
    }
    rows = {}
    for kind, units in kinds.items():
        by_text = torch.stack([part.mean(0) for part in units.split(ends)])
        rows[kind] = of_best(by_text, classes, n_resamples)
    return {
        "model": subject.name,
        "site": subject.sae.config.site,
        "texts": len(texts),
        "tokens": len(flat),
        "rows": rows,
    }


def measure(quick: bool) -> Iterator[Run]:
    for subject in subjects(quick):
        yield of_subject(subject, *((8, 20) if quick else (100, 500)))


if __name__ == "__main__":
    to_file(__doc__, measure)
