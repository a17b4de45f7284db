"""Each way to be stuck, provoked in a real (small) training run, and named with its fix."""

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import AutoModel

from hfsae import BatchTopKSAEConfig, JumpReLUSAE, JumpReLUSAEConfig, ReLUSAEConfig, SAEConfig
from hfsae.training import Trainer, TrainingArguments
from hfsae.training.health import HealthReading, diagnose

from .planted import PlantedStream


class ChangedStream(PlantedStream):
    """Planted activations, changed by a function of them and of their part's number."""

    def __init__(self, change: Callable[[Tensor, int], Tensor]) -> None:
        super().__init__()
        self.change = change

    def part(self, number: int, n: int) -> dict[str, Tensor]:
        return {at: self.change(x, number) for at, x in super().part(number, n).items()}


def sentences(tmp_path, *, sae: dict, **more) -> list[str]:
    fields = {"d_in": 16, "d_sae": 32, "site": "layers.1", "bandwidth": 0.1} | sae
    fields.setdefault("initial_threshold", 0.05)
    return said_of(JumpReLUSAEConfig(**fields), tmp_path, **more)


def said_of(config: SAEConfig, tmp_path, stream=None, **training) -> list[str]:
    torch.manual_seed(0)
    model = AutoModel.from_config(config)
    defaults = {
        "n_tokens": 256 * 100,
        "batch_size": 256,
        "learning_rate": 1e-3,
        "warmup_steps": 0,
        "sparsity_warmup_steps": 0,
        "logging_steps": 10,
        "save_steps": 0,
    }
    args = TrainingArguments(output_dir=str(tmp_path), **defaults | training)
    Trainer(model, stream or PlantedStream(), args).train()
    lines = map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())
    return [sentence for line in lines for sentence in line.get("health", [])]


def test_a_run_that_works_says_nothing(tmp_path):
    healthy = {"log_threshold": False, "target_l0": 3, "l0_coefficient": 0.01}
    assert sentences(tmp_path, sae=healthy, threshold_learning_rate=3e-3) == []


def test_a_window_that_nothing_falls_into(tmp_path):
    found = sentences(tmp_path, sae={"bandwidth": 1e-6})
    assert any("inside the STE window" in s and "raise sae.bandwidth" in s for s in found)


def test_logarithmic_thresholds_at_the_papers_rate_in_a_short_run(tmp_path):
    stuck = {"target_l0": 2, "log_threshold": True}
    found = sentences(tmp_path, sae=stuck, learning_rate=7e-5)
    assert any("too slowly" in s and "log_threshold=false" in s for s in found)


def test_advice_that_is_followed_already_is_not_given(tmp_path):
    stuck = {"target_l0": 2, "log_threshold": False}
    found = sentences(tmp_path, sae=stuck, learning_rate=1e-6)
    assert any("raise training.threshold_learning_rate" in s for s in found)
    assert not any("log_threshold" in s for s in found)


def test_thresholds_that_stand_still_because_rates_decay_are_no_fault(tmp_path):
    stuck = {"target_l0": 2, "log_threshold": True}
    assert not any(
        "too slowly" in s
        for s in sentences(tmp_path, sae=stuck, learning_rate=7e-5, decay_steps=99)
    )


def test_the_same_without_a_target(tmp_path):
    found = sentences(tmp_path, sae={"log_threshold": True}, learning_rate=7e-5)
    assert any("hardly leave their first value" in s for s in found)


def test_an_l0_that_collapsed(tmp_path):
    collapsed = {"log_threshold": False, "l0_coefficient": 50.0}
    found = sentences(tmp_path, sae=collapsed, threshold_learning_rate=1.0)
    assert any("thresholds overshot" in s for s in found)


def test_a_coefficient_that_saturates(tmp_path):
    stuck = {"target_l0": 1, "log_threshold": False, "l0_coefficient": 10.0}
    found = sentences(tmp_path, sae=stuck, learning_rate=1e-5, l0_gain=0.3)
    assert any("Adam takes the same step" in s for s in found)


def test_a_wrong_scale(tmp_path):
    found = sentences(tmp_path, sae={"activation_scale": 0.5})
    assert any("leave activation_scale unset" in s for s in found)


def test_a_mean_that_carries_most_of_the_norm(tmp_path):
    """And nothing is said with the unit that fits, or of a mean as in a language model's middle."""
    found = {}
    for shift in (4.0, 80.0):
        for unit in ("norm", "spread"):
            sae = {"log_threshold": False, "target_l0": 3, "subtract_b_dec": True}
            how = {"unit": unit, "init_b_dec": "mean", "threshold_learning_rate": 3e-3}
            stream = ChangedStream(lambda x, seed, s=shift: x + s)
            said = sentences(tmp_path / f"{shift}{unit}", sae=sae, stream=stream, **how)
            found[shift, unit] = any("set training.unit=spread" in s for s in said)
    assert found == {
        (4.0, "norm"): False,
        (4.0, "spread"): False,
        (80.0, "norm"): True,
        (80.0, "spread"): False,
    }


def test_a_window_that_is_much_wider_than_the_thresholds(tmp_path):
    wide = {"log_threshold": False, "bandwidth": 0.5, "initial_threshold": 0.02}
    found = sentences(tmp_path, sae=wide, learning_rate=1e-5)
    assert any("lower sae.bandwidth to about 0.04" in s for s in found)


def test_most_latents_dead(tmp_path):
    dead = {"log_threshold": False, "l0_coefficient": 1.0}
    training = {"learning_rate": 1.0, "dead_after_tokens": 1000}
    found = sentences(tmp_path, sae=dead, **training)
    assert any("of latents are dead" in s and "l0_coefficient" in s for s in found)


@pytest.mark.parametrize("learning_rate, is_too_high", [(1e-3, False), (1.0, True)])
def test_most_latents_dead_without_thresholds(tmp_path, learning_rate, is_too_high):
    config = ReLUSAEConfig(d_in=16, d_sae=32, site="layers.1", target_l0=3)
    found = said_of(config, tmp_path, learning_rate=learning_rate, dead_after_tokens=1000)
    is_said = any("of latents are dead: lower training.learning_rate" in s for s in found)
    assert is_said == is_too_high


@pytest.mark.parametrize("aux, is_named", [(0.0, True), (1 / 32, False)])
def test_most_latents_dead_in_a_warm_start(tmp_path, aux, is_named):
    sae = {"log_threshold": False, "target_l0": 3, "aux_coefficient": aux}
    training = {"learning_rate": 1.0, "dead_after_tokens": 1000, "warm_start_steps": 0.9}
    found = sentences(tmp_path, sae=sae, **training)
    dead = [s for s in found if "of latents are dead: lower training.learning_rate" in s]
    assert dead and all(("sae.aux_coefficient" in s) == is_named for s in dead)


def test_thresholds_stay_float32_in_a_bfloat16_run_and_move(tmp_path):
    torch.manual_seed(0)
    config = JumpReLUSAEConfig(d_in=16, d_sae=32, site="layers.1", log_threshold=False)
    sae = JumpReLUSAE(config).to(torch.bfloat16)
    args = TrainingArguments(
        output_dir=str(tmp_path), n_tokens=2560, batch_size=256, bf16=True, save_steps=0
    )
    before = sae.threshold.detach().clone()
    Trainer(sae, PlantedStream(), args).train()
    assert sae.threshold.dtype == torch.float32
    assert 0 < (sae.threshold - before).abs().max() < 0.01


def test_warm_ups_longer_than_a_run_end_in_its_middle(tmp_path):
    config = JumpReLUSAEConfig(d_in=16, d_sae=32, site="layers.1", target_l0=3)
    args = TrainingArguments(output_dir=str(tmp_path), n_tokens=2560, batch_size=256, save_steps=0)
    run = Trainer(JumpReLUSAE(config), PlantedStream(), args).runs[""]
    assert [run.control.warmup(step) for step in (4, 5, 9)] == [5 / 6, 1.0, 1.0]


def test_while_lambda_rises_an_l0_above_its_target_has_no_other_cause():
    stuck = HealthReading(10, 90, 0.1, 90.0, 90.0, 50.0, 1.0, 0.0, 2.0, 0.0, 1.0)
    assert any("thresholds move" in sentence for sentence in diagnose(stuck))
    assert diagnose(replace(stuck, warming_up=True)) == []


@pytest.mark.parametrize("share, is_told", [(0.9, True), (0.0, False)])
def test_latents_that_never_fire_where_they_start_at_data(share, is_told, tmp_path):
    """Trained on less than they start at: the same few activations each time."""

    class Few(PlantedStream):
        def part(self, number, n):
            made = super().part(min(number, 1), n)
            return made if number == 0 else {at: x[:2] for at, x in made.items()}

    config = BatchTopKSAEConfig(d_in=16, d_sae=32, site="layers.1", k=1)
    found = said_of(config, tmp_path, Few(), init_decoder_data=share, n_tokens=256 * 20)
    advice = [s for s in found if "have not fired since the start" in s]
    assert bool(advice) == is_told
    assert all("set training.init_whitening=0.75" in s for s in advice)
