"""What is peculiar to the TopK SAE."""

import pytest
import torch

from hfsae import TopKSAE, TopKSAEConfig
from hfsae.models import Schedule


def make(**fields) -> TopKSAE:
    torch.manual_seed(0)
    return TopKSAE(TopKSAEConfig(**{"d_in": 6, "d_sae": 24, "k": 4, **fields}))


def x_batch() -> torch.Tensor:
    return torch.randn(32, 6, generator=torch.Generator().manual_seed(1))


def test_the_k_largest_fire_and_keep_their_value():
    sae = make()
    out = sae(x_batch())
    for latents, pre_acts in zip(out.latents, out.pre_acts, strict=True):
        kept = pre_acts.sort(descending=True).values[:4]
        assert torch.equal(latents[latents > 0].sort(descending=True).values, kept[kept > 0])


def test_without_relu_selected_latents_may_be_negative():
    sae = make(relu=False, k=20)
    latents = sae.encode(x_batch())
    assert ((latents != 0).sum(-1) == 20).all() and (latents < 0).any()


def test_groupmax_takes_the_largest_of_each_group():
    out = make(selection="groupmax")(x_batch())
    groups, latents = out.pre_acts.reshape(32, 4, 6), out.latents.reshape(32, 4, 6)
    assert torch.equal(latents.amax(-1), groups.amax(-1).clamp(min=0))
    assert ((latents != 0).sum(-1) <= 1).all()


def test_dead_latents_learn_from_the_error_alone():
    sae = make(aux_k=3)
    dead = torch.arange(24) >= 16
    out = sae(x_batch(), schedule=Schedule(dead=dead), return_loss=True)
    error = x_batch() - out.recon
    chosen = out.pre_acts[:, 16:].topk(3)
    latents = torch.zeros(32, 8).scatter(1, chosen.indices, chosen.values.clamp(min=0))
    left = (error - latents @ sae.W_dec[16:]).square().sum()
    share = left / (error - error.mean(0)).square().sum()
    assert out.losses["aux"].item() == pytest.approx(share.item() / 32, rel=1e-5)
    out.losses["aux"].backward()
    assert not sae.W_enc.grad[:, :16].any() and sae.W_enc.grad[:, 16:].any()
    assert sae.b_dec.grad is None


def test_there_is_no_auxiliary_loss_without_dead_latents():
    for schedule in (Schedule(), Schedule(dead=torch.zeros(24, dtype=torch.bool))):
        assert set(make()(x_batch(), schedule=schedule, return_loss=True).losses) == {"mse"}


@pytest.mark.parametrize(
    "fields, sentence",
    [
        ({"k": 25}, r"k \(25\) is more than all latents \(d_sae = 24\)"),
        ({"k": 0}, "k must be positive, got 0"),
        ({"selection": "max"}, "selection must be 'topk' or 'groupmax', got 'max'"),
        ({"selection": "groupmax", "k": 5}, r"d_sae \(24\) to be a multiple of k \(5\)"),
        ({"target_l0": 3}, r"L0 is k \(4\): leave target_l0 out"),
    ],
)
def test_what_cannot_be_is_refused(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        make(**fields)
