"""What each of the quickstart's settings for short runs does: FVU without it.

    python scripts/bench/settings.py ACTIVATIONS

ACTIVATIONS is what `quality.py` harvested, FOLDER/activations-131072.safetensors. SAEs train on
them with the quickstart's settings, all but one, and with the paper's start; FVU is of validation
documents, at L0 50 (thresholds times one factor).
"""

import argparse
from pathlib import Path

from quality_sides import Problem, at_l0, hfsae, measure
from safetensors.torch import load_file

from hfsae.machine.markdown import table

PAPER = {"init_decoder_data": 0.0, "init_encoder_scale": 1.0, "max_grad_norm": None}
PAPER |= {"decoder_rate_factor": 1.0, "adam_beta1": 0.9, "adam_beta2": 0.999}
CASES = {"the quickstart's": {}, **{f"{k}: {v}": {k: v} for k, v in PAPER.items()}}
CASES["all of these"] = PAPER
FIELDS = {"batch_topk_sae": {"k": 50}, "topk_sae": {"k": 50}}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("activations", type=Path)
    parser.add_argument("--d_sae", type=int, default=2048)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--variants", nargs="*", choices=FIELDS, default=["batch_topk_sae"])
    args = parser.parse_args()
    tensors = load_file(args.activations)
    rows = [["settings", *(f"{name}: FVU, silent" for name in args.variants)]]
    for name, changes in CASES.items():
        rows.append([name])
        for model_type in args.variants:
            problem = Problem(tensors["train"], 256, args.d_sae, 50, args.rate, args.seed)
            trained = hfsae(problem, model_type, changes, **FIELDS[model_type])
            factor = at_l0(trained, tensors["validation"][:8192], 50)
            of = measure(trained, tensors["validation"], factor)
            rows[-1].append(f"{of['fvu']:.4f}, {of['dead']:.1%}")
        print(*rows[-1], sep="  ", flush=True)
    print(f"\n{table(rows)}")


if __name__ == "__main__":
    main()
