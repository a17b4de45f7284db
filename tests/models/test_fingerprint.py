"""Fingerprints: how much an SAE differs from the one that was saved, number by number."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModel

import hfsae
from hfsae import SAE
from hfsae.io.checksums import of_others, weights_hash
from hfsae.models.fingerprint import renamed, verify

FULL, LOW = (1e-4, 0.01), (0.05, 0.1)


def saved(folder: Path, dtype: torch.dtype = torch.float32) -> SAE:
    """An SAE that reads and writes four axes, saved with the fingerprint of one token on each."""
    sae = AutoModel.from_config(AutoConfig.for_model("jumprelu_sae", d_in=4, d_sae=4, site="a"))
    with torch.no_grad():
        for name, p in sae.named_parameters():
            p.copy_(torch.eye(4) if name.startswith("W") else torch.full((4,), 0.5))
        sae.b_enc.zero_()
    sae.to(dtype).save_pretrained(folder)
    hfsae.write_fingerprint(sae, 2 * torch.eye(4), folder)
    return sae


def test_latents_that_no_longer_fire_are_counted_and_their_tokens_left_out_of_differences(tmp_path):
    sae = saved(tmp_path)
    found = verify(sae, tmp_path / "fingerprint.safetensors")
    assert found.ok and found.flipped == 0 and found.weights_are_intact is True
    sae.threshold.data[0] = 3.0  # above the 2 of its token
    found = verify(sae, tmp_path / "fingerprint.safetensors")
    assert found.flipped == 1 / 4 and found.latents_difference == found.recon_difference == 0
    assert not found.ok and found.damaged == ["threshold"] and found.weights_are_intact is False
    sae.threshold.data[0], sae.b_enc.data[1] = 0.5, 0.3  # a latent of 2 becomes one of 2.3
    found = verify(sae, tmp_path / "fingerprint.safetensors")
    assert found.flipped == 0 and found.latents_difference == pytest.approx(0.3 / 2)
    assert found.recon_difference == pytest.approx(0.3 / 2.5)  # of 2 and the bias


@pytest.mark.parametrize("was", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("now", [torch.float32, torch.bfloat16])
def test_bounds_are_close_where_both_sides_have_full_precision(tmp_path, was, now):
    sae = saved(tmp_path, was).to(now)
    found = verify(sae, tmp_path / "fingerprint.safetensors")
    both = was == now == torch.float32
    assert (found.tolerance, found.flips_tolerance) == (FULL if both else LOW)
    assert found.ok and found.weights_are_intact is (True if was == now else None)


def test_a_public_one_with_another_name_is_still_of_these_weights_and_verifies(tmp_path):
    sae = saved(tmp_path)
    path = tmp_path / "fingerprint.safetensors"
    path.write_bytes(renamed(path, sae.config, {"model_name": "./lm"}))
    assert not list(of_others(tmp_path, ["fingerprint.safetensors"]))
    sae.config.model_name = "./lm"
    assert verify(sae, path).ok
    with safe_open(path, "pt") as file:
        assert weights_hash(tmp_path) in file.metadata().values()
