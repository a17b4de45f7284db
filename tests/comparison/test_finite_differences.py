"""Finite differences of the expected loss, and what the straight-through estimate makes of it."""

import pytest
import torch
from comparisons.finite_differences import agreement, estimates, finite_difference

from hfsae import JumpReLUSAE, JumpReLUSAEConfig, ReLUSAE, ReLUSAEConfig

SCALE = 3.0


@pytest.fixture
def sae():
    torch.manual_seed(0)
    sae = JumpReLUSAE(
        JumpReLUSAEConfig(
            d_in=6, d_sae=12, activation_scale=SCALE, l0_coefficient=0.05, bandwidth=0.1
        )
    )
    with torch.no_grad():
        sae.threshold.uniform_(0.1, 0.4)
        sae.b_enc.normal_(std=0.1)
    return sae


def activations(n: int, seed: int = 1) -> torch.Tensor:
    return SCALE * torch.randn(n, 6, generator=torch.Generator().manual_seed(seed)) / 6**0.5


def loss_at(sae: JumpReLUSAE, latent: int, threshold: float, x: torch.Tensor) -> float:
    kept = sae.threshold[latent].item()
    with torch.no_grad():
        sae.threshold[latent] = threshold
        loss = float(sae(x.double(), return_loss=True).loss)
        sae.threshold[latent] = kept
    return loss


def test_finite_differences_are_differences_of_the_loss(sae):
    x, half = activations(4000), 0.05
    found = finite_difference(sae, x.split(1000), half)
    sae.double()  # thresholds stay float32, sums over 4,000 tokens do not
    for latent in range(12):
        t = sae.threshold[latent].item()
        high, low = (loss_at(sae, latent, t + sign * half, x) for sign in (1, -1))
        assert float(found[latent]) == pytest.approx((high - low) / (2 * half), abs=2e-4)


def test_the_estimate_is_the_finite_difference_on_average(sae):
    """The same width and many tokens: what is left is that z is taken as the threshold."""
    x = activations(400_000)
    true = finite_difference(sae, x.split(20_000), 0.02)
    found = agreement(estimates(sae, x.split(20_000), 0.04), true)
    assert found.bias < 0.1 and found.mean_cosine > 0.99 and found.sign > 0.9
    assert found.scatter > 0.01


def test_small_batches_scatter_and_wide_kernels_are_biased(sae):
    x = activations(200_000, seed=2)
    true = finite_difference(sae, x.split(20_000), 0.02)
    few, many = (agreement(estimates(sae, x.split(n), 0.04), true) for n in (500, 20_000))
    assert few.scatter > 3 * many.scatter and few.cosine < many.cosine
    wide = agreement(estimates(sae, x.split(20_000), 0.6), true)
    assert wide.bias > 2 * many.bias


def test_an_sae_without_trained_thresholds_is_refused():
    sae = ReLUSAE(ReLUSAEConfig(d_in=6, d_sae=12))
    with pytest.raises(ValueError, match="a ReLUSAE has no trained thresholds"):
        finite_difference(sae, [activations(4)], 0.1)
