"""One dictionary over several sites: against double loops, and against an SAE of one site."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel

from hfsae import SAE, BatchTopKSAE, BatchTopKSAEConfig
from hfsae.models import Schedule
from hfsae.ops import Workspace, kth_positive

from ..helpers import cases, make

SITES, WIDTHS, SCALES = ["layers.1", "layers.2:in", "layers.4"], [4, 3, 5], [2.0, 0.5, 40.0]
D_IN, D_SAE, N = 12, 10, 24


def over_sites(kind: str, **fields: Any) -> SAE:
    torch.manual_seed(3)
    own = {"k": 3} if "topk" in kind else {}
    own |= {"l0_coefficient": 0.1, "bandwidth": 0.3} if "jumprelu" in kind else {}
    config = AutoConfig.for_model(
        kind, d_in=D_IN, d_sae=D_SAE, sites=SITES, widths=WIDTHS, **own | fields
    )
    config.fill_scales(SCALES, SCALES)
    sae = AutoModel.from_config(config)
    with torch.no_grad():
        for name, p in sae.named_parameters():
            p.add_(0.3 * torch.rand_like(p) if name == "threshold" else 0.3 * torch.randn_like(p))
        sae.after_step_()
    return sae


def activations(n: int = N) -> Tensor:
    scales = torch.tensor(SCALES).repeat_interleave(torch.tensor(WIDTHS))
    return torch.randn(n, D_IN, generator=torch.Generator().manual_seed(1)) * scales / 2


def by_loops(sae: SAE, x: Tensor, fires: Tensor) -> tuple[list[list[float]], float]:
    """Reconstructions and the mean over sites of relative squared errors, number by number."""
    W_enc, b_enc = sae.W_enc.tolist(), sae.b_enc.tolist()
    W_dec, b_dec = sae.W_dec.tolist(), sae.b_dec.tolist()
    site_of = [s for s, width in enumerate(WIDTHS) for _ in range(width)]
    unit = [SCALES[s] * math.sqrt(len(SITES)) for s in site_of]
    recons, loss = [], 0.0
    for n, row in enumerate(x.tolist()):
        scaled = [value / unit[j] for j, value in enumerate(row)]
        if sae.config.subtract_b_dec:
            scaled = [value - b_dec[j] for j, value in enumerate(scaled)]
        f = [
            sum(scaled[j] * W_enc[j][i] for j in range(D_IN)) + b_enc[i] if fires[n, i] else 0.0
            for i in range(D_SAE)
        ]
        recon = [
            unit[j] * (sum(f[i] * W_dec[i][j] for i in range(D_SAE)) + b_dec[j])
            for j in range(D_IN)
        ]
        for s, (width, scale) in enumerate(zip(WIDTHS, SCALES, strict=True)):
            of_site = [j for j in range(D_IN) if site_of[j] == s]
            assert len(of_site) == width
            error = sum((row[j] - recon[j]) ** 2 for j in of_site)
            loss += error / scale**2 / len(SITES) / len(x)
        recons.append(recon)
    return recons, loss


@pytest.mark.parametrize("subtract", [False, True])
@pytest.mark.parametrize("kind", ["relu_sae", "jumprelu_sae", "batch_topk_sae", "topk_sae"])
def test_reconstruction_and_loss_are_those_of_double_loops(kind: str, subtract: bool):
    sae, x = over_sites(kind, subtract_b_dec=subtract).double().train(), activations().double()
    out = sae(x, return_loss=True)
    recons, loss = by_loops(sae, x, out.latents != 0)
    assert torch.allclose(
        out.recon, torch.tensor(recons, dtype=torch.float64), rtol=1e-10, atol=1e-10
    )
    assert out.losses["mse"].item() == pytest.approx(loss, rel=1e-6)  # errors are float32 there
    assert 0 < (out.latents != 0).double().mean() < 1


@pytest.mark.parametrize("kind", ["jumprelu_sae", "batch_topk_sae"])
def test_a_gradient_is_that_of_differences_of_the_loops(kind: str):
    sae, x = over_sites(kind).double().train(), activations().double()
    out = sae(x, return_loss=True)
    out.losses["mse"].backward()
    fires = out.latents != 0
    i = int(fires.sum(0).argmax())
    for name, place in [("W_dec", (i, 5)), ("W_enc", (9, i)), ("b_dec", (6,)), ("b_enc", (i,))]:
        p, losses = sae.get_parameter(name), []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                p[place] += step
                losses.append(by_loops(sae, x, fires)[1])
                p[place] -= step
        slope = (losses[0] - losses[1]) / 2e-5
        assert slope != 0
        assert p.grad[place].item() == pytest.approx(slope, rel=1e-4, abs=1e-7), name


def test_penalties_and_selection_act_on_the_sum_of_norms_at_the_sites():
    free, x = over_sites("relu_sae", penalty="ri_l1"), activations()
    out = free(x, return_loss=True)
    norms = sum(part.norm(dim=1) for part in free.W_dec.split(WIDTHS, dim=1))
    l1 = (out.latents / free.latent_scale * norms).sum() / len(x)
    assert torch.allclose(out.losses["l1"], free.config.l1_coefficient * l1)
    # Free norms scaled into norm 1: Minder et al. keep the k B largest of f sum_s |d^s|.
    scaled = over_sites("batch_topk_sae")
    with torch.no_grad():
        scaled.W_dec.copy_(free.W_dec / norms[:, None])
        scaled.W_enc.copy_(free.W_enc * norms)
        scaled.b_enc.copy_(free.b_enc * norms)
        scaled.b_dec.copy_(free.b_dec)
    kept = scaled.train()(x, return_loss=True).latents
    score = free.pre_activations(x).relu() * norms
    smallest = kth_positive(score, scaled.config.k * len(x))
    assert torch.equal(kept != 0, score >= smallest)
    written = (free.pre_activations(x) * (score >= smallest)) @ free.W_dec
    assert torch.allclose(kept @ scaled.W_dec, written, rtol=1e-4, atol=1e-4)


def test_the_norm_over_sites_is_1_after_each_step_and_the_gradient_has_no_part_along_it():
    sae, x = over_sites("batch_topk_sae").train(), activations()
    adam = torch.optim.Adam(sae.parameters(), lr=0.05)
    for _ in range(5):
        adam.zero_grad()
        sae(x, return_loss=True).loss.backward()
        sae.before_step_()
        grown = [sae.row_norms(sae.W_dec + step * sae.W_dec.grad) for step in (1e-3, -1e-3)]
        assert (grown[0] - grown[1]).abs().max() < 1e-4 * sae.W_dec.grad.abs().max()
        adam.step()
        sae.after_step_()
        norms = sum(part.norm(dim=1) for part in sae.W_dec.split(WIDTHS, dim=1))
        assert torch.allclose(norms, torch.ones(D_SAE), atol=1e-6)
        assert torch.allclose(sae.shares.sum(1), torch.ones(D_SAE), atol=1e-6)


@pytest.mark.parametrize("kind", [*cases()])
def test_folding_keeps_the_function_and_the_shares(kind: str):
    small = make(cases()[kind]).config
    fields = {k: v for k, v in small.to_diff_dict().items() if k in ("penalty", "activation")}
    sae, x = over_sites(small.model_type, subtract_b_dec=True, **fields).eval(), activations()
    folded = sae.folded()
    assert torch.allclose(folded(x).recon, sae(x).recon, rtol=1e-4, atol=1e-4)
    assert torch.allclose(folded.shares, sae.shares, atol=1e-5)
    norms = folded.row_norms(folded.W_dec)
    assert torch.allclose(norms, torch.ones(D_SAE), atol=1e-5)
    assert torch.allclose(folded.folded()(x).recon, folded(x).recon, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["relu_sae", "jumprelu_sae", "batch_topk_sae", "topk_sae"])
def test_a_sparse_step_is_a_dense_one(kind: str):
    x = activations(64)
    found = []
    for workspace in (None, Workspace()):
        sae = over_sites(kind).train()
        out = sae(x, return_loss=True, workspace=workspace, schedule=Schedule())
        out.loss.backward()
        found.append([out.loss, *(p.grad for p in sae.parameters())])
    for dense, sparse in zip(*found, strict=True):
        assert torch.allclose(dense, sparse, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [*cases()])
def test_one_site_in_a_list_is_an_sae_of_that_site_to_the_bit(kind: str):
    config = make(cases()[kind]).config.to_diff_dict()
    weights = []
    for place in ({"site": "layers.1"}, {"sites": ["layers.1"]}):
        kept = {k: v for k, v in config.items() if k not in ("site", "sites")}
        torch.manual_seed(0)
        sae = AutoModel.from_config(AutoConfig.for_model(**kept, **place)).train()
        adam = torch.optim.Adam(sae.parameters(), lr=0.01)
        for step in range(20):
            x = torch.randn(32, sae.config.d_in, generator=torch.Generator().manual_seed(step))
            sae(x, return_loss=True).loss.backward()
            sae.before_step_()
            adam.step()
            sae.after_step_()
            adam.zero_grad()
        weights.append(sae.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_two_copies_of_a_site_get_equal_shares_and_equal_reconstructions():
    config = BatchTopKSAEConfig(d_in=8, d_sae=16, k=2, sites=["a", "b"])
    config.fill_scales([1.0, 1.0], [1.0, 1.0])
    torch.manual_seed(0)
    sae = BatchTopKSAE(config).train()
    adam = torch.optim.Adam(sae.parameters(), lr=0.01)
    for step in range(50):
        x = torch.randn(64, 4, generator=torch.Generator().manual_seed(step)).repeat(1, 2)
        sae(x, return_loss=True).loss.backward()
        sae.before_step_()
        adam.step()
        sae.after_step_()
        adam.zero_grad()
    first, second = sae.eval().split(sae(x).recon).values()
    assert torch.allclose(first, second, atol=1e-5)
    assert torch.allclose(sae.shares, torch.full((16, 2), 0.5), atol=1e-5)


def test_join_and_split_are_inverses_and_hidden_sites_are_made_up_for():
    sae, x = over_sites("jumprelu_sae", site_dropout=0.5), activations(4000)
    assert list(sae.split(x)) == SITES
    assert torch.equal(sae.join(sae.split(x)), x)
    with pytest.raises(ValueError, match=r"activations at 'layers\.2:in' are missing"):
        sae.join({"layers.1": x[:, :4]})
    with pytest.raises(ValueError, match=r"activations at '.*' are \d wide, got \[4000, 2\]"):
        sae.join({site: x[:, :2] for site in SITES})
    with pytest.raises(ValueError, match=r"wide side by side, got \[4000, 3\]"):
        sae.split(x[:, :3])
    torch.manual_seed(0)
    hidden = torch.stack([part[:, 0] for part in sae.split(sae.with_sites_hidden(x)).values()])
    ratio = hidden / torch.stack([part[:, 0] for part in sae.split(x).values()])
    assert {round(value, 3) for value in ratio.flatten().tolist()} == {0.0, 1.0, 1.5, 3.0}
    assert (ratio.sum(0) - 3).abs().max() < 1e-4  # as much as without dropout
    assert torch.equal(sae.eval()(x).recon, over_sites("jumprelu_sae")(x).recon)


def test_sites_are_hidden_in_rows_of_texts_as_in_tokens_side_by_side():
    sae, x = over_sites("jumprelu_sae", site_dropout=0.5), activations(60)
    torch.manual_seed(0)
    flat = sae.with_sites_hidden(x)
    torch.manual_seed(0)
    assert torch.equal(sae.with_sites_hidden(x.view(10, 6, D_IN)), flat.view(10, 6, D_IN))


@pytest.mark.parametrize(
    ("kind", "fields", "needs_it"),
    [
        ("jumprelu_sae", {"sites": SITES}, True),
        ("jumprelu_clt", {"sites": SITES}, False),
        ("jumprelu_sae", {"site": "layers.1"}, False),
    ],
)
def test_several_sites_need_the_whole_text_unless_each_is_read_by_its_own_latents(
    kind, fields, needs_it
):
    config = AutoConfig.for_model(kind, d_in=D_IN, d_sae=12, **fields)
    assert config.needs_whole_text is needs_it


@pytest.mark.parametrize(
    "fields, sentence",
    [
        ({"sites": ["a", "a"], "widths": None}, "names 'a' twice"),
        ({"site": "layers.1"}, "site \\('layers.1'\\) and sites are both given"),
        ({"target_site": "layers.5"}, "target_site \\('layers.5'\\) does not go with sites"),
        ({"skip_connection": True}, "could copy its input"),
        ({"token_norm": "layer_norm"}, "a single site"),
        ({"widths": [4, 4, 5]}, "sum to 13, and d_in is 12"),
        ({"widths": [4, 8]}, "for each of the 3 sites"),
        ({"d_in": 13, "widths": None}, "not a multiple of 3 sites"),
        ({"sites": None}, "widths needs sites"),
        ({"sites": []}, "must be a list of places"),
        ({"site_dropout": 1.0}, "must lie in \\[0, 1\\)"),
        ({"site_scales": [1.0, 2.0]}, "site_scales must hold a positive number"),
    ],
)
def test_places_that_do_not_go_together_are_refused(fields: dict, sentence: str):
    whole = {"d_in": D_IN, "d_sae": D_SAE, "sites": SITES, "widths": WIDTHS, "k": 2} | fields
    with pytest.raises(ValueError, match=sentence):
        sae = BatchTopKSAE(BatchTopKSAEConfig(**whole))
        sae(activations(), return_loss=True)
