"""The script that compares names of several architectures: what it shows, and could have shown."""

import runpy
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

SCRIPT = Path(__file__).parents[2] / "scripts" / "comparisons" / "judged.py"
N_BLOCKS, N_INSIDE, LEVEL = 10, 6, 0.05 / 3


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(SCRIPT))


def drawn(rng: np.random.Generator, above: float = 0.0) -> dict[str, np.ndarray]:
    """AUCs of sixty latents that depend on the block of density, and vary within it."""
    block = np.repeat(np.arange(N_BLOCKS), N_INSIDE)
    own = 0.7 + 0.02 * block + above + rng.normal(0, 0.1, len(block))
    other = rng.normal(0.5, 0.05, len(block))
    facts = {name: rng.random(len(block)) for name in ("auprc", "auc", "auc_random", "sure")}
    columns = {"detection_auc": own, "shuffled_detection_auc": other, "block": block}
    return {**columns, **facts, "pearson": own + rng.normal(0, 0.02, len(own)), "density": own**2}


def test_a_planted_difference_is_shown_and_none_is_not(script):
    rng = np.random.default_rng(0)
    runs = {"plain": drawn(rng), "same": drawn(rng), "better": drawn(rng, 0.15)}
    results = script["compared"](runs, 0)
    pairs = {(pair["first"], pair["second"]): pair for pair in results["pairs"]}
    none, better = pairs["plain", "same"], pairs["plain", "better"]
    assert none["holm"] > 0.05 and none["low"] < 0 < none["high"]
    assert better["holm"] < 0.05 and better["high"] < 0 and better["holm"] >= better["p"]
    assert better["value"] == pytest.approx(
        runs["plain"]["detection_auc"].mean() - runs["better"]["detection_auc"].mean()
    )
    assert results["beside"]["pearson"][1] > 0.8 > abs(results["beside"]["sure"][0])
    own, low, high = results["runs"]["plain"]["own_minus_other"]
    assert 0.1 < low < own < high


def test_the_smallest_difference_is_shown_in_four_of_five_simulated_studies(script):
    """A study's test is Student's, on residuals from the means of blocks over both runs."""
    rng = np.random.default_rng(1)
    least = np.mean([script["smallest_shown"](drawn(rng), drawn(rng), LEVEL) for _ in range(50)])
    n_shown = 0
    for _ in range(600):
        one, other = drawn(rng, least), drawn(rng)
        values = np.stack(
            [run["detection_auc"].reshape(N_BLOCKS, N_INSIDE) for run in (one, other)]
        )
        within = values - values.mean(axis=2, keepdims=True)
        df = values.size - 2 * N_BLOCKS
        error = np.sqrt((within**2).sum() / df * 2 / (N_BLOCKS * N_INSIDE))
        p = 2 * stats.t.sf(abs(values[0].mean() - values[1].mean()) / error, df)
        n_shown += p < LEVEL
    assert n_shown / 600 == pytest.approx(0.8, abs=0.05)
