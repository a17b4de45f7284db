"""LMs and SAEs with latents of single tokens, a store of them, and with random ones."""

import pytest
import torch

from hfsae.features import CollectArguments, FeatureStore, collect

from ..planted_tokens import Planted, plant


@pytest.fixture
def one_latent_a_token() -> Planted:
    """Latent i fires on token i alone, with activation 1 + i + p / 64 at position p."""
    generator = torch.Generator().manual_seed(1)
    position = (torch.arange(16) / 64)[:, None].expand(16, 24)
    rows = torch.randint(1, 23, (30, 16), generator=generator)  # 23 never occurs
    rows[:, 0] = 0
    return plant(torch.diag(1.0 + torch.arange(24)), position, 0.5, rows)


@pytest.fixture
def store(one_latent_a_token) -> FeatureStore:
    planted = one_latent_a_token
    args = CollectArguments(top=3, window=4)
    return collect(planted.lm, planted.sae, planted.batches(), args, tokenizer=planted.tokenizer)


@pytest.fixture
def random_latents() -> Planted:
    generator = torch.Generator().manual_seed(2)
    embedding = torch.randn(800, 24, generator=generator)
    position = 0.1 * torch.randn(16, 24, generator=generator)
    rows = torch.randint(0, 40, (50, 16), generator=generator)  # tokens recur: activations tie
    return plant(embedding, position, 1.0, rows)
