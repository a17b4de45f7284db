"""Cross-layer transcoders in training: one feature behind three outputs, and runs that resume."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from hfsae import (
    SAE,
    BatchTopKCLT,
    BatchTopKCLTConfig,
    BatchTopKSAE,
    BatchTopKSAEConfig,
    JumpReLUCLT,
    JumpReLUCLTConfig,
)
from hfsae.activations import TensorSource
from hfsae.training import Trainer
from hfsae.training.health import diagnose_sources
from hfsae.training.run import Run
from hfsae.training.trainer import make_accelerator

from .planted import arguments, assert_same_bits, check_shapes_of_step, stop_at, weights

D, FEATURES, S = 8, 6, 3
SITES = [f"layers.{i}.mlp:in" for i in range(S)]
TARGETS = [f"layers.{i}.mlp" for i in range(S)]


class OneCause(TensorSource):
    """A token has one of six features, which all inputs show and which drives all three outputs, in
    another direction each; the outputs have sizes of 1, 5 and 20."""

    def __init__(self, batch_size: int = 256):
        generator = torch.Generator().manual_seed(5)
        places = [*SITES, *TARGETS]
        self.directions = {
            at: normalize(torch.randn(FEATURES, D, generator=generator), dim=1) for at in places
        }
        super().__init__({at: torch.empty(0, D) for at in places}, batch_size)

    def part(self, number: int, n: int) -> dict[str, Tensor]:
        check_shapes_of_step(number)
        generator = torch.Generator().manual_seed(number)
        which = torch.randint(FEATURES, (n,), generator=generator)
        size = 0.5 + torch.rand(n, 1, generator=generator)
        scale = dict(zip(TARGETS, (1.0, 5.0, 20.0), strict=True))
        return {at: scale.get(at, 1.0) * size * rows[which] for at, rows in self.directions.items()}

    def sample(self, n: int) -> dict[str, Tensor]:
        return super().sample(min(n, 4096))


def causal(**fields: Any) -> BatchTopKCLT:
    torch.manual_seed(0)
    places = {"sites": SITES, "target_sites": TARGETS, "d_in": S * D}
    return BatchTopKCLT(BatchTopKCLTConfig(**places, **{"d_sae": 96, "k": 1, **fields}))


def fvu_and_l0(sae: SAE) -> tuple[float, float]:
    """FVU, the mean over targets, and L0 on tokens that training has not seen."""
    batch = OneCause().part(10**6, 4096)
    x, target = sae.config.reads.joined(batch), sae.config.writes.joined(batch)
    latents = sae.encode(x)
    pairs = zip(sae.split(target).values(), sae.split(sae.decode(latents)).values(), strict=True)
    fvus = [((y - r).square().sum() / (y - y.mean(0)).square().sum()).item() for y, r in pairs]
    return sum(fvus) / len(fvus), (latents > 0).sum(1).float().mean().item()


def test_one_feature_behind_three_outputs_takes_one_latent_where_three_transcoders_take_three(
    tmp_path,
):
    saes: dict[str, SAE] = {"clt": causal(d_sae=36)}
    for i, (site, target) in enumerate(zip(SITES, TARGETS, strict=True)):
        torch.manual_seed(0)
        places = {"site": site, "target_site": target, "d_in": D}
        saes[f"layer_{i}"] = BatchTopKSAE(BatchTopKSAEConfig(**places, d_sae=12, k=1))
    start = {"init_b_dec": "mean", "init_decoder_data": 0.9, "init_cluster_rounds": 4}
    start |= {"unit": "spread", "init_encoder_scale": 0.6, "decay_steps": 0.5, "save_steps": 0}
    rates = {"learning_rate": 0.03, "adam_beta1": 0.9, "warmup_steps": 0}
    args = arguments(tmp_path, 300, **start, **rates, dead_after_tokens=5000)
    trained = Trainer(saes, OneCause(), args).train()
    (fvu, l0), *of_layers = map(fvu_and_l0, trained.values())
    assert fvu < 0.02 and l0 <= 1.2, (fvu, l0)
    assert max(fvu for fvu, _ in of_layers) < 0.02, of_layers
    assert sum(l0 for _, l0 in of_layers) == pytest.approx(3, abs=0.2)


@pytest.mark.parametrize("kind", ["batch_topk", "jumprelu"])
@pytest.mark.parametrize("sparse", ["never", "always"])
def test_a_run_that_was_stopped_ends_with_the_same_bits(kind: str, sparse: str, tmp_path):
    def fresh() -> SAE:
        if kind == "batch_topk":
            return causal(k=3, aux_k=8)
        torch.manual_seed(0)
        places = {"sites": SITES, "target_sites": TARGETS, "d_in": S * D, "d_sae": 96}
        own = {"l0_loss": "quadratic", "target_l0": 3, "l0_coefficient": 0.1, "bandwidth": 0.1}
        return JumpReLUCLT(JumpReLUCLTConfig(**places, **own, initial_threshold=0.2))

    fields = {"sparse": sparse, "max_grad_norm": 1.0, "dead_after_tokens": 1000}
    whole, stopped, resumed = fresh(), fresh(), fresh()
    ended = Trainer(whole, OneCause(), arguments(tmp_path / "whole", 30, **fields)).train()
    args, stopping = arguments(tmp_path / "parts", 30, **fields), OneCause()
    stopping.next_batch = stop_at(stopping, 13)
    with pytest.raises(KeyboardInterrupt):
        Trainer(stopped, stopping, args).train()
    again = Trainer(resumed, OneCause(), args).train()
    assert_same_bits(weights(again), weights(ended))
    assert again.config.target_scales == ended.config.target_scales
    scales = whole.config.target_scales
    assert scales[2] == pytest.approx(20 * scales[0], rel=0.05)


def test_the_log_has_l0_by_source_and_says_which_source_is_left_out(tmp_path):
    args = arguments(tmp_path, 20)
    run, source = Run(causal(k=6, d_sae=48), args, make_accelerator(args)), OneCause()
    run.initialise(source.sample(4096))
    with torch.no_grad():
        run.sae.b_enc[:16] -= 100.0
    line = run.step(source.next_batch(), 0, log=True)
    assert len(line["l0_by_source"]) == S
    assert sum(line["l0_by_source"]) == pytest.approx(line["l0"])
    assert line["l0_by_source"][0] == 0
    (sentence,) = [each for each in line["health"] if "a tenth of theirs" in each]
    assert "(layers.0.mlp:in 0)" in sentence
    assert diagnose_sources({"a": 1.0, "b": 9.0}) == []


def test_a_start_at_data_turns_each_source_to_what_it_reads_and_writes(tmp_path):
    args = arguments(tmp_path, 20, init_decoder_data=1.0)
    run, source = Run(causal(d_sae=48), args, make_accelerator(args)), OneCause()
    batch = source.sample(4096)
    run.initialise(batch)
    sae = run.sae
    for s, (encoder_rows, decoder_rows, _, _) in enumerate(sae.sources()):
        x = batch[SITES[s]] - batch[SITES[s]].mean(0)
        read = normalize(encoder_rows, dim=1)
        torch.testing.assert_close(read, normalize(x[:16], dim=1))
        of_targets = sae.config.column_scales[s:]
        wanted = [
            (batch[at] - batch[at].mean(0))[:16] / c
            for at, c in zip(TARGETS[s:], of_targets, strict=True)
        ]
        torch.testing.assert_close(
            normalize(decoder_rows, dim=1), normalize(torch.cat(wanted, dim=1), dim=1)
        )
    torch.testing.assert_close(sae.decoder_norms(), torch.ones(48))


def test_what_a_cross_layer_transcoder_has_not_is_refused(tmp_path):
    args = arguments(tmp_path, 20, refit_ridge=0.1)
    with pytest.raises(ValueError, match=r"refit_ridge fits rows that write at all sites"):
        Run(causal(), args, make_accelerator(args))
