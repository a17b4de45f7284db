"""A model that runs on reconstructions."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from hfsae.lm import (
    capture,
    patch,
    special_ids,
    splice,
)

from ..tiny import stack, tokens
from .toys import IdentitySAE, ToySAE, double_first


@pytest.mark.parametrize(
    "block",
    [
        lambda lm: capture(lm, ["layers.2"]),
        lambda lm: patch(lm, {"layers.2": torch.clone}),
        lambda lm: splice(lm, ToySAE("layers.2")),
    ],
)
def test_a_block_that_no_pass_reaches_warns(tiny_lm: PreTrainedModel, block: Callable):
    with pytest.warns(match=r"no forward pass reached layers\.2 .*no effect"), block(tiny_lm):
        pass
    with pytest.warns(UserWarning, match="no forward pass reached"), block(tiny_lm):
        tiny_lm.get_input_embeddings()(tokens()["input_ids"])
    with pytest.raises(RuntimeError, match="boom"), block(tiny_lm):  # that says enough
        raise RuntimeError("boom")


def test_splicing_the_identity_changes_nothing(any_lm: PreTrainedModel):
    clean = any_lm(**tokens("left")).logits
    with splice(any_lm, IdentitySAE(f"{stack(any_lm)}.2")):
        assert torch.equal(any_lm(**tokens("left")).logits, clean)


def test_splice_puts_the_reconstruction_in_place(any_lm: PreTrainedModel):
    site = f"{stack(any_lm)}.2"
    sae = ToySAE(site)
    with (
        capture(any_lm, [site]) as before,
        splice(any_lm, sae, spare_tokens=()),
        capture(any_lm, [site]) as after,
    ):
        spliced = any_lm(**tokens()).logits
    recon = sae.decode(sae.encode(before[site]))
    assert torch.equal(after[site], recon)
    with patch(any_lm, {site: lambda x: recon}):
        assert torch.equal(any_lm(**tokens()).logits, spliced)


def test_the_error_term_without_an_edit_is_bit_equal_in_any_mix_of_dtypes(make_tiny_lm: Callable):
    for lm_dtype in (torch.float32, torch.bfloat16):
        lm = make_tiny_lm("gemma2").to(lm_dtype)
        clean = lm(**tokens()).logits
        for sae_dtype in (torch.float32, torch.bfloat16):
            sae = ToySAE("layers.1").to(sae_dtype)
            for edit in (None, torch.clone):
                with splice(lm, sae, error_term=True, edit=edit):
                    assert torch.equal(lm(**tokens()).logits, clean)


@pytest.mark.parametrize("error_term", [False, True])
def test_an_edit_moves_the_activation_by_its_decoded_difference(
    tiny_lm: PreTrainedModel, error_term: bool
):
    sae = ToySAE("layers.1")
    with (
        capture(tiny_lm, ["layers.1"]) as before,
        splice(tiny_lm, sae, error_term=error_term, edit=double_first, spare_tokens=()),
        capture(tiny_lm, ["layers.1"]) as after,
    ):
        tiny_lm(**tokens())
    x = before["layers.1"]
    # only latent 0 was edited: its own activation times its own decoder row
    moved = sae.encode(x)[..., :1] * sae.W_dec[0]
    assert moved.abs().max() > 0.1
    base = x if error_term else sae.decode(sae.encode(x))
    torch.testing.assert_close(after["layers.1"] - base, moved, rtol=1e-4, atol=1e-4)


def test_an_sae_in_float32_is_spliced_into_a_bfloat16_model(make_tiny_lm: Callable):
    lm, sae = make_tiny_lm("gemma2").to(torch.bfloat16), ToySAE("layers.1")
    with (
        capture(lm, ["layers.1"]) as before,
        splice(lm, sae, spare_tokens=()),
        capture(lm, ["layers.1"]) as after,
    ):
        lm(**tokens())
    recon = sae.decode(sae.encode(before["layers.1"].float()))
    assert torch.equal(after["layers.1"], recon.bfloat16())


@pytest.mark.parametrize("error_term", [False, True])
def test_positions_outside_keep_and_spared_tokens_are_untouched(
    tiny_lm: PreTrainedModel, error_term: bool
):
    batch, sae = tokens(), ToySAE("layers.1")
    keep = torch.rand(3, 12, generator=torch.Generator().manual_seed(0)) < 0.5
    keep[:, 0] = True  # BOS: kept by the mask, spared by its id
    options = {"error_term": error_term, "edit": double_first}
    with (
        capture(tiny_lm, ["layers.1"]) as before,
        splice(tiny_lm, sae, keep=keep, spare_tokens=[2], **options),
        capture(tiny_lm, ["layers.1"]) as after,
    ):
        tiny_lm(**batch)
    whole = splice(tiny_lm, sae, spare_tokens=(), **options)
    with whole, capture(tiny_lm, ["layers.1"]) as everywhere:
        tiny_lm(**batch)
    replaced = keep & (batch["input_ids"] != 2)
    assert 0 < replaced.sum() < keep.sum()
    assert torch.equal(after["layers.1"][~replaced], before["layers.1"][~replaced])
    assert torch.equal(after["layers.1"][replaced], everywhere["layers.1"][replaced])


def test_sparing_works_for_input_ids_by_position_and_needs_them(tiny_lm: PreTrainedModel):
    batch = tokens()
    clean = tiny_lm(**batch).logits
    everything = list(range(259))
    with splice(tiny_lm, ToySAE("layers.1"), spare_tokens=everything):
        assert torch.equal(tiny_lm(batch["input_ids"], batch["attention_mask"]).logits, clean)
        embedded = tiny_lm.get_input_embeddings()(batch["input_ids"])
        with pytest.raises(ValueError, match="spare_tokens needs input_ids"):
            tiny_lm(inputs_embeds=embedded)


def test_bos_eos_and_padding_of_both_configs_are_spared_by_default(make_tiny_lm: Callable):
    lm = make_tiny_lm("gemma2")
    lm.config.bos_token_id, lm.config.eos_token_id, lm.config.pad_token_id = 2, [1, 107], 0
    lm.generation_config.eos_token_id = [1, 106]
    assert special_ids(lm) == [0, 1, 2, 106, 107]


def test_a_keep_mask_of_another_shape_is_refused(tiny_lm: PreTrainedModel):
    keep = torch.ones(3, 12, dtype=torch.bool)
    with splice(tiny_lm, ToySAE("layers.1"), keep=keep):
        tiny_lm(**tokens())
        with pytest.raises(ValueError, match=r"keep has shape \(3, 12\).*use spare_tokens"):
            tiny_lm.generate(**tokens("left"), max_new_tokens=2, eos_token_id=None)


@pytest.mark.parametrize("error_term", [False, True])
def test_a_transcoder_reads_at_its_site_and_writes_at_its_target(
    any_lm: PreTrainedModel, error_term: bool
):
    site, target = f"{stack(any_lm)}.1.mlp:in", f"{stack(any_lm)}.1.mlp"
    sae = ToySAE(site, target)
    with (
        capture(any_lm, [site, target]) as before,
        splice(any_lm, sae, error_term=error_term, edit=double_first, spare_tokens=()),
        capture(any_lm, [site, target]) as after,
    ):
        any_lm(**tokens())
    assert torch.equal(after[site], before[site])
    latents = sae.encode(before[site])
    moved = sae.decode(double_first(latents)) - sae.decode(latents)
    base = before[target] if error_term else sae.decode(latents)
    torch.testing.assert_close(after[target] - base, moved, rtol=1e-4, atol=1e-4)


def test_a_pass_that_broke_off_leaves_no_activation_to_the_next(
    make_tiny_lm: Callable,
):
    lm = make_tiny_lm("gemma2")
    with splice(lm, ToySAE("layers.1", "layers.2")):
        with capture(lm, ["layers.1"], stop_early=True):
            lm(**tokens())
        layers = lm.base_model.layers
        lm.base_model.layers = nn.ModuleList([layers[0], *layers[2:]])  # without the site
        with pytest.raises(ValueError, match=r"'layers.2' runs before site 'layers.1'"):
            lm(**tokens())


def test_a_target_that_runs_before_its_site_is_refused(tiny_lm: PreTrainedModel):
    with splice(tiny_lm, ToySAE("layers.2", "layers.1")):
        for _ in range(2):  # also where an earlier forward pass got as far as the site
            with pytest.raises(ValueError, match=r"'layers.1' runs before site 'layers.2'"):
                tiny_lm(**tokens())


def test_an_sae_without_a_site_is_refused(tiny_lm: PreTrainedModel):
    with pytest.raises(ValueError, match="names no site"), splice(tiny_lm, ToySAE(None)):
        pass


def test_generation_with_a_cache_is_spliced_as_without_one(any_lm: PreTrainedModel):
    sae = ToySAE(f"{stack(any_lm)}.1")
    options = {"max_new_tokens": 8, "eos_token_id": None, "do_sample": False}
    clean = any_lm.generate(**tokens("left"), **options)
    spare = [0, 2, int(clean[0, 12])]  # pad, BOS, and one that generation itself brings
    with splice(any_lm, sae, error_term=True, edit=lambda z: 1.5 * z, spare_tokens=spare):
        cached = any_lm.generate(**tokens("left"), **options)
        uncached = any_lm.generate(**tokens("left"), **options, use_cache=False)
    assert torch.equal(cached, uncached)
    assert not torch.equal(cached, clean)
    with splice(any_lm, sae, error_term=True):
        assert torch.equal(any_lm.generate(**tokens("left"), **options), clean)


def test_gradients_pass_through_a_splice(tiny_lm: PreTrainedModel):
    sae = ToySAE("layers.1").requires_grad_(True)
    with splice(tiny_lm, sae):
        tiny_lm(**tokens()).logits.square().mean().backward()
    assert sae.W_enc.grad.abs().sum() > 0 and sae.W_dec.grad.abs().sum() > 0


@pytest.mark.gpu
def test_an_sae_on_the_cpu_is_spliced_into_a_model_on_the_gpu(make_tiny_lm: Callable):
    lm = make_tiny_lm("gemma2").cuda()
    batch = {key: value.cuda() for key, value in tokens().items()}
    clean = lm(**batch).logits
    sae = ToySAE("layers.1")
    sae.device = torch.device("cpu")
    with splice(lm, sae, error_term=True, edit=torch.clone, spare_tokens=[2]):
        assert torch.equal(lm(**batch).logits, clean)
