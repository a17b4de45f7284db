"""What every variant must do. A new file in hfsae/models is found and tested by itself."""

import json
from collections.abc import Callable
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel

import hfsae
from hfsae.models import SAE, SAEConfig
from hfsae.ops import Workspace

from ..helpers import CITING, D_IN, D_SAE, SCALE, activations, cases, make, smallest, variants
from ..training.planted import check_shapes_of_step


def norms(sae: SAE) -> torch.Tensor:
    """What folding multiplies latents by."""
    if sae.config.unit_norm_decoder:
        return torch.ones(D_SAE)
    return sae.W_dec.detach().norm(dim=-1)


@pytest.fixture(params=[*cases(), *CITING])
def config_class(request) -> Callable[..., SAEConfig]:
    name = request.param
    if name not in CITING:
        return cases()[name]
    of_transcoders = "transcoder" in request.node.name or "skip_connection" in request.node.name
    if name == "rank1_topk" and of_transcoders:
        pytest.skip("its input and its output are one matrix")
    title = name.title().replace("_", "").replace("Topk", "TopK")
    config = getattr(request.getfixturevalue("citing"), f"{title}SAEConfig")
    return partial(config, **CITING[name])


@pytest.fixture
def sae(config_class) -> SAE:
    return make(config_class)


def test_forward_is_decode_after_encode(sae):
    out = sae(activations(9))
    assert torch.equal(out.latents, sae.encode(activations(9)))
    assert torch.equal(out.recon, sae.decode(out.latents))
    assert 0 < (out.latents != 0).float().mean() < 1


def test_there_are_variants():
    assert hfsae.JumpReLUSAEConfig in variants()


def test_save_and_load_gives_the_same_function_to_the_bit(sae, tmp_path):
    sae.save_pretrained(tmp_path)
    for loaded in (type(sae).from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)):
        assert type(loaded) is type(sae)
        assert all(torch.equal(loaded.state_dict()[k], v) for k, v in sae.state_dict().items())
        assert torch.equal(loaded(activations(9)).recon, sae(activations(9)).recon)


def test_rows_are_views_and_latent_dims_those_of_the_size_of_the_dictionary(sae):
    assert sae.encoder_rows().shape == sae.decoder_rows().shape == (D_SAE, D_IN)
    assert sae.encoder_rows().data_ptr() == sae.W_enc.data_ptr()
    assert sae.decoder_rows().data_ptr() == sae.W_dec.data_ptr()
    by_size = {name: p.shape.index(D_SAE) for name, p in sae.named_parameters() if D_SAE in p.shape}
    assert sae.latent_dims == by_size


def test_every_parameter_gets_a_gradient(sae):
    sae(activations(64), return_loss=True).loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in sae.parameters())


def test_any_leading_shape(sae):
    for shape in ((), (5,), (2, 3), (2, 3, 4)):
        out = sae(activations(*shape), return_loss=True)
        assert out.recon.shape == (*shape, D_IN) and out.latents.shape == (*shape, D_SAE), shape
        flat = sae(activations(*shape).reshape(-1, D_IN), return_loss=True)
        assert out.loss.shape == () and torch.allclose(out.loss, flat.loss), shape
        out.loss.backward()


def test_a_batch_without_tokens_is_encoded_but_has_no_loss(sae):
    x = torch.zeros(0, sae.config.d_in)
    assert sae(x).recon.shape == (0, sae.config.d_out)
    assert sae(x, workspace=Workspace() if sae.can_be_sparse else None).recon.numel() == 0
    with pytest.raises(ValueError, match=r"x \[0, \d+\] holds no tokens, but the loss"):
        sae(x, x, return_loss=True)


def test_loss_is_the_sum_of_its_named_terms(sae):
    out = sae(activations(64), return_loss=True)
    error = (activations(64) - out.recon) / SCALE
    assert out.losses["mse"].item() == pytest.approx(error.square().sum(-1).mean().item())
    assert out.loss.item() == pytest.approx(sum(loss.item() for loss in out.losses.values()))
    assert sae(activations(64)).loss is None


def test_activation_scale_only_changes_the_unit(config_class):
    """x/c seen with scale 1 and x seen with scale c are the same SAE, in other units."""
    scaled, plain = make(config_class), make(config_class, activation_scale=1.0)
    x = activations(64)
    out, unit = scaled(x, return_loss=True), plain(x / SCALE, return_loss=True)
    assert torch.allclose(out.recon, SCALE * unit.recon, atol=1e-5)
    assert torch.allclose(out.latents, SCALE * unit.latents, atol=1e-5)
    assert out.loss.item() == pytest.approx(unit.loss.item(), rel=1e-5)
    out.loss.backward(), unit.loss.backward()
    for p, q in zip(scaled.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad, rtol=1e-3, atol=1e-5)


def test_folding_draws_no_weights_and_keeps_the_encoder_laid_out_by_latent(sae):
    before = torch.get_rng_state()
    rows = sae.folded().encoder_rows()
    assert torch.equal(torch.get_rng_state(), before)
    assert rows.is_contiguous() and rows.device.type == "cpu"


@pytest.mark.parametrize("subtract_b_dec", [False, True])
def test_folding_leaves_the_function_as_it_is(config_class, subtract_b_dec):
    sae = make(config_class, subtract_b_dec=subtract_b_dec)
    folded, x = sae.folded(), activations(256)
    assert folded.config.activation_scale == 1.0 and not folded.config.subtract_b_dec
    out, ours = folded(x), sae(x)
    # A pre-activation within rounding of its threshold may fall on either side: set those aside.
    sure = (out.latents != 0) == (ours.latents != 0)
    assert (~sure).sum() <= 1
    assert torch.allclose(out.latents[sure], (norms(sae) * ours.latents)[sure], atol=1e-5)
    assert torch.allclose(out.recon[sure.all(-1)], ours.recon[sure.all(-1)], atol=1e-5)
    shifts = getattr(sae.config, "activation", "jump") == "shifted"  # to a jump at 0
    moved = SCALE * sae.threshold if shifts else 0.0
    assert torch.allclose(out.pre_acts, norms(sae) * (ours.pre_acts - moved), atol=1e-5)
    assert torch.allclose(folded.W_dec.norm(dim=-1), torch.ones(D_SAE), atol=1e-6)
    assert all(
        torch.equal(v, folded.state_dict()[k]) for k, v in folded.folded().state_dict().items()
    )


def test_folding_leaves_a_transcoder_as_it_is(config_class):
    fields = {"d_out": 7, "target_site": "layers.1.mlp", "target_scale": 3.0}
    sae = make(config_class, **fields)
    folded, x = sae.folded(), activations(32)
    assert folded(x).recon.shape == (32, 7)
    assert torch.allclose(folded(x).recon, sae(x).recon, atol=1e-5)


def test_what_no_transcoder_can_be_is_refused(config_class):
    normed = {"token_norm": "layer_norm", "activation_scale": None}
    for fields, sentence in [
        ({"target_site": "layers.1.mlp", "subtract_b_dec": True}, "b_dec lies in another space"),
        ({"d_out": 7}, "name the target_site"),
        ({"token_norm": "layer_norm"}, "needs an activation_scale of 1 or none"),
        (normed | {"skip_connection": True}, "no target_site and no skip_connection"),
        (normed | {"token_norm": "batch"}, "must be one of 'none', 'layer_norm'"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            make(config_class, **fields)
            pytest.fail(f"{fields} are accepted")


@pytest.mark.parametrize("scales", [(1.0, 1.0), (SCALE, 3.0)])
def test_a_skip_connection_adds_a_linear_part(config_class, scales, tmp_path):
    fields = {"d_out": 7, "target_site": "layers.1.mlp"}
    fields |= {"activation_scale": scales[0], "target_scale": scales[1]}
    without, sae = make(config_class, **fields), make(config_class, skip_connection=True, **fields)
    sae.load_state_dict(without.state_dict() | {"W_skip": sae.W_skip})
    x = activations(32)
    linear = scales[1] * (x / scales[0]) @ sae.W_skip
    assert torch.allclose(sae(x).recon, without(x).recon + linear, atol=1e-5)
    assert torch.allclose(sae.folded()(x).recon, sae(x).recon, atol=1e-4)
    sae.save_pretrained(tmp_path)
    assert torch.equal(AutoModel.from_pretrained(tmp_path)(x).recon, sae(x).recon)
    sae(x, torch.ones(32, 7), return_loss=True).loss.backward()
    assert sae.W_skip.grad.abs().sum() > 0
    with pytest.raises(ValueError, match=r"a skip connection: .*decode\(latents, x\)"):
        sae.decode(sae.encode(x))


@pytest.mark.parametrize("token_norm, shift", [("layer_norm", 5.0), ("unit_rms", 0.0)])
def test_token_norm_takes_out_each_tokens_size_and_puts_it_back(config_class, token_norm, shift):
    sae = make(config_class, token_norm=token_norm, activation_scale=None)
    x, size = 100 * activations(32), 1 + 9 * torch.rand(32, 1)
    out, moved = sae(x), sae(size * x + shift)
    assert torch.allclose(moved.latents, out.latents, atol=1e-4)
    assert torch.allclose(moved.recon, size * out.recon + shift, rtol=1e-3, atol=1e-2)
    assert torch.equal(sae.decode(out.latents, x), out.recon)
    with pytest.raises(ValueError, match=f"{token_norm}: pass the input too"):
        sae.decode(out.latents)
    with pytest.raises(ValueError, match="can be used but not trained"):
        sae(x, return_loss=True)


def test_an_sae_does_not_learn_to_copy_its_input(config_class):
    with pytest.raises(ValueError, match="could copy its input"):
        make(config_class, skip_connection=True)(activations(4), return_loss=True)


def test_a_transcoders_loss_wants_a_target(config_class):
    with pytest.raises(ValueError, match=r"needs target: x at layers\.1\.mlp"):
        make(config_class, target_site="layers.1.mlp")(activations(4), return_loss=True)


def test_a_transcoder_learns_its_target(config_class):
    sae = make(config_class, d_out=7, target_site="layers.1.mlp", target_scale=3.0)
    target = 3.0 * torch.randn(64, 7, generator=torch.Generator().manual_seed(3))
    out = sae(activations(64), target, return_loss=True)
    error = (target - out.recon) / 3.0
    assert out.losses["mse"].item() == pytest.approx(error.square().sum(-1).mean().item())


def test_bfloat16_keeps_thresholds_in_float32_and_stays_close(config_class, tmp_path):
    sae = make(config_class)
    sae.save_pretrained(tmp_path)
    moved = make(config_class).to(torch.bfloat16)
    loaded = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    for low in (moved, loaded, loaded.to(torch.bfloat16), loaded.bfloat16()):
        kept = set(sae.float32_parameters)
        for name, tensor in low.state_dict().items():
            if tensor.is_floating_point():
                assert tensor.dtype == (torch.float32 if name in kept else torch.bfloat16), name
            assert name not in kept or torch.equal(tensor, sae.state_dict()[name])
    recon = moved(activations(64).bfloat16()).recon
    assert recon.dtype == torch.bfloat16
    error = (recon.float() - sae(activations(64)).recon).norm() / recon.float().norm()
    assert error < 0.05


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_activations_of_another_dtype_are_cast_to_the_saes(config_class, dtype):
    x = activations(9).bfloat16()
    for fields in ({}, {"token_norm": "layer_norm", "activation_scale": None}):
        sae = make(config_class, **fields)
        expected, out = sae(x.float()), sae(x.to(dtype))
        assert torch.equal(out.recon, expected.recon) and out.recon.dtype == torch.float32
        assert torch.equal(sae.encode(x.to(dtype)), expected.latents)
        assert torch.equal(
            sae.decode(out.latents.to(dtype), x.to(dtype)).float(),
            sae.decode(out.latents.to(dtype).float(), x.float()),
        )
        assert torch.equal(sae.row_factor(x.to(dtype)), sae.row_factor(x.float()))
    sae = make(config_class)
    loss = sae(x.to(dtype), return_loss=True).loss
    assert torch.equal(loss, sae(x.float(), return_loss=True).loss)


def test_autocast_gives_float32_losses_close_to_the_exact_one(sae):
    exact = sae(activations(256), return_loss=True).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = sae(activations(256), return_loss=True).loss
    low.backward()
    assert low.dtype == torch.float32 and low.item() == pytest.approx(exact.item(), rel=0.02)
    assert all(p.grad.dtype == torch.float32 for p in sae.parameters())


def test_a_hundred_steps_lower_the_loss_and_keep_rows_at_unit_norm_or_free(config_class):
    torch.manual_seed(2)
    sae, x = make(config_class), activations(256)
    optimizer = torch.optim.Adam(sae.parameters(), lr=1e-3)
    losses = []
    for step in range(100):
        check_shapes_of_step(step)
        loss = sae(x, return_loss=True).loss
        loss.backward()
        sae.before_step_()
        parallel = (sae.W_dec.grad * sae.W_dec).sum(-1)
        assert (parallel.abs().max() < 1e-5) == sae.config.unit_norm_decoder
        optimizer.step()
        optimizer.zero_grad()
        sae.after_step_()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    for rows, are_unit in ((sae, sae.config.unit_norm_decoder), (sae.folded(), True)):
        assert torch.allclose(rows.W_dec.norm(dim=-1), torch.ones(D_SAE), atol=1e-5) == are_unit


def test_initialisation_ties_the_encoder_to_decoder_rows_of_one_norm(config_class):
    torch.manual_seed(0)
    fresh = AutoModel.from_config(config_class(**smallest(config_class)))
    norm = 1.0 if fresh.config.unit_norm_decoder else 0.1
    assert torch.allclose(fresh.W_dec.norm(dim=-1), torch.full((D_SAE,), norm), atol=1e-6)
    assert torch.equal(fresh.W_enc, fresh.W_dec.T)
    assert not fresh.b_enc.any() and not fresh.b_dec.any()


def test_an_unknown_key_is_refused_with_the_nearest_field(config_class, tmp_path):
    with pytest.raises(ValueError, match=r"no field 'd_see'; closest: 'd_sae'"):
        config_class(**smallest(config_class), d_see=8)
    make(config_class).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "activation_scal": 2.0}))
    with pytest.raises(ValueError, match="closest: 'activation_scale'"):
        AutoConfig.from_pretrained(tmp_path)


def test_an_impossible_value_is_refused(config_class):
    for name, value in [("d_sae", 0), ("d_sae", "8"), ("activation_scale", -1.0)]:
        with pytest.raises(ValueError, match=name):
            config_class(**{**smallest(config_class), name: value})
            pytest.fail(f"{name} = {value!r} is accepted")


def test_wrong_weights_are_refused_in_one_sentence(sae, tmp_path):
    sae.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    good = load_file(file)
    nan = good["b_dec"].clone()
    nan[0] = torch.nan
    missing = {k: v for k, v in good.items() if k != "b_enc"}
    for weights, sentence in [
        (missing, r"missing weights \['b_enc'\]"),
        ({**good, "extra": torch.zeros(3)}, r"unexpected weights \['extra'\]"),
        ({**good, "W_enc": torch.zeros(3, 3)}, r"W_enc has shape \[3, 3\]"),
        ({**good, "b_dec": nan}, r"b_dec holds 1 values that are NaN"),
    ]:
        save_file(weights, file, metadata={"format": "pt"})
        for load in (type(sae).from_pretrained, AutoModel.from_pretrained):
            with pytest.raises(ValueError, match=sentence) as caught:
                load(tmp_path)
            assert "\n" not in str(caught.value)


def test_files_that_transformers_would_read_in_place_of_the_weights_are_refused(tmp_path):
    sae = make(hfsae.TopKSAEConfig)
    sae.save_pretrained(tmp_path)
    for load in (type(sae).from_pretrained, AutoModel.from_pretrained):
        with pytest.raises(ValueError, match="variant='fp16': an SAE is read from"):
            load(tmp_path, variant="fp16")
        with pytest.raises(ValueError, match="use_safetensors=False: an SAE is read from safetens"):
            load(tmp_path, use_safetensors=False)
        for name, sentence in [
            ("shard-00000-model-00001-of-00001.safetensors", "of a distributed checkpoint, which"),
            ("adapter_config.json", "a PEFT adapter.s file"),
        ]:
            (tmp_path / name).write_text('{"base_model_name_or_path": "alice/other"}')
            with pytest.raises(ValueError, match=f"holds {name}.*{sentence}"):
                load(tmp_path)
            (tmp_path / name).unlink()
        assert torch.equal(load(tmp_path).W_dec, sae.W_dec)


def test_another_models_config_and_one_without_widths_are_refused(tmp_path, tiny_lm):
    tiny_lm.save_pretrained(tmp_path / "lm")
    with pytest.raises(
        ValueError, match=r"lm: its config\.json describes a 'gemma2' model, but Jump"
    ):
        hfsae.JumpReLUSAE.from_pretrained(tmp_path / "lm")
    make(hfsae.TopKSAEConfig).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"describes a 'topk_sae' model, but ReLUSAEConfig loads 're"
    ):
        hfsae.ReLUSAE.from_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["d_in"], config["d_sae"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    for load in (hfsae.TopKSAE.from_pretrained, AutoModel.from_pretrained, hfsae.load):
        with pytest.raises(ValueError, match=r"its config\.json lacks d_in and d_sae"):
            load(tmp_path)


def test_a_wrong_width_is_refused_with_the_site(sae):
    with pytest.raises(ValueError, match=r"width 12, got \(3, 5\).*layers\.1"):
        sae(torch.zeros(3, 5))
    with pytest.raises(ValueError, match="width 12"):
        sae.encode(torch.zeros(3, 5))
