"""The pseudo-derivatives against closed forms that know nothing of their code."""

import math

import pytest
import torch

from hfsae.ops import heaviside, jumprelu, kernel

N = 2_000_000
THRESHOLDS = [0.3, 0.5, 1.2]
KERNELS = {"rectangle": 0.2887, "triangle": 0.2041, "epanechnikov": 0.2236, "gaussian": 0.1644}
kernels = pytest.mark.parametrize("name", KERNELS)


def normal_density(z: float) -> float:
    return math.exp(-z * z / 2) / math.sqrt(2 * math.pi)


@pytest.fixture(scope="module")
def gaussian() -> torch.Tensor:
    return torch.randn(N, 1, generator=torch.Generator().manual_seed(0))


def share_above(z: float) -> float:
    return math.erfc(z / math.sqrt(2)) / 2


@kernels
def test_kernels_have_integral_one_the_stated_spread_and_nothing_outside_the_window(name):
    u = torch.linspace(-0.75, 0.75, 300_001, dtype=torch.float64)
    k = kernel(u, name).double()
    du = u[1] - u[0]
    assert (k.sum() * du).item() == pytest.approx(1, abs=2e-5)
    assert (k * u.square()).sum().mul(du).sqrt().item() == pytest.approx(KERNELS[name], abs=1e-4)
    assert not k[u.abs() >= 0.5].any() and (k[u.abs() < 0.4999] > 0).all()


@kernels
@pytest.mark.parametrize("theta", THRESHOLDS)
def test_mean_gradient_of_l0_is_minus_the_density_at_the_threshold(gaussian, theta, name):
    threshold = torch.tensor([theta], requires_grad=True)
    heaviside(gaussian, threshold, 0.05, name).mean().backward()
    # 1e5 p samples in the window: their noise, and the kernel's height, allow one per cent
    assert float(threshold.grad) == pytest.approx(-normal_density(theta), rel=0.02)


@kernels
@pytest.mark.parametrize("theta", THRESHOLDS)
def test_mean_gradient_of_jumprelu_is_minus_theta_times_the_density(gaussian, theta, name):
    threshold = torch.tensor([theta], requires_grad=True)
    jumprelu(gaussian, threshold, 0.05, name).mean().backward()
    assert float(threshold.grad) == pytest.approx(-theta * normal_density(theta), rel=0.02)


@kernels
def test_a_wide_kernel_is_off_by_half_its_variance_times_the_densitys_curvature(name):
    """p''(z) = (z^2 - 1) p(z) for the normal density; its quantiles stand in for samples."""
    z = torch.special.ndtri((torch.arange(N, dtype=torch.float64) + 0.5) / N)[:, None]
    threshold = torch.tensor([0.5], dtype=torch.float64, requires_grad=True)
    heaviside(z, threshold, 1.0, name).mean().backward()
    p, variance = normal_density(0.5), KERNELS[name] ** 2
    bias = -float(threshold.grad) - p
    assert bias == pytest.approx(variance / 2 * (0.25 - 1) * p, rel=0.04)


@kernels
@pytest.mark.parametrize("theta", THRESHOLDS)
def test_with_ste_to_z_inputs_hear_of_the_jump(gaussian, theta, name):
    """Moving all z up: d E[H] = p(theta), d E[z H] = P(z > theta) + theta p(theta)."""
    p = normal_density(theta)
    for function, expected in [(heaviside, p), (jumprelu, share_above(theta) + theta * p)]:
        shift = torch.zeros(1, requires_grad=True)
        threshold = torch.tensor([theta])  # itself not trained
        function(gaussian + shift, threshold, 0.05, name, True).mean().backward()
        assert float(shift.grad) == pytest.approx(expected, rel=0.02)


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
    z.requires_grad_()
    threshold = torch.full((3,), 0.5, requires_grad=True)
    out = jumprelu(z, threshold, 0.1, "rectangle", True)
    out.sum().backward()
    assert out.dtype == z.grad.dtype == torch.bfloat16 and threshold.grad.dtype == torch.float32
    n_in_window = ((z.detach().float() - 0.5).abs() < 0.05).sum(dim=0)
    assert torch.allclose(threshold.grad, -(0.5 / 0.1) * n_in_window.float())


@pytest.mark.parametrize("f", [jumprelu, heaviside])
def test_without_a_window_no_gradient_is_estimated(f):
    z = torch.tensor([-1.0, 0.5, 2.0], requires_grad=True)  # one lies at its threshold
    threshold = torch.full((3,), 0.5, requires_grad=True)
    f(z, threshold, 0.0).sum().backward()
    assert torch.equal(threshold.grad, torch.zeros(3))
    assert z.grad is None if f is heaviside else z.grad.tolist() == [0, 0, 1]
