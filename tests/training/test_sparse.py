"""Sparse steps train to where dense ones do, repeat to the bit, give way where they are slow."""

import logging
from unittest.mock import Mock

import pytest
import torch
from accelerate import Accelerator
from transformers import AutoConfig, AutoModel

from hfsae.ops import Workspace
from hfsae.training import Trainer, trainer
from hfsae.training.run import Run, has_sparse_steps
from hfsae.training.trainer import make_accelerator

from .planted import (
    PlantedStream,
    arguments,
    assert_same_bits,
    make_sae,
    stop_at,
    weights,
)

D_IN, D_SAE, L0 = 64, 512, 8
KINDS = {
    "jumprelu": {"model_type": "jumprelu_sae", "bandwidth": 0.05, "initial_threshold": 0.15},
    "log_threshold": {"model_type": "jumprelu_sae", "bandwidth": 0.05, "initial_threshold": 0.15},
    "jumprelu_aux": {
        "model_type": "jumprelu_sae",
        "bandwidth": 0.05,
        "initial_threshold": 0.15,
        "aux_coefficient": 1 / 32,
        "aux_k": 16,
    },
    "topk": {"model_type": "topk_sae", "k": L0, "aux_k": 16},
    "multi_topk": {
        "model_type": "topk_sae",
        "k": L0,
        "aux_k": 16,
        "multi_topk_coefficient": 1 / 8,
    },
    "batch_topk": {"model_type": "batch_topk_sae", "k": L0, "aux_k": 16},
    "matryoshka": {"model_type": "matryoshka_batch_topk_sae", "k": L0, "aux_k": 16},
    "matryoshka_jumprelu": {
        "model_type": "matryoshka_jumprelu_sae",
        "bandwidth": 0.05,
        "initial_threshold": 0.15,
    },
    "relu": {"model_type": "relu_sae"},
    "gated": {"model_type": "gated_sae"},
}


def stream() -> PlantedStream:
    return PlantedStream(batch_size=256, d=D_IN, n_features=D_SAE, l0=L0)


def make(kind: str):
    torch.manual_seed(0)
    fields = {"d_in": D_IN, "d_sae": D_SAE, "site": "layers.1", **KINDS[kind]}
    if kind in ("jumprelu", "relu"):
        fields["subtract_b_dec"] = True
    if fields["model_type"].endswith("jumprelu_sae"):
        fields["log_threshold"] = kind == "log_threshold"
    sae = AutoModel.from_config(AutoConfig.for_model(**fields))
    with torch.no_grad():
        if kind in ("relu", "gated"):
            sae.b_enc -= 0.15  # else half of all entries matter at first
    return sae


def run(kind: str, folder, sparse: str, **fields) -> tuple[Run, PlantedStream]:
    defaults = {"steps": 200, "max_grad_norm": 0.5, "dead_after_tokens": 3000}
    # Adam divides tiny gradients by themselves: their rounding would grow into another run.
    defaults |= {"learning_rate": 3e-4, "threshold_learning_rate": 3e-4, "adam_epsilon": 1e-6}
    args = arguments(folder, sparse=sparse, **defaults | fields)
    made, source = Run(make(kind), args, make_accelerator(args)), stream()
    made.initialise(source.sample(4096))
    return made, source


# One of each way to choose latents and of each loss; tests/models/test_sparse.py has the gradients
# of every variant.
LONG = ("jumprelu_aux", "multi_topk", "batch_topk", "matryoshka_jumprelu", "gated")


@pytest.mark.slow
@pytest.mark.parametrize("kind", LONG)
def test_after_a_hundred_steps_the_loss_is_that_of_dense_steps(kind, tmp_path):
    """Clipped by gradient norm, Adam, dead latents and all; three steps agree much closer."""
    (dense, source), (sparse, _) = run(kind, tmp_path, "never"), run(kind, tmp_path, "always")
    losses = []
    for step in range(100):
        batch = source.next_batch()
        losses.append([r.step(batch, step, log=True)["loss"] for r in (dense, sparse)])
    expected, found = torch.tensor(losses, dtype=torch.float64).T
    assert torch.allclose(found[:3], expected[:3], rtol=1e-6)
    assert torch.allclose(found[-20:].mean(), expected[-20:].mean(), rtol=1e-4)
    # One pre-activation that rounds to the other side of its threshold moves a batch's loss by up
    # to 1e-3 here; so does summing the same dense batch in another order.
    assert torch.allclose(found, expected, rtol=2e-3)
    assert dense.is_sparse is False and sparse.is_sparse is True
    assert expected[-1] < 0.95 * expected[0]


@pytest.mark.parametrize("kind", ["jumprelu", "topk", "batch_topk"])
def test_sparse_runs_resume_and_train_together_to_the_bit(kind, tmp_path):
    fields = {"sparse": "always", "warm_start_steps": 10, "max_grad_norm": 1.0}
    whole, other, stopped, resumed = (make(kind) for _ in range(4))
    together = {"a": whole, "b": make_sae(seed=1, d_in=D_IN, d_sae=48)}
    Trainer(together, stream(), arguments(tmp_path / "whole", **fields)).train()
    Trainer(other, stream(), arguments(tmp_path / "alone", **fields)).train()
    assert_same_bits(weights(other), weights(whole))
    args, stopping = arguments(tmp_path / "parts", **fields), stream()
    stopping.next_batch = stop_at(stopping, 13)
    with pytest.raises(KeyboardInterrupt):
        Trainer(stopped, stopping, args).train()
    Trainer(resumed, stream(), args).train()
    assert_same_bits(weights(resumed), weights(whole))


@pytest.mark.parametrize("kind", ["jumprelu", "gated"])
def test_four_parts_make_the_same_sparse_step_as_one(kind, tmp_path):
    (one, source), (four, _) = (
        run(kind, tmp_path, "always", gradient_accumulation_steps=n) for n in (1, 4)
    )
    for step in range(20):
        batch = source.next_batch()
        expected, found = (r.step(batch, step, log=True) for r in (one, four))
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)


def test_bf16_leaves_sparse_steps_exact(tmp_path):
    (exact, source), (low, _) = (
        run("jumprelu", tmp_path, "always", bf16=bf16) for bf16 in (False, True)
    )
    for step in range(5):
        batch = source.next_batch()
        assert low.step(batch, step, log=True) == exact.step(batch, step, log=True)


def test_auto_is_dense_while_many_entries_matter_and_says_when_it_changes(tmp_path, caplog):
    args = arguments(tmp_path, steps=60, adam_beta1=0.9)
    torch.manual_seed(0)
    config = AutoConfig.for_model("relu_sae", d_in=D_IN, d_sae=1024, site="layers.1")
    one, source = Run(AutoModel.from_config(config), args, make_accelerator(args)), stream()
    kinds = []
    with caplog.at_level(logging.INFO, logger="hfsae.training"):
        one.initialise(source.sample(4096))
        for step in range(60):
            if step == 30:
                with torch.no_grad():
                    one.sae.b_enc -= 1.0
            one.step(source.next_batch(), step)
            kinds.append(one.is_sparse)
    assert not any(kinds[:30]) and all(kinds[30:])
    assert [r.message.split(":")[0] for r in caplog.records] == ["sparse steps"]


@pytest.mark.parametrize(
    ("device", "can"), [("cpu", True), ("cuda", True), ("mps", False), ("xpu", False)]
)
def test_sparse_steps_are_for_cpus_and_cuda(device, can, tmp_path):
    """PyTorch calls AMD cards "cuda", too. On others steps are dense, and no others are taken."""
    sae = make("jumprelu")
    assert has_sparse_steps(sae, torch.device(device), is_spread=False) is can
    assert not has_sparse_steps(sae, torch.device(device), is_spread=True)
    of = {"device": torch.device(device), "num_processes": 1, "prepare": lambda sae: sae}
    accelerator = Mock(spec=Accelerator, **of)
    assert not Run(sae, arguments(tmp_path), accelerator).is_sparse  # until a density is known
    always = arguments(tmp_path, sparse="always")
    if can:
        assert Run(sae, always, accelerator).is_sparse
    else:
        with pytest.raises(ValueError, match=f"as configured on {device} has no sparse step"):
            Run(sae, always, accelerator)


@pytest.mark.parametrize("has_mps", [False, True])
def test_a_training_on_an_apple_machine_takes_the_cpu(has_mps, tmp_path, monkeypatch):
    """MPS lacks float64."""
    asked = {}

    def accelerator(**options):
        asked.update(options)
        return Mock(spec=Accelerator, num_processes=1)

    monkeypatch.setattr(trainer, "Accelerator", accelerator)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: has_mps)
    make_accelerator(arguments(tmp_path))
    assert asked["cpu"] is has_mps


def test_on_a_device_without_sparse_steps_a_pass_is_dense_or_refused():
    sae, x = make("jumprelu").to("meta"), torch.zeros(2, D_IN, device="meta")
    assert sae(x).latents.shape == (2, D_SAE)
    with pytest.raises(ValueError, match="runs on cpu and cuda, and x is on meta; leave workspace"):
        sae(x, workspace=Workspace())


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_on_a_gpu_sparse_steps_follow_dense_ones_and_repeat_to_the_bit(kind, tmp_path):
    (dense, source), *both = (run(kind, tmp_path, s) for s in ("never", "always", "always"))
    assert dense.accelerator.device.type == "cuda"
    for step in range(20):
        batch = source.next_batch()
        expected = dense.step(batch, step, log=True)["loss"]
        found = [one.step(batch, step, log=True)["loss"] for one, _ in both]
        assert found[0] == found[1] == pytest.approx(expected, rel=2e-3)
        assert step >= 3 or found[0] == pytest.approx(expected, rel=1e-5)
    assert_same_bits(*(weights(one.sae) for one, _ in both))


def test_auto_leaves_small_dictionaries_dense(tmp_path):
    one, source = run("topk", tmp_path, "auto")
    one.step(source.next_batch(), 0)
    assert not one.is_sparse


def test_sparse_steps_that_cannot_be_are_refused(tmp_path):
    config = AutoConfig.for_model("topk_sae", d_in=D_IN, d_sae=64, k=4, relu=False)
    sae, args = AutoModel.from_config(config), arguments(tmp_path, sparse="always")
    with pytest.raises(ValueError, match=r"sparse='always': a TopKSAE .* has no sparse step"):
        Trainer(sae, stream(), args)
