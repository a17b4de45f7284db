"""How long a training step takes: ours sparse and dense, its floor, and the peers' own.

    python scripts/bench/step.py [--peers FOLDER] [--d_in 576] [--d_sae 16384] [--l0 50]
    python scripts/bench/step.py --by l0 20 50 100 300 600      # sweeps: one table a value
    python scripts/bench/step.py --by d_sae 4096 16384 65536
    python scripts/bench/step.py --inference                    # latents and reconstructions alone
    python scripts/bench/step.py --d_in 1728 --d_sae 4608 --l0 48 --batch 256 --sides \
        hfsae.batch_topk hfsae.batch_topk_three_sites           # a crosscoder beside a plain SAE

A step is forward, backward, clipping (where the library clips), Adam and the decoder's norms, on
the CPU. The floor is the encoder's product alone. FOLDER is what
`scripts/interop/environments.sh FOLDER saelens dictionary_learning sparsify` made. `--tuned` lets
glibc keep large blocks instead of returning them, for all sides: it shows how much of a difference
is page faults. How sides are compared: `turns.py`.

What README.md tells is made by these, into results/step.json, step_by_l0.json, step_by_d_sae.json:

    python scripts/bench/step.py --peers peers [--d_in 2304 | --tuned | --inference] --output FILE
    python scripts/bench/step.py --by l0 20 50 100 300 600 --output FILE
    python scripts/bench/step.py --by d_sae 4096 16384 65536 --output FILE
"""

import argparse
import sys
from pathlib import Path

from kept import keep
from sides import SIDES
from turns import add_arguments, chosen, markdown, measure

SIZES = {"d_in": 576, "d_sae": 16384, "batch": 2048, "l0": 50}
HOW = ("tuned", "inference", "threads", "rounds")
INFERENCE = ("inference", "inference_dense", "product_bf16", "product_float32")
DEFAULT = ("jumprelu", "jumprelu_dense", "topk", "product_bf16", "product_float32")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, value in SIZES.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--by", nargs="+", metavar="NAME VALUE", help="d_in, d_sae, batch or l0")
    parser.add_argument("--inference", action="store_true", help="encode and decode, do not train")
    add_arguments(parser, rounds=7)
    args = parser.parse_args()
    name, *values = args.by or ["l0", args.l0]
    try:
        labels = chosen(args, *_sides(args.inference))
        for value in values:
            size = {key: getattr(args, key) for key in SIZES} | {name: int(value)}
            allocator = "glibc's allocator keeps large blocks" if args.tuned else "as shipped"
            head = ", ".join(f"{key} {n}" for key, n in size.items())
            print(f"\n{head}, {args.threads} threads, {args.rounds} rounds, {allocator}\n")
            rows = measure(Path(__file__).with_name("sides.py"), labels, size, args)
            print(markdown(rows), flush=True)
            if args.output:
                how = {key: getattr(args, key) for key in HOW}
                keep(args.output, {**size, **how, "rows": rows}, [*size, "tuned", "inference"])
    except (ValueError, OSError) as error:
        print(f"step.py: {error}", file=sys.stderr)
        sys.exit(2)


def _sides(inference: bool) -> tuple[dict[str, list[str]], tuple[str, ...]]:
    """Those of each library, and ours that are taken by default."""
    kept = {"product": True, "inference": inference}  # other names are of training steps
    known = {
        library: [n for n in names if kept.get(n.split("_")[0], not inference)]
        for library, names in SIDES.items()
    }
    return known, INFERENCE if inference else DEFAULT


if __name__ == "__main__":
    main()
