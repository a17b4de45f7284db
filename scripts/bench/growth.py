"""How the cost of a training run grows with its tokens, its SAEs and its processes.

    python scripts/bench/growth.py [--by tokens saes processes] [--tokens 32768] [--spread]

SmolLM2-135M, the residual stream after block 15 of 30, packaged text, JumpReLU at L0 50: whole runs
of `scripts/train.py` in turns, 1 2 4 1 2 4, of which training.json says the seconds in harvest and
in SAEs and the peak memory of a process. Starting up is left out. `--threads` are shared out among
processes, which are CPU processes under torchrun; more of them than cores can gain nothing. With
`--spread` each process holds its part of the latents (`training.shard_latents`) in the place of all
of them. Medians; ratios are to the first row, within a turn.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import children
import yaml
from tqdm import tqdm
from turns import markdown

ROOT = Path(__file__).parents[2]
TIMES = {"tokens": (1, 2, 4), "saes": (1, 2, 4, 8), "processes": (1, 2, 4)}


def recipe(options: argparse.Namespace, n_saes: int, n_tokens: int) -> dict[str, Any]:
    sae = {"site": "layers.15", "d_sae": options.d_sae, "target_l0": 50, "bandwidth": 0.03}
    return {
        "lm": {"source": "packaged"},
        "text": {"dataset": "packaged:wiki", "context_size": 128, "max_document_chars": 2000},
        "harvest": {"rows": 8},
        "shuffle": {"bucket_tokens": options.tokens},
        "sae": {**sae, "log_threshold": False, "subtract_b_dec": True},
        "saes": {f"sae_{i}": {} for i in range(n_saes)},
        "training": {
            "n_tokens": n_tokens,
            "batch_size": options.batch,
            "learning_rate": 1e-3,
            "adam_beta1": 0.9,
            "warmup_steps": 0,
            "sparsity_warmup_steps": 0,
            "warm_start_steps": 0.5,
            "init_b_dec": "mean",
        },
        "evaluation": {"n_tokens": 0},
        "collect_tokens": 0,
    }


def run(options: argparse.Namespace, by: str, times: int, folder: Path) -> dict[str, float]:
    """What one run's training.json says."""
    n = {"tokens": 1, "saes": 1, "processes": 1} | {by: times}
    folder.mkdir()
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe(options, n["saes"], n["tokens"] * options.tokens)))
    command = [sys.executable]
    if n["processes"] > 1:
        command += ["-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc_per_node", str(n["processes"])]
    command += [str(ROOT / "scripts" / "train.py"), str(path)]
    command += ["--training.output_dir", str(folder / "run")]
    command += ["--training.num_processes", str(n["processes"])]
    if options.spread and n["processes"] > 1:
        command += ["--training.shard_latents", "true"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
    environment["OMP_NUM_THREADS"] = str(max(1, options.threads // n["processes"]))
    done = children.run(command, environment)
    if done.returncode:
        last = [line for line in done.stderr.splitlines() if "rror" in line] or ["no reason given"]
        raise ValueError(f"a run with {times} {by} stopped: {last[-1]}")
    record = json.loads(next((folder / "run").rglob("training.json")).read_text())
    harvest, saes = record["seconds"]["harvest"], record["seconds"]["train"]
    peak = record["peak_memory_bytes"] / 2**20
    return {"total s": harvest + saes, "harvest s": harvest, "SAEs s": saes, "peak MiB": peak}


def table(options: argparse.Namespace, by: str, bar: tqdm) -> list[dict[str, Any]]:
    found: dict[int, list[dict[str, float]]] = {times: [] for times in TIMES[by]}
    for _ in range(options.rounds):
        for times, runs in found.items():
            with tempfile.TemporaryDirectory() as folder:
                runs.append(run(options, by, times, Path(folder, "one")))
            bar.update()
    first = next(iter(found.values()))
    rows = []
    for times, runs in found.items():
        ratios = [a["total s"] / b["total s"] for a, b in zip(runs, first, strict=True)]
        medians = {key: statistics.median(r[key] for r in runs) for key in runs[0]}
        count = times * options.tokens if by == "tokens" else times
        rows.append({by: f"{count:,}", "x first": statistics.median(ratios), **medians})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--by", nargs="+", choices=list(TIMES), default=list(TIMES))
    parser.add_argument("--tokens", type=int, default=32768, help="activations of the first row")
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--d_sae", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--spread", action="store_true", help="latents over processes")
    options = parser.parse_args()
    children.end_on_signals()
    try:
        bar = tqdm(total=options.rounds * sum(len(TIMES[by]) for by in options.by), unit="run")
        for by in options.by:
            rows = table(options, by, bar)
            bar.write(
                f"\nBy {by} (d_sae {options.d_sae:,}, batch {options.batch:,}, "
                f"{options.threads} threads, {options.rounds} rounds)\n\n{markdown(rows)}"
            )
    except (ValueError, OSError) as error:
        print(f"growth.py: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
