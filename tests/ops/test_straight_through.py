"""The pseudo-derivatives against closed forms that know nothing of their code."""

import math

import pytest
import torch

from hfsae.ops import heaviside, jumprelu

N = 2_000_000
THRESHOLDS = [0.3, 0.5, 1.2]


def normal_density(z: float) -> float:
    return math.exp(-z * z / 2) / math.sqrt(2 * math.pi)


@pytest.fixture(scope="module")
def gaussian() -> torch.Tensor:
    return torch.randn(N, 1, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("theta", THRESHOLDS)
def test_mean_gradient_of_l0_is_minus_the_density_at_the_threshold(gaussian, theta):
    threshold = torch.tensor([theta], requires_grad=True)
    heaviside(gaussian, threshold, 0.05).mean().backward()
    assert float(threshold.grad) == pytest.approx(-normal_density(theta), rel=0.02)


@pytest.mark.parametrize("theta", THRESHOLDS)
def test_mean_gradient_of_jumprelu_is_minus_theta_times_the_density(gaussian, theta):
    threshold = torch.tensor([theta], requires_grad=True)
    jumprelu(gaussian, threshold, 0.05).mean().backward()
    assert float(threshold.grad) == pytest.approx(-theta * normal_density(theta), rel=0.02)


def test_values_jump_strictly_above_the_threshold():
    z, threshold = torch.tensor([[-1.0, 0.5, 0.5001, 2.0]]), torch.full((4,), 0.5)
    assert jumprelu(z, threshold, 0.1).tolist() == [[0.0, 0.0, z[0, 2].item(), 2.0]]
    assert heaviside(z, threshold, 0.1).tolist() == [[0.0, 0.0, 1.0, 1.0]]


def test_gradient_reaches_inputs_only_through_active_jumprelu():
    z = torch.tensor([[0.45, 0.55, 3.0]], requires_grad=True)
    threshold = torch.full((3,), 0.5, requires_grad=True)
    (jumprelu(z, threshold, 0.2).sum() + heaviside(z, threshold, 0.2).sum()).backward()
    assert z.grad.tolist() == [[0.0, 1.0, 1.0]]
    # both z inside the window count for the threshold, below it as well as above
    assert threshold.grad.tolist() == pytest.approx([-(0.5 + 1) / 0.2, -(0.5 + 1) / 0.2, 0.0])


def test_leading_dimensions_are_summed():
    z = torch.rand(2, 3, 5, generator=torch.Generator().manual_seed(1))
    flat, deep = (torch.full((5,), 0.5, requires_grad=True) for _ in range(2))
    jumprelu(z, deep, 0.3).sum().backward()
    jumprelu(z.flatten(0, 1), flat, 0.3).sum().backward()
    assert torch.equal(deep.grad, flat.grad) and deep.grad.abs().sum() > 0


def test_bfloat16_inputs_leave_threshold_gradients_in_float32():
    z = torch.rand(4096, 3, generator=torch.Generator().manual_seed(2)).bfloat16()
    threshold = torch.full((3,), 0.5, requires_grad=True)
    out = jumprelu(z, threshold, 0.1)
    out.sum().backward()
    assert out.dtype == torch.bfloat16 and threshold.grad.dtype == torch.float32
    n_in_window = ((z.float() - 0.5).abs() < 0.05).sum(dim=0)
    assert torch.allclose(threshold.grad, -(0.5 / 0.1) * n_in_window.float())
