"""Cross-layer transcoders: against double loops, and against a transcoder of one site."""

import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel

import hfsae
from hfsae import SAE, BatchTopKCLTConfig, JumpReLUCLTConfig
from hfsae.models import Schedule
from hfsae.ops import Entries, Workspace, screen, screen_batch_top_k

W, S, D_SAE, N = 4, 3, 12, 24
SITES = [f"layers.{i}.mlp:in" for i in range(S)]
TARGETS = [f"layers.{i}.mlp" for i in range(S)]
READ, WRITTEN = [2.0, 0.5, 40.0], [3.0, 10.0, 0.2]
KINDS = ["jumprelu_clt", "batch_topk_clt"]
OPTIONS = [
    ("jumprelu_clt", {}),
    ("jumprelu_clt", {"l0_loss": "quadratic", "target_l0": 5}),
    ("jumprelu_clt", {"penalty": "tanh", "ste_to_inputs": True}),
    ("jumprelu_clt", {"row_norm": "l2"}),
    ("jumprelu_clt", {"aux_coefficient": 0.03}),
    ("batch_topk_clt", {}),
    ("batch_topk_clt", {"skip_connection": True}),
    ("batch_topk_clt", {"target_sites": None, "subtract_b_dec": True}),
]


def clt(kind: str, **fields: Any) -> SAE:
    torch.manual_seed(3)
    own = {"k": 5} if "topk" in kind else {"l0_coefficient": 0.1, "bandwidth": 0.3}
    places = {"sites": SITES, "target_sites": TARGETS}
    config = AutoConfig.for_model(kind, d_in=S * W, d_sae=D_SAE, **places | own | fields)
    config.fill_scales(READ, WRITTEN if config.is_transcoder else READ)
    sae = AutoModel.from_config(config)
    with torch.no_grad():
        for name, p in sae.named_parameters():
            p.add_(0.3 * torch.rand_like(p) if name == "threshold" else 0.3 * torch.randn_like(p))
        sae.after_step_()
    return sae


def activations(scales: list[float] = READ, n: int = N, seed: int = 1) -> Tensor:
    columns = torch.tensor(scales).repeat_interleave(W)
    return torch.randn(n, S * W, generator=torch.Generator().manual_seed(seed)) * columns / 2


def sides(sae: SAE, n: int = N) -> tuple[Tensor, Tensor]:
    x = activations(n=n)
    return x, (activations(WRITTEN, n, seed=2) if sae.config.is_transcoder else x)


def blocks_of(sae: SAE) -> dict[tuple[int, int], list[list[float]]]:
    """W_dec^{s->t} of each pair, from the state by name."""
    state = sae.state_dict()
    return {
        (s, t): state[f"W_dec_{s}"][:, (t - s) * W : (t - s + 1) * W].tolist()
        for s in range(S)
        for t in range(s, S)
    }


def by_loops(sae: SAE, x: Tensor, y: Tensor, fires: Tensor) -> tuple[list[list[float]], float]:
    """Reconstructions and the mean over targets of relative squared errors, number by number, with
    latents in units of what is read."""
    written = WRITTEN if sae.config.is_transcoder else READ
    W_enc, b_enc, b_dec = sae.W_enc.tolist(), sae.b_enc.tolist(), sae.b_dec.tolist()
    rows, size, root = blocks_of(sae), D_SAE // S, math.sqrt(S)
    skip = sae.W_skip.tolist() if sae.config.skip_connection else None
    recons, loss = [], 0.0
    for n, row in enumerate(x.tolist()):
        read = [value / READ[j // W] for j, value in enumerate(row)]
        if sae.config.subtract_b_dec:  # what is reconstructed from nothing, c_s sqrt(S) b_dec
            read = [value - root * b_dec[j] for j, value in enumerate(read)]
        f = [0.0] * D_SAE
        for i in range(D_SAE):
            s = i // size
            z = sum(read[s * W + j] * W_enc[j][i] for j in range(W)) + b_enc[i]
            f[i] = z if fires[n, i] else 0.0
        recon = []
        for t in range(S):
            for j in range(W):
                value = b_dec[t * W + j]
                for s in range(t + 1):
                    value += sum(f[s * size + i] * rows[s, t][i][j] for i in range(size))
                if skip is not None:
                    value += sum(row[t * W + m] / READ[t] * skip[m][t * W + j] for m in range(W))
                recon.append(written[t] * root * value)
        for t in range(S):
            of_target = range(t * W, (t + 1) * W)
            error = sum((y[n, j].item() - recon[j]) ** 2 for j in of_target)
            loss += error / written[t] ** 2 / S / N
        recons.append(recon)
    return recons, loss


@pytest.mark.parametrize(("kind", "fields"), OPTIONS)
def test_reconstruction_and_loss_are_those_of_double_loops(kind: str, fields: dict):
    sae = clt(kind, **fields).double().train()
    x, y = (side.double() for side in sides(sae))
    out = sae(x, y, return_loss=True)
    recons, loss = by_loops(sae, x, y, out.latents != 0)
    expected = torch.tensor(recons, dtype=torch.float64)
    assert torch.allclose(out.recon, expected, rtol=1e-10, atol=1e-10)
    assert out.losses["mse"].item() == pytest.approx(loss, rel=1e-6)  # errors are float32 there
    assert 0 < (out.latents != 0).double().mean() < 1
    assert torch.allclose(sae.eval().decode(sae.encode(x), x), sae(x).recon)


def test_a_gradient_is_that_of_differences_of_the_loops():
    sae = clt("batch_topk_clt").double().train()
    x, y = (side.double() for side in sides(sae))
    out = sae(x, y, return_loss=True)
    out.losses["mse"].backward()
    fires = out.latents != 0
    for name, place in [("W_dec_1", (2, 5)), ("W_enc", (1, 7)), ("b_dec", (9,)), ("b_enc", (3,))]:
        p, losses = sae.get_parameter(name), []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                p[place] += step
                losses.append(by_loops(sae, x, y, fires)[1])
                p[place] -= step
        slope = (losses[0] - losses[1]) / 2e-5
        assert p.grad[place].item() == pytest.approx(slope, rel=1e-4, abs=1e-7), name


def test_the_largest_of_all_sources_together_are_kept():
    sae = clt("batch_topk_clt").train()
    x, y = sides(sae)
    latents = sae(x, y, return_loss=True).latents
    z = sae.pre_activations(x)
    smallest = z[z > 0].sort(descending=True).values[: 5 * N].min()
    assert torch.equal(latents != 0, z >= smallest)
    by_source = [int((part != 0).sum()) for part in latents.chunk(S, dim=1)]
    assert sum(by_source) == 5 * N and len(set(by_source)) > 1


@pytest.mark.parametrize("n", [2, 3])
def test_rows_by_source_are_the_steps_that_single_latents_make(n):
    places = {"sites": SITES[:n], "target_sites": TARGETS[:n], "k": 5}
    config = AutoConfig.for_model("batch_topk_clt", d_in=n * W, d_sae=4 * n, **places)
    sae = AutoModel.from_config(config)
    steps = sae.decode(torch.eye(4 * n)) - sae.decode(torch.zeros(1, 4 * n))
    for row, step in zip(sae.decoder_rows(), steps, strict=True):
        torch.testing.assert_close(row, step)
    chosen = torch.arange(4 * n) % 3 == 0
    torch.testing.assert_close(sae.rows_of(chosen), steps[chosen])
    for s, (encoder_rows, decoder_rows, reads, writes) in enumerate(sae.sources()):
        of_source = slice(4 * s, 4 * s + 4)
        assert (reads, writes) == (slice(s * W, s * W + W), slice(s * W, n * W))
        torch.testing.assert_close(decoder_rows, steps[of_source, writes])
        x = torch.eye(n * W)[reads]  # one number of what it reads at a time
        assert torch.equal(encoder_rows.T, sae.pre_activations(x)[:, of_source])


def test_a_target_does_not_depend_on_later_sources():
    sae = clt("jumprelu_clt").eval()
    x, other = activations(), activations(seed=5)
    for t in range(S):
        kept = (t + 1) * W
        changed = torch.cat([x[:, :kept], other[:, kept:]], dim=1)
        recon = sae(changed).recon
        assert torch.allclose(recon[:, :kept], sae(x).recon[:, :kept], atol=1e-5)
        assert t == S - 1 or not torch.allclose(recon, sae(x).recon)


@pytest.mark.parametrize(("kind", "fields"), OPTIONS)
@pytest.mark.parametrize("dead", [None, [1, 4, 5, 11]])
def test_a_sparse_step_is_a_dense_one(kind: str, fields: dict, dead: list[int] | None):
    found, workspace = [], Workspace()
    schedule = Schedule()
    if dead is not None:
        is_dead = torch.zeros(D_SAE, dtype=torch.bool)
        is_dead[dead] = True
        schedule = Schedule(dead=is_dead)
    for place in (None, workspace, workspace):
        sae = clt(kind, **fields).train()
        x, y = sides(sae, 64)
        out = sae(x, y, return_loss=True, workspace=place, schedule=schedule)
        out.loss.backward()
        found.append([out.loss, *(p.grad.clone() for p in sae.parameters())])
        assert ("aux" in out.losses) == (dead is not None and sae.config.aux_coefficient > 0)
        if place is not None:
            assert isinstance(out.at, Entries)
            for name in sae.latent_dims:
                workspace.recycle_(sae.get_parameter(name))
    for dense, sparse, again in zip(*found, strict=True):
        assert torch.allclose(dense, sparse, rtol=1e-4, atol=1e-5)
        assert torch.equal(sparse, again)
    # of each matrix one gradient is kept for the next step, and nothing else
    names = [name for name in sae.latent_dims if sae.get_parameter(name).ndim == 2]
    assert len(workspace._spare) == len(names)


def test_entries_of_several_sources_are_those_of_all_pairs():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, S * W, generator=generator)
    rows, b = torch.randn(D_SAE, W, generator=generator), torch.randn(D_SAE, generator=generator)
    z = torch.cat([part @ W_s.T for part, W_s in zip(x.chunk(S, 1), rows.chunk(S), strict=True)], 1)
    z = z + b
    floor = torch.linspace(-1, 1, D_SAE)
    at = screen(x, rows, b, floor, Workspace())
    dense = torch.zeros(50, D_SAE)
    dense[at.tokens, at.latents] = at.values
    assert torch.allclose(dense, torch.where(z > floor, z, 0), atol=1e-5)
    at = screen_batch_top_k(x, rows, b, 2, Workspace())
    smallest = z.flatten().topk(100).values.min()
    assert len(at) == 100 and bool((z[at.tokens, at.latents] >= smallest - 1e-6).all())
    pairs = at.latents * 50 + at.tokens
    assert bool((pairs.diff() > 0).all())


@pytest.mark.parametrize(
    ("kind", "target"), [("jumprelu_clt", "layers.1.mlp"), ("batch_topk_clt", "layers.1.mlp:in")]
)
def test_one_source_is_a_transcoder_to_the_bit(kind: str, target: str):
    is_same = target == "layers.1.mlp:in"
    own = {"k": 4, "aux_k": 4} if "topk" in kind else {"bandwidth": 0.1}
    own |= {"subtract_b_dec": True} if is_same else {"skip_connection": True}
    plain = {"site": "layers.1.mlp:in", "target_site": target}
    several = {"sites": ["layers.1.mlp:in"], "target_sites": [target]}
    weights = []
    for name, place in ((kind.replace("clt", "sae"), plain), (kind, several)):
        torch.manual_seed(0)
        config = AutoConfig.for_model(name, d_in=8, d_sae=16, **own, **place)
        config.fill_scales([2.0], [3.0 if not is_same else 2.0])
        sae = AutoModel.from_config(config).train()
        adam, workspace = torch.optim.Adam(sae.parameters(), lr=0.01), Workspace()
        for step in range(20):
            x = torch.randn(32, 8, generator=torch.Generator().manual_seed(step))
            dead = torch.arange(16) < 3
            place_of_step = workspace if step % 2 else None
            schedule = Schedule(dead=dead)
            y = x if is_same else x.flip(1)
            sae(x, y, return_loss=True, schedule=schedule, workspace=place_of_step).loss.backward()
            sae.before_step_()
            adam.step()
            sae.after_step_()
            adam.zero_grad()
        weights.append((sae, sae.folded()))
    for plain_sae, one in zip(*weights, strict=True):
        names = [name for name in plain_sae.state_dict() if name != "W_dec"]
        for name in (*names, "W_dec"):
            assert torch.equal(getattr(plain_sae, name), getattr(one, name)), name
        assert one.config.activation_scale == plain_sae.config.activation_scale
        assert one.config.target_scale == plain_sae.config.target_scale


def test_the_norm_over_targets_is_1_after_each_step_and_the_gradient_has_no_part_along_it():
    sae = clt("batch_topk_clt").train()
    x, y = sides(sae)
    adam = torch.optim.Adam(sae.parameters(), lr=0.05)
    for _ in range(5):
        adam.zero_grad()
        sae(x, y, return_loss=True).loss.backward()
        sae.before_step_()
        for p in sae.decoder_parts():
            grown = [sae.row_norms(p + step * p.grad) for step in (1e-3, -1e-3)]
            assert (grown[0] - grown[1]).abs().max() < 1e-4 * p.grad.abs().max()
        adam.step()
        sae.after_step_()
        norms = sum(part.norm(dim=1) for part in sae.W_dec.split(W, dim=1))
        assert torch.allclose(norms, torch.ones(D_SAE), atol=1e-6)
        assert torch.allclose(sae.shares.sum(1), torch.ones(D_SAE), atol=1e-6)
        assert torch.equal(sae.shares[-D_SAE // S :, : S - 1], torch.zeros(D_SAE // S, S - 1))


@pytest.mark.parametrize(("kind", "fields"), OPTIONS)
def test_folding_keeps_the_function_and_the_shares(kind: str, fields: dict):
    sae, x = clt(kind, **fields).eval(), activations()
    folded = sae.folded()
    assert torch.allclose(folded(x).recon, sae(x).recon, rtol=1e-4, atol=1e-3)
    assert torch.allclose(folded.shares, sae.shares, atol=1e-5)
    assert torch.allclose(folded.decoder_norms(), torch.ones(D_SAE), atol=1e-5) or (
        sae.config.row_norm == "l2"
    )
    assert torch.allclose(folded.folded()(x).recon, folded(x).recon, rtol=1e-5, atol=1e-4)
    at_3 = torch.zeros(1, D_SAE)
    at_3[0, 3] = 1.0
    if not sae.config.skip_connection:  # a latent writes its row
        written = folded.decode(at_3) - folded.decode(torch.zeros(1, D_SAE))
        assert torch.allclose(written[0], folded.W_dec[3], atol=1e-5)


def test_rows_start_with_one_direction_and_one_share_at_each_target():
    for fields in ({}, {"target_sites": None}):
        sae = AutoModel.from_config(
            AutoConfig.for_model(
                "batch_topk_clt", d_in=S * W, d_sae=D_SAE, **{"sites": SITES, **fields}
            )
        )
        for s, part in enumerate(sae.W_dec.chunk(S)):
            own = part.split(W, dim=1)
            for t in range(S):
                share = 0.0 if t < s else 1 / (S - s)
                assert torch.allclose(own[t], own[s] * (t >= s), atol=1e-6)
                assert torch.allclose(own[t].norm(dim=1), torch.full((4,), share), atol=1e-6)
            if not sae.config.is_transcoder:
                reads = sae.encoder_rows().chunk(S)[s]
                assert torch.allclose(reads, own[s] * (S - s), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_save_and_load_gives_the_same_function(kind: str, tmp_path):
    sae, x = clt(kind).eval(), activations()
    sae.save_pretrained(tmp_path)
    for load in (AutoModel.from_pretrained, hfsae.load, SAE.from_pretrained):
        loaded = load(tmp_path)
        assert type(loaded) is type(sae)
        assert torch.equal(loaded(x).recon, sae(x).recon)
        assert loaded.encoder_rows().is_contiguous()
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["target_sites"] == TARGETS and config["target_scales"] == WRITTEN
    low = loaded.to(torch.bfloat16)
    assert low(x).recon.dtype == torch.bfloat16


def test_a_read_and_a_written_weight_take_no_more_memory_than_their_pairs():
    n = sum(p.numel() for p in clt("batch_topk_clt").parameters())
    pairs = D_SAE * W + (D_SAE // S) * W * S * (S + 1) // 2
    assert n == pairs + D_SAE + S * W + 1


def test_k_is_16_for_each_source_unless_it_is_given():
    places = {"sites": SITES, "target_sites": TARGETS, "d_in": S * W}
    assert BatchTopKCLTConfig(**places, d_sae=300).k == 48
    assert BatchTopKCLTConfig(**places, d_sae=300, k=7).k == 7


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"sites": None, "site": "layers.1"}, "a batch_topk_clt needs sites, the list"),
        ({"widths": [4, 3, 5]}, r"needs sites of one width, got \[4, 3, 5\]"),
        ({"d_out": 15}, r"needs sites of one width, got \[4, 5\]"),
        ({"target_sites": TARGETS[:2]}, "a place for each of the 3 sites, got"),
        ({"target_sites": [TARGETS[0]] * 3}, "target_sites names 'layers.0.mlp' twice"),
        ({"target_sites": TARGETS[::-1]}, "target 'layers.1.mlp' lies before 'layers.0.mlp:in'|"),
        ({"target_sites": ["layers.0", "layers.0.mlp", "layers.2"]}, "'layers.0.mlp' lies before"),
        ({"sites": SITES[::-1]}, "lies before 'layers.2.mlp:in', which writes to it"),
        ({"d_sae": 13}, r"d_sae \(13\) is not divisible by 3 sources.* use 12"),
        ({"k": 13}, r"k \(13\) is larger than the dictionary: use at most 12"),
        ({"site_dropout": 0.1}, "site_dropout is for latents that read all sites"),
        ({"target_scales": [1.0]}, "target_scales must hold a number for each of the 3"),
        ({"target_site": "layers.5"}, "target_site .* does not go with sites"),
        ({"subtract_b_dec": True}, "a transcoder's b_dec lies in another space"),
        ({"sites": ["a", "a", "b"]}, "sites names 'a' twice"),
    ],
)
def test_places_that_do_not_go_together_are_refused(fields: dict, sentence: str):
    whole = {"d_in": S * W, "d_sae": D_SAE, "sites": SITES, "target_sites": TARGETS, "k": 2}
    with pytest.raises(ValueError, match=sentence):
        BatchTopKCLTConfig(**whole | fields)


def test_places_of_two_stacks_of_blocks_are_in_no_order():
    targets = ["decoder.layers.0", "embed_norm", "decoder.layers.2"]
    sites = ["encoder.layers.1", "encoder.layers.2", "decoder.layers.1"]
    config = BatchTopKCLTConfig(d_in=S * W, d_sae=D_SAE, sites=sites, target_sites=targets, k=2)
    assert config.targets == targets


def test_a_skip_connection_needs_targets_and_a_loss_needs_a_target():
    with pytest.raises(ValueError, match=r"loss needs target: x at layers\.0\.mlp, layers\.1"):
        clt("jumprelu_clt")(activations(), return_loss=True)
    same = clt("jumprelu_clt", target_sites=None, skip_connection=True)
    with pytest.raises(ValueError, match="could copy its input"):
        same(activations(), return_loss=True)
    assert JumpReLUCLTConfig.model_type == "jumprelu_clt"


def test_what_is_read_and_what_is_written_are_split_by_their_own_sites():
    sae, x = clt("batch_topk_clt"), activations()
    assert [*sae.split(x, "read")] == SITES and [*sae.split(sae(x).recon)] == TARGETS
    assert torch.equal(sae.join(sae.split(x, "read")), x)
