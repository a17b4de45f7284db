"""What is peculiar to the Gated SAE."""

import pytest
import torch

from hfsae import GatedSAE, GatedSAEConfig, JumpReLUSAE
from hfsae.convert import to_jumprelu


def make(**fields) -> GatedSAE:
    torch.manual_seed(0)
    sae = GatedSAE(GatedSAEConfig(d_in=6, d_sae=20, activation_scale=3.0, **fields))
    with torch.no_grad():
        for name in ("b_enc", "b_dec", "b_mag", "r_mag"):
            getattr(sae, name).uniform_(-0.3, 0.3)
    return sae


def x_batch() -> torch.Tensor:
    return 3 * torch.randn(32, 6, generator=torch.Generator().manual_seed(1))


def test_latents_follow_the_papers_two_encoders():
    """Eqs. 6 and 7 with W_mag and W_gate written out."""
    sae, x = make(), x_batch() / 3
    gate = x @ sae.W_enc + sae.b_enc
    magnitude = x @ (sae.W_enc * sae.r_mag.exp()) + sae.b_mag
    expected = 3 * torch.where(gate > 0, magnitude.clamp(min=0), 0)
    assert torch.allclose(sae.encode(3 * x), expected, atol=1e-5)
    assert 0 < (expected > 0).float().mean() < 0.9


def test_losses_are_the_papers():
    """Eq. 8: the gate's own reconstruction, with a decoder that gets no gradient from it."""
    sae, x = make(l1_coefficient=0.25), x_batch() / 3
    losses = sae(3 * x, return_loss=True).losses
    gate = (x @ sae.W_enc + sae.b_enc).relu()
    by_gate = (x - gate @ sae.W_dec - sae.b_dec).square().sum(1).mean()
    assert losses["l1"].item() == pytest.approx(0.25 * gate.sum(1).mean().item(), rel=1e-5)
    assert losses["aux"].item() == pytest.approx(by_gate.item(), rel=1e-5)
    losses["aux"].backward()
    assert sae.W_dec.grad is None and sae.b_dec.grad is None
    assert sae.W_enc.grad.abs().sum() > 0 and sae.b_enc.grad.abs().sum() > 0


def test_a_skip_connection_is_no_part_of_what_gates_have_to_explain():
    sae = make(target_site="layers.1.mlp", site="layers.0", d_out=6, skip_connection=True)
    y = torch.randn(32, 6, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        sae.W_skip.uniform_(-0.5, 0.5)
    losses = sae(x_batch(), target=3 * y, return_loss=True).losses
    x = x_batch() / 3
    gate = (x @ sae.W_enc + sae.b_enc).relu()
    left = y - x @ sae.W_skip - gate @ sae.W_dec - sae.b_dec
    assert losses["aux"].item() == pytest.approx(left.square().sum(1).mean().item(), rel=1e-5)


def test_ri_l1_weighs_gates_and_trains_the_decoder_by_the_auxiliary_loss_too():
    """The JumpReLU paper's baseline, its terms written out."""
    sae, x = make(l1_coefficient=0.25, penalty="ri_l1"), x_batch() / 3
    losses = sae(3 * x, return_loss=True).losses
    gate = (x @ sae.W_enc + sae.b_enc).relu()
    by_gate = (x - gate @ sae.W_dec - sae.b_dec).square().sum(1).mean()
    l1 = (gate * sae.W_dec.norm(dim=1)).sum(1).mean()
    assert losses["l1"].item() == pytest.approx(0.25 * l1.item(), rel=1e-5)
    assert losses["aux"].item() == pytest.approx(by_gate.item(), rel=1e-5)
    grads = torch.autograd.grad(losses["aux"], [sae.W_dec, sae.b_dec])
    expected = torch.autograd.grad(by_gate, [sae.W_dec, sae.b_dec])
    for grad, wanted in zip(grads, expected, strict=True):
        assert torch.allclose(grad, wanted, atol=1e-5) and wanted.abs().sum() > 0.1


@pytest.mark.parametrize("subtract_b_dec", [False, True])
@pytest.mark.parametrize("penalty", ["l1", "ri_l1"])
def test_the_jumprelu_it_equals_has_the_same_latents_and_unit_rows(penalty, subtract_b_dec):
    """Norms that differ, r_mag, b_mag and b_enc: gate and magnitude recomputed from the paper."""
    sae, x = make(penalty=penalty, subtract_b_dec=subtract_b_dec), x_batch()
    with torch.no_grad():
        if penalty == "ri_l1":
            sae.W_dec *= torch.linspace(0.5, 30, 20)[:, None]
    written = (sae.encode(x)[:, :, None] * sae.W_dec).norm(dim=-1)  # [32, 20], of unit rows
    for other in (sae.folded(), to_jumprelu(sae)):
        out = other(x)
        assert torch.allclose(other.W_dec.norm(dim=-1), torch.ones(20), atol=1e-6)
        assert torch.allclose(out.latents, written, rtol=1e-5, atol=1e-5)
        assert torch.allclose(out.recon, sae(x).recon, rtol=1e-5, atol=1e-5)
    assert isinstance(other, JumpReLUSAE) and 0.1 < (written > 0).float().mean() < 0.9
