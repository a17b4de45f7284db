"""Where training starts, and what it does not depend on: a constant added to all activations, their
unit."""

import json
from copy import deepcopy

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModel

from hfsae import BatchTopKSAE, BatchTopKSAEConfig
from hfsae.training import Trainer, TrainingArguments, read_directions, start
from hfsae.training.directions import start_at_
from hfsae.training.health import L0Control
from hfsae.training.start import first_directions_, residual_clusters_, whiten_

from ..helpers import variants
from ..tiny import D
from .planted import PlantedStream, arguments, make_sae, weights

SHORT_RUN = {"unit": "spread", "init_b_dec": "mean", "warm_start_steps": 0.5, "adam_beta1": 0.9}
FIELDS = {"d_in": D, "d_sae": 32, "site": "layers.1", "subtract_b_dec": True}


class Moved(PlantedStream):
    """The same activations times a factor, plus a vector of four times their spread."""

    factor = 8.0

    @property
    def shift(self) -> torch.Tensor:
        x = super().part(0, 4096)["layers.1"]
        spread = (x - x.mean(dim=0)).square().sum(dim=-1).mean().sqrt()
        return self.factor * 4 * spread * torch.nn.functional.normalize(torch.ones(D), dim=0)

    def part(self, number: int, n: int) -> dict[str, torch.Tensor]:
        return {at: self.factor * x + self.shift for at, x in super().part(number, n).items()}


def configs():
    for config_class in variants():
        fields = {**FIELDS, "target_l0": 3}
        if "k" in config_class.__dataclass_fields__:
            fields = {**FIELDS, "k": 3}
        if "bandwidth" in config_class.__dataclass_fields__:
            fields |= {"bandwidth": 0.1, "log_threshold": False, "l0_coefficient": 0.01}
        yield pytest.param(config_class(**fields), id=config_class.model_type)


@pytest.mark.parametrize("config", list(configs()))
@pytest.mark.parametrize("share, rounds, whitening", [(0.0, 0, 0.0), (0.7, 2, 0.75)])
def test_a_constant_vector_and_a_factor_change_only_the_bias_and_c(
    config, share, rounds, whitening, tmp_path
):
    saes = []
    for stream in (PlantedStream(), Moved()):
        torch.manual_seed(0)
        sae = AutoModel.from_config(deepcopy(config))  # training writes c into it
        args = arguments(tmp_path / str(len(saes)), steps=20, init_decoder_data=share)
        args.init_cluster_rounds, args.init_whitening = rounds, whitening
        for name, value in SHORT_RUN.items():
            setattr(args, name, value)
        Trainer(sae, stream, args).train()
        saes.append(sae)
    here, there = map(weights, saes)
    c_here, c_there = (sae.config.activation_scale for sae in saes)
    assert c_there == pytest.approx(Moved.factor * c_here, rel=1e-5)
    shift = Moved().shift
    biases = here.pop("b_dec") * c_here, (there.pop("b_dec") * c_there - shift) / Moved.factor
    torch.testing.assert_close(*biases, rtol=0, atol=1e-3 * c_here)
    torch.testing.assert_close(there, here, rtol=0, atol=1e-3)


def test_in_units_of_the_norm_a_constant_vector_changes_training(tmp_path):
    """Which is why the unit is a choice: the test above would fail with the paper's."""
    saes = []
    for stream in (PlantedStream(), Moved()):
        saes.append(make_sae(subtract_b_dec=True))
        args = arguments(tmp_path / str(len(saes)), steps=1, init_b_dec="mean")
        Trainer(saes[-1], stream, args).train()
    here, there = (sae.config.activation_scale for sae in saes)
    assert there > 3 * Moved.factor * here


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_the_decoder_starts_at_a_share_of_data_and_the_encoder_small(share, tmp_path):
    stream = PlantedStream()
    torch.manual_seed(0)
    sae = BatchTopKSAE(BatchTopKSAEConfig(**FIELDS, k=3))
    random = sae.W_dec.detach().clone()
    args = arguments(tmp_path, steps=1, learning_rate=1e-9, warmup_steps=0)
    args.init_decoder_data, args.init_encoder_scale = share, 0.25
    Trainer(sae, stream, args).train()
    x = stream.sample(4096)["layers.1"]
    tokens = torch.nn.functional.normalize((x - x.mean(dim=0))[:32], dim=1)
    rows = torch.nn.functional.normalize(share * tokens + (1 - share) * random, dim=1)
    torch.testing.assert_close(sae.W_dec.detach(), rows, rtol=0, atol=1e-5)
    torch.testing.assert_close(sae.W_enc.detach(), 0.25 * rows.T, rtol=0, atol=1e-5)


def test_more_latents_than_the_sample_has_tokens_cannot_start_at_data_alone(tmp_path):
    sae = BatchTopKSAE(BatchTopKSAEConfig(**FIELDS | {"d_sae": 5000}, k=3))
    args = arguments(tmp_path, steps=1, init_decoder_data=1.0)
    with pytest.raises(ValueError, match="takes 5000 tokens from a sample, which has 4096"):
        Trainer(sae, PlantedStream(), args).train()


def test_a_token_serves_several_latents_where_there_are_too_few(tmp_path):
    sae = BatchTopKSAE(BatchTopKSAEConfig(**FIELDS | {"d_sae": 5000}, k=3))
    args = arguments(tmp_path, steps=1, learning_rate=1e-9, init_decoder_data=0.5)
    Trainer(sae, PlantedStream(), args).train()
    first, again = sae.W_dec.detach()[:900], sae.W_dec.detach()[4096:4996]
    assert 0.1 < float((first * again).sum(-1).mean()) < 0.9, "near each other, and not equal"


def sums_of_two(n=64):
    """Activations 3 u + v, u one of four directions, v one of four others; and both lists."""
    basis = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(0)))[0]
    u, v = basis[:4], basis[4:8]
    i = torch.arange(n)
    return 3 * u[i % 4] + v[(i + i // 4) % 4], u, v


def test_half_of_the_latents_start_at_clusters_and_half_at_what_these_leave():
    x, u, v = sums_of_two()
    columns, rows = residual_clusters_(x, x, n_latents=8, rounds=3)
    torch.testing.assert_close(columns, rows)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(8))
    assert ((rows[:4] @ u.T).max(dim=1).values > 0.95).all(), "u, with the mean of v"
    left = torch.nn.functional.normalize(v - v.mean(dim=0), dim=1)
    assert sorted((rows[4:] @ left.T).argmax(dim=1).tolist()) == [0, 1, 2, 3]
    assert ((rows[4:] @ left.T).max(dim=1).values > 0.9).all()


def test_a_transcoders_rows_start_at_the_targets_of_its_columns_clusters():
    x, *_ = sums_of_two()
    turn = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(1)))[0]
    columns, rows = residual_clusters_(x, x @ turn, n_latents=8, rounds=3)
    torch.testing.assert_close(rows, columns @ turn, rtol=0, atol=1e-5)
    assert not torch.allclose(rows, columns, atol=0.1)


def test_clusters_are_those_of_a_plain_k_means(without_bfloat16, monkeypatch):
    x = torch.randn(300, D, generator=torch.Generator().manual_seed(2))
    monkeypatch.setattr(start, "_SIMILARITIES", 64)  # many blocks
    unit = torch.nn.functional.normalize(x, dim=1)
    rows, _ = residual_clusters_(x, x, n_latents=17, rounds=4)
    centres = unit[:9]
    for n in (72, 75, 150, 300):
        nearest = (unit[:n] @ centres.T).argmax(dim=1)
        means = [
            unit[:n][nearest == k].mean(dim=0) if (nearest == k).any() else c
            for k, c in enumerate(centres)
        ]
        centres = torch.nn.functional.normalize(torch.stack(means), dim=1)
    torch.testing.assert_close(rows[:9], centres, rtol=0, atol=1e-5)
    assert len(rows) == 17


def test_rounds_of_k_means_see_twice_as_many_activations_each_the_last_all():
    assert start.sizes_of_rounds(1000, 10, 4) == [125, 250, 500, 1000]
    assert start.sizes_of_rounds(1000, 40, 4) == [320, 320, 500, 1000], "eight a centre"
    assert start.sizes_of_rounds(100, 40, 2) == [100, 100]


def dominated(n: int = 4000) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x = a little of one of eight directions v, and much of u, which tells nothing about v."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(D, D, generator=generator))[0]
    u, v = basis[0], basis[1:9]
    much = 10 * torch.randn(n, 1, generator=generator)
    x = v[torch.arange(n) % 8] + much * u + 0.05 * torch.randn(n, D, generator=generator)
    return x - x.mean(dim=0), u, v - v.mean(dim=0)


@pytest.mark.parametrize("power, finds", [(0.0, False), (1.0, True)])
def test_in_a_whitened_space_clusters_are_found_beside_a_direction_that_dominates(power, finds):
    x, u, v = dominated()
    args = TrainingArguments(
        init_decoder_data=1, init_cluster_rounds=6, init_whitening=power, n_tokens=4096
    )
    columns, rows = first_directions_(x, x, 16, args)
    patterns = torch.nn.functional.normalize(v, dim=1)
    if finds:
        assert ((columns @ patterns.T).amax(dim=0) > 0.9).all(), "detectors leave u out"
        assert ((columns @ u).abs() < 0.1).all()
    else:
        assert (columns[:8] @ u).abs().mean() > 0.5, "of clusters, not of what they leave"
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(16))


def test_a_token_s_pattern_is_the_token_and_its_detector_the_best_linear_one():
    """At p = 1 the detector is S^-1 x, as in linear discriminant analysis."""
    x, *_ = dominated()
    args = TrainingArguments(init_decoder_data=1, init_whitening=1.0)
    columns, rows = first_directions_(x.clone(), x.clone(), 8, args)
    unit = torch.nn.functional.normalize
    torch.testing.assert_close(rows, unit(x[:8], dim=1), rtol=0, atol=1e-4)
    detectors = torch.linalg.solve(x.T @ x, x[:8].T).T
    torch.testing.assert_close(columns, unit(detectors, dim=1), rtol=0, atol=1e-3)


def test_a_transcoder_is_whitened_at_both_places():
    x, *_ = dominated()
    turn = 3 * torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(1)))[0]
    args = TrainingArguments(init_decoder_data=1, init_cluster_rounds=3, init_whitening=0.75)
    same, patterns = first_directions_(*[x.clone()] * 2, 16, args)
    columns, rows = first_directions_(x.clone(), x @ turn, 16, args)
    torch.testing.assert_close(columns, same, rtol=0, atol=1e-3)
    turned = torch.nn.functional.normalize(patterns @ turn, dim=1)
    torch.testing.assert_close(rows, turned, rtol=0, atol=1e-3)


def test_variances_near_zero_and_activations_that_do_not_vary_are_whitened_too():
    x = torch.zeros(50, D)
    whiten_(x, 1.0)
    assert not x.any()
    x[:, 0] = torch.linspace(-1, 1, 50)
    to, back = whiten_(x, 1.0)
    assert x.isfinite().all() and to.isfinite().all()
    torch.testing.assert_close(to @ back, torch.eye(D), rtol=0, atol=1e-4)


def test_clusters_need_a_share_of_data(tmp_path):
    with pytest.raises(ValueError, match="no effect while"):
        TrainingArguments(init_cluster_rounds=3)
    with pytest.raises(ValueError, match=r"init_whitening is 0\.5, which has no effect while"):
        TrainingArguments(init_whitening=0.5)
    with pytest.raises(ValueError, match="is -1; it must be 0 or more"):
        TrainingArguments(init_cluster_rounds=-1)
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\], got 2"):
        TrainingArguments(init_decoder_data=0.9, init_whitening=2)


def test_a_start_at_clusters_reconstructs_planted_activations_sooner(tmp_path):
    """Twenty steps from clusters of the directions that activations are made of."""
    fvu = {}
    for rounds in (0, 4):
        torch.manual_seed(0)
        sae = BatchTopKSAE(BatchTopKSAEConfig(**FIELDS, k=3))
        args = arguments(tmp_path / str(rounds), steps=20, init_decoder_data=0.9)
        args.init_cluster_rounds, args.logging_steps = rounds, 1
        Trainer(sae, PlantedStream(), args).train()
        log = (tmp_path / str(rounds) / "log.jsonl").read_text().splitlines()
        fvu[rounds] = json.loads(log[0])["fvu"]
    assert fvu[4] < 0.9 * fvu[0]


def test_a_warm_start_may_begin_with_more_latents_and_ends_at_its_target(tmp_path):
    sae = make_sae(target_l0=2.0, subtract_b_dec=True)
    args = arguments(tmp_path, steps=200, warm_start_steps=160, warm_start_l0=4.0)
    Trainer(sae, PlantedStream(), args).train()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    l0 = {line["step"]: line["l0"] for line in lines}
    assert l0[10] == pytest.approx(2 * 4 ** (1 - 10 / 80), rel=0.2)
    assert l0[40] == pytest.approx(2 * 4 ** (1 - 40 / 80), rel=0.2)
    assert l0[100] == pytest.approx(2, rel=0.15)


def test_a_target_of_most_latents_is_steered_to_from_the_start(tmp_path):
    args = arguments(tmp_path, steps=20, warm_start_steps=10)
    control = L0Control(make_sae(target_l0=20.0), args)  # of 32
    assert [control.goal(step) for step in (0, 4, 9)] == [20.0] * 3


# Known directions.


@pytest.fixture
def concepts(tmp_path):
    """Writes a file of directions, and returns its path."""

    def write(x: torch.Tensor, labels: object = None, **others: torch.Tensor) -> str:
        path = str(tmp_path / "concepts.safetensors")
        metadata = None if labels is None else {"labels": json.dumps(labels)}
        save_file({"layers.1": x, **others}, path, metadata=metadata)
        return path

    return write


@pytest.mark.parametrize("unit", ["norm", "spread"])
def test_the_first_rows_start_at_given_directions_and_the_others_as_they_were(
    unit, tmp_path, concepts
):
    given = 7 * torch.randn(3, D, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    sae = BatchTopKSAE(BatchTopKSAEConfig(**FIELDS, k=3))
    rows = sae.W_dec.detach().clone()
    read = sae.W_enc.detach().T.clone()
    rows[:3] = rows[:3].norm(dim=1, keepdim=True) * given / given.norm(dim=1, keepdim=True)
    read[:3] = read[:3].norm(dim=1, keepdim=True) * given / given.norm(dim=1, keepdim=True)
    args = arguments(tmp_path / "out", steps=1, learning_rate=1e-9, warmup_steps=0)
    args.unit, args.init_b_dec, args.init_encoder_scale = unit, "mean", 0.5
    args.init_decoder = concepts(given, ["a", "b", "c"])
    Trainer(sae, PlantedStream(), args).train()
    torch.testing.assert_close(sae.W_dec.detach(), rows, rtol=0, atol=1e-5)
    torch.testing.assert_close(sae.W_enc.detach().T, 0.5 * read, rtol=0, atol=1e-5)
    record = json.loads((tmp_path / "out" / "training.json").read_text())["directions"]
    assert record == {"names": ["a", "b", "c"], "cosines": [1.0, 1.0, 1.0]}


def test_the_cosine_with_the_start_is_that_of_the_trained_row(tmp_path, concepts):
    given = torch.randn(5, D, generator=torch.Generator().manual_seed(1))
    args = arguments(tmp_path / "out", steps=60, learning_rate=1e-2)
    args.init_decoder = concepts(given)
    trained = Trainer(make_sae(), PlantedStream(), args).train()
    record = json.loads((tmp_path / "out" / "training.json").read_text())["directions"]
    expected = [
        float(row @ x / (row.norm() * x.norm()))
        for row, x in zip(trained.W_dec.detach(), given, strict=False)
    ]
    assert record["names"] == [] and record["cosines"] == pytest.approx(expected, abs=1e-4)
    assert max(expected) < 0.9999


def test_a_transcoder_starts_to_write_and_not_to_read_there(tmp_path, concepts):
    fields = {**FIELDS, "subtract_b_dec": False, "d_out": 8, "target_site": "layers.2"}
    config = BatchTopKSAEConfig(**fields, k=3)
    torch.manual_seed(0)
    sae, given = BatchTopKSAE(config), torch.eye(8)[:2]
    read = sae.W_enc.detach().clone()
    start_at_(sae, read_directions(concepts(given), config)[0])
    torch.testing.assert_close(sae.W_dec[:2].detach(), given)
    assert torch.equal(sae.W_enc.detach(), read)


@pytest.mark.parametrize(
    "x, labels, sentence",
    [
        (torch.ones(2, D + 1), None, f"directions of width {D + 1}, and the SAE writes {D}$"),
        (torch.eye(D).repeat(3, 1), None, "has 48 directions, and sae.d_sae is 32; give 1 to"),
        (torch.zeros(1, D), None, "a direction that is zero or not finite"),
        (torch.full((1, D), torch.nan), None, "a direction that is zero or not finite"),
        (torch.ones(2, D), ["a"], "has 1 labels for 2 directions"),
        (torch.ones(1, D), ["a\nb"], "no JSON list of names .a label is one line"),
        (torch.ones(1, D), 3, "no JSON list of names"),
        (torch.ones(1, D, dtype=torch.int64), None, "give one of numbers"),
        (torch.ones(1, 1, D), None, "give one of numbers"),
    ],
)
def test_directions_that_do_not_fit_are_refused(x, labels, sentence, concepts):
    with pytest.raises(ValueError, match=f"^(the labels of )?training.init_decoder .*{sentence}"):
        read_directions(concepts(x, labels), BatchTopKSAEConfig(**FIELDS, k=3))


def test_a_file_of_directions_is_there_and_has_one_tensor(concepts):
    config = BatchTopKSAEConfig(**FIELDS, k=3)
    with pytest.raises(ValueError, match=r"'none.safetensors' is not a file; give a .safetensors"):
        read_directions("none.safetensors", config)
    path = concepts(torch.ones(1, D), other=torch.ones(D))
    with pytest.raises(ValueError, match=r"has layers.1 \[1, 16\], other \[16\]; give one of"):
        read_directions(path, config)


def test_a_start_at_directions_and_at_data_is_refused_with_both_names(tmp_path):
    with pytest.raises(ValueError, match=r"training.init_decoder \('a'\) and .*init_decoder_data"):
        arguments(tmp_path, init_decoder="a", init_decoder_data=0.5)
