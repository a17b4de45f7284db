"""How good the SAEs are that each library trains from the same tokens.

    python scripts/bench/quality.py FOLDER --peers PEERS [--tokens 131072] [--seeds 3] [--passes 2]

Every library trains SAEs of the same width and L0 on the same activations in the same order, in
batches of the same size, each with its own start, loss, optimiser and schedule. The other libraries
get activations as they are or less their mean, which hfsae subtracts by itself: whichever is better
on validation documents at the library's first rate. Rates are a factor of 2 apart; neighbours of
the best are tried until both are worse. The rate with the lowest FVU on validation is taken, and
FVU is reported on test documents, at the L0 asked for (thresholds times one factor, found on
validation), over the seeds, and so is the loss that it adds to the language model's on N_LOSSES
of these tokens. With `--with_start` each also trains from hfsae's start, and with its
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
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from kept import keep, table
from quality_sides import SIDES, write_start
from safetensors.torch import load_file, save_file

from hfsae.activations import ShuffledActivations
from hfsae.comparison import t_interval
from hfsae.runs import Recipe, inputs_of, load, read_recipe

BATCH, N_MEASURED, N_LOSSES = 256, 30_000, 8_192
RATES = {"hfsae": 3e-3, "saelens": 2.4e-3, "dictionary_learning": 4.8e-3, "sparsify": 4.8e-3}
"""The first rate that is tried: the best of each at 131,072 tokens."""
MOST_RATES, CENTRED, STARTED = 7, ", centred", ", hfsae's start"
MEASURED = ("fvu", "delta_loss", "l0", "dead")
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
    parser.add_argument(
        "--centred", action="store_true", help="take centred input as better, as found before"
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
    sides: list[tuple[str, str]] = []
    for library, name in ((library, name) for library, names in SIDES.items() for name in names):
        if args.only and f"{library}.{name}" not in args.only:
            continue
        if library == "hfsae":
            sides.append((library, name))
        elif args.peers is not None:
            sides.append((library, _better_input(args, activations, library, name)))
            if args.with_start:
                sides.append((library, name + CENTRED + STARTED))
    trained = [_trained(args, activations, *side) for side in sides]
    _add_losses([run for side in trained for run in side.runs], args)
    rows = sorted(map(partial(_measured, args), trained), key=lambda row: row[0])
    tokens = f"{args.tokens:,} tokens" + (f" {args.passes} times" if args.passes > 1 else "")
    print(f"\n{tokens}, {args.d_sae:,} latents, L0 {args.l0}, batch {BATCH}\n")
    head = ["library, variant", "rate", "FVU on test", "delta loss", "L0", "dead", "seconds"]
    print(table([head, *(row[1] for row in rows)]))


def harvest(recipe: Recipe, n_tokens: int, paths: dict[str, Path]) -> None:
    """Write each site's activations: `train` in the order of training, `validation` and `test`."""
    share = recipe.text.validation_fraction or 0.05
    recipe = replace(recipe, text=replace(recipe.text, validation_fraction=share))
    loaded, sites = load(recipe.lm), list(paths)
    source = inputs_of(recipe, loaded).source(sites)
    stream = ShuffledActivations(source, recipe.shuffle, BATCH)
    sides = {"train": [stream.next_batch() for _ in range(n_tokens // BATCH)]}
    for side in ("validation", "test"):
        sides[side] = [batch.activations for batch in source.batches(side, N_MEASURED)]
    for site, path in paths.items():
        tensors = {
            side: torch.cat([batch[site].bfloat16() for batch in batches])
            for side, batches in sides.items()
        }
        save_file(tensors, path, {"site": site, "record": json.dumps(stream.record)})


class Side(NamedTuple):
    library: str
    name: str
    rates: dict[float, float]
    """FVU on validation by rate"""
    best: float
    runs: list[Path]
    """one of each seed"""

    @property
    def results(self) -> list[dict]:
        return [json.loads(path.read_text()) for path in self.runs]


def _trained(args: argparse.Namespace, activations: Path, library: str, name: str) -> Side:
    rates = {} if args.no_search else _rates(args, activations, library, name)
    best = min(rates, key=lambda rate: rates[rate], default=RATES[library])
    runs = [_run(args, activations, library, name, best, seed) for seed in range(args.seeds)]
    return Side(library, name, rates, best, runs)


def _add_losses(paths: Sequence[Path], args: argparse.Namespace) -> None:
    """Measure what these runs lack, and put it into their files."""
    runs = {path: json.loads(path.read_text()) for path in paths}
    missing = [path for path, run in runs.items() if "delta_loss" not in run["test"]]
    if not missing:
        return
    from quality_losses import delta_losses

    weights = {path: path.with_suffix(".safetensors") for path in missing}
    losses = delta_losses(read_recipe(args.recipe), weights, args.l0, N_LOSSES)
    for path in missing:
        runs[path]["test"]["delta_loss"] = losses[path]
        path.write_text(json.dumps(runs[path]), encoding="utf-8")


def _measured(args: argparse.Namespace, side: Side) -> tuple[float, list[str]]:
    """The mean FVU, and the row of the table."""
    _keep_summary(args, side)
    tests = [run["test"] for run in side.results]
    fvu = [test["fvu"] for test in tests]
    mean, half = statistics.mean(fvu), t_interval(np.array(fvu))[1] - statistics.mean(fvu)
    return mean, [
        f"{side.library}, {side.name}",
        f"{side.best:g}",
        f"{mean:.4f} ± {half:.4f}",
        f"{statistics.mean(test['delta_loss'] for test in tests):.3f}",
        f"{statistics.mean(test['l0'] for test in tests):.1f}",
        f"{statistics.mean(test['dead'] for test in tests):.1%}",
        f"{statistics.mean(run['seconds'] for run in side.results):.0f}",
    ]


def _keep_summary(args: argparse.Namespace, side: Side) -> None:
    """One side in results.json: of each seed what was measured on test, and seconds."""
    variant, *more = side.name.split(", ")
    of = {"library": side.library, "variant": variant}
    of |= {key: getattr(args, key) for key in SETTINGS}
    of |= {"centred": CENTRED[2:] in more, "has_start": STARTED[2:] in more}
    runs = side.results
    measured = {key: [run["test"][key] for run in runs] for key in MEASURED}
    measured |= {"own_l0": [run["own_l0"] for run in runs]}
    measured |= {"seconds": [run["seconds"] for run in runs]}
    measured |= {"seeds": [*range(args.seeds)]}
    how = {"rate": side.best, "is_searched": not args.no_search}
    how |= {"validation_fvu_by_rate": {f"{rate:g}": fvu for rate, fvu in side.rates.items()}}
    keep(args.folder / "results.json", {**of, **how, "test": measured}, [*of])


def _rates(
    args: argparse.Namespace, activations: Path, library: str, name: str
) -> dict[float, float]:
    """FVU on validation by rate; neighbours of the best, half and twice as large, are tried."""
    best, tried = RATES[library], dict[float, float]()
    while True:
        for rate in (best, best / 2, best * 2):
            if rate not in tried:
                tried[rate] = _fvu(args, _run(args, activations, library, name, rate, 0))
        former, best = best, min(tried, key=lambda rate: tried[rate])
        if best == former:
            return tried
        if len(tried) >= MOST_RATES:
            sys.exit(f"{library}, {name}: the best of {len(tried)} rates, {best:g}, is at an edge")


def _better_input(args: argparse.Namespace, activations: Path, library: str, name: str) -> str:
    """The side's name, marked where it does better on activations less their mean."""
    names, rate = (name, name + CENTRED), RATES[library]
    if args.centred:
        return names[1]
    runs = {each: _run(args, activations, library, each, rate, 0) for each in names}
    return min(names, key=lambda each: _fvu(args, runs[each]))


def _fvu(args: argparse.Namespace, run: Path) -> float:
    """On validation; inf where no factor on the thresholds gives the L0, as after a collapse."""
    measured = json.loads(run.read_text())["validation"]
    return measured["fvu"] if abs(measured["l0"] / args.l0 - 1) < 0.05 else float("inf")


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
) -> Path:
    """The file of one SAE's measures; if there is none, it is trained by the library's Python."""
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
        command += ["--weights", str(path.with_suffix(".safetensors"))]
        train_apart([*command, "--output", str(path)])
        print(f"{path.stem}: {path.read_text()}", file=sys.stderr, flush=True)
    return path


if __name__ == "__main__":
    main()
