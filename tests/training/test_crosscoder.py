"""A crosscoder finds which features are at both of two sites, and which at one."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from hfsae import BatchTopKSAE, BatchTopKSAEConfig
from hfsae.activations import TensorSource
from hfsae.training import Trainer
from hfsae.training.start import start_

from .planted import arguments

D, SHARED, OWN, FIRING = 64, 64, 16, 6
SITES = ["base/layers.1", "chat/layers.1"]


class TwoSites(TensorSource):
    """Sums of about six features; the first 64 have a direction at both sites, of the others 16 are
    at the first site alone and 16 at the second. The second site is nine times as large."""

    def __init__(self, batch_size: int = 256):
        generator = torch.Generator().manual_seed(5)
        n = SHARED + 2 * OWN
        self.directions = [normalize(torch.randn(n, D, generator=generator), dim=1) for _ in SITES]
        self.directions[0][SHARED + OWN :] = 0
        self.directions[1][SHARED : SHARED + OWN] = 0
        super().__init__({site: torch.empty(0, D) for site in SITES}, batch_size)

    def part(self, number: int, n: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(number)
        n_features = SHARED + 2 * OWN
        on = torch.rand(n, n_features, generator=generator) < FIRING / n_features
        size = 0.5 + torch.rand(n, n_features, generator=generator)
        sums = zip(SITES, (1.0, 9.0), self.directions, strict=True)
        return {site: scale * ((on * size) @ rows) for site, scale, rows in sums}

    def sample(self, n: int) -> dict[str, Tensor]:
        return super().sample(min(n, 4096))


def found(sae: BatchTopKSAE, source: TwoSites) -> dict[str, float]:
    """Share of the features of each kind that a latent has, by direction (cosine of .9 or more at
    the sites where it is) and by its share of the second site."""
    own = [normalize(part, dim=1) for part in sae.split(sae.W_dec.detach()).values()]
    cosines = [d @ rows.T for d, rows in zip(source.directions, own, strict=True)]
    share = sae.shares[:, 1]
    both = torch.minimum(*cosines)[:SHARED] >= 0.9
    first = cosines[0][SHARED : SHARED + OWN] >= 0.9
    second = cosines[1][SHARED + OWN :] >= 0.9
    is_shared = (share >= 0.4) & (share <= 0.6)
    return {
        "shared": (both & is_shared).any(1).float().mean().item(),
        "first": (first & (share <= 0.1)).any(1).float().mean().item(),
        "second": (second & (share >= 0.9)).any(1).float().mean().item(),
    }


def test_planted_features_are_found_with_their_shares(tmp_path):
    torch.manual_seed(0)
    config = BatchTopKSAEConfig(d_in=2 * D, d_sae=128, k=FIRING, sites=SITES, aux_k=64)
    source = TwoSites()
    options = {"learning_rate": 5e-3, "decay_steps": 0.5, "dead_after_tokens": 5000}
    args = arguments(tmp_path, 600, save_steps=0, **options)
    trained = Trainer(BatchTopKSAE(config), source, args).train()
    scales = trained.config.site_scales
    assert scales[1] == pytest.approx(9 * scales[0], rel=0.1)
    shares = found(trained, source)
    assert min(shares.values()) >= 0.9, shares


def test_the_variance_that_its_fvu_is_told_of_is_the_mean_over_sites_in_their_units(tmp_path):
    config = BatchTopKSAEConfig(d_in=2 * D, d_sae=128, k=FIRING, sites=SITES, aux_k=64)
    sae, sample = BatchTopKSAE(config), TwoSites().sample(1000)
    x = torch.cat([*sample.values()], dim=1)
    variance = start_(sae, arguments(tmp_path, 10), x.clone(), x.clone())
    units = zip(sample.values(), config.site_scales, strict=True)
    of_sites = [float(part.var(dim=0, correction=0).sum()) / scale**2 for part, scale in units]
    assert variance == pytest.approx(sum(of_sites) / len(SITES), rel=1e-5)
