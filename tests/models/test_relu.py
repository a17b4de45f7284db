"""What is peculiar to the ReLU SAE."""

import pytest
import torch

from hfsae import ReLUSAE, ReLUSAEConfig
from hfsae.models import Schedule


def test_the_penalty_is_the_sum_of_latents_in_units_of_x_over_c():
    sae = ReLUSAE(ReLUSAEConfig(d_in=4, d_sae=8, activation_scale=5.0, l1_coefficient=0.5))
    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
    out = sae(x, schedule=Schedule(sparsity=0.2), return_loss=True)
    by_hand = 0.5 * 0.2 * (x @ sae.W_enc).clamp(min=0).sum(1).mean() / 5.0
    assert out.losses["l1"].item() == pytest.approx(by_hand.item(), rel=1e-6)


def test_a_negative_coefficient_is_refused():
    with pytest.raises(ValueError, match="l1_coefficient must not be negative, got -1"):
        ReLUSAEConfig(d_in=4, d_sae=8, l1_coefficient=-1)


def free(scale_by: torch.Tensor | None = None) -> ReLUSAE:
    """With rows of different norms; latents times `scale_by`, the same function otherwise."""
    torch.manual_seed(0)
    config = ReLUSAEConfig(d_in=4, d_sae=8, activation_scale=5.0, penalty="ri_l1")
    sae, factor = ReLUSAE(config), torch.ones(8) if scale_by is None else scale_by
    with torch.no_grad():
        sae.W_dec *= torch.linspace(1, 30, 8)[:, None] / factor[:, None]
        sae.W_enc *= factor
        sae.b_enc.uniform_(-0.02, 0.02).mul_(factor)
    return sae


def x_batch() -> torch.Tensor:
    return 5 * torch.randn(64, 4, generator=torch.Generator().manual_seed(0))


def test_ri_l1_weighs_latents_by_the_norm_of_what_they_write():
    sae, x = free(), x_batch()
    out = sae(x, return_loss=True)
    written = out.latents[:, :, None] * sae.W_dec  # [64, 8, 4], what each latent adds
    by_hand = 0.03 * written.norm(dim=-1).sum(1).mean() / 5.0
    assert out.losses["l1"].item() == pytest.approx(by_hand.item(), rel=1e-5)


def test_ri_l1_is_the_same_however_latents_are_scaled_and_l1_is_not():
    losses = [free(s)(x_batch(), return_loss=True).losses for s in (None, torch.rand(8) + 0.5)]
    assert losses[1]["mse"].item() == pytest.approx(losses[0]["mse"].item(), rel=1e-5)
    assert losses[1]["l1"].item() == pytest.approx(losses[0]["l1"].item(), rel=1e-5)


def test_folded_ri_l1_is_plain_l1_at_unit_rows():
    sae, x = free(), x_batch()
    folded = sae.folded()
    assert torch.allclose(folded.W_dec.norm(dim=-1), torch.ones(8), atol=1e-6)
    latents = folded.encode(x)
    assert torch.allclose(latents, sae.encode(x) * sae.W_dec.norm(dim=-1), atol=1e-5)
    l1 = 0.03 * latents.sum(1).mean().item() / 5.0
    assert sae(x, return_loss=True).losses["l1"].item() == pytest.approx(l1, rel=1e-5)


def test_an_unknown_penalty_is_refused():
    with pytest.raises(ValueError, match="penalty must be one of 'l1', 'ri_l1', got 'l2'"):
        ReLUSAEConfig(d_in=4, d_sae=8, penalty="l2")
