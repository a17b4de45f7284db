"""Where each option of a variant leads on planted data; its gradients with latents spread."""

from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from transformers import AutoConfig, AutoModel

from hfsae.models import SAE, JumpReLUSAEConfig, Schedule
from hfsae.models.topk import AuxKSAE
from hfsae.training import Trainer
from hfsae.training.sharding import everywhere, placed_as, shard_, whole

from .. import forked
from ..helpers import D_SAE, activations, cases, make
from .planted import PlantedStream, arguments

D = 16
DEAD = torch.arange(48) % 2 == 0


def sae_of(kind: str, **fields) -> SAE:
    torch.manual_seed(0)
    own = {"bandwidth": 0.1, "initial_threshold": 0.05, "log_threshold": False}
    own["l0_coefficient"] = 0.01
    fields = (own if kind == "jumprelu_sae" else {}) | fields
    config = AutoConfig.for_model(kind, d_in=D, d_sae=48, site="layers.1", **fields)
    return AutoModel.from_config(config)


def train(sae: SAE, folder, steps: int = 500, **fields) -> tuple[Trainer, dict[str, float]]:
    """The trainer, and what the trained SAE makes of other activations."""
    settings = {"decay_steps": 0.3, "adam_beta1": 0.9, "save_steps": 0}
    args = arguments(folder, steps, **{**settings, "sparsity_warmup_steps": 0.2, **fields})
    trainer = Trainer(sae, stream := PlantedStream(), args)
    trained = trainer.train()
    return trainer, measured(trained, stream.part(123, 4096)["layers.1"])


def measured(sae: SAE, x: torch.Tensor) -> dict[str, float]:
    out = sae(x)
    density = (out.latents != 0).float().mean(0)
    return {
        "l0": density.sum().item(),
        "fvu": ((x - out.recon).square().sum() / (x - x.mean(0)).square().sum()).item(),
        "densest": density.max().item(),
        "dead": (density == 0).sum().item(),
    }


ANTHROPIC = {
    "penalty": "tanh",
    "ste_to_inputs": True,
    "bandwidth": 2 / D**0.5,
    "initial_threshold": 0.1 / D**0.5,
    "log_threshold": True,
    "l0_coefficient": 0.2 / D,  # not 10 / D: of 16 dimensions, a few latents leave little
    "pre_act_coefficient": 3e-6 / D**0.5,
}


@pytest.mark.parametrize(
    "kind, fields, l0, fvu",
    [
        ("relu_sae", {"l1_coefficient": 0.1}, (9, 22), 0.15),
        ("gated_sae", {"l1_coefficient": 0.1, "penalty": "ri_l1"}, (12, 30), 0.1),
        ("jumprelu_sae", {}, (8, 14), 0.15),
        ("jumprelu_sae", {"kernel": "gaussian"}, (8, 14), 0.15),
        ("jumprelu_sae", {"activation": "shifted"}, (15, 24), 0.1),
        ("jumprelu_sae", {"penalty": "l1", "ste": "none"}, (10, 24), 0.15),
        ("jumprelu_sae", {"ste": "reconstruction"}, (16, 30), 0.1),  # nothing makes it sparse
        ("jumprelu_sae", ANTHROPIC, (3, 8), 0.35),
    ],
)
def test_each_option_learns_the_planted_data(kind, fields, l0, fvu, tmp_path):
    _, now = train(sae_of(kind, **fields), tmp_path)
    assert l0[0] < now["l0"] < l0[1] and now["fvu"] < fvu, now


def test_an_ste_in_the_l0_term_alone_leaves_nothing_to_hold_thresholds_down(tmp_path):
    _, now = train(sae_of("jumprelu_sae", ste="l0"), tmp_path)
    assert now["l0"] < 1 and now["fvu"] > 0.8, now


def test_the_quadratic_loss_leads_to_its_target_by_itself(tmp_path):
    """Above it by m target^2 / (2 lambda), m being the lambda that the controller finds there."""
    fields = {"target_l0": 3.0, "l0_coefficient": 1.0}
    sae = sae_of("jumprelu_sae", **fields, l0_loss="quadratic")
    trainer, now = train(sae, tmp_path / "quadratic", warm_start_steps=0.4)
    assert trainer.runs[""].control.factor == 1.0
    assert 3.0 < now["l0"] < 3.5 and now["fvu"] < 0.4, now
    sae = sae_of("jumprelu_sae", target_l0=now["l0"])
    steered, _ = train(sae, tmp_path / "steered", warm_start_steps=0.4)
    m = 0.01 * steered.runs[""].control.factor
    assert now["l0"] == pytest.approx(3 + m * 9 / 2, rel=0.05), m


def test_the_frequency_penalty_thins_out_the_densest_latents(tmp_path):
    _, plain = train(sae_of("jumprelu_sae"), tmp_path / "plain")
    _, thin = train(sae_of("jumprelu_sae", l0_loss="frequency"), tmp_path / "thin")
    assert plain["densest"] > 0.5 and thin["densest"] < 0.3, (plain, thin)


@pytest.mark.slow
def test_the_pre_activation_loss_brings_dead_latents_back(tmp_path):
    """Half of the latents begin too far below their threshold for any to fire."""
    after = {}
    for coefficient in (0.0, ANTHROPIC["pre_act_coefficient"]):
        sae = sae_of("jumprelu_sae", **{**ANTHROPIC, "pre_act_coefficient": coefficient})
        with torch.no_grad():
            sae.b_enc[DEAD] = -0.5
        x = PlantedStream().part(123, 4096)["layers.1"]
        scale = x.square().sum(-1).mean().sqrt()
        assert measured(sae, x / scale)["dead"] == 24
        settings = {"sparsity_warmup_steps": 0.99, "max_grad_norm": 1.0}
        _, after[coefficient] = train(sae, tmp_path / str(coefficient), 600, **settings)
    without, with_it = after.values()
    assert without["dead"] >= 24 and with_it["dead"] < 8, after
    assert with_it["fvu"] < without["fvu"]


@pytest.mark.slow
def test_topks_auxiliary_loss_brings_jumprelus_latents_back_in_a_warm_start(tmp_path):
    """Half of the latents begin too far below the common threshold for most to fire again."""
    after = {}
    for coefficient in (0.0, 1 / 32):
        sae = sae_of("jumprelu_sae", aux_coefficient=coefficient, aux_k=16, target_l0=3.0)
        with torch.no_grad():
            sae.b_enc[DEAD] = -1.0
        settings = {"warm_start_steps": 0.5, "dead_after_tokens": 2560}
        _, after[coefficient] = train(sae, tmp_path / str(coefficient), **settings)
    without, with_it = after.values()
    assert without["dead"] > 20 and with_it["dead"] < 16, after


@pytest.mark.slow
def test_latents_spread_over_processes_have_every_options_loss_and_gradients():
    ranks = forked.start_ranks(2, _compare_spread)
    assert forked.exit_codes(ranks) == [0, 0], "see what they printed"


def _compare_spread() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    mesh, x = init_device_mesh("cpu", (2,)), activations(64)
    dead = torch.arange(D_SAE) % 3 == 0
    revived = partial(JumpReLUSAEConfig, aux_coefficient=0.1, aux_k=4)
    for name, case in {**cases(), "with AuxK": revived}.items():
        alone, spread = make(case), make(case)
        if isinstance(alone, AuxKSAE):
            continue  # it chooses among all latents
        shard_(spread, mesh)
        losses = []
        for sae, inputs in ((alone, x), (spread, everywhere(x, mesh, is_slice=False))):
            loss = sae(inputs, schedule=Schedule(dead=dead), return_loss=True).loss
            loss.backward()
            losses.append(float(whole(loss.detach())))
        assert losses[1] == pytest.approx(losses[0], rel=1e-5), name
        for p, q in zip(alone.parameters(), spread.parameters(), strict=True):
            q.grad = placed_as(q.grad, q)  # as a step does
            assert (whole(q.grad) - p.grad).norm() <= 1e-5 * p.grad.norm(), name
        spread.before_step_(), spread.after_step_()
    dist.destroy_process_group()
