"""What is peculiar to the BatchTopK SAE."""

import copy

import pytest
import torch

from hfsae import BatchTopKSAE, BatchTopKSAEConfig
from hfsae.convert import to_jumprelu
from hfsae.models import Schedule
from hfsae.ops import Workspace
from hfsae.training import Trainer

from ..training.planted import PlantedStream, arguments, assert_same_bits, stop_at, weights

C = 3.0


def make(**fields) -> BatchTopKSAE:
    torch.manual_seed(0)
    defaults = {"d_in": 6, "d_sae": 24, "k": 4, "activation_scale": C}
    return BatchTopKSAE(BatchTopKSAEConfig(**defaults | fields))


def x_batch(n: int = 32) -> torch.Tensor:
    """Tokens of very different norms, so that they need different numbers of latents."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 6, generator=generator) * torch.logspace(-1, 1, n)[:, None]


def kept(sae: BatchTopKSAE, x: torch.Tensor, **options) -> torch.Tensor:
    return sae.train()(x, return_loss=True, **options).latents


def test_in_training_the_largest_of_the_batch_fire_and_keep_their_value():
    sae, x = make(), x_batch()
    out = sae(x, return_loss=True)
    order = out.pre_acts.flatten().argsort(descending=True)[: 4 * 32]
    expected = torch.zeros(32 * 24).index_copy(0, order, out.pre_acts.flatten()[order])
    assert torch.equal(out.latents.flatten(), expected)
    n_each = (out.latents > 0).sum(-1)
    assert n_each.sum() == 4 * 32 and n_each.min() < 2 and n_each.max() > 8


def test_only_positive_ones_fire_where_there_are_too_few():
    sae, x = make(k=20), x_batch()
    out = sae(x, return_loss=True)
    assert torch.equal(out.latents, out.pre_acts.relu())
    assert (out.latents > 0).sum() < 20 * 32


def test_in_use_a_token_fires_the_same_whatever_stands_beside_it():
    sae, x = make(), x_batch()
    with torch.no_grad():
        sae.threshold.fill_(0.3)
    for mode in (sae.train(), sae.eval()):
        z = mode.pre_activations(x)
        assert torch.equal(mode.encode(x), z * (z > 0.3 * C))
        assert torch.equal(mode(x).latents, mode.encode(x))
        alone = torch.stack([mode.encode(one) for one in x])
        assert torch.allclose(alone, mode.encode(x), atol=1e-6)
    with_loss = sae.eval()(x, return_loss=True)
    assert torch.equal(with_loss.latents, sae.encode(x)) and set(with_loss.losses) == {"mse"}


@pytest.mark.parametrize("workspace", [None, Workspace()])
def test_the_threshold_is_the_running_mean_of_the_smallest_kept(workspace):
    sae, expected = make(threshold_rate=0.25), None
    for n in (32, 64, 48):
        before, x = copy.deepcopy(sae.state_dict()), x_batch(n)
        smallest = kept(sae, x)[kept(sae, x) > 0].min().item() / C
        loss = sae(x, return_loss=True, workspace=workspace).loss
        assert all(torch.equal(v, before[name]) for name, v in sae.state_dict().items())
        sae.zero_grad()
        loss.backward()
        sae.before_step_()
        expected = smallest if expected is None else 0.75 * expected + 0.25 * smallest
        assert sae.threshold.item() == pytest.approx(expected, rel=1e-5)
        assert sae.threshold.grad is None


def test_parts_of_a_batch_move_it_by_the_mean_of_theirs():
    sae, x = make(threshold_rate=0.25), x_batch()
    with torch.no_grad():
        sae.threshold.fill_(0.1)
    smallest = [kept(sae, part)[kept(sae, part) > 0].min().item() / C for part in x.chunk(2)]
    for part in x.chunk(2):
        (sae(part, return_loss=True).loss / 2).backward()
    sae.before_step_()
    assert sae.threshold.item() == pytest.approx(0.75 * 0.1 + 0.25 * sum(smallest) / 2, rel=1e-5)


def test_it_stays_where_nothing_fires():
    sae = make()
    with torch.no_grad():
        sae.threshold.fill_(0.1)
        sae.b_enc.fill_(-100.0)
    sae(x_batch(), return_loss=True).loss.backward()
    sae.before_step_()
    assert sae.threshold.item() == pytest.approx(0.1)


@pytest.mark.parametrize("sparse", [False, True])
def test_processes_cut_the_whole_batch(sparse, in_processes):
    sae, x = make(), x_batch()
    expected = sae(x, return_loss=True)
    expected.loss.backward()

    def work(part, summed):
        own = copy.deepcopy(sae)
        own.zero_grad()
        workspace = Workspace() if sparse else None
        schedule = Schedule(summed=summed)
        out = own(part, return_loss=True, schedule=schedule, workspace=workspace)
        out.loss.backward()
        return out, own.threshold.grad

    found = in_processes(x.chunk(4), work)
    assert torch.allclose(torch.cat([out.recon for out, _ in found]), expected.recon, atol=1e-5)
    loss = sum(out.loss.item() for out, _ in found) / 4
    assert loss == pytest.approx(expected.loss.item(), rel=1e-6)
    assert all(torch.allclose(grad, sae.threshold.grad) for _, grad in found)
    counts = [(out.latents > 0).sum().item() for out, _ in found]
    assert sum(counts) == 4 * 32 and len(set(counts)) > 1


def test_dead_latents_learn_from_the_error_alone():
    sae, dead = make(aux_k=3), torch.arange(24) >= 16
    out = sae(x_batch(), schedule=Schedule(dead=dead), return_loss=True)
    error = (x_batch() - out.recon) / C
    chosen = out.pre_acts[:, 16:].topk(3)
    latents = torch.zeros(32, 8).scatter(1, chosen.indices, chosen.values.clamp(min=0)) / C
    left = (error - latents @ sae.W_dec[16:]).square().sum()
    share = left / (error - error.mean(0)).square().sum()
    assert out.losses["aux"].item() == pytest.approx(share.item() / 32, rel=1e-5)


def test_as_jumprelu_it_is_the_same_function():
    sae = make(subtract_b_dec=True)
    with torch.no_grad():
        sae.threshold.fill_(0.3)
        sae.b_dec.uniform_(-0.2, 0.2)
    jumprelu, x = to_jumprelu(sae), x_batch(512)
    assert jumprelu.config.model_type == "jumprelu_sae"
    assert torch.allclose(jumprelu.threshold, torch.full((24,), 0.3 * C))
    assert (jumprelu.encode(x) - sae.encode(x)).abs().max() < 1e-6 * x.abs().max()
    assert (jumprelu(x).recon - sae(x).recon).abs().max() < 1e-6 * x.abs().max()


def test_what_cannot_be_is_refused():
    for fields, sentence in [
        ({"k": 25}, r"k \(25\) is larger than the dictionary: use at most 24"),
        ({"threshold_rate": 0}, r"threshold_rate must lie in \(0, 1\], got 0"),
        ({"target_l0": 3}, r"L0 is k \(4\): leave target_l0 out"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            make(**fields)


def trained(folder, sae: BatchTopKSAE, steps: int = 400, **fields) -> BatchTopKSAE:
    args = arguments(folder, steps=steps, decay_steps=0.3, adam_beta1=0.9, **fields)
    return Trainer(sae, PlantedStream(), args).train()


def planted_sae(**fields) -> BatchTopKSAE:
    defaults = {"d_in": 16, "d_sae": 32, "k": 3, "activation_scale": None, "site": "layers.1"}
    return make(**defaults | fields)


@pytest.mark.learns
@pytest.mark.parametrize(("k", "largest"), [(2, 0.45), (6, 0.2)])
def test_l0_in_use_is_k_and_it_learns_towards_the_planted_directions(k, largest, tmp_path):
    sae, stream = trained(tmp_path, planted_sae(k=k), steps=500), PlantedStream()
    x = stream.part(123, 8192)["layers.1"]
    out = sae(x)
    fvu = (x - out.recon).square().sum() / (x - x.mean(0)).square().sum()
    found = (sae.W_dec @ stream.directions.T).max(dim=0).values.mean()
    l0 = (out.latents != 0).sum(-1).float().mean().item()
    print(f"k {k}: L0 {l0:.3f}, FVU {fvu:.3f}, cosine {found:.3f}")
    assert l0 == pytest.approx(k, rel=0.05)
    assert fvu < largest and found > 0.6, "untrained: 0.83 and 0.48"


def test_a_resumed_run_ends_as_an_uninterrupted_one_to_the_bit(tmp_path):
    whole, stopped, resumed = (planted_sae() for _ in range(3))
    args = arguments(tmp_path / "parts", max_grad_norm=1.0)
    Trainer(whole, PlantedStream(), arguments(tmp_path / "whole", max_grad_norm=1.0)).train()
    stopping = PlantedStream()
    stopping.next_batch = stop_at(stopping, 25)
    with pytest.raises(KeyboardInterrupt):
        Trainer(stopped, stopping, args).train()
    Trainer(resumed, PlantedStream(), args).train()
    assert whole.threshold > 0
    assert_same_bits(weights(whole), weights(resumed))


@pytest.mark.slow
@pytest.mark.learns
def test_dead_latents_come_back(tmp_path):
    """Half of the latents start too weak to fire; with the auxiliary loss they learn to."""
    x, alive = PlantedStream().part(123, 8192)["layers.1"], {}
    scale = x.square().sum(-1).mean().sqrt().item()
    for name, coefficient in (("with", 1 / 32), ("without", 0)):
        sae = planted_sae(aux_coefficient=coefficient, aux_k=8, activation_scale=scale)
        with torch.no_grad():
            sae.W_enc[:, :16] *= 0.02
        fields = {"dead_after_tokens": 2000, "learning_rate": 3e-3}
        fires = (kept(sae, x) > 0).any(0)
        assert not fires[:16].any() and fires[16:].all()
        after = trained(tmp_path / name, sae, steps=250, **fields)
        alive[name] = int((after.encode(x)[:, :16] > 0).any(0).sum())
    print(alive)
    assert alive["with"] > 12 and alive["without"] == 0
