"""A model that runs on the reconstructions of an SAE of several sites."""

from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

import hfsae
from hfsae.lm import capture, patch, splice

from ..tiny import stack, tokens


def crosscoder(lm: PreTrainedModel, dtype: torch.dtype = torch.float32) -> hfsae.BatchTopKSAE:
    """Of the first three blocks, in an order of its own."""
    sites = [f"{stack(lm)}.{i}" for i in (2, 0, 1)]
    torch.manual_seed(0)
    sae = hfsae.BatchTopKSAE(hfsae.BatchTopKSAEConfig(d_in=48, d_sae=40, k=8, sites=sites))
    sae.config.fill_scales([3.0, 1.0, 2.0], [3.0, 1.0, 2.0])
    with torch.no_grad():
        sae.b_dec.normal_(std=0.1)
    return sae.eval().to(dtype).requires_grad_(False)


def test_every_site_gets_the_reconstruction_of_what_a_plain_pass_has(any_lm: PreTrainedModel):
    sae = crosscoder(any_lm)
    sites = sae.config.sites
    with capture(any_lm, sites) as clean:
        any_lm(**tokens())
    recon = sae.split(sae(sae.join(clean)).recon)
    with splice(any_lm, sae, spare_tokens=()), capture(any_lm, sites) as after:
        spliced = any_lm(**tokens()).logits
    for site in sites:
        torch.testing.assert_close(after[site], recon[site])
    with patch(any_lm, {site: lambda x, site=site: recon[site] for site in sites}):
        torch.testing.assert_close(any_lm(**tokens()).logits, spliced)


def test_the_error_term_without_an_effect_leaves_the_model_to_the_bit(make_tiny_lm: Callable):
    for dtype in (torch.float32, torch.bfloat16):
        lm = make_tiny_lm("gemma2").to(dtype)
        clean = lm(**tokens()).logits
        sae = crosscoder(lm)
        with splice(lm, sae, error_term=True, edit=torch.clone):
            assert torch.equal(lm(**tokens()).logits, clean)
        with hfsae.steer(lm, sae, {3: 0.0}):
            assert torch.equal(lm(**tokens()).logits, clean)


def test_what_is_not_kept_goes_on_from_what_was_written_below(tiny_lm: PreTrainedModel):
    """A position that is spared at a later site still hears of changes at earlier sites."""
    sae, ids = crosscoder(tiny_lm), tokens()
    keep = torch.zeros_like(ids["input_ids"], dtype=torch.bool)
    keep[:, 5] = True
    site = f"{stack(tiny_lm)}.2"
    with capture(tiny_lm, [site]) as clean:
        tiny_lm(**ids)
    with splice(tiny_lm, sae, keep=keep, spare_tokens=()), capture(tiny_lm, [site]) as after:
        tiny_lm(**ids)
    moved = (after[site] - clean[site]).abs().amax(dim=(0, 2))
    assert moved[:5].max() == 0 and moved[6:].min() > 0


def test_steering_writes_at_the_sites_that_are_chosen(tiny_lm: PreTrainedModel):
    sae, ids = crosscoder(tiny_lm), tokens()
    lowest, highest = f"{stack(tiny_lm)}.0", f"{stack(tiny_lm)}.2"
    rows = sae.folded().split(sae.folded().W_dec)
    with capture(tiny_lm, [lowest, highest]) as clean:
        tiny_lm(**ids)
    for sites, moves in ((None, (lowest, highest)), ([highest], (highest,))):
        with (
            hfsae.steer(tiny_lm, sae, {3: 5.0}, spare_tokens=(), sites=sites),
            capture(tiny_lm, [lowest, highest]) as after,
        ):
            tiny_lm(**ids)
        for site in (lowest, highest):
            amount = 5.0 * rows[site][3] if site in moves else torch.zeros(16)
            expected = clean[site] + amount
            torch.testing.assert_close(after[site], expected, rtol=1e-4, atol=1e-4)


def test_generation_needs_each_pass_whole(tiny_lm: PreTrainedModel):
    sae, ids = crosscoder(tiny_lm), tokens()["input_ids"][:1, :5]
    options = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    with hfsae.steer(tiny_lm, sae, {3: 5.0}):
        with pytest.raises(ValueError, match=r"reads 3 sites .* give use_cache=False"):
            tiny_lm.generate(ids, **options)
        out = tiny_lm.generate(ids, use_cache=False, **options)
        step = tiny_lm(out[:, :-1], use_cache=False).logits[0, -1].argmax()
    assert step == out[0, -1]


def test_sites_of_others_are_refused(tiny_lm: PreTrainedModel):
    sae = crosscoder(tiny_lm)
    with pytest.raises(ValueError, match=r"sites is .*give a list of this SAE.s sites: layers\.2"):
        hfsae.steer(tiny_lm, sae, {3: 5.0}, sites=["layers.7"]).__enter__()
