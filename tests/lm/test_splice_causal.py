"""A model that runs on a cross-layer transcoder, which reads and writes in one pass."""

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from transformers import PreTrainedModel

import hfsae
from hfsae.lm import capture, patch, splice

from ..tiny import stack, tokens


def clt(lm: PreTrainedModel, *, onto_itself: bool = False) -> hfsae.BatchTopKCLT:
    """Of the first three blocks; reads residual streams, and writes at what their MLPs add."""
    mlps = [f"{stack(lm)}.{i}.mlp" for i in range(3)]
    sites = [f"{stack(lm)}.{i}" for i in range(3)] if onto_itself else [f"{m}:in" for m in mlps]
    torch.manual_seed(0)
    config = hfsae.BatchTopKCLTConfig(
        d_in=48, d_sae=36, k=8, sites=sites, target_sites=None if onto_itself else mlps
    )
    config.fill_scales([3.0, 1.0, 2.0], [2.0, 1.5, 1.0] if not onto_itself else [3.0, 1.0, 2.0])
    sae = hfsae.BatchTopKCLT(config)
    with torch.no_grad():
        sae.b_dec.normal_(std=0.1)
    return sae.eval().requires_grad_(False)


@pytest.mark.parametrize("onto_itself", [False, True])
def test_a_target_gets_what_the_sources_seen_so_far_wrote(
    any_lm: PreTrainedModel, onto_itself: bool
):
    sae = clt(any_lm, onto_itself=onto_itself)
    reads, writes = sae.config.reads.names, sae.config.writes.names
    # By hand, a target at a time: what its source reads, with the targets before it replaced.
    done = dict[str, torch.Tensor]()
    x = torch.zeros(3, 12, 48)
    for t, (site, target) in enumerate(zip(reads, writes, strict=True)):
        below = {at: lambda _, at=at: done[at] for at in done}
        with patch(any_lm, below) if done else nullcontext(), capture(any_lm, [site]) as seen:
            any_lm(**tokens())
        x[..., 16 * t : 16 * (t + 1)] = seen[site]
        done[target] = sae.split(sae(x).recon)[target]
    with splice(any_lm, sae, spare_tokens=()), capture(any_lm, writes) as after:
        any_lm(**tokens())
    for target in writes:
        torch.testing.assert_close(after[target], done[target], rtol=1e-4, atol=1e-4)


def test_generation_with_a_cache_is_that_without(any_lm: PreTrainedModel):
    sae, ids = clt(any_lm), tokens()["input_ids"][:1, :5]
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    options |= {"return_dict_in_generate": True, "output_logits": True}
    found = []
    for use_cache in (True, False):
        with splice(any_lm, sae):
            found.append(any_lm.generate(ids, use_cache=use_cache, **options))
    assert torch.equal(found[0].sequences, found[1].sequences)
    for cached, whole in zip(found[0].logits, found[1].logits, strict=True):
        torch.testing.assert_close(cached, whole, rtol=1e-4, atol=1e-4)
    plain = any_lm.generate(ids, **options)
    assert not torch.allclose(plain.logits[0], found[0].logits[0], atol=1e-3)


def test_the_error_term_without_an_effect_leaves_the_model_to_the_bit(make_tiny_lm: Callable):
    for dtype in (torch.float32, torch.bfloat16):
        lm = make_tiny_lm("gemma2").to(dtype)
        clean = lm(**tokens()).logits
        with splice(lm, clt(lm), error_term=True, edit=torch.clone):
            assert torch.equal(lm(**tokens()).logits, clean)
        with hfsae.steer(lm, clt(lm), {3: 0.0}):
            assert torch.equal(lm(**tokens()).logits, clean)


def test_steering_writes_a_latents_rows_at_its_own_target_and_later_ones(
    tiny_lm: PreTrainedModel,
):
    sae, ids = clt(tiny_lm), tokens()
    writes, latent = sae.config.writes.names, 15  # of the second source
    rows = sae.folded().split(sae.folded().W_dec)
    for sites in (None, [writes[2]]):
        with capture(tiny_lm, writes) as clean:
            tiny_lm(**ids)
        with (
            hfsae.steer(tiny_lm, sae, {latent: 5.0}, spare_tokens=(), sites=sites),
            capture(tiny_lm, writes) as after,
        ):
            tiny_lm(**ids)
        assert torch.equal(after[writes[0]], clean[writes[0]])
        lowest = writes[1] if sites is None else writes[2]
        expected = clean[lowest] + 5.0 * rows[lowest][latent]
        torch.testing.assert_close(after[lowest], expected, rtol=1e-4, atol=1e-4)
    for options in ({"mode": "orthogonal"}, {"unit": "norm"}):
        with pytest.raises(ValueError, match=r"one target after another.*use another mode"):
            hfsae.steer(tiny_lm, sae, {3: 5.0}, **options).__enter__()


def test_a_target_that_runs_before_a_source_is_refused(tiny_lm: PreTrainedModel):
    mlps = [f"{stack(tiny_lm)}.{i}.mlp" for i in range(2)]
    sites = [f"{stack(tiny_lm)}.0", f"{stack(tiny_lm)}.1"]  # after their MLPs
    config = hfsae.BatchTopKCLTConfig(d_in=32, d_sae=32, sites=sites, target_sites=mlps)
    with (
        splice(tiny_lm, hfsae.BatchTopKCLT(config).eval()),
        pytest.raises(ValueError, match=r"target site 'layers.0.mlp' runs before site 'l"),
    ):
        tiny_lm(**tokens())
