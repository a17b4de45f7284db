"""Several real processes under torchrun: equal losses at 1, 2 and 4, and one that dies."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
N_TOKENS, BATCH = 32 * 60, 32


@pytest.fixture
def recipe(tmp_path, tiny_lm, tiny_tokenizer) -> Path:
    model, text = tmp_path / "lm", tmp_path / "text.jsonl"
    tiny_lm.save_pretrained(model)
    tiny_tokenizer.save_pretrained(model)
    # Documents of unequal length: no process gets as much text as another.
    lines = [json.dumps({"text": f"{i}: " + "abcdefghij " * (1 + i * i % 17)}) for i in range(150)]
    text.write_text("\n".join(lines))
    sae = {"site": "layers.1", "d_sae": 32, "target_l0": 4, "bandwidth": 0.3}
    training = {"n_tokens": N_TOKENS, "batch_size": BATCH, "learning_rate": 1e-3}
    training |= {"adam_epsilon": 1e-4, "warmup_steps": 0, "sparsity_warmup_steps": 0}
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
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(plain))
    return path


def launch(recipe: Path, folder: Path, n: int, *options: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", str(n), str(ROOT / "scripts" / "train.py"), str(recipe)]
    command += ["--training.output_dir", str(folder), "--training.num_processes", str(n), *options]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(ROOT)
    with open(folder.with_suffix(".log"), "w") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)


def said(folder: Path) -> str:
    return folder.with_suffix(".log").read_text()


def log_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in found]


@pytest.mark.slow
def test_one_two_and_four_processes_have_the_same_losses(recipe, tmp_path):
    logs = {}
    for n in (1, 2, 4):
        folder = tmp_path / f"of-{n}"
        assert launch(recipe, folder, n).wait(300) == 0, said(folder)
        logs[n] = log_of(folder)
    for n in (2, 4):
        assert len(logs[n]) == len(logs[1]) == N_TOKENS // BATCH // 5
        for ours, one in zip(logs[n], logs[1], strict=True):
            for key in ("loss", "l0"):
                assert ours[key] == pytest.approx(one[key], rel=2e-3), (n, key, one["step"])


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc to find the ranks")
def test_a_rank_that_dies_ends_the_run_and_it_resumes_to_the_same_bits(recipe, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert launch(recipe, whole, 2).wait(300) == 0, said(whole)
    process = launch(recipe, broken, 2, "--training.save_steps", "5")
    deadline = time.monotonic() + 120
    while not list(broken.glob("checkpoints/step-*.pt")):
        assert process.poll() is None and time.monotonic() < deadline, said(broken)
    os.kill(children(process.pid)[1], signal.SIGKILL)
    assert process.wait(120) != 0
    assert "SIGKILL" in said(broken)
    assert not (broken / "config.json").exists() and list(broken.glob("checkpoints/step-*.pt"))
    assert launch(recipe, broken, 2, "--training.save_steps", "5").wait(300) == 0, said(broken)
    weights = [folder / "model.safetensors" for folder in (whole, broken)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert log_of(whole) == log_of(broken)
