"""A sparse step has the loss and the gradients of the dense one."""

import os
from itertools import product

import pytest
import torch

import hfsae
from hfsae.models import Schedule
from hfsae.ops import Workspace

from ..helpers import SCALE, activations, cases, make

SPARSE = {name: case for name, case in cases().items() if make(case).can_be_sparse}
DEAD = torch.arange(40) % 5 == 0
TRANSCODER = {"d_out": 7, "target_site": "layers.1.mlp", "target_scale": 3.0}
SHAPES = [{}, {"subtract_b_dec": True}, TRANSCODER, TRANSCODER | {"skip_connection": True}]


@pytest.fixture(params=SPARSE.values(), ids=SPARSE)
def config_class(request):
    return request.param


def gradients(sae, x, target=None, **options):
    sae.zero_grad()
    out = sae(x, target, return_loss=True, **options)
    out.loss.backward()
    return out, {name: p.grad.clone() for name, p in sae.named_parameters()}


def assert_close(found, expected, tolerance=2e-6, told=""):
    """Relative to the norm of each gradient."""
    assert found.keys() == expected.keys(), told
    for name, grad in expected.items():
        assert (found[name] - grad).norm() <= tolerance * grad.norm() + 1e-9, (name, told)


def test_there_are_variants_with_sparse_steps():
    assert [name for name in cases() if name not in SPARSE] == ["jumprelu_sae-tanh-0.01-0.05"]


def test_a_sparse_step_has_the_loss_and_gradients_of_a_dense_one(config_class):
    for fields, schedule in product(SHAPES, (Schedule(), Schedule(0.3, 4.0, DEAD))):
        sae, x = make(config_class, **fields), activations(300)
        target = torch.randn(300, 7) if "d_out" in fields else None
        dense, expected = gradients(sae, x, target, schedule=schedule)
        out, found = gradients(sae, x, target, schedule=schedule, workspace=Workspace())
        told = f"{fields} {schedule}"
        assert out.losses.keys() == dense.losses.keys(), told
        for name, loss in dense.losses.items():
            assert out.losses[name].item() == pytest.approx(loss.item(), rel=1e-6), (name, told)
        assert torch.allclose(out.recon, dense.recon, atol=1e-5), told
        assert_close(found, expected, told=told)


def test_a_sparse_step_the_way_of_a_gpu_has_the_gradients_of_a_dense_one(config_class, way_of_gpu):
    """On the CPU; with Triton's kernels too where tests/ops/test_sparse.py asks for it."""
    sae, x = make(config_class), activations(16)
    _, expected = gradients(sae, x, schedule=Schedule(0.3, 4.0, DEAD))
    way_of_gpu(True, os.environ.get("TRITON_INTERPRET") == "1")
    _, found = gradients(sae, x, schedule=Schedule(0.3, 4.0, DEAD), workspace=Workspace())
    assert_close(found, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("use_triton", [True, False])
def test_on_a_gpu_a_sparse_step_has_the_gradients_of_a_dense_one(
    config_class, use_triton, way_of_gpu
):
    """And repeats to the bit; under autocast too, which would round the dense one's products."""
    way_of_gpu(False, use_triton)
    sae, x = make(config_class).cuda(), activations(300).cuda()
    options = {"schedule": Schedule(0.3, 4.0)}
    _, expected = gradients(sae, x, **options)
    _, found = gradients(sae, x, **options, workspace=Workspace())
    with torch.autocast("cuda", dtype=torch.bfloat16):
        _, again = gradients(sae, x, **options, workspace=Workspace())
    assert_close(found, expected, tolerance=1e-5)
    assert all(torch.equal(again[name], grad) for name, grad in found.items())


def test_values_at_entries_are_those_of_the_matrices(config_class):
    sae, x = make(config_class), activations(300)
    dense, out = sae(x), sae(x, workspace=Workspace())
    where = out.at.tokens, out.at.latents
    latents = torch.zeros_like(dense.latents).index_put(where, out.latents)
    assert torch.allclose(latents, dense.latents, atol=1e-5)
    assert torch.allclose(out.pre_acts, dense.pre_acts[where], atol=1e-5)
    assert torch.equal(out.at.count(out.latents != 0), (dense.latents != 0).sum(0))
    assert out.at.density == pytest.approx(sae.density(dense.pre_acts, Schedule()).item(), abs=0.02)


def test_under_autocast_a_sparse_step_stays_exact(config_class):
    sae, x = make(config_class), activations(300)
    _, expected = gradients(sae, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, found = gradients(sae, x, workspace=Workspace())
    assert_close(found, expected)


def test_a_sparse_step_without_any_entry(config_class):
    sae, x = make(config_class), activations(30)
    with torch.no_grad():
        sae.b_enc.fill_(-100.0)
    _, expected = gradients(sae, x)
    out, found = gradients(sae, x, workspace=Workspace())
    assert len(out.at) == 0
    assert_close(found, expected)


def test_weights_in_another_memory_order_give_the_same_step(config_class):
    sae, x = make(config_class), activations(300)
    _, expected = gradients(sae, x, workspace=Workspace())
    sae.W_enc = torch.nn.Parameter(sae.W_enc.detach().contiguous())
    _, found = gradients(sae, x, workspace=Workspace())
    assert all(torch.equal(found[name], grad) for name, grad in expected.items())


def test_a_used_workspace_changes_no_bit(config_class):
    sae, used = make(config_class), Workspace()
    for n in (300, 77):
        sae(activations(n), return_loss=True, workspace=used).loss.backward()
        used.recycle_(sae.W_enc), used.recycle_(sae.W_dec)
    _, found = gradients(sae, activations(200), workspace=used)
    _, expected = gradients(sae, activations(200), workspace=Workspace())
    assert all(torch.equal(found[name], grad) for name, grad in expected.items())


def test_the_number_of_threads_changes_no_bit(config_class):
    sae, x, ends, before = make(config_class), activations(3000), [], torch.get_num_threads()
    try:
        for n_threads in (1, 2):
            torch.set_num_threads(n_threads)
            ends.append(gradients(sae, x, workspace=Workspace()))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(ends[0][0].recon, ends[1][0].recon)
    for name in ("W_enc", "W_dec", "b_enc"):
        assert torch.equal(ends[0][1][name], ends[1][1][name]), name


@pytest.mark.parametrize(
    "fields", [{"selection": "groupmax"}, {"relu": False}, {"selection": "approximate"}]
)
def test_what_has_no_sparse_step_says_so(fields):
    assert not make(hfsae.TopKSAEConfig, **fields).can_be_sparse
    assert not make(hfsae.ReLUSAEConfig).to(torch.bfloat16).can_be_sparse


def test_a_device_without_sparse_passes_has_dense_ones_alone():
    sae, x = make(hfsae.ReLUSAEConfig).to("meta"), activations(3).to("meta")
    assert sae(x).recon.shape == x.shape
    with pytest.raises(ValueError, match="a sparse pass runs on cpu and cuda, and x is on meta"):
        sae(x, workspace=Workspace())


def test_window_share_is_the_same_over_entries():
    sae, x = make(hfsae.JumpReLUSAEConfig, bandwidth=0.05), activations(300)
    dense, out = sae(x), sae(x, workspace=Workspace())
    share = sae.window_share(dense.pre_acts)
    assert share > 0
    assert sae.window_share(out.pre_acts, at=out.at).item() == pytest.approx(share.item())


def test_w_enc_lies_by_latent_in_memory_and_stays_so(tmp_path):
    sae = make(hfsae.JumpReLUSAEConfig)
    sae.save_pretrained(tmp_path)
    for other in (sae, sae.folded(), hfsae.JumpReLUSAE.from_pretrained(tmp_path)):
        assert other.W_enc.shape == (12, 40) and other.W_enc.T.is_contiguous()
    assert sae.latent_scale == SCALE
