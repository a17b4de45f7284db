"""Several real processes, as torchrun starts them: equal losses at 1, 2 and 4; one dies."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml
from accelerate import Accelerator
from safetensors.torch import load_file

from hfsae import (
    BatchTopKCLT,
    BatchTopKCLTConfig,
    ReLUSAE,
    ReLUSAEConfig,
    TopKSAE,
    TopKSAEConfig,
)
from hfsae.runs import read_recipe, run
from hfsae.training import TrainingArguments
from hfsae.training.run import Run

from .. import forked

ROOT = Path(__file__).parents[2]
N_TOKENS, BATCH = 32 * 30, 32


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, tiny_lm, tiny_tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    model, text = folder / "lm", folder / "text.jsonl"
    tiny_lm.save_pretrained(model)
    tiny_tokenizer.save_pretrained(model)
    # Documents of unequal length: no process gets as much text as another.
    lines = [json.dumps({"text": f"{i}: " + "abcdefghij " * (1 + i * i % 17)}) for i in range(150)]
    text.write_text("\n".join(lines))
    sae = {"site": "layers.1", "d_sae": 32, "target_l0": 4, "bandwidth": 0.3}
    training = {"n_tokens": N_TOKENS, "batch_size": BATCH, "learning_rate": 1e-3}
    training |= {
        "max_grad_norm": 0.1,
        "adam_epsilon": 1e-4,
        "warmup_steps": 0,
        "sparsity_warmup_steps": 0,
    }
    training |= {"warm_start_steps": 10, "logging_steps": 5, "save_steps": 10}
    plain = {
        "lm": {"name": str(model), "dtype": "float32"},
        "text": {"dataset": str(text), "context_size": 16, "held_out_fraction": 0.0},
        "harvest": {"rows": 3, "max_norm_ratio": 3.0},
        "shuffle": {"bucket_tokens": 400},
        "sae": {**sae, "log_threshold": False},
        "training": training,
        "evaluation": {"n_tokens": 0},
        "collect_tokens": 0,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(plain))
    return path


@pytest.fixture(scope="module")
def finished(recipe, tmp_path_factory) -> Callable[[int], Path]:
    """The folder of a run of so many processes, run once."""

    @cache
    def finish(n: int) -> Path:
        folder = tmp_path_factory.mktemp("finished") / f"of-{n}"
        if n == 1:
            alone(recipe, folder)
        elif n == 2:
            assert torchrun(recipe, folder, n).returncode == 0, said(folder)
        else:
            finish_ranks(recipe, folder, n)
        return folder

    return finish


def alone(recipe: Path, folder: Path) -> None:
    """The run in this process."""
    plain = read_recipe(recipe)
    run(replace(plain, training=replace(plain.training, output_dir=str(folder))))


def torchrun(recipe: Path, folder: Path, n: int) -> subprocess.CompletedProcess:
    """The run as a user starts it."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", str(n), str(ROOT / "scripts" / "train.py"), str(recipe)]
    command += ["--training.output_dir", str(folder), "--training.num_processes", str(n)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(ROOT)
    with open(folder.with_suffix(".log"), "w") as log:
        return subprocess.run(command, env=environment, stdout=log, stderr=log, timeout=300)


def launch(recipe: Path, folder: Path, n: int, *options: str) -> list:
    """The same processes, but without torchrun, and without seconds of imports in each."""
    argv = ["train", str(recipe), "--training.output_dir", str(folder)]
    argv += ["--training.num_processes", str(n), *options]
    return forked.start_ranks(n, forked.hfsae, argv, folder.with_suffix(".log"))


def finish_ranks(recipe: Path, folder: Path, n: int, *options: str) -> None:
    codes = forked.exit_codes(launch(recipe, folder, n, *options))
    assert codes == [0] * n, (codes, said(folder))


def said(folder: Path) -> str:
    return folder.with_suffix(".log").read_text()


def log_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def wait_for_checkpoint(ranks: list, folder: Path) -> None:
    deadline = time.monotonic() + 120
    while not list(folder.glob("checkpoints/step-*.pt")):
        alive = all(rank.is_alive() for rank in ranks)
        assert alive and time.monotonic() < deadline, said(folder)
        time.sleep(0.01)  # leave the processor to the ranks


def assert_alike(folder: Path, other: Path, n_tokens: int = N_TOKENS) -> None:
    ours, theirs = log_of(folder), log_of(other)
    assert len(ours) == len(theirs) == n_tokens // BATCH // 5
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        for key in a.keys() & {"loss", "mse", "l0", "fvu", "dead_share", "threshold_median"}:
            # Sums in another order: two values may tie for the last place of a batch, or not.
            one_latent = 1.01 / BATCH if key == "l0" else None
            assert a[key] == pytest.approx(b[key], rel=2e-3, abs=one_latent), (key, a["step"])


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 4])
def test_several_processes_have_the_losses_of_one(finished, n):
    assert_alike(finished(n), finished(1))


@pytest.mark.slow
def test_several_processes_choose_latents_as_one_does(recipe, tmp_path):
    """By rank in a row or a batch, of all and of the dead; tokens or latents are shared out."""
    by_rank = yaml.safe_load(recipe.read_text())
    by_rank["sae"] = {"model_type": "batch_topk_sae", "site": "layers.1", "d_sae": 32, "k": 4}
    by_rank["training"] |= {"warm_start_steps": 0, "dead_after_tokens": 64}
    by_rank["training"] |= {"init_b_dec": "mean", "init_decoder_data": 0.9}
    by_rank["training"]["n_tokens"] = N_TOKENS // 2
    nested, rows = ({"model_type": f"{name}_sae"} for name in ("matryoshka_batch_topk", "topk"))
    places = {"site": None, "sites": ["layers.0.mlp:in", "layers.1.mlp:in"]}
    several = {"site": None, "sites": ["layers.0", "layers.1"], "dedicated": 5}
    targets = {"target_sites": ["layers.0.mlp", "layers.1.mlp"]}
    causal = {"model_type": "batch_topk_clt", **places, **targets}
    by_rank["saes"] = {
        "batch": {},
        "nested": nested,
        "rows": rows,
        "several sites": several,
        "causal": causal,
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(by_rank))
    one, two, spread = (tmp_path / name for name in ("one", "two", "spread"))
    option = ("--training.shard_latents", "true")
    alone(path, one)
    for folder, options in ((two, ()), (spread, option)):
        finish_ranks(path, folder, 2, *options)
    for name in by_rank["saes"]:
        assert any(line["dead_share"] > 0 for line in log_of(one / name))
        wanted = load_file(one / name / "model.safetensors")
        for folder in (two, spread):
            assert_alike(folder / name, one / name, N_TOKENS // 2)
            found = load_file(folder / name / "model.safetensors")
            for key, value in wanted.items():
                # Steps move weights by .03; a latent more or less in one batch, by up to .0005.
                torch.testing.assert_close(found[key], value, atol=1e-3, rtol=2e-3)


@pytest.mark.slow
def test_a_rank_that_dies_ends_the_run_and_it_resumes_to_the_same_bits(recipe, finished, tmp_path):
    broken = tmp_path / "broken"
    ranks = launch(recipe, broken, 2, "--training.save_steps", "5")
    wait_for_checkpoint(ranks, broken)
    ranks[1].kill()
    codes = forked.exit_codes(ranks)
    assert codes[1] == -signal.SIGKILL and codes[0] not in (0, None), codes
    assert not (broken / "config.json").exists() and list(broken.glob("checkpoints/step-*.pt"))
    finish_ranks(recipe, broken, 2, "--training.save_steps", "5")
    weights = [folder / "model.safetensors" for folder in (finished(2), broken)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert log_of(finished(2)) == log_of(broken)


@pytest.mark.slow
def test_latents_spread_over_processes_train_as_one_process_does(recipe, finished, tmp_path):
    """Killed at two processes and gone on with at four: checkpoints hold whole tensors."""
    spread = tmp_path / "spread"
    option = ("--training.shard_latents", "true")
    ranks = launch(recipe, spread, 2, *option)
    wait_for_checkpoint(ranks, spread)
    ranks[0].kill()
    codes = forked.exit_codes(ranks)
    assert codes[0] == -signal.SIGKILL and codes[1] not in (0, None), codes
    finish_ranks(recipe, spread, 4, *option)
    assert_alike(spread, finished(1))
    weights = [load_file(folder / "model.safetensors") for folder in (finished(1), spread)]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, atol=2e-4, rtol=2e-3)


@pytest.mark.parametrize(
    ("sae", "sentence"),
    [
        (
            TopKSAE(TopKSAEConfig(d_in=4, d_sae=8, k=2, selection="groupmax")),
            "selection='groupmax' takes latents in groups",
        ),
        (ReLUSAE(ReLUSAEConfig(d_in=4, d_sae=9)), r"d_sae \(9\) is not divisible by 2 processes"),
        (
            BatchTopKCLT(BatchTopKCLTConfig(d_in=4, d_sae=6, sites=["layers.0", "layers.1"])),
            r"d_sae \(6\) is not divisible by 2 sources times 2 processes",
        ),
    ],
)
def test_what_cannot_be_spread_is_refused(sae, sentence):
    class OfTwo(Accelerator):
        num_processes = 2

    with pytest.raises(ValueError, match=sentence):
        Run(sae, TrainingArguments(shard_latents=True), OfTwo(cpu=True))
