"""What is peculiar to JumpReLU: its loss, where its gradients go, its logarithmic thresholds."""

import pytest
import torch
from torch.func import functional_call

from hfsae import JumpReLUSAE, JumpReLUSAEConfig
from hfsae.models import Schedule


def planted(n: int, d_in: int = 4, d_sae: int = 6, **fields) -> tuple[JumpReLUSAE, torch.Tensor]:
    torch.manual_seed(0)
    defaults = {"l0_coefficient": 0.05, "bandwidth": 0.1, "log_threshold": False}
    sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=d_in, d_sae=d_sae, **{**defaults, **fields}))
    with torch.no_grad():
        sae.threshold.uniform_(0.3, 0.6)
    return sae, torch.randn(n, d_in)


def test_loss_is_squared_error_plus_lambda_times_the_count_of_active_latents():
    sae, x = planted(100)
    out = sae(x, return_loss=True)
    z = x @ sae.W_enc
    latents = z * (z > sae.threshold)
    mse = ((latents @ sae.W_dec - x) ** 2).sum(1).mean()
    l0 = (z > sae.threshold).float().sum(1).mean()
    assert out.loss.item() == pytest.approx((mse + 0.05 * l0).item(), rel=1e-6)
    half = sae(x, return_loss=True, schedule=Schedule(sparsity=0.5))
    assert half.losses["l0"].item() == pytest.approx(0.025 * l0.item(), rel=1e-6)


def test_threshold_gradient_is_that_of_the_expected_loss():
    """STE over many samples against central differences of the mean loss, latent by latent."""
    sae, x = planted(2_000_000, bandwidth=0.03)
    sae(x, return_loss=True).loss.backward()
    step, slopes = 0.015, []
    for i in range(sae.config.d_sae):
        ends = []
        for sign in (-1, 1):
            threshold = sae.threshold.detach().clone()
            threshold[i] += sign * step
            state = {**dict(sae.named_parameters()), "threshold": threshold}
            with torch.no_grad():
                ends.append(functional_call(sae, state, (x,), {"return_loss": True}).loss)
        slopes.append((ends[1] - ends[0]) / (2 * step))
    slope = torch.stack(slopes)
    assert slope.abs().min() > 0.005 and slope.min() < 0 < slope.max()
    assert torch.allclose(sae.threshold.grad, slope, atol=0.004)
    assert (sae.threshold.grad - slope).norm() < 0.03 * slope.norm()


def test_the_l0_term_moves_thresholds_only():
    sae, x = planted(1000)
    sae(x, return_loss=True).losses["l0"].backward()
    assert sae.threshold.grad.abs().sum() > 0
    others = [p for name, p in sae.named_parameters() if name != "threshold"]
    assert all(p.grad is None or not p.grad.any() for p in others)


def test_the_l0_step_sees_pre_activations():
    """Entries just below their threshold count: on the activations they would all be zero."""
    sae, _ = planted(1, d_in=2, d_sae=2)
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(2))
        sae.threshold.fill_(0.5)
    sae(torch.tensor([[0.48, 0.48]]), return_loss=True).losses["l0"].backward()
    assert sae.threshold.grad.tolist() == pytest.approx([-0.05 / 0.1] * 2)


def test_log_threshold_steps_are_those_of_adam_on_the_logarithm():
    """Against a plain optimiser that holds log(threshold) as its parameter, as the paper does."""
    sae, x = planted(2000, log_threshold=True, bandwidth=0.3)
    ours = torch.optim.Adam([sae.threshold], lr=0.01, betas=(0.0, 0.999))
    log_threshold = sae.threshold.detach().log().requires_grad_()
    theirs = torch.optim.Adam([log_threshold], lr=0.01, betas=(0.0, 0.999))
    fixed = {k: v.detach() for k, v in sae.named_parameters() if k != "threshold"}
    for _ in range(20):
        sae(x, return_loss=True).loss.backward()
        sae.before_step_()
        ours.step(), ours.zero_grad()
        sae.after_step_()
        state = {**fixed, "threshold": log_threshold.exp()}
        functional_call(sae, state, (x,), {"return_loss": True}).loss.backward()
        theirs.step(), theirs.zero_grad()
    assert (sae.threshold - 0.45).abs().max() > 0.05
    assert torch.allclose(sae.threshold, log_threshold.exp(), rtol=1e-4)


def test_direct_thresholds_stay_above_zero():
    sae, _ = planted(10)
    with torch.no_grad():
        sae.threshold.fill_(-0.1)
    sae.after_step_()
    assert not sae.threshold.any()


def test_window_share_counts_pre_activations_near_their_threshold():
    sae, x = planted(5000)
    z = x @ sae.W_enc
    expected = ((z - sae.threshold).abs() < 0.05).float().mean()
    assert sae.window_share(sae(x).pre_acts).item() == pytest.approx(expected.item())
    wide = sae.window_share(sae(x).pre_acts, Schedule(bandwidth=3.0))
    assert wide.item() == pytest.approx(((z - sae.threshold).abs() < 0.15).float().mean().item())


@pytest.mark.parametrize("fields", [{"bandwidth": 0}, {"target_l0": 999}, {"l0_coefficient": -1}])
def test_impossible_settings_are_refused(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        JumpReLUSAEConfig(d_in=4, d_sae=6, **fields)
