"""Metrics against closed forms and slow independent versions."""

import math

import pytest
import torch

from hfsae.evaluation.metrics import (
    FIDELITY,
    Definition,
    DocumentSums,
    RunningFidelity,
    density_histogram,
    estimate,
)
from hfsae.evaluation.statistics import bootstrap_weights

RATIO = {"ratio": Definition("ratio.v1", "1", "top / tokens", lambda s: s["top"] / s["tokens"])}


def sample(n=300, d=5, d_sae=12, n_documents=20, seed=0):
    """x with a large mean and heavy-tailed norms, a noisy recon, sparse latents, documents."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=g) * torch.rand(n, 1, generator=g).pow(-1) + 30
    recon = 0.8 * x + torch.randn(n, d, generator=g)
    latents = torch.randn(n, d_sae, generator=g).sub(torch.linspace(-1, 4, d_sae)).relu()
    document = torch.randint(n_documents, (n,), generator=g).sort().values
    return x, recon, latents, document


def fvu(x, recon):
    """On one set of tokens; variance about that set's mean."""
    x, recon = x.double(), recon.double()
    return (x - recon).square().sum() / (x - x.mean(dim=0)).square().sum()


def running(x, recon, latents, document, n_parts=1):
    fidelity = RunningFidelity()
    for part in zip(*(t.tensor_split(n_parts) for t in (x, recon, latents, document)), strict=True):
        fidelity.update(*part)
    return fidelity


def test_each_metric_agrees_with_a_loop_over_tokens():
    x, recon, latents, document = sample()
    metrics = running(x, recon, latents, document, n_parts=7).compute(n_resamples=10)
    tokens = list(zip(x.tolist(), recon.tolist(), latents.tolist(), strict=True))
    mean = [math.fsum(column) / len(tokens) for column in zip(*x.tolist(), strict=True)]

    def dot(a, b):
        return math.fsum(i * j for i, j in zip(a, b, strict=True))

    def squared_distance(a, b):
        return math.fsum((i - j) ** 2 for i, j in zip(a, b, strict=True))

    n = len(tokens)
    expected = {
        "l0": sum(sum(v != 0 for v in z) for _, _, z in tokens) / n,
        "fvu": math.fsum(squared_distance(a, b) for a, b, _ in tokens)
        / math.fsum(squared_distance(a, mean) for a, _, _ in tokens),
        "cosine": math.fsum(dot(a, b) / math.hypot(*a) / math.hypot(*b) for a, b, _ in tokens) / n,
        "relative_reconstruction_bias": math.fsum(dot(b, b) for _, b, _ in tokens)
        / math.fsum(dot(a, b) for a, b, _ in tokens),
    }
    assert set(expected) == set(FIDELITY)
    for name, value in expected.items():
        assert metrics[name].value == pytest.approx(value, rel=1e-9)
        assert metrics[name].n_tokens == n


def test_predicting_the_mean_of_the_set_gives_fvu_1():
    x, _, latents, document = sample()
    recon = x.double().mean(dim=0).expand(len(x), -1)
    metrics = running(x, recon, latents, document).compute(n_resamples=10)
    assert metrics["fvu"].value == pytest.approx(1, abs=1e-12)
    assert fvu(x, recon).item() == pytest.approx(1, abs=1e-12)


def test_perfect_reconstruction_gives_fvu_0_cosine_1_and_no_bias_with_no_uncertainty():
    x, _, latents, document = sample()
    metrics = running(x, x, latents, document).compute(n_resamples=10)
    for name, value in {"fvu": 0, "cosine": 1, "relative_reconstruction_bias": 1}.items():
        m = metrics[name]
        assert (m.value, m.low, m.high) == pytest.approx((value, value, value), abs=1e-12)


def test_fvu_is_pooled_so_that_splitting_the_set_does_not_change_it():
    x, recon, latents, document = sample()
    whole = running(x, recon, latents, document).compute(n_resamples=10)
    split = running(x, recon, latents, document, n_parts=50).compute(n_resamples=10)
    mean_of_ratios = sum(
        fvu(a, b).item() for a, b in zip(x.split(30), recon.split(30), strict=True)
    )
    assert split["fvu"].value == pytest.approx(whole["fvu"].value, rel=1e-12)
    assert fvu(x, recon).item() == pytest.approx(whole["fvu"].value, rel=1e-9)
    assert abs(mean_of_ratios / 10 / whole["fvu"].value - 1) > 0.1


def test_fvu_keeps_its_digits_when_the_mean_is_a_million_times_the_spread():
    g = torch.Generator().manual_seed(0)
    noise = torch.randn(500, 3, generator=g, dtype=torch.float64)
    x, recon = 1e6 + noise, 1e6 + 0.5 * noise
    latents, document = torch.ones(500, 2), torch.arange(500) // 10
    metrics = running(x, recon, latents, document).compute(n_resamples=10)
    expected = (0.5 * noise).square().sum() / (noise - noise.mean(dim=0)).square().sum()
    assert metrics["fvu"].value == pytest.approx(expected.item(), rel=1e-3)


def test_bias_is_the_factor_that_makes_reconstructions_fit_best():
    x, recon, latents, document = sample()
    gamma = running(x, recon, latents, document).compute(n_resamples=2)[
        "relative_reconstruction_bias"
    ]
    best = torch.linalg.lstsq(recon.double().reshape(-1, 1), x.double().reshape(-1, 1)).solution
    assert gamma.value == pytest.approx(1 / best.item(), rel=1e-9)


def test_a_zero_reconstruction_has_cosine_0():
    x, _, latents, document = sample()
    metrics = running(x, torch.zeros_like(x), latents, document).compute(n_resamples=2)
    assert metrics["cosine"].value == 0


def test_l0_and_density_count_non_zero_latents():
    latents = torch.tensor([[0.0, 2.0, 0.5], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0, 3, 1]])
    fidelity = running(latents, latents, latents, torch.tensor([0, 0, 1, 1]))
    assert fidelity.compute(n_resamples=2)["l0"].value == 1.25
    assert fidelity.density.tolist() == [0, 0.5, 0.75]
    assert fidelity.l0_histogram.tolist() == [1, 1, 2]


def test_running_density_and_l0_histogram_equal_those_of_the_whole_set():
    x, recon, latents, document = sample()
    fidelity = running(x, recon, latents, document, n_parts=4)
    assert torch.equal(fidelity.density, (latents != 0).double().mean(dim=0))
    n_active = (latents != 0).sum(dim=1)
    assert fidelity.l0_histogram.tolist() == torch.bincount(n_active).tolist()
    assert fidelity.n_documents == len(document.unique())


def test_shares_of_dead_and_dense_latents_are_counts_of_latents():
    fired_every = [0, 200, 100, 99, 10, 9, 1]  # tokens between firings; 0: never
    token = torch.arange(19_800)
    latents = torch.stack([token % k == 0 if k else token < 0 for k in fired_every], dim=1).float()
    x = torch.randn(len(token), 2, generator=torch.Generator().manual_seed(0))
    metrics = running(x, x, latents, token // 20).compute(n_resamples=200)
    assert metrics["dead_share"].value == pytest.approx(1 / 7)
    assert metrics["above_1_percent_share"].value == pytest.approx(4 / 7)
    assert metrics["above_10_percent_share"].value == pytest.approx(2 / 7)
    assert "none of the 19,800 kept tokens" in metrics["dead_share"].definition
    for name in ("dead_share", "above_1_percent_share", "above_10_percent_share"):
        assert metrics[name].low <= metrics[name].value <= metrics[name].high


def test_interval_of_the_dead_share_lies_around_it_though_resamples_can_only_lose_firings():
    """Half of the latents fire in one document each, which a resample misses with chance 1/e."""
    document, x = torch.arange(64), torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    latents = torch.cat([torch.eye(64), torch.zeros(64, 64)], dim=1)
    m = running(x, x, latents, document).compute(n_resamples=500)["dead_share"]
    half = 1.96 * math.sqrt(64 * (math.exp(-1) - 2 * math.exp(-2))) / 128  # occupancy problem
    assert m.value == 0.5
    assert m.low == pytest.approx(0.5 - half, abs=0.25 * half)
    assert m.high == pytest.approx(0.5 + half, abs=0.25 * half)


def test_density_histogram_has_fixed_decades_and_leaves_dead_latents_out():
    values = torch.tensor([0, 0, 1e-12, 3e-4, 0.1, 0.9, 1], dtype=torch.float64)  # 0.1: an edge
    edges, counts = density_histogram(values, lowest=-4, bins_per_decade=1)
    assert edges.tolist() == [-4, -3, -2, -1, 0]
    assert counts.tolist() == [2, 0, 0, 3]


def test_document_sums_do_not_depend_on_order_or_on_cuts():
    g = torch.Generator().manual_seed(0)
    document, value = torch.randint(5, (40,), generator=g), torch.randn(40, 2, generator=g).double()
    sums = DocumentSums()
    for part in torch.randperm(40, generator=g).split(7):
        sums.add(document[part], {"v": value[part]})
    slow = torch.stack([value[document == i].sum(dim=0) for i in range(5)])
    torch.testing.assert_close(sums.per_document()["v"], slow)
    torch.testing.assert_close(sums.per_document()["v"], slow)  # asking twice changes nothing


def test_bootstrap_weights_draw_n_of_n_in_every_resample_and_repeat_with_the_seed():
    weights = torch.cat(list(bootstrap_weights(50, 400, seed=3, width=2**20)))
    assert weights.shape == (400, 50)
    assert (weights.sum(dim=1) == 50).all()
    assert weights.var().item() == pytest.approx(1 - 1 / 50, rel=0.1)  # multinomial
    assert torch.equal(weights, torch.cat(list(bootstrap_weights(50, 400, seed=3, width=2**20))))
    assert not torch.equal(weights, torch.cat(list(bootstrap_weights(50, 400, seed=4))))


def test_interval_of_a_mean_is_close_to_the_normal_one():
    top = torch.randn(1000, generator=torch.Generator().manual_seed(0)).double() + 2
    sums = {"top": top, "tokens": torch.ones_like(top)}
    m = estimate(RATIO, sums, n_resamples=4000, seed=1)["ratio"]
    half = 1.96 * top.std().item() / math.sqrt(1000)
    assert m.value == pytest.approx(top.mean().item())
    assert m.low == pytest.approx(m.value - half, abs=0.1 * half)
    assert m.high == pytest.approx(m.value + half, abs=0.1 * half)


def test_intervals_cover_the_truth_when_tokens_of_a_document_go_together():
    covered = 0
    for seed in range(200):
        g = torch.Generator().manual_seed(seed)
        tokens = torch.randint(1, 50, (100,), generator=g).double()
        top = tokens * torch.randn(100, generator=g).double()  # one level a document; true mean 0
        m = estimate(RATIO, {"top": top, "tokens": tokens}, n_resamples=300, seed=seed)["ratio"]
        covered += m.low <= 0 <= m.high
    assert 180 <= covered <= 198  # of 200; 95 % less what the bootstrap loses with 100 documents


def test_one_document_gives_values_but_no_interval():
    x, recon, latents, document = sample(n_documents=1)
    metrics = running(x, recon, latents, document).compute(n_resamples=10)
    assert math.isfinite(metrics["fvu"].value)
    assert all(math.isnan(m.low) and math.isnan(m.high) for m in metrics.values())


def test_every_definition_has_its_own_id_with_a_version():
    metrics = running(*sample()).compute(n_resamples=2)
    ids = [m.definition_id for m in metrics.values()]
    assert len(set(ids)) == len(ids)
    assert all(id_.rpartition(".v")[2].isdigit() for id_ in ids)
    assert metrics["fvu"].definition_id == "fvu.pooled.v1"
