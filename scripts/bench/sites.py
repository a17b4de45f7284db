"""hfsae's SAEs by one recipe at several sites of both packaged models.

    python scripts/bench/sites.py FOLDER [--seeds 3] [--variants JumpReLU] [--jobs 2]

For each model one pass over the text harvests 131,072 activations at every site, with validation
and test documents beside them. SAEs are then trained by the quickstart's settings, as
`quality_sides.py` trains hfsae's side, all at one rate, and measured on test documents at the L0
asked for (thresholds times one factor, found on validation); `own L0` is the one without it.
Results lie in FOLDER, a file a run, and are not made again; FOLDER/sites.json has the table.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from kept import keep, table
from quality import BATCH, harvest, script_of
from quality_sides import OF_HFSAE

from hfsae.comparison import t_interval
from hfsae.runs import read_recipe

SITES = {
    "quickstart": ("layers.5", "layers.12", "layers.25", "layers.15.mlp", "layers.15.self_attn"),
    "gemma3_270m": (
        "layers.4",
        "layers.9",
        "layers.14",
        "layers.9.post_feedforward_layernorm",
        "layers.9.post_attention_layernorm",
    ),
}
"""By recipe: the residual stream early, in the middle and late, an MLP's and attention's output."""
TOKENS, D_SAE, L0, RATE = 131_072, 2048, 50, 2.5e-3


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--variants", nargs="*", choices=OF_HFSAE, default=["JumpReLU"])
    parser.add_argument("--d_sae", type=int, default=D_SAE)
    parser.add_argument("--rate", type=float, default=RATE)
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    jobs = []
    for recipe, sites in SITES.items():
        paths = {site: args.folder / f"{recipe}-{site}.safetensors" for site in sites}
        missing = {site: path for site, path in paths.items() if not path.exists()}
        if missing:
            harvest(read_recipe(recipe), TOKENS, missing)
        jobs += [(args, path, v) for v in args.variants for path in paths.values()]
    with ThreadPoolExecutor(args.jobs) as pool:
        rows = list(pool.map(lambda job: _row(*job), jobs))
    facts = {"tokens": TOKENS, "d_sae": args.d_sae, "l0": L0, "rate": args.rate, "batch": BATCH}
    run = {**facts, "variants": args.variants, "seeds": args.seeds, "rows": rows}
    keep(args.folder / "sites.json", run, [*facts, "variants"])
    head = ["model", "site", "variant", "FVU on test", "own L0", "dead"]
    print(table([head, *(_cells(row) for row in rows)]))


def _row(args: argparse.Namespace, path: Path, variant: str) -> dict[str, Any]:
    runs = [_run(args, path, variant, seed) for seed in range(args.seeds)]
    recipe, _, site = path.stem.partition("-")
    of = {name: [run["test"][name] for run in runs] for name in ("fvu", "dead")}
    of["own_l0"] = [run["own_l0"] for run in runs]
    return {"model": read_recipe(recipe).lm.name, "site": site, "variant": variant, **of}


def _run(args: argparse.Namespace, path: Path, variant: str, seed: int) -> dict[str, Any]:
    """One SAE: from its file, or trained now."""
    name = f"{path.stem}-{variant}-{args.d_sae}-{args.rate:g}-{seed}"
    output = args.folder / f"{name}.json"
    if not output.exists():
        command = [*script_of("hfsae", Path()), "hfsae", variant, "--activations", str(path)]
        command += ["--output", str(output), "--rate", str(args.rate), "--seed", str(seed)]
        command += ["--d_sae", str(args.d_sae), "--l0", str(L0), "--batch", str(BATCH)]
        threads = max(1, (os.cpu_count() or 1) // args.jobs)
        env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        ran = subprocess.run(
            [*command, "--passes", "1"], capture_output=True, text=True, env=env, check=False
        )
        if ran.returncode:
            sys.exit(f"{name}: {ran.stderr.strip().splitlines()[-1]}")
    result = json.loads(output.read_text())
    print(f"{name}: {result['test']}", file=sys.stderr, flush=True)
    return result


def _cells(row: dict[str, Any]) -> Sequence[str]:
    fvu = np.array(row["fvu"])
    half = t_interval(fvu)[1] - fvu.mean() if len(fvu) > 1 else float("nan")
    dead, l0 = statistics.mean(row["dead"]), row["own_l0"]
    model = row["model"].rpartition("/")[2]
    return [
        model,
        row["site"],
        row["variant"],
        f"{fvu.mean():.4f} ± {half:.4f}",
        f"{min(l0):.1f} to {max(l0):.1f}",
        f"{dead:.1%}",
    ]


if __name__ == "__main__":
    main()
