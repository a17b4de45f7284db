"""What is peculiar to nested SAEs."""

import json

import pytest
import torch
from transformers import AutoModel

import hfsae
from hfsae.convert import to_jumprelu
from hfsae.ops import Workspace
from hfsae.training import Trainer

from ..training.planted import PlantedStream, arguments

C = 3.0
BASES = {
    hfsae.MatryoshkaBatchTopKSAEConfig: hfsae.BatchTopKSAEConfig,
    hfsae.MatryoshkaJumpReLUSAEConfig: hfsae.JumpReLUSAEConfig,
}


@pytest.fixture(params=BASES, ids=lambda c: c.model_type)
def config_class(request):
    return request.param


def make(config_class, **fields):
    torch.manual_seed(0)
    defaults = {"d_in": 6, "d_sae": 24, "activation_scale": C, "site": "layers.1"}
    if "k" in config_class.__dataclass_fields__:
        defaults["k"] = 4
    sae = AutoModel.from_config(config_class(**defaults | fields))
    with torch.no_grad():
        sae.threshold.fill_(0.2)
        sae.b_dec.uniform_(-0.1, 0.1)
        sae.b_enc.uniform_(-0.1, 0.1)
    return sae


def x_batch(n: int = 64) -> torch.Tensor:
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("prefixes", [[3, 7, 24], [0.125, 0.29, 1], [1.0], [24]])
@pytest.mark.parametrize("workspace", [None, Workspace()], ids=["dense", "sparse"])
def test_the_loss_sums_what_each_prefix_leaves(config_class, prefixes, workspace):
    sae, x = make(config_class, prefixes=prefixes), x_batch()
    counts = [3, 7] if len(prefixes) == 3 else []
    latents = sae(x, return_loss=True).latents
    nested = torch.zeros(())
    for m in counts:
        recon = latents[:, :m] @ sae.W_dec[:m] + C * sae.b_dec
        nested = nested + ((x - recon) / C).square().sum(-1).mean()
    out = sae(x, return_loss=True, workspace=workspace)
    mse = ((x - latents @ sae.W_dec - C * sae.b_dec) / C).square().sum(-1).mean()
    assert out.losses["mse"].item() == pytest.approx(mse.item(), rel=1e-5)
    if not counts:
        assert "nested" not in out.losses
        return
    assert out.losses["nested"].item() == pytest.approx(nested.item(), rel=1e-5)
    names = ("W_enc", "b_enc", "W_dec", "b_dec")
    parameters = [getattr(sae, name) for name in names]
    expected = torch.autograd.grad(nested, parameters)
    found = torch.autograd.grad(out.losses["nested"], parameters)
    for name, a, b in zip(names, found, expected, strict=True):
        assert torch.allclose(a, b, atol=1e-5), name


def test_a_transcoder_with_a_skip_connection_nests_too(config_class):
    fields = {"d_out": 5, "target_site": "layers.1.mlp", "skip_connection": True}
    sae, x = make(config_class, prefixes=[3, 24], **fields), x_batch()
    target = torch.randn(64, 5, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        sae.W_skip.uniform_(-0.3, 0.3)
    out = sae(x, target, return_loss=True)
    recon = out.latents[:, :3] @ sae.W_dec[:3] + C * sae.b_dec + x @ sae.W_skip
    nested = ((target - recon) / C).square().sum(-1).mean()
    assert out.losses["nested"].item() == pytest.approx(nested.item(), rel=1e-5)


def test_in_use_it_is_the_sae_that_is_nested(config_class):
    sae, x = make(config_class), x_batch()
    plain = make(BASES[config_class])
    plain.load_state_dict(sae.state_dict())
    assert torch.equal(sae(x).recon, plain(x).recon)
    assert torch.equal(sae.encode(x), plain.encode(x))
    jumprelu = to_jumprelu(sae)
    assert type(jumprelu) is hfsae.JumpReLUSAE
    assert (jumprelu.encode(x) - sae.encode(x)).abs().max() < 1e-6
    assert (jumprelu(x).recon - sae(x).recon).abs().max() < 1e-6


def test_prefixes_are_numbers_or_shares(config_class, tmp_path):
    def ends(**fields):
        return make(config_class, **fields).config.ends

    assert ends() == [1, 2, 5, 11, 24]
    assert ends(d_sae=64) == [2, 6, 14, 30, 64]
    assert ends(prefixes=[4, 24]) == ends(prefixes=(1 / 6, 1)) == [4, 24]
    assert ends(d_sae=4) == [1, 2, 4]
    make(config_class, prefixes=[4, 24]).save_pretrained(tmp_path)
    assert AutoModel.from_pretrained(tmp_path).config.ends == [4, 24]


@pytest.mark.parametrize(
    "prefixes", [[], [4, 23], [4, 48], [7, 4, 24], [0, 24], [4, 4, 24], [0.5], ["4", 24], [True]]
)
def test_prefixes_that_do_not_rise_to_the_end_are_refused(config_class, prefixes):
    with pytest.raises(ValueError, match=r"prefixes must rise .* d_sae \(24\)"):
        make(config_class, prefixes=prefixes)


FIELDS = {
    hfsae.MatryoshkaBatchTopKSAEConfig: {"k": 3},
    hfsae.MatryoshkaJumpReLUSAEConfig: {
        "target_l0": 3.0,
        "bandwidth": 0.1,
        "initial_threshold": 0.05,
        "log_threshold": False,
        "l0_coefficient": 0.01,
    },
}


@pytest.mark.learns
@pytest.mark.slow
def test_the_first_latents_learn_to_reconstruct_alone(config_class, tmp_path):
    """On planted data, against the same SAE without nesting: L0, FVU of all and of the first 8."""
    x, found = PlantedStream().part(123, 8192)["layers.1"], {}
    for name, kind in (("nested", config_class), ("plain", BASES[config_class])):
        own = {"prefixes": [8, 16, 32]} if name == "nested" else {}
        torch.manual_seed(0)
        config = kind(d_in=16, d_sae=32, site="layers.1", **FIELDS[config_class], **own)
        args = arguments(
            tmp_path / name, steps=250, decay_steps=0.3, adam_beta1=0.9, warm_start_steps=0.5
        )
        sae = Trainer(AutoModel.from_config(config), PlantedStream(), args).train()
        latents = sae.encode(x)
        first = latents * (torch.arange(32) < 8)
        fvus = [
            ((x - sae.decode(some)).square().sum() / (x - x.mean(0)).square().sum()).item()
            for some in (latents, first)
        ]
        found[name] = {"l0": (latents > 0).sum(-1).float().mean().item(), "fvus": fvus}
    print(json.dumps(found))
    assert found["nested"]["l0"] == pytest.approx(3, rel=0.05)
    assert found["nested"]["fvus"][1] < 0.9 * found["plain"]["fvus"][1]
    assert found["nested"]["fvus"][0] < 1.5 * found["plain"]["fvus"][0]
