"""Times of pieces: they exist for every family and variant, and grow as the real work does."""

import pytest
import torch
from transformers import AutoConfig

from hfsae.cost import pace
from hfsae.cost.cards import CARDS
from hfsae.cost.formula import start_seconds as start_by_formula
from hfsae.cost.pace import lm_pace, sae_pace, start_seconds, step_seconds
from hfsae.features import CollectArguments
from hfsae.training import TrainingArguments

from .helpers import variants


@pytest.fixture(autouse=True)
def _briefly(monkeypatch):
    """Each piece once: these tests ask for no precision."""
    real = pace._seconds
    monkeypatch.setattr(pace, "_seconds", lambda work, device: real(work, device, at_least=0.0))


@pytest.mark.parametrize(
    "family", ["gemma2", "gemma3", "llama", "qwen2", "gpt2", "gpt_neox", "mistral"]
)
def test_every_family_can_be_cut_and_timed(make_tiny_lm, family):
    lm = make_tiny_lm(family).to("meta")
    times = lm_pace(lm, torch.float32, 4, 16, "cpu")
    assert times.rest >= 0 and times.head > 0


def test_a_block_is_what_a_second_one_adds_and_all_is_by_token(make_tiny_lm, monkeypatch):
    lm = make_tiny_lm("llama")
    seconds = iter([5.0, 8.0, 0.5])  # one block, two, the head of a small vocabulary
    monkeypatch.setattr(pace, "_seconds", lambda work, device: next(seconds))
    times = lm_pace(lm.to("meta"), torch.float32, 4, 16, "cpu")
    vocabulary = lm.config.vocab_size / pace._VOCABULARY
    assert times == pytest.approx((3 / 64, 2 / 64, 0.5 * vocabulary / 64))


def test_a_cut_model_has_the_blocks_of_the_whole(make_tiny_lm):
    lm = make_tiny_lm("llama", num_hidden_layers=8)
    cut = pace._cut(lm, 3, torch.bfloat16, "cpu")
    assert len(cut.model.layers) == 3 and cut.dtype == torch.bfloat16
    for ours, theirs in zip(
        cut.model.layers[2].parameters(), lm.model.layers[2].parameters(), strict=True
    ):
        assert ours.shape == theirs.shape


@pytest.mark.parametrize(("d_sae", "timed"), [(300, [300]), (8192, [8192]), (65536, [8192, 4096])])
def test_wide_dictionaries_are_extrapolated(monkeypatch, d_sae, timed):
    seen = []

    def linear(config, args, batch, device):
        seen.append(config.d_sae)
        return 0.001 + 1e-6 * config.d_sae

    monkeypatch.setattr(pace, "_step_seconds", linear)
    config = AutoConfig.for_model("jumprelu_sae", d_in=8, d_sae=d_sae, site="layers.1")
    got = step_seconds(config, TrainingArguments(), 64, "cpu")
    assert got == pytest.approx(0.001 + 1e-6 * d_sae)
    assert seen == timed and config.d_sae == d_sae


def test_a_cut_dictionary_divides_into_the_groups_of_groupmax():
    config = AutoConfig.for_model("topk_sae", d_in=8, d_sae=20_000, k=50, selection="groupmax")
    assert pace._narrowed(config, 4096).d_sae == 4050
    assert pace._narrowed(config, 20_000).d_sae == 20_000


@pytest.mark.parametrize("fields", [{}, {"target_site": "layers.2", "d_out": 12}])
@pytest.mark.parametrize("config_class", variants(), ids=lambda c: c.model_type)
def test_steps_and_looks_of_every_variant_can_be_timed(config_class, fields):
    extra = {"k": 4} if "k" in config_class.__dataclass_fields__ else {}
    config = config_class(d_in=16, d_sae=64, site="layers.1", **extra, **fields)
    assert step_seconds(config, TrainingArguments(), 32, "cpu") > 0
    look = sae_pace(config, CollectArguments(), 16, "cpu")
    assert look.collect > look.encode > 0


def test_a_start_at_clusters_takes_its_rounds_over_its_sample_for_all_latents(monkeypatch):
    """65,536 activations, then all 131,072; timed on 4,096 of them and 4,096 latents."""
    monkeypatch.setattr(pace, "_seconds", lambda work, device: 1e-3 * len(work()) / 2)
    config = AutoConfig.for_model("batch_topk_sae", d_in=8, d_sae=8192, site="layers.1", k=4)
    clusters = TrainingArguments(init_decoder_data=0.9, init_cluster_rounds=2)
    assert start_seconds(config, TrainingArguments(), "cpu") == 0
    assert start_seconds(config, clusters, "cpu") == pytest.approx(1.5 * 32 * 2 * 1e-3)
    card = CARDS["H100"]
    assert start_by_formula(config, TrainingArguments(), card) == 0
    operations = 1.5 * 2 * 131_072 * 8192 * 8
    assert start_by_formula(config, clusters, card) == pytest.approx(operations / (0.6 * card.bf16))


def test_timing_a_step_logs_nothing_about_its_own_few_steps(caplog):
    config = AutoConfig.for_model("jumprelu_sae", d_in=8, d_sae=32, target_l0=4, site="layers.1")
    with caplog.at_level("INFO"):
        assert step_seconds(config, TrainingArguments(), 16, "cpu") > 0
    assert caplog.text == ""
