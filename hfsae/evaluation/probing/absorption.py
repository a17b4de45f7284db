"""First-letter absorption: words on which the latents of a letter are silent, and others speak.

Chanin et al. 2024 (arXiv:2409.14507), by both formulas of SAEBench 0.6.0. For a word whose first
letter a probe of the model's activations gets right, with p the probe's unit direction, a_i the
latents, c_i = cos(p, W_dec_i), and x the activation:

    full      all main latents silent, and the largest a_i c_i has c_i >= 0.025 and is at least
              0.4 of x . p, which is not negative
    fraction  A / (A + main), with main = sum of a_i c_i over main latents, A that of at most three
              others with c_i >= 0.1, no more than x . p - main; 0 if these three are less than 0.4
              of x . p, 1 if main <= 0

The main latents of a letter are those of a sparse probe: one more as long as its F1 rises by more
than 0.03. Where SAEBench draws shown words anew, activations here are those of the probe's test.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from .regression import scikit_learn
from .words import LETTERS, Words

LEAST_F1, LEAST_LETTERS = 0.6, 20
"""A letter counts from this F1 of the model's probe on; a report needs so many letters."""
_SILENT = 1e-8
_FULL_COSINE, _FRACTION_COSINE, _PROPORTION, _N_ABSORBING = 0.025, 0.1, 0.4, 3
_RISE, _MOST_MAIN = 0.03, 10
_LR, _END_LR, _EPOCHS = 1e-2, 1e-5, 50


class Absorbed(NamedTuple):
    """Of each word."""

    full: Bool[Tensor, " n"]
    fraction: Float[Tensor, " n"]


class Coder(NamedTuple):
    """What absorption needs of an SAE."""

    encode: Callable[[Tensor], Tensor]
    """[n, d] -> [n, f]"""
    directions: Float[Tensor, "f d"]
    """what a latent adds to the activation, times its value"""


def absorbed(
    latents: Float[Tensor, "n f"],
    cosines: Float[Tensor, " f"],
    projections: Float[Tensor, " n"],
    main: Sequence[int],
) -> Absorbed:
    """Both formulas, for words with the main latents' letter.

    Args:
        latents: in units of directions of norm 1.
        cosines: of the latents' directions with the probe's.
        projections: of the activations on the probe's direction.
        main: indices of the letter's main latents.
    """
    along = latents * cosines
    is_main = torch.zeros(len(cosines), dtype=torch.bool)
    is_main[list(main)] = True
    top, index = along.max(dim=1)
    full = (latents[:, is_main] < _SILENT).all(dim=1) & (cosines[index] >= _FULL_COSINE)
    full &= (projections >= 0) & (top / projections >= _PROPORTION)
    can_absorb = ~is_main & (cosines >= _FRACTION_COSINE)
    others = along[:, can_absorb].clamp(min=0)
    absorbing = others.topk(min(_N_ABSORBING, others.shape[1]), dim=1).values.sum(dim=1)
    of_main = along[:, is_main].sum(dim=1)
    taken = torch.minimum(absorbing, projections - of_main)
    fraction = torch.where(of_main <= 0, 1.0, (taken / (taken + of_main)).clamp(0, 1))
    is_none = (of_main >= projections) | ~(absorbing / projections >= _PROPORTION)
    return Absorbed(full, torch.where(is_none, 0.0, fraction))


class Linear(NamedTuple):
    """Logistic regressions, one class against the rest."""

    weights: Float[Tensor, "classes d"]
    biases: Float[Tensor, " classes"]

    def scores(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n classes"]:
        """Logits."""
        return x @ self.weights.T + self.biases


def fit(
    x: Float[Tensor, "n d"],
    classes: np.ndarray,
    *,
    batch: int,
    weight_decay: float,
    l1: float = 0.0,
    seed: int = 0,
) -> Linear:
    """SAEBench's probes: Adam, 50 epochs, positives weighted up to the negatives; from zeros.

    Args:
        classes: [n] places in the alphabet.
        batch: rows of a step.
        l1: factor on the sum of the absolute weights of a class, mean over classes.
    """
    y = F.one_hot(torch.from_numpy(classes), len(LETTERS)).to(x)
    n_positive = y.sum(dim=0).clamp(min=1)
    weight = (len(y) - n_positive) / n_positive
    probe = Linear(
        torch.zeros(len(LETTERS), x.shape[1], dtype=x.dtype, requires_grad=True),
        torch.zeros(len(LETTERS), dtype=x.dtype, requires_grad=True),
    )
    optimiser = torch.optim.Adam([*probe], lr=_LR, weight_decay=weight_decay)
    decay = torch.optim.lr_scheduler.ExponentialLR(optimiser, (_END_LR / _LR) ** (1 / _EPOCHS))
    generator = torch.Generator().manual_seed(seed)
    for _ in range(_EPOCHS):
        for rows in torch.randperm(len(x), generator=generator).split(batch):
            logits = probe.scores(x[rows])
            loss = F.binary_cross_entropy_with_logits(logits, y[rows], pos_weight=weight)
            loss = loss + l1 * probe.weights.abs().sum(dim=1).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        decay.step()
    return Linear(*(part.detach() for part in probe))


def f1(is_so: np.ndarray, predicted: np.ndarray) -> float:
    """2 TP / (2 TP + FP + FN); 0 without positives."""
    n_right = int((is_so & predicted).sum())
    n = int(is_so.sum()) + int(predicted.sum())
    return 2 * n_right / n if n else 0.0


class Truth(NamedTuple):
    """The probe of the model's activations, against which latents are held."""

    directions: Float[Tensor, "26 d"]
    """of unit norm"""
    is_right: np.ndarray
    """[test, 26] whether a word is of a letter and its score above 0"""
    f1: list[float]
    """of each letter, on the test's words"""

    @property
    def letters(self) -> list[int]:
        """Letters of which the probe knows enough."""
        return [letter for letter, value in enumerate(self.f1) if value > LEAST_F1]


def truth_of(words: Words, site: str, seed: int = 0) -> Truth:
    """Fit the probe on the training words, and score it on the others."""
    x, n = words.activations[site], words.n_train
    probe = fit(x[:n], words.letters[:n], batch=64, weight_decay=1e-4, seed=seed)
    scores = probe.scores(x[n:]).numpy()
    is_so = words.letters[n:, None] == np.arange(len(LETTERS))
    f1s = [f1(is_so[:, k], scores[:, k] > 0) for k in range(len(LETTERS))]
    return Truth(F.normalize(probe.weights, dim=1), is_so & (scores > 0), f1s)


class Letter(NamedTuple):
    """Absorption of one letter's latents."""

    letter: str
    n_words: int
    """of the test whose letter the model's probe gets right"""
    latents: list[int]
    """main ones"""
    f1: float
    """of the sparse probe on them"""
    full: float
    fraction: float


@torch.no_grad()
def letters_of(words: Words, site: str, truth: Truth, coder: Coder) -> list[Letter]:
    """Absorption of each letter of which the model's probe knows enough."""
    x, n = words.activations[site], words.n_train
    latents, firing = _firing(coder, x)
    directions = coder.directions[firing].float().cpu()
    latents = latents * directions.norm(dim=1)
    along = truth.directions @ F.normalize(directions, dim=1).T  # [26, firing]
    with torch.enable_grad():
        sparse = fit(latents[:n], words.letters[:n], batch=4096, weight_decay=1e-6, l1=1e-2)
    results = []
    for letter in truth.letters:
        main, main_f1 = main_latents(latents, words, letter, sparse.weights[letter])
        is_right = torch.from_numpy(truth.is_right[:, letter])
        projections = x[n:][is_right] @ truth.directions[letter]
        result = absorbed(latents[n:][is_right], along[letter], projections, main)
        rates = [float(part.double().mean()) for part in result]
        named = firing[main].tolist()
        results.append(Letter(LETTERS[letter], len(projections), named, main_f1, *rates))
    return results


def _firing(coder: Coder, x: Tensor) -> tuple[Tensor, Tensor]:
    """([n, firing] latents, their indices) of those that fire on some word; encoded twice, since
    all latents of a wide SAE may not fit into memory."""
    parts = x.split(512)
    fires = torch.stack([(coder.encode(part) != 0).any(dim=0) for part in parts]).any(dim=0)
    firing = fires.nonzero()[:, 0]
    return torch.cat([coder.encode(part)[:, firing] for part in parts]), firing


def main_latents(
    latents: Float[Tensor, "n f"], words: Words, letter: int, weights: Float[Tensor, " f"]
) -> tuple[list[int], float]:
    """A letter's latents, and the F1 of a logistic regression on them on the test's words: those of
    the largest positive weights of the sparse probe, one more as long as F1 rises by more than
    0.03, at most ten."""
    linear_model = scikit_learn().linear_model
    is_so, n = words.letters == letter, words.n_train
    order = weights.argsort(descending=True, stable=True)
    order = order[: min(_MOST_MAIN, int((weights > 0).sum()))].tolist()
    best, main = 0.0, order[:1]
    for k in range(1, len(order) + 1):
        features = latents[:, order[:k]].numpy()
        model = linear_model.LogisticRegression(max_iter=500, class_weight="balanced")
        model.fit(features[:n], is_so[:n])
        value = f1(is_so[n:], model.decision_function(features[n:]) > 0)
        if k > 1 and not value > best + _RISE:
            break
        best, main = value, order[:k]
    return main, best
