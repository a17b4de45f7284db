"""Words whose first letters, and the latents that stand for them, are planted. NumPy alone, so that
other libraries' environments read the same arrays.

Of each letter there is a direction. Its latent fires on its words, but on every fourth word a
latent of that word alone, along the letter's direction and one of its own, fires instead. Letters a
to e have two latents, each for half of the words; letters f to j no absorbing ones; on words of k
to o with an absorbing latent the letter's own still fires a little.
"""

from typing import NamedTuple

import numpy as np

N_LETTERS, N_TRAIN, N_TEST, D = 26, 16, 4, 96
"""Words of a letter to fit and to test on; width of activations."""
N_NOISE = 30
SPLIT, PURE, PARTIAL = range(5), range(5, 10), range(10, 15)
EVERY = 4
"""A word of so many is absorbed."""
_SECOND, _ABSORBING = 26, 52  # the first of each kind of latents


class Planted(NamedTuple):
    letters: np.ndarray
    """[n] training words of all letters, then test words"""
    x: np.ndarray
    """[n, d] float32"""
    latents: np.ndarray
    """[n, f] float32"""
    W_dec: np.ndarray
    """[f, d] float32, rows of unit norm"""
    n_train: int
    directions: np.ndarray
    """[26, d] float32, of the letters"""


def planted() -> Planted:
    rng = np.random.RandomState(0)  # its stream never changes
    basis = np.linalg.qr(rng.standard_normal((D, D)))[0].T
    letter, second = basis[:N_LETTERS], basis[N_LETTERS : 2 * N_LETTERS]
    number = np.concatenate([np.tile(np.arange(n), 26) for n in (N_TRAIN, N_TEST)])
    letters = np.concatenate([np.repeat(np.arange(26), n) for n in (N_TRAIN, N_TEST)])
    is_absorbed = (number % EVERY == EVERY - 1) & ~np.isin(letters, PURE)
    of_word = letter[letters[is_absorbed]] + _unit(rng.standard_normal((is_absorbed.sum(), D)))
    noise = rng.standard_normal((N_NOISE, D))
    W_dec = _unit(np.concatenate([letter, letter + 0.3 * second, of_word, noise]))
    latents = np.zeros((len(letters), len(W_dec)))
    main = letters + _SECOND * (np.isin(letters, SPLIT) & (number % 2 == 1))
    strength = 4 + 2 * rng.random_sample(len(letters))
    latents[np.arange(len(letters)), main] = np.where(is_absorbed, 0, strength)
    latents[is_absorbed, _ABSORBING + np.arange(is_absorbed.sum())] = strength[is_absorbed]
    partial = is_absorbed & np.isin(letters, PARTIAL)
    latents[partial, main[partial]] = 0.2 * strength[partial]
    fires = rng.random_sample((len(letters), N_NOISE)) < 0.1
    latents[:, -N_NOISE:] = fires * rng.random_sample(fires.shape)
    x = latents @ W_dec + 0.02 * rng.standard_normal((len(letters), D))
    arrays = (part.astype(np.float32) for part in (x, latents, W_dec))
    return Planted(letters, *arrays, 26 * N_TRAIN, letter.astype(np.float32))


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def probing_task() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Latents and labels of training rows in random order, then of test rows: noisy latents, some
    of which tell of the label."""
    rng = np.random.RandomState(1)
    n, f, n_train = 400, 40, 240
    labels = rng.random_sample(n) < 0.5
    scale = np.exp(2 * rng.standard_normal(f))
    latents = rng.standard_normal((n, f)) + np.linspace(1.2, 0, f) * labels[:, None] - 0.8
    latents = (np.maximum(latents, 0) * scale).astype(np.float32)
    return latents[:n_train], labels[:n_train], latents[n_train:], labels[n_train:]
