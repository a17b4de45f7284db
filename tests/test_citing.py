"""Variants of papers that cite JumpReLU's: each against its paper's formula."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from scipy.optimize import brentq
from torch import nn
from transformers import AutoModel

from hfsae import BatchTopKSAEConfig, MatryoshkaBatchTopKSAEConfig, Refused
from hfsae.activations import TensorSource
from hfsae.cli import main
from hfsae.models import Schedule
from hfsae.runs import make_configs, read_recipe
from hfsae.training import Trainer, TrainingArguments

from .helpers import CITING, CITING_FOLDER, D_IN, activations, make


def test_every_file_of_the_folder_is_tested():
    assert {path.stem for path in CITING_FOLDER.glob("*.py")} == {*CITING, "shared_basis"}


def test_a_recipe_of_each_is_listed_and_fits_its_variant(citing, capsys):
    folder = CITING_FOLDER.parent / "recipes"
    main(["recipes", str(folder)])
    listed = [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()]
    assert [Path(line.split(".yaml")[0]).stem for line in listed] == sorted(
        path.stem for path in CITING_FOLDER.glob("*.py")
    )
    for path in folder.glob("*.yaml"):
        recipe = read_recipe(path)
        sites = [f"layers.{i}" for i in (10, 13, 16)]
        if path.stem == "rank1_topk":  # of files, which name the site
            recipe = replace(recipe, sae={**recipe.sae, "site": "state"})
        width = 512 if path.stem == "rank1_topk" else 576
        [config] = make_configs(
            recipe, dict.fromkeys([*sites, "layers.12", "state"], width)
        ).values()
        assert config.model_type == f"{path.stem}_sae"
        assert type(config).__module__ == f"citing_{path.stem}"
        assert f"--import scripts/citing/variants/{path.stem}.py" in path.read_text()


def test_a_folder_without_recipes_is_refused(tmp_path, capsys):
    assert main(["recipes", str(tmp_path)]) == 2
    assert "is no folder with recipes; give one that holds .yaml" in capsys.readouterr().err


@pytest.mark.pages
def test_the_pages_tables_are_the_comparisons_and_it_is_the_one_of_the_recipe():
    home = CITING_FOLDER.parent
    page, report = (home / name for name in ("README.md", "comparison/report.md"))
    told = page.read_text().partition("\n## At equal L0\n")[2].partition("\n| paper |")[0]
    rows = [line for line in told.splitlines() if line.startswith("| ")]
    assert len(rows) > 20 and {*rows} <= {*report.read_text().splitlines()}
    results = json.loads((home / "comparison" / "results.json").read_text())
    recipe = yaml.safe_load((home / "comparison.yaml").read_text())
    assert results["recipe"]["training"]["n_tokens"] == recipe["training"]["n_tokens"] == 24_576
    assert {sae["seed"] for sae in results["saes"]} == {*recipe["seeds"]} == {0, 1, 2}
    assert {sae["arm"] for sae in results["saes"]} == {*recipe["arms"]}


@pytest.mark.pages
def test_settings_of_the_comparison_are_the_best_that_the_search_found():
    home = CITING_FOLDER.parent
    trials = [json.loads(x) for x in (home / "tuning" / "trials.jsonl").read_text().splitlines()]
    arms = yaml.safe_load((home / "comparison.yaml").read_text())["arms"]
    for arm, about in arms.items():
        own = [trial for trial in trials if trial["name"].rpartition("-")[0] == arm]
        assert len(own) == 4
        for name, value in min(own, key=lambda trial: trial["score"])["values"].items():
            section, _, key = name.partition(".")
            assert about[section][key] == pytest.approx(value), (arm, name)


def test_the_soft_choice_has_k_latents_and_the_gradient_of_its_sum(citing):
    torch.manual_seed(0)
    z = torch.randn(4, 30, dtype=torch.float64, requires_grad=True)
    k = torch.tensor([[1.0], [3.5], [8.0], [29.0]], dtype=torch.float64, requires_grad=True)
    p = citing.SoftTopK.apply(z, k, 0.3)
    assert torch.allclose(p.sum(-1, keepdim=True), k, atol=1e-10)
    for i in range(4):  # by another root finder

        def excess(t: float, i: int = i) -> float:
            u = (z[i].detach() - t) / 0.3
            share = torch.where(u <= 0, u.clamp(max=0).exp() / 2, 1 - (-u.clamp(min=0)).exp() / 2)
            return float(share.sum() - k[i].detach())

        t = brentq(excess, -50, 50, xtol=1e-13)
        assert torch.allclose(p[i], citing.laplace((z[i] - t) / 0.3), atol=1e-10)
    assert torch.autograd.gradcheck(lambda z, k: citing.SoftTopK.apply(z, k, 0.3), (z, k))


def test_soft_top_k_is_the_published_forward_and_loss(citing):
    config = partial(citing.SoftTopKSAEConfig, alpha=0.02, subtract_b_dec=True)
    sae, x = make(config, activation_scale=1.0).double(), activations(32).double() / 7
    out = sae(x, return_loss=True)
    hidden = ((x - sae.b_dec) @ sae.W_count + sae.b_count).relu()
    k = (16 * (hidden @ sae.w_count + sae.b_most).sigmoid()).clamp(1, sae.config.d_sae)
    z = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    f = z.relu() * citing.SoftTopK.apply(z, k[:, None], 0.02)
    error = x - f @ sae.W_dec - sae.b_dec
    expected = error.square().sum(-1).mean() + nn.functional.softplus(k.mean() - 8, beta=5)
    assert (
        abs(float((out.loss - expected).detach())) < 1e-5
    )  # the error's squares are summed in float32
    assert torch.allclose(out.latents, f, atol=1e-10)


def test_in_use_each_token_has_the_whole_number_of_its_own(citing):
    sae = make(partial(citing.SoftTopKSAEConfig, alpha=0.02))
    with torch.no_grad():
        sae.w_count.mul_(8)  # counts differ between tokens
    x = activations(64)
    counts, latents = sae.counts(x)[:, 0].floor().long(), sae.encode(x)
    assert len(counts.unique()) > 2
    for row, z, k in zip(latents, sae.pre_activations(x), counts, strict=True):
        assert torch.equal(
            row.nonzero()[:, 0], z.topk(k).indices[z.topk(k).values > 0].sort().values
        )


def test_the_elastic_net_is_its_formula_over_several_steps(citing):
    config = partial(citing.ElasticNetSAEConfig, adaptive_warmup=4, adaptive_rate=0.1)
    sae, mean = make(config, activation_scale=1.0), torch.ones(40)
    for step in range(6):
        x = activations(50)[step:] / 7
        out = sae(x, return_loss=True)
        f = (x @ sae.W_enc + sae.b_enc).relu()
        full = (1 / mean.sqrt()).clamp(0.01, 10)
        w = 1 + (full - 1) * min(1, step / 4)
        c = sae.config
        l1 = c.l1_coefficient * (f @ w).mean()
        l2 = c.l2_coefficient * f.square().sum(-1).mean()
        error = x - f @ sae.W_dec - sae.b_dec
        assert torch.allclose(out.loss, error.square().sum(-1).mean() + l1 + l2, rtol=1e-5)
        out.loss.backward()
        sae.before_step_()
        sae.zero_grad()
        mean = 0.9 * mean + 0.1 * f.detach().mean(0)
    assert torch.allclose(sae.running_mean, mean, rtol=1e-5)


def test_sparsemax_marks_the_support_of_a_projection_on_the_simplex(citing):
    torch.manual_seed(0)
    z, total = (
        torch.randn(20, 15, dtype=torch.float64),
        torch.rand(20, 1, dtype=torch.float64) + 0.1,
    )
    t = citing.sparsemax_threshold(z, total)
    assert torch.allclose((z - t).relu().sum(-1, keepdim=True), total, atol=1e-12)


def test_the_controllers_factor_becomes_the_scale_and_a_frequent_latent_is_silent(citing):
    sae = make(partial(citing.SparsemaxSAEConfig, most_frequent=0.5))
    before = (sae.encode(activations(200)) != 0).float().sum(-1).mean()
    sae(activations(64), return_loss=True, schedule=Schedule(sparsity=4.0)).loss.backward()
    sae.before_step_()
    assert sae.log_scale.item() == pytest.approx(torch.tensor(4.0).log().item())
    assert (sae.encode(activations(200)) != 0).float().sum(-1).mean() < before
    with torch.no_grad():
        sae.frequency[:20] = 0.6
    assert not sae.encode(activations(200))[:, :20].any()


def test_a_low_rank_is_kept_with_one_basis_for_encoder_and_decoder(citing):
    sae = make(partial(citing.SparsemaxSAEConfig, rank=5))
    sae.after_step_()
    enc, dec = sae.encoder_rows(), sae.decoder_rows()
    assert torch.linalg.matrix_rank(enc, rtol=1e-4) == 5
    assert torch.linalg.matrix_rank(dec, rtol=1e-4) == 5
    # A factor for each row, left of C, is all that differs: C's span is that of diag(a) dec.
    basis = torch.linalg.svd(enc, full_matrices=False)[0][:, :5]
    outside = torch.eye(40) - basis @ basis.T
    gram = (outside.T @ outside) * (dec @ dec.T)  # |outside diag(a) dec|^2 = a^T gram a
    values = torch.linalg.eigvalsh(gram)
    assert values[0] < 1e-5 < 1e-2 < values[-1]


def test_a_child_fires_only_under_its_parent_and_levels_have_their_numbers(citing):
    sae = make(partial(citing.TreeSAEConfig, **CITING["tree"]))
    z, f = sae.pre_activations(activations(300)), sae.encode(activations(300)) > 0
    children = torch.arange(10, 40)
    assert f[:, children].any() and not (f[:, children] & ~f[:, sae.parent[children].long()]).any()
    for row, pre in zip(f[:40], z[:40].detach(), strict=True):  # a loop over sets
        roots = {*pre[:10].topk(5).indices.tolist()} & {*(pre > 0).nonzero()[:, 0].tolist()}
        under = [i for i in range(10, 40) if int(sae.parent[i]) in roots and pre[i] > 0]
        leaves = sorted(under, key=lambda i: -float(pre[i]))[:3]
        assert {*row.nonzero()[:, 0].tolist()} == roots | {*leaves}


def test_dead_children_go_to_parents_with_most_error_for_each_child(citing):
    sae = make(partial(citing.TreeSAEConfig, **CITING["tree"]))
    dead = torch.zeros(40, dtype=torch.bool)
    dead[[3, 12, 25, 39]] = True  # a root and three children
    with torch.no_grad():
        sae.cost.zero_()
        sae.cost[[3, 5]] = torch.tensor([100.0, 10.0])
        sae.cost[7] = 7.0
    before = sae.parent.clone()
    sae.reassign_(dead)
    moved = (sae.parent != before).nonzero()[:, 0].tolist()
    assert {*moved} <= {12, 25, 39} and 3 not in sae.parent[[12, 25, 39]]
    live = [i for i in range(10, 40) if not dead[i]]
    n = {p: sum(before[i] == p for i in live) for p in (5, 7)}
    for child in (12, 25, 39):
        best = max((5, 7), key=lambda p: ({5: 10.0, 7: 7.0}[p]) / (n[p] + 1))
        assert int(sae.parent[child]) == best
        n[best] += 1


def test_rows_become_the_nearest_outer_products(citing):
    sae = make(partial(citing.Rank1TopKSAEConfig, matrix=(3, 4)))
    with torch.no_grad():
        sae.W_dec.add_(0.02 * torch.randn(sae.W_dec.shape))
    matrices = sae.decoder_rows().detach().unflatten(-1, (3, 4))
    u, s, v = torch.linalg.svd(matrices, full_matrices=False)
    nearest = (s[:, 0, None, None] * u[:, :, :1] @ v[:, :1]).flatten(1)
    nearest /= nearest.norm(dim=-1, keepdim=True)
    sae.after_step_()
    assert torch.allclose(sae.W_dec, nearest, atol=1e-4)
    assert (
        torch.linalg.matrix_rank(sae.encoder_rows().unflatten(-1, (3, 4)), rtol=1e-3) == 1
    ).all()


def test_latents_of_a_shared_basis_have_profiles_of_its_rank(citing):
    config = citing.SharedBasisSAEConfig(
        d_in=36, d_sae=40, k=8, rank=2, sites=["layers.0", "layers.1", "layers.2"]
    )
    sae = citing.SharedBasisSAE(config)
    with torch.no_grad():
        sae.W_dec.normal_()
    target = sae.W_dec.detach().unflatten(-1, (3, 12))
    sae.after_step_()
    profiles = sae.W_dec.unflatten(-1, (3, 12)).transpose(0, 1).flatten(1)  # [n_sites, d_sae d]
    assert torch.linalg.matrix_rank(profiles, rtol=1e-4) == 2
    kept = torch.linalg.svd(target.transpose(0, 1).flatten(1))[0][:, :2]
    assert torch.allclose(kept @ kept.T @ profiles, profiles, atol=1e-4)


@pytest.mark.parametrize(
    "name, fields, sentence",
    [
        ("SoftTopK", {"k": 8, "most": 1.0}, "most must lie in"),
        ("SoftTopK", {"k": 8, "alpha": 0.0}, "alpha must be"),
        ("ElasticNet", {"adaptive_rate": 1.0}, "adaptive_rate must lie between 0 and 1"),
        ("ElasticNet", {"penalty": "ri_l1"}, "leave penalty at 'l1'"),
        ("Sparsemax", {"rank": 100}, "is above d_in"),
        ("Sparsemax", {"most_frequent": 0.0}, "most_frequent must lie in"),
        ("Tree", {"shares": [0.5, 0.4], "k": 8}, "with the sum 1"),
        ("Rank1TopK", {"matrix": [5, 5], "k": 8}, "whose product is d_in \\(12\\)"),
        ("SharedBasis", {"k": 8}, "must be below the number of sites"),
    ],
)
def test_impossible_fields_are_refused(citing, name, fields, sentence):
    with pytest.raises(Refused, match=sentence):
        getattr(citing, f"{name}SAEConfig")(d_in=D_IN, d_sae=40, **fields)


# Planted data: what a paper says of its variant, beside hfsae's own.


def trained(config, x: torch.Tensor, steps: int, seed: int, folder: Path):
    """An SAE of a config, trained on rows of x [n, d], 192 a step."""
    torch.manual_seed(seed)
    sae, args = AutoModel.from_config(config), {"n_tokens": steps * 192, "batch_size": 192}
    args |= {"learning_rate": 3e-3, "adam_beta1": 0.9, "warmup_steps": 20, "decay_steps": 0.3}
    args |= {"sparsity_warmup_steps": 0, "save_steps": 0, "dead_after_tokens": 20 * 192}
    args |= {"unit": "spread", "init_b_dec": "mean", "output_dir": str(folder / config.model_type)}
    return Trainer(sae, TensorSource({"a": x}, 192), TrainingArguments(**args)).train()


def chosen(n_of: int | torch.Tensor, n: int, n_all: int, g: torch.Generator) -> torch.Tensor:
    """For each of n tokens so many of n_all at random [n, n_all]."""
    return torch.rand(n, n_all, generator=g).argsort(1).argsort(1) < n_of


def test_a_tokens_number_goes_with_the_planted_one_as_batch_topks_own_l0_does(citing, tmp_path):
    """1 to 12 of 96 directions fire on a token. After half of the steps SoftSAE has no number."""
    g = torch.Generator().manual_seed(0)
    directions = nn.functional.normalize(torch.randn(96, 48, generator=g), dim=1)
    n = torch.randint(1, 13, (80_800, 1), generator=g)
    on = chosen(n, len(n), 96, g) * (0.5 + torch.rand(len(n), 96, generator=g))
    x, held_out = (on @ directions).split([76_800, 4_000])
    fields = {"d_in": 48, "d_sae": 128, "k": 6, "site": "a", "aux_coefficient": 1 / 32}
    soft = trained(citing.SoftTopKSAEConfig(**fields, alpha=0.01), x, 400, 0, tmp_path)
    batch = trained(BatchTopKSAEConfig(**fields), x, 400, 0, tmp_path)
    with torch.no_grad():
        numbers = [soft.counts(held_out)[:, 0], (batch.encode(held_out) > 0).float().sum(dim=1)]
    with_truth = torch.corrcoef(torch.stack([n[76_800:, 0].float(), *numbers]))[0, 1:].tolist()
    print(
        f"correlation with the planted number: SoftSAE {with_truth[0]}, BatchTopK {with_truth[1]}"
    )
    assert min(with_truth) > 0.7
    assert abs(with_truth[0] - with_truth[1]) < 0.1, "it does not tell them apart"


@pytest.mark.parametrize("seed", [0, 1])
def test_on_planted_trees_more_children_have_a_parent_than_in_matryoshka(citing, seed, tmp_path):
    """Two of eight parents fire on a token, each with one of its three children. After the paper's
    score: the latents of the second level with a parent that fires on nine tenths of their tokens,
    both rows among the five nearest to the difference of means of their firing. Silent latents
    count as without one: of live ones alone Matryoshka, which has fewer, may have a larger
    share."""
    g = torch.Generator().manual_seed(seed)
    rows = nn.functional.normalize(torch.randn(32, 32, generator=g), dim=1)
    parents = chosen(2, 82_800, 8, g)
    which = torch.randint(3, (82_800, 8, 1), generator=g) == torch.arange(3)
    children = (which & parents[..., None]).flatten(1)
    on = torch.cat([parents, children], dim=1) * (0.75 + torch.rand(82_800, 32, generator=g) / 2)
    x, held_out = (on @ rows).split([76_800, 6_000])
    fields = {"d_in": 32, "d_sae": 32, "k": 4, "site": "a", "aux_coefficient": 1 / 32}
    fields["prefixes"] = (0.25, 1)
    tree = citing.TreeSAEConfig(**fields, shares=(0.5, 0.5), reassign_every=60)
    scores = []
    for config in (tree, MatryoshkaBatchTopKSAEConfig(**fields)):
        sae = trained(config, x, 400, seed, tmp_path)
        fires = sae.encode(held_out) > 0
        row = nn.functional.normalize(sae.decoder_rows().detach(), dim=1)
        live = [j for j in range(8, 32) if fires[:, j].sum() >= 20]
        pairs = 0
        for j in live:
            share = fires[fires[:, j], :8].float().mean(dim=0)
            i = int(sae.parent[j]) if config is tree else int(share.argmax())
            probe = held_out[fires[:, j]].mean(dim=0) - held_out[~fires[:, j]].mean(dim=0)
            pairs += share[i] > 0.9 and {i, j} <= {*(row @ probe).topk(5).indices.tolist()}
        scores.append(int(pairs))
        print(f"{config.model_type}: {pairs} pairs, {len(live)} live latents of 24")
    assert scores[0] > scores[1]
