"""Estimates against counts made by hand, for a tiny model and for Gemma 2's real sizes."""

from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, Gemma2Config

from hfsae import plan as plans
from hfsae import recipe as recipes
from hfsae.activations import HarvestArguments, ShuffleArguments, TextArguments
from hfsae.cli import _parse_recipe, _recipe_parser
from hfsae.evaluation import EvaluationArguments
from hfsae.pace import LMPace, SAEPace
from hfsae.plan import parameters_used, plan
from hfsae.recipe import LMArguments, Recipe, make_configs
from hfsae.training import TrainingArguments

RECIPES = sorted((Path(__file__).parent.parent / "scripts" / "recipes").glob("*.yaml"))
SIZES = {
    "google/gemma-2-2b": (2304, 26, 8, 4, 9216),
    "google/gemma-2-9b": (3584, 42, 16, 8, 14336),
}


def gemma(name: str) -> AutoModelForCausalLM:
    """Gemma 2 at its published sizes, on the meta device: no weights."""
    d, layers, heads, kv_heads, d_mlp = SIZES[name]
    config = Gemma2Config(
        hidden_size=d,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=256,
        intermediate_size=d_mlp,
    )
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture
def no_weights(monkeypatch, make_tiny_lm):
    def empty_lm(name, **kwargs):
        return gemma(name) if name in SIZES else make_tiny_lm("llama", num_hidden_layers=16)

    monkeypatch.setattr(recipes, "empty_lm", empty_lm)
    monkeypatch.setattr(recipes, "check_text", lambda args, side: None)  # it lies on the Hub
    monkeypatch.setattr(plans, "lm_pace", lambda *args: LMPace(block=1e-3, rest=2e-3, head=5e-3))
    monkeypatch.setattr(plans, "sae_pace", lambda *args: SAEPace(encode=1e-4, collect=3e-4))
    monkeypatch.setattr(plans, "step_seconds", lambda *args: 0.5)


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_parses_and_fits_its_model(path, no_weights, tmp_path):
    recipe, _ = _parse_recipe(_recipe_parser("train"), [str(path)])
    if not path.stem.startswith("gemma2"):
        return
    lm = gemma(recipe.lm.name)
    configs = make_configs(recipe, lm)
    d, n_heads = SIZES[recipe.lm.name][0], SIZES[recipe.lm.name][2]
    for config in configs.values():
        assert config.d_in == (n_heads * 256 if "o_proj" in config.site else d)
        assert config.d_sae in (16384, 131072)
        assert (config.bandwidth, config.initial_threshold) == (0.001, 0.001)
        assert config.log_threshold and config.l0_coefficient == 6e-4
    training = recipe.training
    assert (training.learning_rate, training.adam_beta1, training.batch_size) == (7e-5, 0.0, 4096)
    assert (training.warmup_steps, training.sparsity_warmup_steps) == (1000, 10_000)
    assert plan(recipe).lines


def test_the_nine_places_of_the_paper_are_there():
    recipe = yaml.safe_load(next(p for p in RECIPES if p.stem == "gemma2_9b_16k").read_text())
    sites = [fields["site"] for fields in recipe["saes"].values()]
    assert len(sites) == 9 and {int(s.split(".")[1]) for s in sites} == {9, 20, 31}


def test_memory_and_disk_are_counted(no_weights):
    recipe = Recipe(
        lm=LMArguments(name="google/gemma-2-2b"),
        text=TextArguments(),
        harvest=HarvestArguments(),
        shuffle=ShuffleArguments(bucket_tokens=1_000_000),
        sae={"site": "layers.12", "d_sae": 16384},
        training=TrainingArguments(n_tokens=10**9),
    )
    found = plan(recipe)
    n_sae = 2 * 2304 * 16384 + 2 * 16384 + 2304
    expected = 2 * 2.614e9 + 2 * 2304e6 + 16 * n_sae + 4 * 6 * 4096 * 16384 + 0.6e9
    assert found.memory_bytes == pytest.approx(expected, rel=0.01)
    assert found.disk_bytes == pytest.approx((3 * 12 + 4) * n_sae, rel=0.01)


def test_seconds_are_counts_times_paces(no_weights):
    """26 blocks, 13 to the site; rows of 1024 tokens with a BOS, which is not kept."""
    recipe = Recipe(
        lm=LMArguments(name="google/gemma-2-2b"),
        saes={"a": {"site": "layers.12"}, "b": {"site": "layers.12"}},
        sae={"d_sae": 16384},
        text=TextArguments(context_size=1024),
        shuffle=ShuffleArguments(passes=2),
        training=TrainingArguments(n_tokens=4096 * 1000, batch_size=4096),
        evaluation=EvaluationArguments(n_tokens=10_000),
        collect_tokens=20_000,
    )
    to_site, whole, again = (0.002 + 0.001 * n for n in (13, 26 + 5, 13 + 5))
    harvest = 4096 * 1000 / 2 * 1024 / 1023 * to_site
    evaluation = 10_000 * (2 * (whole + 3 * again + to_site) + 2 * 1e-4)
    examples = 20_000 * (2 * to_site + 2 * 3e-4)
    expected = harvest + 1000 * 2 * 0.5 + evaluation + examples
    assert plan(recipe).seconds == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("gigabytes", "expected"), [(10_000.0, 2 * 2304e9), (50.0, 50e9)])
def test_the_activation_cache_is_counted(no_weights, gigabytes, expected):
    recipe = Recipe(
        lm=LMArguments(name="google/gemma-2-2b"),
        sae={"site": "layers.12", "d_sae": 16384},
        training=TrainingArguments(n_tokens=10**9),
    )
    without = plan(recipe).disk_bytes
    recipe.harvest = HarvestArguments(cache="somewhere", cache_gb=gigabytes)
    assert plan(recipe).disk_bytes - without == pytest.approx(expected)


def test_parameters_used_are_those_below_the_site(make_tiny_lm):
    lm = make_tiny_lm("llama", num_hidden_layers=8)
    block = sum(p.numel() for p in lm.model.layers[0].parameters() if p.ndim > 1)
    assert parameters_used(lm, ["layers.0"]) == block
    assert parameters_used(lm, ["layers.5", "layers.2"]) == 6 * block
    assert not any(m._forward_pre_hooks for m in lm.modules())
