"""Estimates against counts made by hand, for a tiny model and for Gemma 2's real sizes."""

import gc
import shlex
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, Gemma2Config

from hfsae import runs as recipes
from hfsae.activations import HarvestArguments, ShuffleArguments, TextArguments
from hfsae.cli.recipes import parse_recipe, recipe_parser
from hfsae.evaluation import EvaluationArguments
from hfsae.lm import load_lm
from hfsae.models import BatchTopKCLTConfig
from hfsae.runs import LMArguments, Recipe, cost, make_configs
from hfsae.runs.cost import check_memory, memory, parameters, plan, stages
from hfsae.training import TrainingArguments

from . import forked

RECIPES = sorted((Path(__file__).parent.parent / "scripts" / "recipes").glob("*.yaml"))
SIZES = {
    "google/gemma-2-2b": (2304, 26, 8, 4, 9216),
    "google/gemma-2-9b": (3584, 42, 16, 8, 14336),
}


@cache
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
def no_weights(monkeypatch, make_tiny_lm) -> None:
    """Models are sizes alone."""

    def empty_lm(name, **kwargs):
        return gemma(name) if name in SIZES else make_tiny_lm("llama", num_hidden_layers=16)

    monkeypatch.setattr(recipes.checks, "empty_lm", empty_lm)
    monkeypatch.setattr(recipes.checks, "check_text", lambda args, side: None)  # it lies on the Hub


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_parses_and_fits_its_model(path, no_weights, tmp_path):
    recipe, _ = parse_recipe(recipe_parser("train"), [str(path)])
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


def gemma_recipe(name: str, d_sae: int, **training) -> Recipe:
    """One SAE on the residual stream, nothing but trained."""
    return Recipe(
        lm=LMArguments(name=name, attn_implementation="eager"),
        text=TextArguments(context_size=1024),
        harvest=HarvestArguments(rows=4),
        shuffle=ShuffleArguments(bucket_tokens=1_000_000),
        sae={"site": "layers.12", "d_sae": d_sae, "subtract_b_dec": True},
        training=TrainingArguments(n_tokens=10**9, batch_size=4096, **training),
        evaluation=EvaluationArguments(n_tokens=0),
        collect_tokens=0,
    )


def gemma_parameters(name: str) -> int:
    """Embedding, which is the unembedding too; blocks with four norms; the last norm."""
    d, layers, heads, kv_heads, d_mlp = SIZES[name]
    attention = 2 * d * 256 * (heads + kv_heads)
    return 256_000 * d + layers * (attention + 3 * d * d_mlp + 4 * d) + d


@pytest.mark.parametrize("spread", [False, True])
@pytest.mark.parametrize("n", [1, 8])
@pytest.mark.parametrize("d_sae", [2**14, 2**17, 2**20])
@pytest.mark.parametrize("name", list(SIZES))
def test_bytes_of_each_gpu_in_closed_form(no_weights, name, d_sae, n, spread):
    recipe = gemma_recipe(name, d_sae, num_processes=n, shard_latents=spread)
    d, is_spread = SIZES[name][0], spread and n > 1
    n_latents = d_sae // n if is_spread else d_sae
    batch = 4096 if is_spread else 4096 // n
    # W_enc, W_dec, b_enc and threshold by latent; b_dec is whole everywhere.
    all_, here = (latents * (2 * d + 2) + d for latents in (d_sae, n_latents))
    inputs, latents, gradient = 8 * 4 * batch * d, 4 * batch * n_latents, 4 * d * n_latents
    always = {
        "language model": 2 * gemma_parameters(name),
        "SAE, gradients, Adam": 16 * here,
        **({"buckets of gradients": 4 * here} if n > 1 and not is_spread else {}),
    }
    step = inputs + max(5.25 * latents, 3 * latents + gradient)
    checked = recipes.check(recipe)
    every = stages(recipe, *checked, on_gpu=True)
    assert having(every, "one step, dense")[GPU] == {**always, "one step, dense": step}
    folding = having(every, "folding")
    assert {**folding[GPU], **folding[MAIN]}["folding"] == 2.5 * 4 * all_
    assert ("folding" in folding[MAIN]) == is_spread
    if is_spread:
        assert having(every, "checkpoint")[MAIN]["checkpoint"] == 12 * all_
    gpu = memory(recipe, *checked, on_gpu=True)[GPU]
    assert sum(gpu.values()) >= sum(always.values()) + step + 1e9


@pytest.mark.pages
def test_pages_tell_memory_as_it_is_planned(no_weights):
    pages = {name: (RECIPES[0].parent / name).read_text() for name in ("first_hour.md", "gpus.md")}
    command = pages["first_hour.md"].split("\nhfsae train quickstart")[1].split("```")[0]
    (first,) = on_card("quickstart", *shlex.split(command.replace("\\\n", " ")))
    lm, *sae, refit, cuda = first.values()
    assert [*first][-2:] == ["decoder by least squares", "CUDA"]
    assert (
        f"By plan {lm + sum(sae) + refit + cuda:.0f} GB on the card ({lm:.1f} the model, "
        f"{refit:.1f} the decoder's fit at the end, {sum(sae):.1f} the SAE and its gradients, "
        f"{cuda:.0f} CUDA)"
    ) in pages["first_hour.md"]
    for size, (width, d_sae, billions) in product(
        ("2B", "9B"), (("16k", 2**14, 4), ("131k", 2**17, 8), ("1M", 2**20, 16))
    ):
        argv = [f"gemma2_{size.lower()}_16k", "--sae.d_sae", d_sae, "--training.bf16", "true"]
        argv += ["--evaluation.sae_batch_tokens", min(4096, 2**29 // d_sae)]
        argv += ["--training.shard_latents", "true"] if width == "1M" else []
        each = [sum(parts.values()) for parts in on_card(*argv, alone=True, ns=(1, 2, 4, 8))]
        cells = " / ".join(f"{gb:.0f}" for gb in each)
        assert f"| {size}, {width}, {billions} billion | {cells} |" in pages["gpus.md"]


def on_card(*argv: object, alone: bool = False, ns: Sequence[int] = (1,)) -> list[dict[str, float]]:
    """GB by part on each of n GPUs, planned for `hfsae train` with these arguments.

    Args:
        alone: of the recipe's SAEs that at layer 12.
    """
    recipe, _ = parse_recipe(recipe_parser("train"), [str(x) for x in argv])
    if alone:
        recipe = replace(recipe, saes={}, sae={**recipe.sae, "site": "layers.12"})
    checked, plans = recipes.check(recipe), []
    for n in ns:
        training = replace(recipe.training, num_processes=n)
        parts = memory(replace(recipe, training=training), *checked, on_gpu=True)[GPU]
        plans.append({name: size / 1e9 for name, size in parts.items()})
    return plans


def stage(recipe: Recipe, part: str, *, on_gpu: bool = True):
    """The stage of a run that has a part of this name."""
    return having(stages(recipe, *recipes.check(recipe), on_gpu=on_gpu), part)


def having(every: list, part: str):
    return next(s for s in every if part in {**s[GPU], **s[MAIN]})


def test_eager_attention_holds_the_scores_of_each_pair_of_tokens(no_weights):
    """In the model's dtype, soft-capped again, in float32, and cast back: 10 bytes a score."""
    name, part = "google/gemma-2-2b", "one batch of text"
    sdpa, eager = gemma_recipe(name, 2**14), gemma_recipe(name, 2**14)
    sdpa.lm.attn_implementation = "sdpa"
    in_context = 4 * 1024
    least = 2 * in_context * 2 * 2304  # what is captured, twice
    of_mlp, scores = 3 * in_context * SIZES[name][4] * 2, 4 * 8 * 1024**2 * 10
    always = least + 4 * in_context * 2304 * 2
    assert stage(sdpa, part)[GPU][part] == always + of_mlp
    assert stage(eager, part)[GPU][part] == always + max(of_mlp, scores) > always + of_mlp


def test_a_language_model_is_in_memory_once_while_it_is_read(no_weights):
    recipe, part = gemma_recipe("google/gemma-2-2b", 2**14), "loading the language model"
    recipe.shuffle = ShuffleArguments(bucket_tokens=12_288)
    for on_gpu in (False, True):
        loading = stage(recipe, part, on_gpu=on_gpu)[MAIN]
        assert loading[part] == 2 * gemma_parameters("google/gemma-2-2b")
    parts = memory(recipe, *recipes.check(recipe), on_gpu=False)[MAIN]
    assert "one step, dense" in parts and part not in parts


@pytest.mark.skipif(not Path("/proc/self/clear_refs").is_file(), reason="Linux tells the peak")
@pytest.mark.parametrize(
    ("dtype", "device", "most"),
    [("bfloat16", "cpu", 1.0), ("bfloat16", "cpu:0", 1.0), ("float32", "cpu", 1.5)],
)
def test_reading_a_language_model_copies_no_weight_twice(
    dtype, device, most, tmp_path, tiny_tokenizer
):
    """One of 67 MB in bfloat16: its file's pages, or these and copies in float32."""
    sizes = {"hidden_size": 256, "num_hidden_layers": 1, "intermediate_size": 256, "head_dim": 64}
    lm = AutoModelForCausalLM.from_config(Gemma2Config(**sizes, vocab_size=2**17))
    for part in (lm.to(torch.bfloat16), tiny_tokenizer):
        part.save_pretrained(tmp_path)
    child = forked.start(_read, str(tmp_path), dtype, device, most)
    assert forked.exit_codes([child]) == [0]


def _peak() -> int:
    """Bytes that this process held at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("VmHWM")]
    return 1024 * int(line.split()[1])


def _read(folder: str, dtype: str, device: str, most: float) -> None:
    load_lm(folder, dtype=dtype, device=device)  # which imports and keeps what it needs
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what is held here
    before = _peak()
    lm = load_lm(folder, dtype=dtype, device=device).lm
    for parameter in lm.parameters():
        parameter.sum()
    grown = _peak() - before
    weights = sum(p.numel() * p.itemsize for p in lm.parameters())
    assert 0.9 * most * weights < grown < 1.2 * most * weights, grown / weights


def test_the_bucket_lies_where_it_is_asked_for(no_weights):
    recipe = gemma_recipe("google/gemma-2-2b", 2**14)
    assert stage(recipe, "one step, dense")[MAIN]["activation bucket"] == 2 * 2304 * 1_000_000
    recipe.shuffle = ShuffleArguments(bucket_tokens=1_000_000, device="cuda")
    assert stage(recipe, "one step, dense")[GPU]["activation bucket"] == 2 * 2304 * 1_000_000
    assert "activation bucket" not in stage(recipe, "one step, dense")[MAIN]


def test_a_sparse_step_holds_no_matrix_of_latents(no_weights):
    recipe = gemma_recipe("google/gemma-2-2b", 2**16, warm_start_steps=0.5)
    recipe.sae |= {"target_l0": 50}
    inputs, bound = 8 * 4 * 4096 * 2304, 2 * (4096 + 2**16) * (2304 + 4)
    scores, entries = 3 * 256 * 2**16, 100 * 2 * 4096 * 50
    sparse = stage(recipe, "one step, sparse", on_gpu=False)[GPU]["one step, sparse"]
    assert sparse == inputs + bound + scores + entries
    recipe.training.sparse = "never"
    dense = stage(recipe, "one step, dense", on_gpu=False)[GPU]["one step, dense"]
    assert dense == inputs + 5.25 * 4 * 4096 * 2**16


def test_a_nested_sae_takes_the_memory_of_the_sae_that_is_nested(no_weights):
    sizes = {}
    for kind in ("jumprelu_sae", "batch_topk_sae"):
        for name in (kind, f"matryoshka_{kind}"):
            recipe = gemma_recipe("google/gemma-2-2b", 2**16)
            recipe.sae["model_type"] = name
            sizes[name] = stage(recipe, "one step, dense")[GPU]["one step, dense"]
        assert sizes[kind] == sizes[f"matryoshka_{kind}"]
    assert sizes["jumprelu_sae"] > sizes["batch_topk_sae"]


def test_disk_is_counted(no_weights):
    n_sae = 2 * 2304 * 16384 + 2 * 16384 + 2304
    assert plan(gemma_recipe("google/gemma-2-2b", 16384)).disk_bytes == (3 * 12 + 4) * n_sae


def test_checkpoints_are_those_that_there_will_be(no_weights):
    n_sae = 2 * 2304 * 16384 + 2 * 16384 + 2304
    recipe = gemma_recipe("google/gemma-2-2b", 16384)
    steps = recipe.training.total_steps
    for every, limit, n in ((steps // 4, None, 4), (0, None, 1), (0, 2, 1), (steps // 50, 5, 6)):
        recipe.training.save_steps, recipe.training.save_total_limit = every, limit
        assert plan(recipe).disk_bytes == pytest.approx((n * 12 + 4) * n_sae, rel=0.26 / n)


def test_a_model_saved_in_bfloat16_is_planned_so(no_weights):
    auto, named = (gemma_recipe("google/gemma-2-2b", 2**14) for _ in range(2))
    auto.lm.dtype = "auto"
    lms, configs = recipes.check(named)
    in_float32, in_bfloat16 = (
        memory(auto, {"": lms[""].to(dtype)}, configs, on_gpu=True)[GPU]
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert in_bfloat16 == memory(named, lms, configs, on_gpu=True)[GPU]
    assert in_float32["language model"] == 2 * in_bfloat16["language model"]
    lms[""].to(torch.float32)


@pytest.mark.parametrize("context, at_once", [(1024, 1), (128, 4), (32, 16)])
def test_evaluation_holds_some_predictions_in_float32_and_as_many_logits_as_fit(
    no_weights, context, at_once
):
    """Of a batch of 16 rows: two arms' logits, and with a soft cap a third copy, or else five
    float32 copies of 128 predictions."""
    recipe = gemma_recipe("google/gemma-2-2b", 2**14)
    recipe.evaluation = EvaluationArguments(n_tokens=1000)
    recipe.text.context_size, recipe.harvest = context, HarvestArguments(rows=16)
    logits, few = 2 * at_once * context * 256_000, 5 * 4 * 128 * 256_000
    comparing = 2 * logits + max(logits, few)
    assert stage(recipe, "evaluation")[GPU]["evaluation"] >= comparing
    assert at_once == 1 or stage(recipe, "evaluation")[GPU]["evaluation"] == comparing


@pytest.mark.parametrize(
    "training, sentence",
    [
        ({"num_processes": 3}, "is not divisible by processes times"),
        (
            {"num_processes": 4096, "shard_latents": True},
            r"d_sae \(16385\) is not divisible by 4096",
        ),
    ],
)
def test_what_processes_cannot_share_is_refused(no_weights, training, sentence):
    recipe = gemma_recipe("google/gemma-2-2b", 16385, **training)
    with pytest.raises(ValueError, match=sentence):
        plan(recipe)


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


def test_a_process_holds_a_part_of_every_source():
    sites = ["layers.0", "layers.1"]
    config = BatchTopKCLTConfig(d_in=8, d_sae=12, sites=sites)
    decoder, by_latent = 6 * 8 + 6 * 4, 12 * 4 + 12  # of both sources; W_enc and b_enc
    assert parameters(config) == (decoder + by_latent + 8 + 1,) * 2  # b_dec and the threshold
    assert parameters(config, 3)[1] == (decoder + by_latent) // 3 + 8 + 1


MAIN, GPU = 0, 1  # of a stage's memory
GB = 10**9


@pytest.fixture
def small_machine(monkeypatch):
    """10 GB of main memory, of which 4 are free; no GPU."""
    monkeypatch.setattr(cost, "main_memory", lambda: (4 * GB, 10 * GB))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def small_recipe(d_sae: int, **fields) -> Recipe:
    recipe = gemma_recipe("tiny/llama", d_sae)
    recipe.shuffle.bucket_tokens = 8192
    for name, value in fields.items():
        setattr(recipe, name, value)
    return recipe


CPU = torch.device("cpu")


def test_a_recipe_beyond_the_machine_is_refused_with_what_would_fit(no_weights, small_machine):
    recipe = small_recipe(2**27)  # 16 wide: 17.7 GB of weights alone
    lm, configs = recipes.check(recipe)
    needed = sum(memory(recipe, lm, configs, on_gpu=False)[MAIN].values())
    with pytest.raises(ValueError, match="of main memory needed") as refused:
        check_memory(recipe, lm, configs, CPU)
    said = str(refused.value)
    assert said.startswith(f"about {needed / 1e9:,.1f} GB of main memory needed")
    assert "but this machine has 10.0 GB (4.0 GB free)" in said
    assert said.endswith("lower sae.d_sae: 32,768 instead of 134,217,728 would fit")
    for d_sae, fits in ((2**15, True), (2**16, False)):
        narrow = small_recipe(d_sae)
        parts = memory(narrow, *recipes.check(narrow), on_gpu=False)[MAIN]
        assert (sum(parts.values()) < 4 * GB) == fits


def test_what_might_fit_is_warned_of_not_refused(no_weights, small_machine, caplog):
    recipe = small_recipe(2**16)
    check_memory(recipe, *recipes.check(recipe), CPU)
    assert "would fit, or the system may end the run" in caplog.text
    caplog.clear()
    recipe = small_recipe(2**14)
    check_memory(recipe, *recipes.check(recipe), CPU)
    assert not caplog.text


def test_processes_of_one_machine_share_its_memory(no_weights, small_machine, monkeypatch):
    recipe = small_recipe(2**16)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(ValueError, match="of main memory needed"):
        check_memory(recipe, *recipes.check(recipe), CPU)


def test_memory_that_something_else_takes_is_what_to_lower(no_weights, small_machine):
    recipe = small_recipe(2**10, shuffle=ShuffleArguments(bucket_tokens=10**9))
    with pytest.raises(ValueError, match=r"\(4.0 GB free\); lower shuffle.bucket_tokens$"):
        check_memory(recipe, *recipes.check(recipe), CPU)


def test_a_plan_of_what_cannot_fit_has_a_note(no_weights, small_machine):
    text = "\n".join(plan(small_recipe(2**27)).lines)
    assert "note            about " in text and "lower sae.d_sae: 32,768 instead of" in text
    assert "time            not predicted" in text


@pytest.mark.parametrize("d_sae", [10**18, 10**30])
def test_latents_beyond_counting_are_one_sentence(no_weights, d_sae):
    recipe = small_recipe(d_sae)
    with pytest.raises(ValueError, match=f"d_sae {d_sae} is more than any machine can hold"):
        plan(recipe)


def test_what_a_recipe_lacks_is_found_before_its_model_is_looked_for():
    lm = LMArguments("no/such-model")
    with pytest.raises(ValueError, match=r"names no site; name a recipe file, or give sae\.site"):
        plan(Recipe(lm=lm))
    with pytest.raises(ValueError, match="gives no d_sae"):
        plan(Recipe(lm=lm, sae={"site": "layers.0"}))


@pytest.mark.parametrize("n_tokens", [20_000, 1_572_864, 10**7, 4 * 10**9])
def test_the_stages_after_a_quickstart_take_less_time_than_its_training(no_weights, n_tokens):
    recipe = recipes.read_recipe("quickstart")
    recipe.training.n_tokens = n_tokens
    n = recipe.sizes
    before = recipe.training.n_tokens / recipe.shuffle.passes * 13 + n_tokens * 7  # blocks of 30
    assert (n.evaluation or 0) * (30 + 3 * 17 + 13) + n.examples * 13 + n.names * 13 < before
    if n_tokens == 1_572_864:
        assert n == (20_000, 150_000, 50_000, 0, 60)
