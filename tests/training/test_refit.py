"""After the last step the decoder is fitted once more, by least squares."""

import json
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import hfsae
from hfsae.training import Trainer
from hfsae.training.health import set_l0_
from hfsae.training.refit import refit_
from hfsae.training.run import MOST_REFITTED

from ..helpers import D_IN, SCALE, cases, make
from .planted import PlantedStream, arguments, assert_same_bits, make_sae, stop_at, weights

VARIANTS = {name: case for name, case in cases().items() if "matryoshka" not in name}
BY_RANK = ("topk_sae", "batch_topk_sae")


def planted(n: int = 3000) -> torch.Tensor:
    """Activations of some directions, so that latents have something to write."""
    generator = torch.Generator().manual_seed(1)
    directions = torch.randn(40, D_IN, generator=generator)
    on = torch.rand(n, 40, generator=generator) < 0.15
    return SCALE / 4 * (on * torch.rand(n, 40, generator=generator)) @ directions + 1.0


def ridge_regression(f: np.ndarray, error: np.ndarray, ridge: float) -> np.ndarray:
    """What the rows gain, by least squares on activations and the ridge's own rows beside them."""
    f = f - f.mean(axis=0)
    pulled = np.diag(np.sqrt(ridge * (f**2).sum(axis=0)))
    rows = np.vstack([f, pulled])
    wanted = np.vstack([error - error.mean(axis=0), np.zeros((len(pulled), error.shape[1]))])
    return np.linalg.lstsq(rows, wanted, rcond=None)[0]


@torch.no_grad()
def error_of(sae: hfsae.SAE, x: torch.Tensor, target: torch.Tensor | None = None) -> float:
    return float(((x if target is None else target) - sae(x).recon).square().sum())


@pytest.mark.parametrize("name", VARIANTS)
def test_rows_and_bias_are_those_of_a_ridge_regression(name):
    x, sae = planted(), make(VARIANTS[name]).eval().folded()
    f, before = sae.encode(x).detach().double(), sae.W_dec.detach().double()
    error = (x - sae(x).recon).detach().double()
    change = ridge_regression(f.numpy(), error.numpy(), 0.2)
    bias = sae.b_dec.detach().double() + error.mean(0) - f.mean(0) @ torch.from_numpy(change)
    refit_(sae, x, x, ridge=0.2)
    rows = before + torch.from_numpy(change)
    norms = rows.norm(dim=1)
    torch.testing.assert_close(sae.W_dec.double(), rows / norms[:, None], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(sae.b_dec.double(), bias, atol=1e-3, rtol=1e-3)
    if name not in BY_RANK:
        torch.testing.assert_close(sae.encode(x).double(), f * norms, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_error_is_smaller_and_rows_have_norm_1(name):
    x, sae = planted(), make(VARIANTS[name]).eval().folded()
    before = error_of(sae, x)
    refit_(sae, x, x, ridge=0.1)
    assert error_of(sae, x) < 0.9 * before
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(len(sae.W_dec)))


def test_a_large_ridge_changes_nothing_but_the_bias_and_a_silent_latent_keeps_its_row():
    x, sae = planted(), make(VARIANTS["jumprelu_sae"]).eval().folded()
    with torch.no_grad():
        sae.b_enc[3] = -1e6
    before = weights(sae)
    other = sae.folded()
    refit_(sae, x, x, ridge=1e8)
    torch.testing.assert_close(sae.W_dec, before["W_dec"], atol=1e-5, rtol=1e-5)
    refit_(other, x, x, ridge=0.1)
    assert torch.equal(other.W_dec[3], before["W_dec"][3])
    assert not torch.allclose(other.W_dec[4], before["W_dec"][4], atol=1e-2)


def test_batch_topk_has_k_latents_on_these_activations_again():
    x, sae = planted(), make(VARIANTS["batch_topk_sae"], k=6).eval().folded()
    refit_(sae, x, x, ridge=0.1)
    assert float((sae.encode(x) != 0).sum(-1).float().mean()) == pytest.approx(6, abs=0.01)


def test_a_transcoders_rows_follow_the_target_and_its_skip_connection_stays():
    x, target = planted(), planted().flip(1)
    fields = {"target_site": "layers.1.mlp", "target_scale": SCALE, "skip_connection": True}
    sae = make(VARIANTS["jumprelu_sae"], **fields).eval().folded()
    skip, before = sae.W_skip.clone(), error_of(sae, x, target)
    refit_(sae, x, target, ridge=0.1)
    assert error_of(sae, x, target) < 0.9 * before
    assert torch.equal(sae.W_skip, skip)


def test_a_run_ends_with_it_and_a_stopped_one_with_the_same_bits(tmp_path):
    plain = Trainer(make_sae(), PlantedStream(), arguments(tmp_path / "plain")).train()
    args = arguments(tmp_path / "whole", refit_ridge=0.1)
    stream = PlantedStream()
    whole = Trainer(make_sae(), stream, args).train()
    x = stream.held()["layers.1"]
    assert error_of(whole, x) < error_of(plain, x)
    refit_(plain, x, x, ridge=0.1)
    assert_same_bits(weights(whole), weights(plain))
    args = arguments(tmp_path / "stopped", refit_ridge=0.1)
    stream = PlantedStream()
    stream.next_batch = stop_at(stream, 30)
    with pytest.raises(KeyboardInterrupt):
        Trainer(make_sae(), stream, args).train()
    assert_same_bits(weights(Trainer(make_sae(), PlantedStream(), args).train()), weights(whole))
    kept = load_file(tmp_path / "stopped" / "model.safetensors")
    assert_same_bits(kept, {name: whole.state_dict()[name] for name in kept})


def test_nested_reconstructions_are_left_as_they_are(tmp_path):
    ends = []
    for ridge in (None, 0.1):
        torch.manual_seed(0)
        config = hfsae.MatryoshkaBatchTopKSAEConfig(d_in=16, d_sae=32, k=4, site="layers.1")
        sae = hfsae.MatryoshkaBatchTopKSAE(config)
        args = arguments(tmp_path / str(ridge), steps=4, refit_ridge=ridge)
        ends.append(weights(Trainer(sae, PlantedStream(), args).train()))
    assert_same_bits(*ends)


class Memoryless:
    """A stream with the methods that a training without a refit calls."""

    def __init__(self) -> None:
        self._stream = PlantedStream()
        self.next_batch, self.sample = self._stream.next_batch, self._stream.sample
        self.progress, self.state_dict = self._stream.progress, self._stream.state_dict
        self.load_state_dict = self._stream.load_state_dict


@pytest.mark.parametrize(
    "stream, d_sae, words",
    [
        (Memoryless(), 32, "this stream has no method held"),
        (PlantedStream(), MOST_REFITTED + 1, "training.refit_ridge would hold 9 GB for 32,769"),
    ],
)
def test_what_cannot_be_refitted_is_refused_before_the_first_step(stream, d_sae, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        Trainer(make_sae(d_sae=d_sae), cast(Any, stream), arguments(tmp_path, refit_ridge=0.1))


class Unread(PlantedStream):
    """With activations that training does not read: twice as many directions in each."""

    def validation(self, n: int) -> dict[str, torch.Tensor]:
        self.l0 = 6.0
        return self.part(10**6, n)


def of_k(kind: str, **more) -> hfsae.SAE:
    torch.manual_seed(0)
    config = getattr(hfsae, kind + "Config")(d_in=16, d_sae=32, k=4, site="layers.1", **more)
    return getattr(hfsae, kind)(config)


@pytest.mark.parametrize("kind", ["JumpReLUSAE", "BatchTopKSAE", "MatryoshkaBatchTopKSAE"])
def test_l0_is_what_is_asked_for_on_activations_that_training_did_not_read(kind, tmp_path):
    trained = {}
    for n in (0, 4096):
        sae = make_sae(target_l0=4.0) if kind == "JumpReLUSAE" else of_k(kind)
        args = arguments(tmp_path / str(n), refit_ridge=0.1, calibration_tokens=n)
        trained[n] = Trainer(sae, Unread(), args).train()
    x = Unread().validation(20_000)["layers.1"]
    l0 = {n: float((sae.encode(x) != 0).sum(-1).float().mean()) for n, sae in trained.items()}
    assert abs(l0[4096] - 4) < 0.12 < abs(l0[0] - 4)
    ratio = (trained[4096].threshold / trained[0].threshold).detach().flatten()
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio))
    record = json.loads((tmp_path / "4096" / "training.json").read_text())
    assert record["threshold_factor"] == pytest.approx(float(ratio[0]), rel=1e-5)


def test_thresholds_of_zero_stay_and_what_cannot_be_reached_is_told(caplog):
    x = Unread().validation(2000)["layers.1"]
    sae = make_sae(target_l0=6.0).eval().folded()
    with torch.no_grad():
        sae.threshold[3] = 0.0
        sae.b_enc[3] = -1e6  # silent, for all that
    while set_l0_(sae, x) in (0.25, 4.0):  # an untrained one's are far off
        caplog.clear()
    assert set_l0_(sae, x) == pytest.approx(1) and sae.threshold[3] == 0
    assert float((sae.encode(x) != 0).sum(-1).float().mean()) == pytest.approx(6, abs=0.05)
    assert not caplog.text
    with torch.no_grad():
        sae.threshold.mul_(100)
    assert set_l0_(sae, x) == 0.25
    assert "L0 is not 6 where training did not read" in caplog.text


def test_a_stream_that_has_nothing_unread_is_refused_before_the_first_step(tmp_path):
    with pytest.raises(ValueError, match="this stream has no method validation"):
        Trainer(make_sae(), PlantedStream(), arguments(tmp_path, calibration_tokens=10))
