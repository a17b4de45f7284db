"""A training process killed at random moments, and resumed, ends as if nothing had happened."""

import os
import random
import signal
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from .. import forked

STEPS, KILLS = 240, 6


def train(folder: str) -> None:
    """The whole run, in a process of its own: tiny, but with a save every third step."""
    import torch

    from hfsae.training import Trainer

    from .planted import PlantedStream, arguments, make_sae

    torch.set_num_threads(1)
    fields = {"save_steps": 3, "warm_start_steps": 0.4, "decay_steps": 0.3, "max_grad_norm": 1.0}
    sae = make_sae(target_l0=3.0, d_sae=512, subtract_b_dec=True)
    Trainer(sae, PlantedStream(), arguments(Path(folder), steps=STEPS, **fields)).train()


def run_until(folder: Path, killed_after: float | None = None) -> bool:
    """Whether the run ended by itself."""
    process = forked.start(train, str(folder))
    newest, logged = newest_step(folder), (folder / "log.jsonl").exists()
    # Let it get somewhere, else all kills could all hit the imports; the first time only to its
    # first line of log, before there is a checkpoint.
    while process.is_alive() and killed_after is not None and newest_step(folder) == newest:
        if not logged and (folder / "log.jsonl").exists():
            killed_after = 0
            break
        process.join(0.01)
    process.join(killed_after)
    if process.is_alive():
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    assert process.exitcode in (0, -signal.SIGKILL), "it ended otherwise: see what it printed"
    return process.exitcode == 0


def newest_step(folder: Path) -> str:
    return max((p.name for p in (folder / "checkpoints").glob("step-*.pt")), default="")


@pytest.mark.slow
def test_kills_at_random_moments_change_no_bit(tmp_path):
    assert run_until(tmp_path / "whole")
    seed, kills = time.time_ns(), 0
    print("seed", seed)  # shown if this fails
    randomly = random.Random(seed)
    while kills < KILLS and not run_until(tmp_path / "killed", randomly.uniform(0, 0.15)):
        kills += 1
    assert kills == KILLS, "too fast to be killed: raise STEPS"
    assert run_until(tmp_path / "killed")
    whole, killed = (load_file(tmp_path / f / "model.safetensors") for f in ("whole", "killed"))
    assert all((whole[name] == killed[name]).all() for name in whole)
    logs = [(tmp_path / f / "log.jsonl").read_text() for f in ("whole", "killed")]
    assert logs[0] == logs[1]
    strays = [p.name for p in (tmp_path / "killed").rglob("*tmp*")]
    assert not strays, strays
