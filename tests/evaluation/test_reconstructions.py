"""Reconstructions of given activations, without a language model."""

from types import SimpleNamespace

import pytest
import torch

from hfsae.activations import (
    ActivationBatch,
    HarvestArguments,
    Harvester,
    PackedRows,
    TextArguments,
    TextSource,
)
from hfsae.evaluation import EvaluationArguments, evaluate_all, evaluate_reconstructions
from hfsae.evaluation.result import LOSSES

from ..tiny import TEXTS

SITE = "layers.2"
ARGS = EvaluationArguments(n_tokens=None, bootstrap_samples=50, sae_batch_tokens=7)


def rounding(site=SITE, target_site=None):
    """Lossy but near: coordinates are cut to multiples of 1/2, small ones to zero."""
    return SimpleNamespace(
        encode=lambda x: (2 * x).round() / 2,
        decode=lambda latents, x=None: latents,
        config=SimpleNamespace(site=site, target_site=target_site),
    )


def test_fidelity_is_that_of_all_activations_together():
    x = torch.randn(30, 6, generator=torch.Generator().manual_seed(0))
    document = torch.arange(30) // 4
    parts = zip(x.split((11, 0, 19)), document.split((11, 0, 19)), strict=True)
    batches = [ActivationBatch({SITE: part}, of) for part, of in parts]
    result = evaluate_reconstructions(rounding(), batches, ARGS)
    latents = (2 * x).round() / 2
    fvu = (x - latents).square().sum() / (x - x.mean(dim=0)).square().sum()
    assert result.metrics["fvu"].value == pytest.approx(fvu.item(), rel=1e-6)
    l0 = (latents != 0).sum(dim=1).float().mean().item()
    assert result.metrics["l0"].value == pytest.approx(l0, rel=1e-6)
    torch.testing.assert_close(result.density.float(), (latents != 0).float().mean(dim=0))
    assert (result.n_tokens, result.n_documents) == (30, 8)
    assert not result.metrics.keys() & LOSSES.keys()


def test_a_transcoder_is_measured_at_its_target_site():
    x = torch.randn(10, 4).round()
    batch = ActivationBatch({"in": x, "out": x + 1}, torch.arange(10))
    result = evaluate_reconstructions(rounding("in", "out"), [batch], ARGS)
    spread = (x - x.mean(dim=0)).square().sum()
    assert result.metrics["fvu"].value == pytest.approx((x.numel() / spread).item(), rel=1e-6)


def test_activations_of_text_give_what_the_language_model_does(tiny_lm, tiny_tokenizer):
    text = TextArguments(dataset=TEXTS, context_size=16, held_out_fraction=0.3)
    rows = PackedRows(tiny_tokenizer, text, "test", rows=4, max_tokens=300)
    source = TextSource(rows, Harvester(tiny_lm, [SITE], HarvestArguments(rows=4)))
    given = evaluate_reconstructions(rounding(), source.batches("test", 300), ARGS)
    live = evaluate_all(tiny_lm, {"": rounding()}, rows, ARGS, losses=False)[""]
    assert given.metrics == live.metrics and given.n_documents == live.n_documents > 2


@pytest.mark.parametrize(
    "value, n, words",
    [
        (1.0, 0, "no activation to evaluate on"),
        (float("nan"), 3, "3 of 3 positions at 'layers.2' have NaN"),
    ],
)
def test_what_cannot_be_measured_is_refused(value, n, words):
    batch = ActivationBatch({SITE: torch.full((n, 4), value)}, torch.zeros(n, dtype=torch.long))
    with pytest.raises(ValueError, match=words):
        evaluate_reconstructions(rounding(), [batch], ARGS)
