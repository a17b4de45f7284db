"""What each of the quickstart's settings for short runs does: FVU without it.

    python scripts/bench/settings.py ACTIVATIONS [--variants BatchTopK TopK]
    python scripts/bench/settings.py ACTIVATIONS --variants JumpReLU --tokens 267264 --passes 3 \\
        --d_sae 4096 --rate 1.3e-3 --set warm_start_l0=2

ACTIVATIONS is what `quality.py` harvested, FOLDER/activations-131072.safetensors. SAEs train on
them with the quickstart's settings, all but one, and with the paper's start; FVU is of validation
documents, at L0 50 (thresholds times one factor). With --set they train once, with the quickstart's
settings of training and these; they are passed over once unless --passes says otherwise. With
--paper it is the paper's own method: JumpReLU from scratch, logarithmic thresholds, bandwidth and
first threshold 0.001, Adam (0, 0.999), its warm-ups; --rate 7e-5 is its rate. --output FILE keeps
the results (`kept.py`); `paper.sh` makes those of the paper's method that a page tells.
"""

from dataclasses import fields
from pathlib import Path
from time import perf_counter

import yaml
from kept import keep, table
from quality_sides import BUCKET, Problem, again, at_l0, hfsae, measure, parser_of
from safetensors.torch import load_file

from hfsae.training import TrainingArguments

PAPER = {"init_cluster_rounds": 0, "init_decoder_data": 0.0, "init_encoder_scale": 1.0}
PAPER |= {"init_whitening": 0.0, "max_grad_norm": None}
PAPER |= {"decoder_rate_factor": 1.0, "adam_beta1": 0.9, "adam_beta2": 0.999}
CASES = {"the quickstart's": {}, **{f"{k}: {v}": {k: v} for k, v in PAPER.items()}}
CASES["all of these"] = PAPER
BATCH, L0 = 256, 50


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--tokens", type=int, help="the first of the file; default: all")
    parser.add_argument("--passes", type=int, default=1)
    bucket = "activations that all passes go over before the next come; default: %(default)s"
    parser.add_argument("--bucket", type=int, default=BUCKET, help=bucket)
    parser.add_argument("--set", nargs="*", metavar="NAME=VALUE", help="fields of training")
    parser.add_argument("--batch", type=int, default=BATCH, help="default: %(default)s")
    parser.add_argument("--paper", action="store_true", help="the paper's own method")
    parser.add_argument("--output", type=Path, help="a JSON file that keeps the results, too")
    args = parser.parse_args()
    if args.paper:
        args.set, args.variants = args.set or [], ["JumpReLU"]
    if not args.activations.is_file():
        parser.error(f"no file {args.activations}; quality.py harvests one")
    tensors = load_file(args.activations)
    train = again(tensors["train"][: args.tokens], args.passes, args.bucket)
    cases = CASES
    if args.set is not None:
        pairs = [setting.partition("=") for setting in args.set]
        own = {name: _value(text) for name, _, text in pairs}
        if unknown := own.keys() - {field.name for field in fields(TrainingArguments)}:
            parser.error(f"--set {min(unknown)}: no field of hfsae.training.TrainingArguments")
        whose = "the paper's" if args.paper else "the quickstart's"
        cases = {" ".join(args.set) or whose: own}
    rows = [
        ["settings", *(f"{name}: FVU, silent, L0 as trained, seconds" for name in args.variants)]
    ]
    for name, changes in cases.items():
        rows.append([name])
        for variant in args.variants:
            problem = Problem(train, args.batch, args.d_sae, L0, args.rate, args.seed)
            problem.bucket = args.bucket
            started = perf_counter()
            trained = hfsae(problem, variant, changes, paper=args.paper)
            seconds = perf_counter() - started
            l0 = measure(trained, tensors["validation"], 1.0)["l0"]
            factor = at_l0(trained, tensors["validation"][:8192], L0)
            of = measure(trained, tensors["validation"], factor)
            test = measure(trained, tensors["test"], at_l0(trained, tensors["test"][::3], L0))
            if args.output:
                how = {"activations": args.activations.name, "settings": name}
                how |= {"variant": variant, "paper": args.paper}
                how |= {"tokens": len(train) // args.passes, "passes": args.passes}
                kept = ("d_sae", "rate", "seed", "batch", "bucket")
                how |= {key: getattr(args, key) for key in kept}
                run = {**how, "l0_as_trained": l0, "seconds": seconds, "validation": of}
                run["test"] = test
                keep(args.output, run, [*how])
            fvu = f"{of['fvu']:.4f}" if abs(of["l0"] / L0 - 1) < 0.05 else f"none at L0 {L0}"
            rows[-1].append(f"{fvu}, {of['dead']:.1%}, {l0:.1f}, {seconds:.1f}")
        print(*rows[-1], sep="  ", flush=True)
    print(f"\n{table(rows)}")


def _value(text: str) -> object:
    """A number also as 1e-3, which YAML takes for a text."""
    try:
        return float(text) if "e-" in text else yaml.safe_load(text)
    except ValueError:
        return text


if __name__ == "__main__":
    main()
