"""How good the SAEs are that each library trains from the same tokens.

    python scripts/bench/quality.py FOLDER --peers PEERS [--tokens 131072] [--seeds 3] [--passes 2]

Every library trains SAEs of the same width and L0 on the same activations in the same order, in
batches of the same size, each with its own start, loss, optimiser and schedule. The other libraries
get activations as they are or less their mean, which hfsae subtracts by itself: whichever is better
on validation documents at the library's first rate. Rates are a factor of 2 apart; neighbours of
the best are tried until both are worse. The rate with the lowest FVU on validation is taken, and
FVU is reported on test documents, at the L0 asked for (thresholds times one factor, found on
validation), over the seeds. With `--with_start` each also trains from hfsae's start, and with its
Adam's moments where the library lets one choose: what is the library, what the setting?
With `--passes 2` every library trains twice on each 131,072 tokens, the second time in another
order, as `shuffle.passes` does: the language model, often the larger cost, runs once.
PEERS is what `scripts/interop/environments.sh PEERS saelens dictionary_learning sparsify` made.
Results lie in FOLDER, one file a run, and are not made again; results.json has all sides' tests.
The tables of README.md are made from a copy of it in results/quality.json.
"""

import argparse
import json
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from kept import keep
from quality_sides import SIDES, write_start
from safetensors.torch import load_file

from hfsae.activations import Harvester, PackedRows, ShuffledActivations
from hfsae.comparison.estimates import t_interval
from hfsae.machine.files import write_tensors
from hfsae.machine.markdown import table
from hfsae.recipe import Recipe, load, read_recipe

BATCH, N_MEASURED = 256, 30_000
RATES = {"hfsae": 3e-3, "saelens": 2.4e-3, "dictionary_learning": 4.8e-3, "sparsify": 4.8e-3}
"""The first rate that is tried: the best of each at 131,072 tokens."""
MOST_RATES, CENTRED, STARTED = 7, ", centred", ", hfsae's start"
SETTINGS = ("tokens", "passes", "d_sae", "l0", "recipe")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--peers", type=Path, help="folder of the peers' environments")
    parser.add_argument("--tokens", type=int, default=131_072)
    parser.add_argument("--d_sae", type=int, default=2048)
    parser.add_argument("--l0", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--passes", type=int, default=1)
    parser.add_argument("--recipe", default="quickstart", help="model, text, site: or gemma3_270m")
    parser.add_argument("--only", nargs="*", default=[], metavar="LIBRARY.NAME")
    first = "the rate tried first, where it is known to lie lower or higher than at 131,072 tokens"
    parser.add_argument("--first", nargs="*", default=[], metavar="LIBRARY=RATE", help=first)
    parser.add_argument(
        "--no_search", action="store_true", help="take --first's rates, searched before, as best"
    )
    parser.add_argument("--with_start", action="store_true", help="also from hfsae's start")
    args = parser.parse_args()
    for given in args.first:
        library, _, rate = given.partition("=")
        if library not in RATES or not rate.replace(".", "").replace("e-", "").isdecimal():
            parser.error(f"--first {given}: give LIBRARY=RATE, such as hfsae=1.5e-3")
        RATES[library] = float(rate)
    args.folder.mkdir(parents=True, exist_ok=True)
    activations = args.folder / f"activations-{args.tokens}.safetensors"
    if not activations.exists():
        recipe = read_recipe(args.recipe)
        harvest(recipe, args.tokens, {recipe.sites[0]: activations})
    rows = []
    for library, name in ((library, name) for library, names in SIDES.items() for name in names):
        if args.only and f"{library}.{name}" not in args.only:
            continue
        if library == "hfsae":
            rows.append(_measured(args, activations, library, name))
        elif args.peers is not None:
            better = _better_input(args, activations, library, name)
            rows.append(_measured(args, activations, library, better))
            if args.with_start:
                rows.append(_measured(args, activations, library, name + CENTRED + STARTED))
    rows.sort(key=lambda row: row[0])
    tokens = f"{args.tokens:,} tokens" + (f" {args.passes} times" if args.passes > 1 else "")
    print(f"\n{tokens}, {args.d_sae:,} latents, L0 {args.l0}, batch {BATCH}\n")
    head = ["library, variant", "rate", "FVU on test", "L0", "dead", "seconds"]
    print(table([head, *(row[1] for row in rows)]))


def harvest(recipe: Recipe, n_tokens: int, paths: dict[str, Path]) -> None:
    """Write each site's activations: `train` in the order of training, `validation` and `test`."""
    share = recipe.text.validation_fraction or 0.05
    recipe = replace(recipe, text=replace(recipe.text, validation_fraction=share))
    loaded, sites = load(recipe.lm), list(paths)
    rows = PackedRows(loaded.tokenizer, recipe.text, "train", rows=recipe.harvest.rows, epochs=None)
    harvester = Harvester(loaded.lm, sites, recipe.harvest)
    stream = ShuffledActivations(rows, harvester, recipe.shuffle, BATCH)
    sides = {"train": [stream.next_batch() for _ in range(n_tokens // BATCH)]}
    for side in ("validation", "test"):
        rows = PackedRows(
            loaded.tokenizer, recipe.text, side, rows=recipe.harvest.rows, max_tokens=N_MEASURED
        )
        own = Harvester(loaded.lm, sites, recipe.harvest, norm_limits=harvester.norm_limits)
        sides[side] = [own(batch).activations for batch in rows]
    for site, path in paths.items():
        tensors = {
            side: torch.cat([batch[site].bfloat16() for batch in batches])
            for side, batches in sides.items()
        }
        write_tensors(path, tensors, {"site": site, "record": json.dumps(stream.record)})


def _measured(
    args: argparse.Namespace, activations: Path, library: str, name: str
) -> tuple[float, list[str]]:
    """The mean FVU, and the row of the table."""
    best = RATES[library] if args.no_search else _best_rate(args, activations, library, name)
    runs = [_run(args, activations, library, name, best, seed) for seed in range(args.seeds)]
    _keep_summary(args, library, name, best, runs)
    tests = [run["test"] for run in runs]
    fvu = [test["fvu"] for test in tests]
    mean, half = statistics.mean(fvu), t_interval(np.array(fvu))[1] - statistics.mean(fvu)
    return mean, [
        f"{library}, {name}",
        f"{best:g}",
        f"{mean:.4f} ± {half:.4f}",
        f"{statistics.mean(test['l0'] for test in tests):.1f}",
        f"{statistics.mean(test['dead'] for test in tests):.1%}",
        f"{statistics.mean(run['seconds'] for run in runs):.0f}",
    ]


def _keep_summary(
    args: argparse.Namespace, library: str, name: str, rate: float, runs: list[dict]
) -> None:
    """One side in results.json: of each seed FVU, L0 and silent latents on test, and seconds."""
    variant, *more = name.split(", ")
    side = {"library": library, "variant": variant, **{key: getattr(args, key) for key in SETTINGS}}
    side |= {"centred": CENTRED[2:] in more, "has_start": STARTED[2:] in more}
    measured = {key: [run["test"][key] for run in runs] for key in ("fvu", "l0", "dead")}
    measured |= {"seconds": [run["seconds"] for run in runs]}
    measured |= {"seeds": [*range(args.seeds)]}
    how = {"rate": rate, "is_searched": not args.no_search}
    keep(args.folder / "results.json", {**side, **how, "test": measured}, [*side])


def _best_rate(args: argparse.Namespace, activations: Path, library: str, name: str) -> float:
    """The rate whose neighbours, half and twice as large, have a larger FVU on validation."""
    best, tried = RATES[library], dict[float, float]()
    while True:
        for rate in (best, best / 2, best * 2):
            if rate not in tried:
                validation = _run(args, activations, library, name, rate, 0)["validation"]
                tried[rate] = _fvu_at(args.l0, validation)
        former, best = best, min(tried, key=lambda rate: tried[rate])
        if best == former:
            return best
        if len(tried) >= MOST_RATES:
            sys.exit(f"{library}, {name}: the best of {len(tried)} rates, {best:g}, is at an edge")


def _better_input(args: argparse.Namespace, activations: Path, library: str, name: str) -> str:
    """The side's name, marked where it does better on activations less their mean."""
    names, rate = (name, name + CENTRED), RATES[library]
    runs = {each: _run(args, activations, library, each, rate, 0) for each in names}
    return min(names, key=lambda each: _fvu_at(args.l0, runs[each]["validation"]))


def _fvu_at(l0: int, measured: dict[str, float]) -> float:
    """FVU; inf where no factor on the thresholds gives the L0, as after a collapse."""
    return measured["fvu"] if abs(measured["l0"] / l0 - 1) < 0.05 else float("inf")


def script_of(library: str, peers: Path) -> list[str]:
    """The library's own Python, and the script that trains one of its SAEs."""
    own = sys.executable if library == "hfsae" else str(peers / library / "bin" / "python")
    return [own, str(Path(__file__).with_name("quality_sides.py"))]


def train_apart(command: list[str]) -> None:
    """Run the sides' script; its last line of errors ends this one, too."""
    ran = subprocess.run(command, capture_output=True, text=True)
    if ran.returncode:
        sys.exit(f"{' '.join(command[1:4])}: {ran.stderr.strip().splitlines()[-1]}")


def _run(
    args: argparse.Namespace, activations: Path, library: str, name: str, rate: float, seed: int
) -> dict:
    """One SAE: from its file, or trained now by the library's own Python."""
    tokens = f"{args.tokens}" if args.passes == 1 else f"{args.tokens}x{args.passes}"
    variant, *more = name.split(", ")
    side = "-".join([library, variant, *(each.replace(" ", "_") for each in more)])
    path = args.folder / f"{tokens}-{args.d_sae}-{args.l0}-{side}-{rate:g}-{seed}.json"
    if not path.exists():
        command = [*script_of(library, args.peers), library, variant]
        command += ["--centred"] if CENTRED in name else []
        if STARTED in name:
            start = args.folder / f"start-{args.tokens}-{args.d_sae}-{seed}.safetensors"
            if not start.exists():
                write_start(load_file(activations)["train"], args.d_sae, seed, start)
            command += ["--start", str(start)]
        command += ["--activations", str(activations), "--rate", str(rate), "--seed", str(seed)]
        command += ["--d_sae", str(args.d_sae), "--l0", str(args.l0), "--batch", str(BATCH)]
        command += ["--passes", str(args.passes)]
        train_apart([*command, "--output", str(path)])
    result = json.loads(path.read_text())
    print(f"{path.stem}: {result['validation']}", file=sys.stderr, flush=True)
    return result


if __name__ == "__main__":
    main()
