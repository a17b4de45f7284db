"""Training is the same however it is arranged: together or alone, in parts, stopped and resumed."""

import json
import os
import signal
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from transformers import AutoConfig, AutoModel

from hfsae import TopKSAE, TopKSAEConfig
from hfsae.training import Trainer, TrainingArguments, checkpoint
from hfsae.training.start import sample_size
from hfsae.training.trainer import make_accelerator

from ..helpers import held_elsewhere
from .planted import (
    PlantedStream,
    arguments,
    assert_same_bits,
    make_sae,
    stop_at,
    weights,
)


def test_training_finds_the_planted_directions_and_saves_a_folded_sae(tmp_path):
    sae, stream = make_sae(target_l0=3.0, subtract_b_dec=True), PlantedStream()
    args = arguments(tmp_path, steps=1000, decay_steps=0.3, warm_start_steps=0.5, adam_beta1=0.9)
    trained = Trainer(sae, stream, args).train()
    loaded = AutoModel.from_pretrained(tmp_path)
    x = stream.part(123, 4096)["layers.1"]
    out = loaded(x)
    assert torch.equal(out.recon, trained(x).recon)
    assert loaded.config.activation_scale == 1.0 and not loaded.config.subtract_b_dec
    fvu = (x - out.recon).square().sum() / (x - x.mean(0)).square().sum()
    l0 = (out.latents != 0).sum(-1).float().mean().item()
    found = (loaded.W_dec @ stream.directions.T).max(dim=0).values
    assert l0 == pytest.approx(3.0, rel=0.05)
    assert fvu < 0.25 and found.mean() > 0.7  # 0.9 and 0.5 before training


def test_l0_stays_where_the_warm_start_left_it_whatever_lambda_was_given(tmp_path):
    sae = make_sae(target_l0=3.0, subtract_b_dec=True, l0_coefficient=6e-4)
    args = arguments(tmp_path, steps=400, warm_start_steps=200, adam_beta1=0.9)
    Trainer(sae, PlantedStream(), args).train()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    after = [line for line in lines if line["step"] >= 200]
    first = after[0]
    assert first["l0_coefficient"] == pytest.approx(first["threshold_median"] ** 2, rel=0.05)
    assert all(0.7 < line["l0"] / 3.0 < 1.3 for line in after)  # 10 of 3 if lambda stays at 6e-4


def test_the_scale_is_the_root_of_the_mean_squared_norm_and_given_ones_stay(tmp_path):
    estimated, given = make_sae(), make_sae(activation_scale=5.0)
    stream = PlantedStream()
    Trainer({"a": estimated, "b": given}, stream, arguments(tmp_path, steps=1)).train()
    expected = stream.sample(4096)["layers.1"].square().sum(-1).mean().sqrt().item()
    assert estimated.config.activation_scale == pytest.approx(expected, rel=1e-6)
    assert given.config.activation_scale == 5.0


def test_trained_together_equals_trained_alone_to_the_bit(tmp_path):
    settings = {"a": {"target_l0": 3.0}, "b": {"l0_coefficient": 0.1, "d_sae": 48}}
    settings["c"] = {"site": "layers.2", "log_threshold": True}
    sites = ("layers.1", "layers.2")
    fields = {"warm_start_steps": 0.5, "max_grad_norm": 1.0}
    own = {"b": {"init_decoder_data": 0.9, "init_cluster_rounds": 1}}  # from a larger sample
    together = {name: make_sae(**fields_) for name, fields_ in settings.items()}
    args = arguments(tmp_path / "together", **fields)
    theirs = {name: replace(args, **more) for name, more in own.items()}
    stream, asked = PlantedStream(sites=sites), []
    sample = stream.sample
    stream.sample = lambda n: asked.append(n) or sample(n)
    Trainer(together, stream, args, own=theirs).train()
    assert asked[0] == sample_size(theirs["b"]) > sample_size(args)
    for name, fields_ in settings.items():
        alone = make_sae(**fields_)
        args = arguments(tmp_path / name, **fields | own.get(name, {}))
        Trainer(alone, PlantedStream(sites=sites), args).train()
        assert_same_bits(weights(alone), weights(together[name]))


@pytest.mark.parametrize("stop_after", [3, 10, 20, 25, 39])
def test_a_resumed_run_ends_as_an_uninterrupted_one_to_the_bit(tmp_path, stop_after):
    fields = {"target_l0": 3.0, "log_threshold": stop_after % 2 == 1}
    whole, stopped, resumed = (make_sae(**fields) for _ in range(3))
    more = {"warm_start_steps": 20, "decay_steps": 0.5, "max_grad_norm": 1.0}
    Trainer(whole, PlantedStream(), arguments(tmp_path / "whole", **more)).train()
    args = arguments(tmp_path / "parts", **more)
    stopping = PlantedStream()
    stopping.next_batch = stop_at(stopping, stop_after)
    with pytest.raises(KeyboardInterrupt):
        Trainer(stopped, stopping, args).train()
    trainer = Trainer(resumed, PlantedStream(), args)
    trainer.train()
    assert_same_bits(weights(whole), weights(resumed))
    logs = [(tmp_path / folder / "log.jsonl").read_text() for folder in ("whole", "parts")]
    assert logs[0] == logs[1]
    folders = (tmp_path / "whole", tmp_path / "parts")
    fvus = [json.loads((f / "training.json").read_text())["fvu_in_training"] for f in folders]
    assert fvus[0] == fvus[1] > 0


def test_a_stream_of_another_site_is_one_sentence(tmp_path):
    trainer = Trainer(make_sae(site="model.layers.1"), PlantedStream(), arguments(tmp_path))
    with pytest.raises(ValueError, match=r"needs site .model\.layers\.1., but .* layers\.1;"):
        trainer.train()


def test_ctrl_c_in_the_first_bucket_leaves_nothing_that_a_run_would_begin_from(tmp_path):
    """What is estimated from the sample (scale, bias, threshold) is not there yet."""
    whole, stopped, resumed = (make_sae(target_l0=3.0) for _ in range(3))
    more = {"warm_start_steps": 20, "init_b_dec": "mean"}
    Trainer(whole, PlantedStream(), arguments(tmp_path / "whole", **more)).train()
    args, stopping = arguments(tmp_path / "parts", **more), PlantedStream()

    def fill(n: int):
        os.kill(os.getpid(), signal.SIGINT)
        stopping.progress(1, n)
        pytest.fail("the bucket was filled to its end")

    stopping.sample = fill
    with pytest.raises(KeyboardInterrupt):
        Trainer(stopped, stopping, args).train()
    Trainer(resumed, PlantedStream(), args).train()
    assert_same_bits(weights(whole), weights(resumed))


def test_ctrl_c_while_a_bucket_is_filled_stops_at_once_and_loses_nothing(tmp_path):
    sae, stream = make_sae(), PlantedStream()
    original = stream.next_batch

    def next_batch():
        if stream.position == 7:
            os.kill(os.getpid(), signal.SIGINT)
            stream.progress(1, 100)
        return original()

    stream.next_batch = next_batch
    trainer = Trainer(sae, stream, arguments(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert trainer.steps_done == 7 and (tmp_path / "checkpoints/step-00000007.pt").exists()


def test_a_second_ctrl_c_in_mid_step_saves_nothing_torn(tmp_path):
    whole, torn, resumed = (make_sae(log_threshold=True) for _ in range(3))
    Trainer(whole, PlantedStream(), arguments(tmp_path / "whole")).train()
    args, stream = arguments(tmp_path / "parts"), PlantedStream()
    before_step_, after_step_ = torn.before_step_, torn.after_step_

    def interrupted_step() -> None:
        before_step_()
        if stream.position == 15:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    torn.before_step_, torn.after_step_ = interrupted_step, after_step_
    with pytest.raises(KeyboardInterrupt):
        Trainer(torn, stream, args).train()
    assert [p.name for p in (tmp_path / "parts/checkpoints").iterdir()] == ["step-00000010.pt"]
    Trainer(resumed, PlantedStream(), args).train()
    assert_same_bits(weights(whole), weights(resumed))


def test_ctrl_c_in_the_middle_of_a_save_waits_for_it(tmp_path):
    class Impatient:
        def __reduce__(self):  # while the state is written
            for _ in range(3):
                os.kill(os.getpid(), signal.SIGINT)
            return OrderedDict, ()

    class Stream(PlantedStream):
        def state_dict(self):
            return {**super().state_dict(), "more": Impatient()}

    with pytest.raises(KeyboardInterrupt):
        Trainer(make_sae(), Stream(), arguments(tmp_path)).train()
    newest = max((tmp_path / "checkpoints").iterdir())
    assert torch.load(newest, weights_only=True)["steps_done"] == 10


def test_a_log_that_the_disk_has_no_room_for_is_one_sentence(tmp_path, full_disk):
    args = arguments(tmp_path, logging_steps=1, save_steps=0)
    with pytest.raises(OSError, match=r"log\.jsonl \(File too large; .*MB free\): make room there"):
        Trainer(make_sae(), PlantedStream(), args).train()


def test_a_log_without_a_checkpoint_begins_anew(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 0, "loss": 1.0}\n{"step": 10, "lo')
    Trainer(make_sae(), PlantedStream(), arguments(tmp_path)).train()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 10, 20, 30]


def test_the_controller_neither_winds_up_nor_breaks_what_it_cannot_move(tmp_path):
    """Paper settings cannot reach a target in 300 steps; lambda must stay finite all the same."""
    sae = make_sae(target_l0=2.0, log_threshold=True)
    args = arguments(
        tmp_path,
        steps=300,
        learning_rate=7e-5,
        threshold_learning_rate=7e-5,
        l0_gain=0.5,
        sparsity_warmup_steps=100,
    )
    trainer = Trainer(sae, PlantedStream(), args)
    trainer.train()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    during = [line["l0_coefficient"] for line in lines if line["step"] < 100]
    assert max(during) < 0.01, "the controller must not answer for the warm-up"
    assert max(line["l0_coefficient"] for line in lines) <= 0.01 * 1e4 * (1 + 1e-6)
    assert all(torch.isfinite(p).all() for p in sae.parameters())


def test_a_run_that_diverges_stops_with_its_checkpoints_from_before(tmp_path):
    sae, stream = make_sae(), PlantedStream()
    original = stream.next_batch

    def next_batch():
        batch = original()
        return {site: x * (1e25 if stream.position > 25 else 1) for site, x in batch.items()}

    stream.next_batch = next_batch
    with pytest.raises(ValueError, match=r"no longer finite .*; lower training\.learning_rate"):
        Trainer(sae, stream, arguments(tmp_path)).train()
    assert not (tmp_path / "model.safetensors").exists()
    kept = checkpoint.load(max((tmp_path / "checkpoints").iterdir()))
    assert kept["steps_done"] <= 26
    assert all(bool(p.isfinite().all()) for p in kept["runs"][""]["sae"].values())


def test_activations_that_are_no_numbers_are_not_blamed_on_the_learning_rate(tmp_path):
    stream = PlantedStream()
    original = stream.next_batch

    def next_batch():
        (site, x), *_ = original().items()
        x[3] = float("inf") if stream.position > 25 else x[3]
        return {site: x}

    stream.next_batch = next_batch
    with pytest.raises(ValueError, match=r"1 of \d+ positions at 'layers.*NaN or infinite"):
        Trainer(make_sae(), stream, arguments(tmp_path)).train()


def test_a_finished_run_trains_no_further(tmp_path):
    first, again = make_sae(), make_sae()
    Trainer(first, PlantedStream(), arguments(tmp_path)).train()
    stream = PlantedStream()
    stream.next_batch = lambda: pytest.fail("trained on")
    Trainer(again, stream, arguments(tmp_path)).train()
    assert_same_bits(weights(first), weights(again))


def test_another_run_in_the_same_folder_is_refused_by_name(tmp_path):
    Trainer(make_sae(), PlantedStream(), arguments(tmp_path)).train()
    before = (tmp_path / "model.safetensors").read_bytes()
    for sae, fields, named in [
        (make_sae(d_sae=33), {}, "d_sae is 32 there and 33 here"),
        (make_sae(), {"learning_rate": 0.5}, "learning_rate is 0.001 there and 0.5 here"),
    ]:
        with pytest.raises(ValueError, match=named):
            Trainer(sae, PlantedStream(), arguments(tmp_path, **fields)).train()
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_a_folder_that_another_trainer_works_in_is_left_alone(tmp_path):
    with held_elsewhere(tmp_path), pytest.raises(ValueError, match="is in use by process"):
        Trainer(make_sae(), PlantedStream(), arguments(tmp_path)).train()
    assert not list(tmp_path.iterdir())


def stopped_run(folder: Path, **fields) -> None:
    stream = PlantedStream()
    stream.next_batch = stop_at(stream, 15)
    with pytest.raises(KeyboardInterrupt):
        Trainer(make_sae(), stream, arguments(folder, **fields)).train()


def test_what_a_checkpoint_lacks_is_named(tmp_path):
    stopped_run(tmp_path)
    whole = checkpoint.load(max((tmp_path / "checkpoints").iterdir()))
    for key in ("identity", "runs", "stream", "rng", "seconds", "moments", "scales"):
        state = {**whole, "runs": {"": {**whole["runs"][""]}}}
        del (state if key in state else state["runs"][""])[key]
        checkpoint.save(tmp_path / "checkpoints", 15, state)
        with pytest.raises(ValueError, match=rf"15\.pt lacks '{key}'.*delete .* to train from"):
            Trainer(make_sae(), PlantedStream(), arguments(tmp_path)).train()


def test_a_damaged_checkpoint_is_refused_and_without_it_a_run_goes_on_from_the_one_before(tmp_path):
    whole, resumed = make_sae(), make_sae()
    Trainer(whole, PlantedStream(), arguments(tmp_path / "whole")).train()
    stopped_run(tmp_path)
    newest = tmp_path / "checkpoints/step-00000015.pt"
    newest.write_bytes(newest.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"15\.pt is damaged"):
        Trainer(resumed, PlantedStream(), arguments(tmp_path)).train()
    newest.unlink()
    Trainer(resumed, PlantedStream(), arguments(tmp_path)).train()
    assert_same_bits(weights(whole), weights(resumed))


@pytest.mark.parametrize("log_threshold", [False, True])
def test_four_parts_make_the_same_step_as_one(tmp_path, log_threshold):
    one, four = (make_sae(log_threshold=log_threshold, target_l0=3.0) for _ in range(2))
    Trainer(one, PlantedStream(), arguments(tmp_path / "1", adam_epsilon=1e-4)).train()
    args = arguments(tmp_path / "4", adam_epsilon=1e-4, gradient_accumulation_steps=4)
    Trainer(four, PlantedStream(), args).train()
    for name, tensor in weights(one).items():
        assert torch.allclose(tensor, weights(four)[name], atol=2e-3), name
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / n / "log.jsonl").read_text().splitlines()]
        for n in "14"
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.parametrize("target, seed", [(2.0, 0), (6.0, 1)])
def test_target_l0_is_met_from_scratch_too(tmp_path, target, seed):
    sae, stream = make_sae(seed, target_l0=target), PlantedStream()
    Trainer(sae, stream, arguments(tmp_path, steps=400, decay_steps=0.25)).train()
    latents = sae.encode(stream.part(999, 8192)["layers.1"])
    assert (latents != 0).sum(-1).float().mean().item() == pytest.approx(target, rel=0.05)


def test_a_fixed_coefficient_stays_fixed_and_more_of_it_means_fewer_latents(tmp_path):
    l0s = []
    for coefficient in (0.001, 0.01, 0.1):
        sae, folder = make_sae(l0_coefficient=coefficient), tmp_path / str(coefficient)
        Trainer(sae, PlantedStream(), arguments(folder, steps=200)).train()
        last = json.loads((folder / "log.jsonl").read_text().splitlines()[-1])
        assert last["l0_coefficient"] == coefficient
        l0s.append(last["l0"])
    assert l0s[0] > 1.2 * l0s[1] > 1.44 * l0s[2] > 0


def test_dead_latents_are_counted_in_tokens(tmp_path):
    sae = make_sae()
    with torch.no_grad():
        sae.b_enc[:8] = -100.0
    trainer = Trainer(sae, PlantedStream(), arguments(tmp_path, dead_after_tokens=1000))
    trainer.train()
    counts = trainer.runs[""].tokens_since_fired
    assert counts[:8].tolist() == [40 * 256] * 8 and counts[8:].max() < 1000
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["dead_share"] for line in lines] == [0.0] + [0.25] * 3


def test_bfloat16_products_train_to_nearly_the_same_loss(tmp_path):
    losses = []
    for bf16 in (False, True):
        folder = tmp_path / str(bf16)
        Trainer(make_sae(), PlantedStream(), arguments(folder, steps=200, bf16=bf16)).train()
        losses.append(json.loads((folder / "log.jsonl").read_text().splitlines()[-1])["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=0.02) and losses[0] != losses[1]


def test_a_tracker_gets_the_log(tmp_path):
    pytest.importorskip("tensorboard")
    args = arguments(tmp_path, report_to="tensorboard")
    Trainer(make_sae(), PlantedStream(), args).train()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "hfsae")).Reload()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    seen = [event.value for event in events.Scalars("loss")]
    assert seen == pytest.approx([line["loss"] for line in lines])


def test_what_accelerates_own_config_says_does_not_change_the_numbers(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    AcceleratorState._reset_state(True)
    accelerator = make_accelerator(TrainingArguments(output_dir=str(tmp_path)))
    assert accelerator.mixed_precision == "no" and accelerator.gradient_accumulation_steps == 1
    AcceleratorState._reset_state(True)


def test_too_few_processes_are_noticed(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"1 process.*not the 2 asked for"):
        Trainer(make_sae(), PlantedStream(), arguments(tmp_path, num_processes=2))
    monkeypatch.setenv("MASTER_PORT", "29500")  # what `accelerate launch --cpu` leaves behind
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    with pytest.raises(ValueError, match=r"not the several asked for.*torchrun --standalone"):
        Trainer(make_sae(), PlantedStream(), arguments(tmp_path))


@pytest.mark.parametrize(
    "fields",
    [
        {"n_tokens": 10},
        {"batch_size": 0},
        {"learning_rate": 0.0},
        {"logging_steps": 0},
        {"save_total_limit": 0},
        {"save_total_limit": -1},
        {"warm_start_steps": 1000},
        {"warmup_steps": -1},
        {"max_grad_norm": 0.0},
        {"num_processes": 0},
        {"adam_beta2": 1.0},
        {"l0_gain": 0.0},
    ],
)
def test_impossible_arguments_are_refused(tmp_path, fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        arguments(tmp_path, **fields)


def test_a_single_checkpoint_may_be_kept(tmp_path):
    assert arguments(tmp_path, save_total_limit=1).save_total_limit == 1


@pytest.mark.parametrize(
    "fields, l0",
    [
        ({"model_type": "relu_sae", "target_l0": 4.0}, 4.0),
        ({"model_type": "gated_sae", "target_l0": 4.0}, 4.0),
        ({"model_type": "topk_sae", "k": 4, "aux_k": 8}, None),
    ],
    ids=["relu", "gated", "topk"],
)
def test_other_variants_train_and_their_l0_obeys_too(fields, l0, tmp_path):
    torch.manual_seed(0)
    config = AutoConfig.for_model(d_in=16, d_sae=32, site="layers.1", **fields)
    args = arguments(tmp_path, steps=1000, decay_steps=0.3, adam_beta1=0.9, l0_gain=0.02)
    stream = PlantedStream()
    trained = Trainer(AutoModel.from_config(config), stream, args).train()
    x = stream.part(123, 4096)["layers.1"]
    out = AutoModel.from_pretrained(tmp_path)(x)
    assert torch.allclose(out.recon, trained(x).recon)
    fvu = (x - out.recon).square().sum() / (x - x.mean(0)).square().sum()
    assert fvu < (0.5 if fields["model_type"] == "relu_sae" else 0.25)  # L1 shrinks
    found = (out.latents != 0).float().sum(-1).mean().item()
    assert found <= 4.0 if l0 is None else abs(found / l0 - 1) < 0.15
    record = json.loads((tmp_path / "training.json").read_text())
    coefficients = record["final_coefficients"]
    assert set(coefficients) == ({"l1_coefficient"} if l0 else set())


@pytest.mark.slow
def test_dead_latents_of_a_topk_sae_come_back(tmp_path):
    """Half of the latents can never be among the largest; only the auxiliary loss reaches them."""
    alive = {}
    for coefficient in (0, 1 / 32):
        torch.manual_seed(0)
        fields = {"d_in": 16, "d_sae": 64, "k": 4, "aux_k": 16, "aux_coefficient": coefficient}
        sae = TopKSAE(TopKSAEConfig(site="layers.1", **fields))
        with torch.no_grad():
            sae.b_enc[32:] = -1.0
        args = arguments(tmp_path / str(coefficient), steps=500, dead_after_tokens=2560)
        trained = Trainer(sae, PlantedStream(), args).train()
        latents = trained.encode(PlantedStream().part(123, 4096)["layers.1"])
        alive[coefficient] = int((latents[:, 32:] != 0).any(0).sum())
    assert alive[0] == 0 and alive[1 / 32] > 8


def test_moments_of_latents_that_fell_silent_end_at_zero(tmp_path):
    """Below 1e-38 they would stay for ever, and slow Adam down by ten."""
    sae = make_sae()

    class Silencing(PlantedStream):
        def next_batch(self):
            if self.position == 20:
                with torch.no_grad():
                    sae.b_enc[:8] = -1e6
            return super().next_batch()

    how = {"adam_beta1": 0.7, "warmup_steps": 0, "warm_start_steps": 0}
    trainer = Trainer(sae, Silencing(), arguments(tmp_path, steps=330, **how))
    trainer.train()
    first = trainer.runs[""].optimiser.moments(lambda x: x)["W_dec"]["exp_avg"].abs()
    assert (first[:8] == 0).all() and (first[8:] > 1e-30).any()
