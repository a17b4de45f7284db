"""Rates, coefficient and bandwidth over the steps of a run, against their closed forms."""

import pytest
import torch

from hfsae.training import Trainer
from hfsae.training.arguments import (
    cosine_warmup,
    geometric,
    in_steps,
    linear_decay,
    linear_warmup,
    steer,
)
from hfsae.training.run import Optimiser

from .planted import PlantedStream, arguments, make_sae


@pytest.mark.parametrize(
    "duration, steps", [(0, 0), (0.25, 50), (0.999, 200), (1, 1), (30, 30), (1000, 1000), (2.0, 2)]
)
def test_durations_below_one_are_fractions_of_200_steps(duration, steps):
    assert in_steps(duration, 200) == steps


def test_cosine_warmup_goes_from_a_tenth_through_the_middle_to_one():
    assert [cosine_warmup(step, 1000) for step in (0, 500, 1000, 5000)] == pytest.approx(
        [0.1, 0.55, 1.0, 1.0]
    )
    assert cosine_warmup(0, 0) == 1.0


def test_linear_warmup_never_starts_at_zero():
    assert [linear_warmup(step, 3) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert linear_warmup(0, 0) == 1.0


def test_linear_decay_covers_the_last_steps_only():
    assert [linear_decay(step, 100, 20) for step in (0, 80, 90, 99)] == [1.0, 1.0, 0.5, 0.05]
    assert linear_decay(99, 100, 0) == 1.0


def test_geometric_has_equal_factors():
    assert [geometric(step, 2, 16.0) for step in range(4)] == [16.0, 4.0, 1.0, 1.0]
    assert geometric(0, 0, 16.0) == 1.0


def test_steering_is_bounded_and_knows_its_direction():
    assert steer(2.0, 50.0, 50.0, 0.1) == 2.0
    assert steer(2.0, 1e9, 50.0, 0.1) == pytest.approx(2.0 * 1.10517, rel=1e-5)
    assert steer(2.0, 0.0, 50.0, 0.1) == pytest.approx(2.0 / 1.10517, rel=1e-5)
    assert steer(2.0, 55.0, 50.0, 0.1) > 2.0 > steer(2.0, 45.0, 50.0, 0.1)


def test_decoder_and_thresholds_have_rates_of_their_own(tmp_path):
    sae = make_sae(target_l0=2.0)
    args = arguments(tmp_path, steps=10, warmup_steps=0, decay_steps=0)
    args.learning_rate, args.decoder_rate_factor, args.threshold_learning_rate = 1e-3, 3.0, 5e-4
    optimiser = Optimiser(sae, args)
    before = {name: p.detach().clone() for name, p in sae.named_parameters()}
    for p in sae.parameters():
        p.grad = torch.ones_like(p)
    optimiser.step(0, 0)
    moved = {
        name: float((before[name] - p.detach()).abs().max()) for name, p in sae.named_parameters()
    }
    expected = {"W_enc": 1e-3, "b_enc": 1e-3, "b_dec": 1e-3, "W_dec": 3e-3, "threshold": 5e-4}
    assert moved == pytest.approx(expected, rel=1e-3)


def test_the_bandwidth_begins_wide_where_the_warm_start_ends(tmp_path):
    sae, seen = make_sae(target_l0=3.0), []
    losses = sae.sparsity_losses
    sae.sparsity_losses = lambda parts, schedule: (
        seen.append(schedule.bandwidth) or losses(parts, schedule)
    )
    more = {"warm_start_steps": 4, "bandwidth_steps": 4, "bandwidth_start": 8.0}
    Trainer(sae, PlantedStream(), arguments(tmp_path, 10, save_steps=0, **more)).train()
    narrowing = [8.0 ** (1 - i / 4) for i in range(5)]
    assert seen == pytest.approx([*[0.0] * 4, *narrowing, 1.0])  # no window while they are shared
