"""The k-th largest positive number is that of sorting, on however many processes it lies; and what
is passed on has the shapes that are written."""

import pytest
import torch
from jaxtyping import TypeCheckError

from hfsae.circuits import logit_difference
from hfsae.ops import (
    EVERYWHERE,
    Entries,
    Workspace,
    kl_of_logs,
    kth_positive,
    nested_sums,
    selection,
)

VALUES = {
    "normal": torch.randn(40, 30, generator=torch.Generator().manual_seed(0)),
    "of all sizes": torch.logspace(-40, 38, 1000),
    "tied": torch.tensor([2.0, 1.0, 1.0, 1.0, -1.0, 0.0] * 20),
    "close": 1 + torch.arange(300) * 2.0**-23,
    "bfloat16": torch.randn(500, generator=torch.Generator().manual_seed(1)).bfloat16(),
    "infinite": torch.tensor([torch.inf, 1.0, -torch.inf, 3.0]),
}


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("k", [1, 2, 77, 10_000])
def test_it_is_the_one_that_sorting_gives(name, k):
    values = VALUES[name]
    positive = values[values > 0].float().sort(descending=True).values
    expected = positive[min(k, len(positive)) - 1]
    assert torch.equal(kth_positive(values, k), expected)


def test_none_is_positive():
    assert kth_positive(-torch.ones(3), 2) == torch.inf
    assert kth_positive(torch.zeros(0), 2) == torch.inf


@pytest.mark.parametrize("counted_on", [("cpu",), ()], ids=["as on a CPU", "as on a GPU"])
@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("k", [1, 50, 399, 10_000])
def test_parts_in_several_processes_have_the_k_th_largest_of_the_whole(
    name, k, counted_on, in_processes, monkeypatch
):
    monkeypatch.setattr(selection, "_COUNTED_ON", counted_on)
    whole = VALUES[name]
    found = in_processes(whole.chunk(3), lambda part, summed: kth_positive(part, k, summed))
    assert set(map(float, found)) == {float(kth_positive(whole, k))}


def test_no_part_has_a_positive_value(in_processes, monkeypatch):
    monkeypatch.setattr(selection, "_COUNTED_ON", ())
    parts = [torch.tensor([-1.0, torch.nan]), torch.zeros(3)]
    found = in_processes(parts, lambda part, summed: kth_positive(part, 2, summed))
    assert set(map(float, found)) == {torch.inf}


@pytest.mark.parametrize("ends", [[24], [5, 24], [1, 2, 11, 24]])
def test_nested_sums_are_products_with_the_first_rows(ends):
    generator = torch.Generator().manual_seed(2)
    z = torch.randn(9, 24, generator=generator).relu().requires_grad_()
    W = torch.randn(24, 7, generator=generator, requires_grad=True)
    expected = torch.stack([z[:, :m] @ W[:m] for m in ends])
    weights = torch.randn(expected.shape, generator=generator)
    wanted = torch.autograd.grad((weights * expected).sum(), [z, W])
    latents, tokens = (z.T > 0).nonzero().T
    at = Entries(tokens.contiguous(), latents.contiguous(), 9, 24, workspace=Workspace())
    for place, values in ((EVERYWHERE, z), (at, z[tokens, latents])):
        found = nested_sums(values, W, place, ends)
        assert torch.allclose(found, expected, atol=1e-5)
        gradients = torch.autograd.grad((weights * found).sum(), [z, W], retain_graph=True)
        fires = (z > 0).float()
        assert torch.allclose(fires * gradients[0], fires * wanted[0], atol=1e-5)
        assert torch.allclose(gradients[1], wanted[1], atol=1e-5)


def test_a_wrong_shape_is_refused_by_a_function_and_by_one_inside_another():
    """By the checks that `tests/conftest.py` puts on the package."""
    with pytest.raises(TypeCheckError):
        kl_of_logs(torch.zeros(2, 3), torch.zeros(2, 4))
    metric = logit_difference([1], [2])
    with pytest.raises(TypeCheckError):
        metric(torch.zeros(1, 3), torch.zeros(1, dtype=torch.long))
