"""What `--dry_run` says of memory beside what is then measured; what Gemma 2 takes on GPUs.

    python scripts/bench/plan.py [NAME ...]     said and measured, here; all of RUNS by default
    python scripts/bench/plan.py --gpus         a table of GPU memory and disk: no card needed

Measured is the peak resident memory of each process of a short run on the packaged SmolLM2, up to
the trained SAE, whole and beyond what the process held when its language model was loaded; of two
processes the larger.
"""

import argparse
import json
import os
import re
import sys
import tempfile
from pathlib import Path

import children
import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, Gemma2Config, PreTrainedModel

from hfsae.cli.recipes import parse_recipe, recipe_parser
from hfsae.cost import disk, memory
from hfsae.recipe import Recipe, check, make_configs

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "scripts" / "recipes" / "quickstart.yaml"
SHORT = {
    "lm.source": "packaged",
    "sae.site": "layers.0",
    "training.batch_size": 1024,
    "training.n_tokens": 8192,
    "shuffle.bucket_tokens": 8192,
    "training.save_steps": 0,
    "evaluation.n_tokens": 0,
    "collect_tokens": 0,
}
RUNS = {  # name -> processes and what differs
    "sparse 16k": (1, {"sae.d_sae": 16384}),
    "sparse 65k": (1, {"sae.d_sae": 65536}),
    "sparse 16k, bucket of 131k": (1, {"sae.d_sae": 16384, "shuffle.bucket_tokens": 131072}),
    "dense 16k": (1, {"sae.d_sae": 16384, "training.sparse": "never"}),
    "dense 32k": (1, {"sae.d_sae": 32768, "training.sparse": "never"}),
    "examples of 16k": (1, {"sae.d_sae": 16384, "collect_tokens": 65536}),
    "cache, bucket of 131k": (
        1,
        {
            "sae.d_sae": 2048,
            "shuffle.bucket_tokens": 131072,
            "training.n_tokens": 131072,
            "harvest.cache": "cache",
        },
    ),
    "two processes, sparse 32k": (2, {"sae.d_sae": 32768}),
    "two processes, dense 32k": (2, {"sae.d_sae": 32768, "training.sparse": "never"}),
    "two processes, spread 32k": (2, {"sae.d_sae": 32768, "training.shard_latents": "true"}),
}
_GEMMA_SIZES = {  # hidden, layers, heads, heads of keys, MLP
    "2b": (2304, 26, 8, 4, 9216),
    "9b": (3584, 42, 16, 8, 14336),
}
_WIDTHS = {"16k": (2**14, 4e9), "131k": (2**17, 8e9), "1M": (2**20, 16e9)}  # latents, tokens
_COUNTS = (1, 2, 4, 8)
_MEASURE = """
import resource, sys
from pathlib import Path
from hfsae import recipe
from hfsae.cli import main
train = recipe._train
def noted(*args):
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    print(f"\\nbase_kib={pages * resource.getpagesize() // 1024}\\n", flush=True)
    train(*args)
recipe._train = noted
code = main(["train", *sys.argv[1:]])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(f"\\npeak_kib={peak}\\n", flush=True)
sys.exit(code)
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", choices=[*RUNS, []], metavar="NAME")
    parser.add_argument("--gpus", action="store_true")
    args = parser.parse_args()
    if args.gpus:
        print("\n".join(table()))
        return
    print("| run | said, GB | measured | ratio | beyond the model: said | measured | ratio |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    children.end_on_signals()
    for name in tqdm(args.names or RUNS, unit="run", leave=False):
        pairs = compared(*RUNS[name])
        cells = [f"{said / 1e9:.2f} | {m / 1e9:.2f} | {said / m:.2f}" for said, m in pairs]
        tqdm.write(f"| {name} | {' | '.join(cells)} |")


def compared(n: int, differing: dict[str, object]) -> list[tuple[float, float]]:
    """Bytes of one process, said and measured: all, and those beyond the language model."""
    with tempfile.TemporaryDirectory() as folder:
        fields = {**SHORT, **differing, "training.num_processes": n}
        fields["training.output_dir"] = f"{folder}/run"
        if "harvest.cache" in fields:
            fields["harvest.cache"] = f"{folder}/cache"
        argv = [str(RECIPE), *(str(x) for k, v in fields.items() for x in (f"--{k}", v))]
        recipe, _ = parse_recipe(recipe_parser("train"), argv)
        said = sum(memory(recipe, *check(recipe), on_gpu=False).main.values())
        peak, base = measured(Path(folder), n, argv)
        return [(said, peak), (said - base, peak - base)]


def measured(folder: Path, n: int, argv: list[str]) -> tuple[float, float]:
    """Bytes at the peak, and once the language model was loaded."""
    script = folder / "measured.py"
    script.write_text(_MEASURE)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(n)]
    command = [sys.executable, *(launcher if n > 1 else []), str(script), *argv]
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
    done = children.run(command, env)
    if done.returncode:
        raise ValueError(f"the run failed: {done.stderr.strip().splitlines()[-1]}")
    peak, base = (re.findall(rf"{name}_kib=(\d+)", done.stdout) for name in ("peak", "base"))
    return tuple(1024 * max(map(int, found)) for found in (peak, base))


def gemma(size: str) -> PreTrainedModel:
    """Gemma 2 at its published sizes, without weights."""
    d, layers, heads, kv_heads, d_mlp = _GEMMA_SIZES[size]
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


def table() -> list[str]:
    """One SAE on the residual stream, the recipes' settings but bfloat16 products."""
    counts = " / ".join(map(str, _COUNTS))
    lines = [
        f"| Gemma 2, latents, tokens | GB of each of {counts} GPUs | disk, GB |",
        "| --- | ---: | ---: |",
    ]
    for size in _GEMMA_SIZES:
        lm = gemma(size)
        for width, (d_sae, n_tokens) in _WIDTHS.items():
            each = []
            for n in _COUNTS:
                recipe = _gemma_recipe(size, d_sae, n_tokens, n)
                configs = make_configs(recipe, lm)
                each.append(sum(memory(recipe, lm, configs, on_gpu=True).gpu.values()))
            on_disk = sum(disk(recipe, lm, configs).values())
            cells = " / ".join(f"{n / 1e9:.0f}" for n in each)
            tokens = f"{n_tokens / 1e9:.0f} billion"
            lines.append(f"| {size.upper()}, {width}, {tokens} | {cells} | {on_disk / 1e9:.0f} |")
    return lines


def _gemma_recipe(size: str, d_sae: int, n_tokens: float, n: int) -> Recipe:
    fields = {
        "sae.d_sae": d_sae,
        "training.n_tokens": int(n_tokens),
        "training.num_processes": n,
        "training.bf16": "true",
        "training.shard_latents": json.dumps(d_sae == 2**20),
        "evaluation.sae_batch_tokens": min(4096, 2**29 // d_sae),
    }
    argv = [str(x) for k, v in fields.items() for x in (f"--{k}", v)]
    recipe_file = ROOT / "scripts" / "recipes" / f"gemma2_{size}_131k.yaml"
    return parse_recipe(recipe_parser("train"), [str(recipe_file), *argv])[0]


if __name__ == "__main__":
    main()
