"""What each of the quickstart's settings for short runs does: FVU without it.

    python scripts/bench/settings.py ACTIVATIONS [--variants BatchTopK TopK]

ACTIVATIONS is what `quality.py` harvested, FOLDER/activations-131072.safetensors. SAEs train on
them with the quickstart's settings, all but one, and with the paper's start; FVU is of validation
documents, at L0 50 (thresholds times one factor).
"""

from quality_sides import Problem, at_l0, hfsae, measure, parse
from safetensors.torch import load_file

from hfsae.machine.markdown import table

PAPER = {"init_decoder_data": 0.0, "init_encoder_scale": 1.0, "max_grad_norm": None}
PAPER |= {"decoder_rate_factor": 1.0, "adam_beta1": 0.9, "adam_beta2": 0.999}
CASES = {"the quickstart's": {}, **{f"{k}: {v}": {k: v} for k, v in PAPER.items()}}
CASES["all of these"] = PAPER
BATCH, L0 = 256, 50


def main() -> None:
    args = parse(__doc__)
    tensors = load_file(args.activations)
    rows = [["settings", *(f"{name}: FVU, silent" for name in args.variants)]]
    for name, changes in CASES.items():
        rows.append([name])
        for variant in args.variants:
            problem = Problem(tensors["train"], BATCH, args.d_sae, L0, args.rate, args.seed)
            trained = hfsae(problem, variant, changes)
            factor = at_l0(trained, tensors["validation"][:8192], L0)
            of = measure(trained, tensors["validation"], factor)
            rows[-1].append(f"{of['fvu']:.4f}, {of['dead']:.1%}")
        print(*rows[-1], sep="  ", flush=True)
    print(f"\n{table(rows)}")


if __name__ == "__main__":
    main()
