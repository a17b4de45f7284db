"""The map of latents: neighbours stay together, and a seed gives the same map."""

import pytest
import torch

from hfsae.features import NEAR, nearest_rows, plane


def bundles(n: int = 20, d: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    """Four bundles of n similar rows, and the bundle of each."""
    generator = torch.Generator().manual_seed(0)
    middles = torch.randn(4, d, generator=generator).repeat_interleave(n, 0)
    return middles + 0.2 * torch.randn(4 * n, d, generator=generator), torch.arange(
        4
    ).repeat_interleave(n)


def test_rows_of_a_bundle_lie_together_and_apart_from_others():
    rows, bundle = bundles()
    places = plane(rows, *nearest_rows(rows, NEAR))
    apart = torch.cdist(places, places)
    nearest = apart.fill_diagonal_(torch.inf).topk(5, largest=False).indices
    assert (bundle[nearest] == bundle[:, None]).all()
    assert places.abs().max() < 2 and places.isfinite().all()


def test_a_seed_gives_the_same_map_and_leaves_the_global_generator_alone():
    rows, _ = bundles()
    near, before = nearest_rows(rows, NEAR), torch.get_rng_state()
    first = plane(rows, *near, seed=3)
    assert torch.equal(first, plane(rows, *near, seed=3))
    assert not torch.equal(first, plane(rows, *near, seed=4))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("shape", [(1, 4), (2, 4), (3, 1), (5, 4)])
def test_few_latents_have_places_too(shape):
    rows = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    places = plane(rows, *nearest_rows(rows, NEAR))
    assert places.shape == (shape[0], 2) and places.isfinite().all()


def test_equal_rows_have_finite_places():
    rows = torch.ones(6, 4)
    assert plane(rows, *nearest_rows(rows, NEAR)).isfinite().all()
