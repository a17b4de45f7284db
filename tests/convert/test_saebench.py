"""The object for SAEBench has what its core evaluation reads, and computes what the SAE does."""

import json

import pytest
import torch

from hfsae.convert.saebench import SAEBenchSAE
from hfsae.models import (
    BatchTopKSAE,
    BatchTopKSAEConfig,
    GatedSAE,
    GatedSAEConfig,
    JumpReLUSAE,
    JumpReLUSAEConfig,
    MatryoshkaBatchTopKSAE,
    MatryoshkaBatchTopKSAEConfig,
    ReLUSAE,
    ReLUSAEConfig,
    TopKSAE,
    TopKSAEConfig,
)

PLACE = {
    "d_in": 12,
    "d_sae": 24,
    "site": "layers.12",
    "model_name": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "activation_scale": 3.7,
    "subtract_b_dec": True,
}


def randomised(sae):
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            size = 0.25 if name.startswith("W_") else 0.1
            parameter.copy_(size * torch.randn(parameter.shape, generator=source))
            if name == "threshold":
                parameter.abs_()
    return sae


@pytest.mark.parametrize(
    "sae, architecture",
    [
        (ReLUSAE(ReLUSAEConfig(**PLACE)), "standard"),
        (JumpReLUSAE(JumpReLUSAEConfig(**PLACE)), "jumprelu"),
        (GatedSAE(GatedSAEConfig(**PLACE)), "jumprelu"),
        (TopKSAE(TopKSAEConfig(**PLACE, k=4)), "topk"),
        (BatchTopKSAE(BatchTopKSAEConfig(**PLACE, k=4)), "jumprelu"),
        (MatryoshkaBatchTopKSAE(MatryoshkaBatchTopKSAEConfig(**PLACE, k=4)), "jumprelu"),
    ],
)
def test_latents_and_reconstructions_are_the_saes(sae, architecture):
    sae, x = randomised(sae), 3 * torch.randn(16, 12, generator=torch.Generator().manual_seed(1))
    benched, out = SAEBenchSAE(sae), sae(x)
    latents = benched.encode(x)
    assert 0 < (latents != 0).float().mean() < 1
    assert (latents - out.latents).abs().max() < 1e-5
    assert (benched.decode(latents) - out.recon).abs().max() < 1e-5
    assert benched.cfg.architecture == architecture


def test_the_config_says_where_the_sae_belongs_and_takes_more_fields():
    cfg = SAEBenchSAE(JumpReLUSAE(JumpReLUSAEConfig(**PLACE)), prepend_bos=False).cfg
    assert json.loads(json.dumps(cfg.to_dict())) == {
        "model_name": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "hook_name": "blocks.12.hook_resid_post",
        "hook_layer": 12,
        "d_in": 12,
        "d_sae": 24,
        "architecture": "jumprelu",
        "dtype": "float32",
        "normalize_activations": "none",
        "prepend_bos": False,
    }
    cfg.architecture_str = "jumprelu"  # SAEBench adds such fields
    cfg.model_name = "elsewhere"
    assert cfg.to_dict()["model_name"] == "elsewhere" and cfg.architecture_str == "jumprelu"


def test_weights_lie_as_in_saelens_and_are_folded():
    sae = randomised(JumpReLUSAE(JumpReLUSAEConfig(**PLACE)))
    benched = SAEBenchSAE(sae, "a/folder")
    assert benched.W_enc.shape == (12, 24) and benched.W_dec.data.shape == (24, 12)
    expected = 3.7 * (sae.b_enc - sae.b_dec @ sae.W_enc)
    assert (benched.b_enc - expected).abs().max() < 1e-5
    assert (benched.b_dec - 3.7 * sae.b_dec).abs().max() < 1e-5
    assert not benched.W_dec.requires_grad and sae.W_dec.requires_grad
    assert benched.cfg.model_name == "a/folder"


def test_moving_returns_the_object_and_keeps_thresholds_in_float32():
    benched = SAEBenchSAE(JumpReLUSAE(JumpReLUSAEConfig(**PLACE)))
    assert benched.to(device="cpu", dtype=torch.bfloat16) is benched
    assert benched.dtype == torch.bfloat16 and benched.cfg.dtype == "bfloat16"
    assert benched.device == torch.device("cpu")
    assert benched.sae.threshold.dtype == torch.float32
    assert benched.to("cpu").dtype == torch.bfloat16


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"target_site": "layers.13", "subtract_b_dec": False}, "it takes no transcoder"),
        ({"token_norm": "layer_norm", "activation_scale": None}, "and no token_norm"),
        ({"site": None}, "no TransformerLens hook is known for site None"),
        ({"model_name": "somebody/odd"}, "of 'somebody/odd'; SAEBench needs one in a layer"),
        ({"site": "embed_tokens"}, "site 'embed_tokens'"),
    ],
)
def test_what_saebench_cannot_run_is_refused_in_one_sentence(change, sentence):
    sae = ReLUSAE(ReLUSAEConfig(**(PLACE | change)))
    with pytest.raises(ValueError, match=sentence) as caught:
        SAEBenchSAE(sae)
    assert "\n" not in str(caught.value)
