"""What `--dry_run` says of memory beside what is then measured.

    python scripts/bench/plan.py [NAME ...]     all of RUNS by default

Measured is the peak resident memory of each process of a short run on the packaged SmolLM2, up to
the trained SAE, whole and beyond what the process held when its language model was loaded; of two
processes the larger. Time is not compared: what is said of it is right on a quiet machine only.
"""

import argparse
import os
import re
import sys
import tempfile
from pathlib import Path

import children
from tqdm import tqdm

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
_MEASURE = """
import resource, sys
from pathlib import Path
from hfsae.cli import main
from hfsae.training import Trainer
train = Trainer.train
def noted(*args):
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    print(f"\\nbase_kib={pages * resource.getpagesize() // 1024}\\n", flush=True)
    return train(*args)
Trainer.train = noted
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
    args = parser.parse_args()
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
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        plan = children.run(
            [sys.executable, "-m", "hfsae", "train", *argv, "--dry_run"], environment
        )
        found = re.search(r"^memory .*\((.*)\)", plan.stdout, re.MULTILINE)
        if found is None:
            raise ValueError(f"no memory in the plan: {(plan.stdout + plan.stderr).strip()}")
        # the parts have two digits after the point, their sum one
        said = sum(1e9 * float(part) for part in re.findall(r" ([\d.]+)(?=,|$)", found[1]))
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


if __name__ == "__main__":
    main()
