"""Is an SAE the better basis to shift the phase of a wave? "Sparse autoencoders as a steering basis
for phase synchronization in graph-based CFD surrogates" (arXiv:2604.04946): rotations of latents'
coefficients in time do it, better than those of PCA's or raw dimensions; constant factors fail.

    python scripts/citing/phase_rotation.py [--quick] OUT.json

A simulated wave with a harmonic travels round a ring of 48 points, stronger on one side; a point's
state, slope and place give an embedding of 32 dimensions by tanh of random weights: no fluid, no
trained surrogate. A TopK SAE (128 latents, k 8) learns embeddings. Of the field of each unit 4, 8,
16 or 32 singular vectors in time are kept; two of one frequency, a quarter of a period apart by
Hilbert's transform, are rotated by an angle that grows to one period (twice it at twice the
frequency). Units: latents (the SAE's error stays), PCA's first 8, dimensions. Told: squared error
of the wave read from the result, by least squares, over the variance of the aim, at the best rank;
beside no change, and each latent times the constant that is best in hindsight ("static").
"""

import tempfile
from collections.abc import Iterator

import numpy as np
import torch
from claim import Run, mean, to_file
from scipy.signal import hilbert
from torch import Tensor

import hfsae
from hfsae.activations import TensorSource
from hfsae.training import Trainer, TrainingArguments

N_POINTS, D, D_SAE, K, RANKS = 48, 32, 128, 8, (4, 8, 16, 32)


def states(phase: np.ndarray) -> np.ndarray:
    """[T, points, 4]: wave, slope, strength, and something of the place, at phases [T]."""
    x = 2 * np.pi * np.arange(N_POINTS) / N_POINTS
    at = x - phase[:, None]
    strength, place = (np.tile(one, (len(phase), 1)) for one in (1 + np.cos(x) / 2, np.sin(3 * x)))
    wave = np.cos(at) + 0.4 * np.cos(2 * at + 1)
    slope = -np.sin(at) - 0.8 * np.sin(2 * at + 1)
    return np.stack([strength * wave, strength * slope, strength, place], axis=-1)


def rotated(field: np.ndarray, angle: np.ndarray, per_step: float, rank: int) -> np.ndarray:
    """A field [T, points] ahead by an angle [T] of the fundamental, of `per_step` a step."""
    centre = field.mean(0)
    u, s, v = np.linalg.svd(field - centre, full_matrices=False)
    u, s, v = u[:, :rank], s[:rank], v[:rank]
    phases = np.unwrap(np.angle(hilbert(u, axis=0)), axis=0)
    inner = slice(len(u) // 10, -len(u) // 10)  # Hilbert's transform is poor at the ends
    orders = np.rint(np.polyfit(np.arange(len(u))[inner], phases[inner], 1)[0] / per_step)
    new, is_free = u * s, s > 1e-3 * s[0]
    for i in range(len(s)):
        for j in range(i + 1, len(s)):
            lag = np.exp(1j * (phases[inner, i] - phases[inner, j])).mean()
            if is_free[i] and is_free[j] and orders[i] == orders[j] > 0 and abs(lag.imag) > 0.9:
                turn = orders[i] * angle * np.sign(lag.imag)
                new[:, i] = s[i] * (u[:, i] * np.cos(turn) - u[:, j] * np.sin(turn))
                new[:, j] = s[j] * (u[:, j] * np.cos(turn) + u[:, i] * np.sin(turn))
                is_free[[i, j]] = False
                break
    return new @ v + centre


def trained(x: Tensor, n_epochs: int, seed: int) -> hfsae.SAE:
    torch.manual_seed(seed)
    sae = hfsae.TopKSAE(hfsae.TopKSAEConfig(d_in=D, d_sae=D_SAE, k=K, site="embedding"))
    x = torch.cat([x[torch.randperm(len(x))] for _ in range(n_epochs)])
    options = {"batch_size": 256, "learning_rate": 2e-3, "warmup_steps": 50, "save_steps": 0}
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(folder, n_tokens=len(x), **options)
        return Trainer(sae, TensorSource({"embedding": x}, 256), args).train()


def of_seed(seed: int, n_times: int, n_epochs: int) -> dict[str, float]:
    rng, per_step = np.random.default_rng(seed), 2 * np.pi / 25
    phase, angle = per_step * np.arange(n_times), np.linspace(0, 2 * np.pi, n_times)
    weight, offset = rng.normal(size=(4, D)), rng.normal(size=D)
    now, aim = states(phase), states(phase + angle)[..., 0]  # waves have a mean near 0
    x = np.tanh(now @ weight + offset)
    centre = x.mean((0, 1))
    readout = np.linalg.lstsq((x - centre).reshape(-1, D), now[..., 0].ravel(), rcond=None)[0]
    basis = np.linalg.svd((x - centre).reshape(-1, D), full_matrices=False)[2][:K]
    flat = torch.tensor(x.reshape(-1, D), dtype=torch.float32)
    sae = trained(flat, n_epochs, seed)
    with torch.no_grad():
        latents = sae.encode(flat).double().numpy().reshape(*x.shape[:2], D_SAE)
        rows = (sae.decode(torch.eye(D_SAE)) - sae.decode(torch.zeros(1, D_SAE))).double().numpy()
        fvu = (sae(flat).recon - flat).square().sum() / (flat - flat.mean(0)).square().sum()

    def error(embedding: np.ndarray) -> float:
        return float((((embedding - centre) @ readout - aim) ** 2).sum() / (aim**2).sum())

    def turned(units: np.ndarray, rows: np.ndarray) -> float:
        errors = []
        for rank in RANKS:
            fields = [rotated(field, angle, per_step, rank) for field in np.moveaxis(units, -1, 0)]
            errors.append(error(x + (np.stack(fields, -1) - units) @ rows))
        return min(errors)

    parts, rest = latents * (rows @ readout), aim - (x - latents @ rows - centre) @ readout
    factors = np.linalg.lstsq(parts.reshape(-1, D_SAE), rest.ravel(), rcond=None)[0]
    return {
        "none": error(x),
        "latents": turned(latents, rows),
        "PCA": turned((x - centre) @ basis.T, basis),
        "dimensions": turned(x, np.eye(D)),
        "static": error(x + (latents * factors - latents) @ rows),
        "fvu": float(fvu),
    }


def measure(quick: bool) -> Iterator[Run]:
    size = (75, 1) if quick else (400, 10)
    rows = [of_seed(seed, *size) for seed in range(2 if quick else 5)]
    shares = {name: mean([row[name] for row in rows]) for name in rows[0]}
    yield {"model": "simulated wave", "seeds": len(rows), "steps": size[0], "rows": shares}


if __name__ == "__main__":
    to_file(__doc__, measure)
