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
