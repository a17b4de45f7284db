"""Causes in an arm of a comparison: ratios of sums over tokens, with intervals over seeds."""

import math

import pytest
import torch
from comparisons.causal_control import COUNTS, CausalControl
from comparisons.causes import ArmCauses, Causes, compared


def causes(seed: int, n_tokens: int = 40) -> Causes:
    """Known shares: latents do 2 logits for each unit and 0.1 nats for each logit; of the whole,
    the first latents by effect give n / 64."""
    g = torch.Generator().manual_seed(seed)
    norm = torch.rand(3, n_tokens, generator=g) + 0.5
    by_kind = torch.tensor([2.0, 0.5, 0.25])[:, None]
    change = torch.stack([-by_kind * norm, by_kind * norm])
    whole = torch.rand(n_tokens, generator=g) + 1
    share = torch.tensor(COUNTS)[None, :, None] / torch.tensor([64.0, 640.0])[:, None, None]
    control = CausalControl(
        change, 0.1 * change.abs(), norm, share * whole, 2 * share * whole, whole
    )
    return Causes(control, torch.full((n_tokens,), 0.1 * (seed + 1)))


def test_an_arms_numbers_are_ratios_of_sums():
    arm = ArmCauses([causes(0), causes(1)])
    assert arm.per_norm("ablate", "latent") == pytest.approx((2, 2, 2))
    assert arm.per_norm("double", "random direction") == pytest.approx((0.25, 0.25, 0.25))
    assert arm.off_target("ablate", "matched latent") == pytest.approx((0.1, 0.1, 0.1))
    assert arm.share("alone", "by effect", 16) == pytest.approx((0.25, 0.25, 0.25))
    assert arm.share("without", "at random", 32) == pytest.approx((0.1, 0.1, 0.1))
    half = 12.706 * 0.05  # Student's t for two seeds, times the standard error of their mean
    assert arm.evenness() == pytest.approx((0.15, 0.15 - half, 0.15 + half), abs=1e-4)
    assert str(ArmCauses([causes(0)]).evenness()) == "0.1", "one seed has no interval"


def test_tokens_without_latents_count_for_nothing_and_intervals_hold_the_value():
    whole, half = causes(0), causes(1)
    for values in half.control:
        values[..., ::2] = torch.nan
    assert ArmCauses([half]).per_norm("double", "latent") == pytest.approx((2, 2, 2))
    noisy = whole.control._replace(norm=whole.control.norm * torch.rand(40) * 2)
    value, low, high = ArmCauses([Causes(noisy, whole.uniformity)]).per_norm("ablate", "latent")
    assert low < value < high
    assert value == pytest.approx(float(noisy.change[0, 0].abs().sum() / noisy.norm[0].sum()))


def test_arms_are_paired_by_seed_and_token_and_corrected_together():
    """A latent that does 1.3 times as much per norm is shown to; what is the same is not."""
    of_seeds = [causes(seed) for seed in range(3)]
    stronger = []
    for seed, own in enumerate(of_seeds):
        noise = 1 + 0.01 * torch.randn(40, generator=torch.Generator().manual_seed(seed))
        change = own.control.change * 1.3 * noise
        stronger.append(own._replace(control=own.control._replace(change=change)))
    arms = {"a": ArmCauses(of_seeds), "b": ArmCauses(stronger)}
    told = compared(arms, "a", n_resamples=200, seed=0)
    effect = told["to ablate, by norm"]["b"]
    assert effect.value == pytest.approx(math.log(1.3), abs=0.01) and effect.is_significant
    assert told["to double, off target"]["b"].value == pytest.approx(-math.log(1.3), abs=0.01)
    same = told["8 alone"]["b"]
    assert same.value == 0 and not same.is_significant
    assert len(told) == 8 and all(list(cells) == ["b"] for cells in told.values())
