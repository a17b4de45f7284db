"""What is peculiar to the TopK SAE."""

import pytest
import torch

from hfsae import TopKSAE, TopKSAEConfig
from hfsae.models import Schedule
from hfsae.models.topk import nearly_largest
from hfsae.ops import Workspace


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
        ({"k": 25}, r"k \(25\) is larger than the dictionary: use at most 24"),
        ({"k": 0}, "k must be positive, got 0"),
        (
            {"selection": "max"},
            "selection must be one of 'topk', 'groupmax', 'approximate', got 'max'",
        ),
        ({"selection": "groupmax", "k": 5}, r"d_sae \(24\) to be a multiple of k \(5\)"),
        ({"selection": "approximate", "recall": 1}, "recall must lie between 0 and 1, got 1"),
        ({"multi_topk_coefficient": -1}, "multi_topk_coefficient must not be negative, got -1"),
        ({"multi_topk_coefficient": 1, "selection": "groupmax"}, "groupmax can select only k"),
        ({"target_l0": 3}, r"L0 is k \(4\): leave target_l0 out"),
    ],
)
def test_what_cannot_be_is_refused(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        make(**fields)


def test_k_may_be_the_whole_dictionary():
    out = make(k=24)(x_batch())
    assert torch.equal(out.latents, out.pre_acts.clamp(min=0))


def test_multi_topk_adds_what_four_times_k_latents_leave():
    sae = make(multi_topk_coefficient=1 / 8, activation_scale=2.0)
    out = sae(x_batch(), return_loss=True)
    chosen = out.pre_acts.topk(16)
    latents = torch.zeros(32, 24).scatter(1, chosen.indices, chosen.values.clamp(min=0))
    left = (x_batch() - latents @ sae.W_dec - 2.0 * sae.b_dec) / 2.0
    expected = left.square().sum(-1).mean().item() / 8
    assert out.losses["multi"].item() == pytest.approx(expected, rel=1e-5)
    assert ((out.latents > 0).sum(-1) <= 4).all()
    assert torch.equal(sae(x_batch()).latents, make(activation_scale=2.0)(x_batch()).latents)


@pytest.mark.parametrize("k", [4, 9])  # 4k of 24, and all
def test_a_sparse_step_of_multi_topk_is_the_dense_one(k):
    dense, sparse = make(multi_topk_coefficient=1 / 8, k=k), make(multi_topk_coefficient=1 / 8, k=k)
    expected = dense(x_batch(), return_loss=True)
    found = sparse(x_batch(), return_loss=True, workspace=Workspace())
    for name, loss in expected.losses.items():
        assert found.losses[name].item() == pytest.approx(loss.item(), rel=1e-6)
    expected.loss.backward(), found.loss.backward()
    for p, q in zip(dense.parameters(), sparse.parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad, atol=1e-6)


@pytest.mark.parametrize("d_sae, k", [(4096, 32), (5000, 64), (1000, 400), (64, 1)])
@pytest.mark.parametrize("recall", [0.6, 0.9, 0.99])
def test_approximate_selection_finds_the_share_that_it_states(d_sae, k, recall):
    z = torch.randn(200, d_sae, generator=torch.Generator().manual_seed(0))
    found, exact = nearly_largest(z, k, recall), z.topk(k)
    assert ((found != 0).sum(-1) == k).all()
    assert torch.equal(found[found != 0], z[found != 0])
    share = (found.gather(1, exact.indices) != 0).float().mean().item()
    assert share > recall - 0.01  # groups are whole: there may be more of them than it takes
    if 2 * k < d_sae and recall == 0.6 and k > 1:
        assert share < 0.9


def test_approximate_selection_takes_the_largest_of_each_group():
    sae = make(selection="approximate", recall=0.6, d_sae=50, k=7)
    out = sae(x_batch())
    size = next(s for s in range(50, 0, -1) if expected_recall(50, 7, s) >= 0.6)
    assert size == 7
    for latents, pre_acts in zip(out.latents, out.pre_acts, strict=True):
        best = torch.stack([group.max() for group in pre_acts.split(size)])
        wanted = best.sort(descending=True).values[:7].relu()
        assert torch.equal(latents[latents > 0].sort(descending=True).values, wanted[wanted > 0])


def expected_recall(d_sae: int, k: int, size: int) -> float:
    n = d_sae // size
    return sum((1 - 1 / n) ** i for i in range(k)) / k if n >= k else 0.0
