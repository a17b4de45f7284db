"""An SAE of re-drawn weights: as dense latent by latent, the same scales, other directions."""

import pytest
import torch

from hfsae.explanations import ExplainArguments, explain
from hfsae.explanations.untrained import comparison_of, section_of, untrained_like
from hfsae.models import TopKSAE, TopKSAEConfig

ARGUMENTS = ExplainArguments(n_latents=20, bootstrap_samples=50)


def study(planted, sae):
    return explain(planted.lm, sae, planted.batches(), ARGUMENTS, tokenizer=planted.tokenizer)


def firings(planted, sae) -> torch.Tensor:
    """[d_sae] tokens that each latent fires on, without the code under test."""
    ids = planted.input_ids[planted.input_ids != 0]
    x = planted.lm.transformer.wte.weight[ids]
    return (sae.encode(x) > 0).sum(0)


def test_each_latent_fires_as_often_as_the_trained_one(planted):
    untrained = untrained_like(planted.lm, planted.sae, planted.batches())
    ours, theirs = firings(planted, planted.sae), firings(planted, untrained)
    assert (theirs <= ours).all(), "equal pre-activations are all silent"
    top_k = TopKSAE(TopKSAEConfig(d_in=64, d_sae=48, k=5, site="drop", model_name="m")).eval()
    top_k.W_enc.data.normal_(generator=torch.Generator().manual_seed(1))
    wide = untrained_like(planted.lm, top_k, planted.batches())
    ours, theirs = firings(planted, top_k), firings(planted, wide)
    kinds = torch.bincount(planted.input_ids[planted.input_ids != 0])
    assert (theirs - ours).abs().max() <= kinds.max(), "within one kind of token, whose ties fire"


def test_weights_are_shuffled_within_each_input_and_seeded(planted):
    sae = planted.sae
    one, other = (untrained_like(planted.lm, sae, planted.batches(), seed=s) for s in (0, 1))
    assert torch.equal(one.W_enc.sort(dim=1).values, sae.W_enc.sort(dim=1).values)
    assert not torch.equal(one.W_enc, sae.W_enc) and not torch.equal(one.W_enc, other.W_enc)
    assert one.config.site == sae.config.site and one.config.model_name == sae.config.model_name


def test_a_trained_sae_stands_beside_it_in_the_report(planted):
    generator = torch.Generator().manual_seed(2)
    planted_sae = TopKSAE(TopKSAEConfig(d_in=64, d_sae=48, k=3, site="drop", model_name="m")).eval()
    planted_sae.W_enc.data.normal_(generator=generator)
    trained = study(planted, planted_sae)
    untrained = study(planted, untrained_like(planted.lm, planted_sae, planted.batches()))
    means = comparison_of(trained, untrained)
    pearson = means["lexical"]["pearson"]
    value, low, high = pearson["trained_minus_untrained"]
    assert value == pytest.approx(pearson["trained"][0] - pearson["untrained"][0])
    assert low <= value <= high
    half = high - value
    ours, theirs = pearson["trained"], pearson["untrained"]
    assert half == pytest.approx(((ours[2] - ours[0]) ** 2 + (theirs[0] - theirs[1]) ** 2) ** 0.5)
    assert f"{value:.3f} [{low:.3f}, {high:.3f}]" in section_of(means)
