"""What is peculiar to JumpReLU: its loss, where its gradients go, its logarithmic thresholds."""

import math

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


@pytest.mark.parametrize("kernel, bandwidth", [("rectangle", 0.03), ("gaussian", 0.053)])
def test_threshold_gradient_is_that_of_the_expected_loss(kernel, bandwidth):
    """STE over many samples against central differences of the mean loss, latent by latent."""
    sae, x = planted(500_000, kernel=kernel, bandwidth=bandwidth)
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


def normal_density(z: float) -> float:
    return math.exp(-z * z / 2) / math.sqrt(2 * math.pi)


def share_above(z: float) -> float:
    return math.erfc(z / math.sqrt(2)) / 2


def one_latent(n: int = 1_000_000, **fields) -> tuple[JumpReLUSAE, torch.Tensor]:
    """One latent whose pre-activation is normal with mean b_enc = 0.2, its row of norm 1.5; x is
    the normal distribution's quantiles, so that means over it are integrals."""
    defaults = {"bandwidth": 0.02, "log_threshold": False, "l0_coefficient": 1.0}
    sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=1, d_sae=1, **{**defaults, **fields}))
    with torch.no_grad():
        sae.W_enc.fill_(1.0), sae.b_enc.fill_(0.2), sae.threshold.fill_(0.7)
        sae.W_dec.fill_(1.5)
    x = torch.special.ndtri((torch.arange(n, dtype=torch.float64) + 0.5) / n)
    return sae, x.float()[:, None]


def slopes(loss: torch.Tensor, sae: JumpReLUSAE) -> list[float]:
    """Derivatives by threshold, encoder bias and decoder row."""
    parameters = [sae.threshold, sae.b_enc, sae.W_dec]
    grads = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    return [float(grad) for grad in grads]


P, ABOVE = normal_density(0.5), share_above(0.5)  # the latent's density at its threshold; its rate


@pytest.mark.parametrize("to_inputs", [False, True])
def test_quadratic_l0_loss_has_the_slope_of_its_expectation(to_inputs):
    fields = {"l0_loss": "quadratic", "target_l0": 0.25, "ste_to_inputs": to_inputs}
    sae, x = one_latent(**fields)
    loss = sae(x, return_loss=True).losses["l0"]
    assert loss.item() == pytest.approx((ABOVE / 0.25 - 1) ** 2, rel=1e-4)
    slope = 2 * (ABOVE / 0.25 - 1) / 0.25 * P
    assert slopes(loss, sae) == pytest.approx([-slope, to_inputs * slope, 0], rel=0.01)


def test_the_frequency_penalty_has_the_slope_of_its_expectation():
    sae, x = one_latent(l0_loss="frequency", frequency_limit=0.1)
    loss = sae(x, return_loss=True).losses["l0"]
    assert loss.item() == pytest.approx(ABOVE * (1 + ABOVE / 0.1), rel=1e-4)
    assert slopes(loss, sae) == pytest.approx([-P * (1 + 2 * ABOVE / 0.1), 0, 0], rel=0.01)


def test_the_frequency_penalty_takes_each_latent_by_itself():
    sae, x = planted(2000, l0_loss="frequency")
    p = (x @ sae.W_enc > sae.threshold).float().mean(0)
    loss = sae(x, return_loss=True).losses["l0"].item()
    assert loss == pytest.approx(0.05 * (p * (1 + 10 * p)).sum().item(), rel=1e-5)


@pytest.mark.parametrize("to_inputs", [False, True])
def test_the_tanh_penalty_has_the_slope_of_its_expectation(to_inputs):
    """E tanh(s z H(z - threshold)), s = slope |W_dec|, by an integral over z ~ N(0.2, 1).

    At the jump, of height a = s threshold, the estimate goes by tanh's slope on either side, which
    makes it a (1 + 1 - tanh(a)^2) / 2 where tanh(a) would be right: the same for small latents.
    """
    sae, x = one_latent(penalty="tanh", tanh_slope=0.8, ste_to_inputs=to_inputs)
    z = torch.linspace(0.7, 9, 400_001, dtype=torch.float64)
    weight = (-(z - 0.2).square() / 2).exp() / math.sqrt(2 * math.pi) * (z[1] - z[0])
    value, s, a = (1.2 * z).tanh(), 1.2, 1.2 * 0.7
    jump = P * a * (1 - math.tanh(a) ** 2 / 2)
    by_bias = float((weight * s * (1 - value.square())).sum())
    by_row = float((weight * 0.8 * z * (1 - value.square())).sum())
    loss = sae(x, return_loss=True).losses["tanh"]
    assert loss.item() == pytest.approx(float((weight * value).sum()), rel=1e-4)
    expected = [-jump, by_bias + to_inputs * jump, by_row]
    assert slopes(loss, sae) == pytest.approx(expected, rel=0.01)


def test_the_pre_activation_loss_pulls_at_what_is_below_the_threshold():
    """E relu(t - z) = t P(z < t) + p(t) for a normal z of mean 0, here times the row's norm."""
    sae, x = one_latent(penalty="tanh", pre_act_coefficient=0.1)
    loss = sae(x, return_loss=True).losses["pre_act"]
    depth = 0.5 * (1 - ABOVE) + P
    assert loss.item() == pytest.approx(0.1 * 1.5 * depth, rel=1e-4)
    below = 0.1 * 1.5 * (1 - ABOVE)
    assert slopes(loss, sae) == pytest.approx([below, -below, 0], rel=1e-3)


def test_l1_of_jumprelu_latents():
    sae, x = planted(100, penalty="l1")
    out = sae(x, return_loss=True)
    assert out.losses["l1"].item() == pytest.approx(0.05 * out.latents.sum(1).mean().item())


def test_the_shifted_activation_has_its_true_gradient():
    sae, x = one_latent(activation="shifted")
    latents = sae.encode(x)
    assert torch.equal(latents, (x * sae.W_enc + sae.b_enc - sae.threshold).relu())
    assert slopes(latents.mean(), sae) == pytest.approx([-ABOVE, ABOVE, 0], rel=1e-4)
    l0 = sae(x, return_loss=True).losses["l0"]  # the same step, the same estimate
    assert slopes(l0, sae) == pytest.approx([-P, 0, 0], rel=0.01)


@pytest.mark.parametrize(
    "ste, movers",
    [("both", {"l0", "mse"}), ("l0", {"l0"}), ("reconstruction", {"mse"}), ("none", set())],
)
@pytest.mark.parametrize("activation", ["jump", "shifted"])
def test_ste_says_which_terms_move_thresholds(ste, movers, activation):
    fields = {"bandwidth": 0.3, "activation": activation}
    (sae, x), (full, _) = planted(1000, ste=ste, **fields), planted(1000, **fields)
    losses, expected = sae(x, return_loss=True).losses, full(x, return_loss=True).losses
    for name in ("l0", "mse"):
        assert losses[name].item() == expected[name].item()
        wanted = torch.autograd.grad(expected[name], full.threshold)[0]
        assert wanted.abs().sum() > 0
        if name in movers:
            assert torch.equal(torch.autograd.grad(losses[name], sae.threshold)[0], wanted)
        elif losses[name].requires_grad and sae.threshold.requires_grad:
            grad = torch.autograd.grad(losses[name], sae.threshold, allow_unused=True)[0]
            assert grad is None


@pytest.mark.parametrize("log_threshold", [True, False])
def test_without_ste_thresholds_are_frozen_to_the_bit(log_threshold):
    sae, x = planted(500, ste="none", penalty="l1", log_threshold=log_threshold)
    before, optimizer = sae.threshold.clone(), torch.optim.Adam(sae.parameters(), lr=0.01)
    weights = sae.W_enc.clone()
    for _ in range(5):
        sae(x, return_loss=True).loss.backward()
        sae.before_step_()
        optimizer.step(), optimizer.zero_grad()
        sae.after_step_()
    assert torch.equal(sae.threshold, before) and not torch.equal(sae.W_enc, weights)


def test_norms_are_free_with_tanh_alone_and_folded_rows_have_norm_one():
    sae, x = planted(500, penalty="tanh")
    with torch.no_grad():
        sae.W_dec *= torch.linspace(0.2, 40, 6)[:, None]
    folded = sae.folded()
    written = (sae.encode(x)[:, :, None] * sae.W_dec).norm(dim=-1)
    assert torch.allclose(folded.encode(x), written, rtol=1e-5, atol=1e-5)
    assert torch.allclose(folded.threshold, sae.threshold * sae.W_dec.norm(dim=-1))
    assert not sae.config.unit_norm_decoder and planted(1)[0].config.unit_norm_decoder


@pytest.mark.parametrize(
    "fields, sentence",
    [
        ({"bandwidth": 0}, "bandwidth must be positive, got 0"),
        ({"activation_scale": 1e308}, "activation_scale must be a finite number.*, got 1e.308"),
        ({"activation_scale": 10**60}, "activation_scale must be a finite number.*, got 10000"),
        ({"bandwidth": float("nan")}, "bandwidth must be a finite number.*, got nan"),
        ({"target_l0": 999}, "target_l0"),
        ({"l0_coefficient": -1}, "l0_coefficient must not be negative"),
        ({"pre_act_coefficient": -1}, "pre_act_coefficient must not be negative"),
        ({"kernel": "cosine"}, "'rectangle', 'triangle', 'epanechnikov', 'gaussian', got 'cosine'"),
        ({"ste": "inputs"}, "ste must be one of"),
        ({"l0_loss": "quadratic"}, "needs target_l0, where its minimum lies"),
        ({"l0_loss": "frequency", "penalty": "l1"}, "needs penalty='l0'"),
        ({"ste": "l0", "penalty": "tanh"}, "'tanh' penalises the latents that are also decoded"),
    ],
)
def test_impossible_settings_are_refused(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        JumpReLUSAEConfig(d_in=4, d_sae=6, **fields)
