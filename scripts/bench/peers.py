"""Train the arms of a comparison that are other libraries' (`made_by: sparsify.TopK`).

    python scripts/bench/peers.py scripts/comparisons/equal.yaml --peers PEERS [--seeds 0]
        [--centred] [--text.dataset my.jsonl ...]

Each library trains by its own code on the activations that hfsae's arms see, in their order, at the
arm's learning rate. The SAE is written where `hfsae compare` looks for the arm's, which then
evaluates it as all others. PEERS is what `scripts/interop/environments.sh PEERS saelens
dictionary_learning sparsify` made. What is there is not trained again; the activations of each seed
stay beside the arms' folders. Any field of the recipe can be set by its dotted name, as for `hfsae
compare`.
"""

import argparse
import json
import tempfile
from pathlib import Path

from kept import machine
from quality import harvest, script_of, train_apart
from quality_losses import sae_of
from quality_sides import SIDES
from safetensors import safe_open

import hfsae
from hfsae.cli import parse_recipe, recipe_parser
from hfsae.comparison import ArmRun, Comparison, arm_runs
from hfsae.io import weights_hash


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("comparison", help="a recipe of hfsae compare")
    parser.add_argument("--peers", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="*", help="default: the recipe's")
    parser.add_argument("--centred", action="store_true", help="activations less their mean")
    args, overrides = parser.parse_known_args()
    reader = recipe_parser("compare", Comparison)
    try:
        comparison, _ = parse_recipe(reader, [args.comparison, *overrides], Comparison)
    except hfsae.Refused as error:
        parser.error(str(error))
    comparison.seeds = args.seeds or comparison.seeds
    runs = [run for run in arm_runs(comparison) if run.made_by]
    if not runs:
        parser.error(f"{args.comparison} has no arm with made_by")
    others = SIDES.keys() - {"hfsae"}
    known = [f"{library}.{name}" for library in sorted(others) for name in SIDES[library]]
    for made_by in {run.made_by for run in runs}:
        if made_by not in known:
            parser.error(f"made_by {made_by} is not known; it can be {', '.join(known)}")
        python = Path(script_of(made_by.partition(".")[0], args.peers)[0])
        if not python.exists():
            parser.error(f"no {python}; scripts/interop/environments.sh makes it")
    for run in runs:
        for name, folder in run.folders.items():
            if not (folder / "training.json").is_file():
                _train(run, name, folder, args)


def _train(run: ArmRun, name: str, folder: Path, given: argparse.Namespace) -> None:
    args, root = run.recipe.training, Path(run.recipe.training.output_dir)
    activations = root.parent.parent / f"activations-{args.n_tokens}-{run.seed}.safetensors"
    root.mkdir(parents=True, exist_ok=True)
    if not activations.is_file():
        (site,) = run.recipe.sites
        harvest(run.recipe, args.n_tokens, {site: activations})
    fields = run.recipe.sae_fields()[name]
    library, _, variant = run.made_by.partition(".")
    with tempfile.TemporaryDirectory() as temporary:
        weights = Path(temporary, "weights.safetensors")
        command = [*script_of(library, given.peers), library, variant, "--passes", "1"]
        command += ["--activations", str(activations), "--rate", str(args.learning_rate)]
        command += ["--d_sae", str(fields["d_sae"]), "--l0", str(fields["k"])]
        command += ["--batch", str(args.batch_size), "--seed", str(run.seed)]
        command += ["--centred"] if given.centred else []
        command += ["--weights", str(weights), "--output", str(Path(temporary, "measured.json"))]
        train_apart(command)
        sae = sae_of(weights, calibrated=False, **fields)
        with safe_open(weights, "pt") as file:
            seconds = round(float(file.metadata()["seconds"]), 1)
        measured = json.loads(Path(temporary, "measured.json").read_text())
    with safe_open(activations, "pt") as file:
        harvested = json.loads(file.metadata()["record"])
    record = {
        "made_by": run.made_by,
        "sae_as_trained": sae.config.to_diff_dict(),
        "harvested": harvested,
        "n_tokens": args.n_tokens,
        "seconds": {"harvest": 0.0, "train": seconds, "sae": seconds},
        "machine": machine(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    sae.eval().folded().save_pretrained(folder)
    record["weights_sha256"] = weights_hash(folder)
    # last: `hfsae compare` takes a folder with it for a whole one
    (folder / "training.json").write_text(json.dumps(record, indent=1, default=str) + "\n")
    print(f"{folder}: {measured['validation']}, {seconds} s", flush=True)


if __name__ == "__main__":
    main()
