"""How good straight-through estimates of a trained JumpReLU SAE's threshold gradients are.

    python scripts/comparisons/threshold_gradients.py FOLDER

The truth are central finite differences of the expected loss over held-out text, an interval of
`--width` about each threshold; estimates are those of single batches. A table in Markdown: bias,
scatter, cosines and signs by kernel, bandwidth and batch size, as `finite_differences.py`
defines them. Widths are in units of x/c.
"""

import argparse
import json
from pathlib import Path

import torch
from finite_differences import agreement, estimates, finite_difference

from hfsae import JumpReLUSAE
from hfsae.activations import HarvestArguments, Harvester, PackedRows, TextArguments
from hfsae.lm import load_lm
from hfsae.runs import load_plain, load_trained, norm_limits

KERNELS = ("rectangle", "triangle", "epanechnikov", "gaussian")


def held_out(folder: Path, plain: dict, n_tokens: int) -> torch.Tensor:
    """[n, d_in], raw."""
    lm = plain["lm"]
    loaded = load_lm(lm["name"], dtype=lm["dtype"])
    site, limits = plain["sae"]["site"], norm_limits(load_trained(folder), folder)
    text = TextArguments(**plain["text"])
    rows = PackedRows(
        loaded.tokenizer, text, "test", rows=plain["harvest"]["rows"], max_tokens=n_tokens
    )
    harvester = Harvester(
        loaded.lm, [site], HarvestArguments(**plain["harvest"]), norm_limits=limits
    )
    return torch.cat([harvester(batch).activations[site].float() for batch in rows])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="of an SAE that hfsae compare or train wrote")
    parser.add_argument("--n_tokens", type=int, default=100_000)
    parser.add_argument("--width", type=float, default=0.01)
    parser.add_argument("--bandwidths", type=float, nargs="+", default=[0.003, 0.01, 0.03, 0.1])
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1024, 4096])
    args = parser.parse_args()
    if not (args.folder / "training.json").is_file():
        parser.error(f"{args.folder} is no folder of an SAE that hfsae compare or train wrote")
    sae = load_trained(args.folder)
    if not isinstance(sae, JumpReLUSAE):
        parser.error(f"{args.folder} holds a {sae.config.model_type}; name a jumprelu_sae's folder")
    record = json.loads((args.folder / "training.json").read_text(encoding="utf-8"))
    c = float(record["sae_as_trained"]["activation_scale"] or 1)
    # What is saved is in raw units; so must lambda be, for the loss to be what was trained.
    sae.config.l0_coefficient = record["final_coefficients"]["l0_coefficient"] * c**2
    x = held_out(args.folder, load_plain(args.folder.parent), args.n_tokens)
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))]
    true = finite_difference(sae, x.split(1024), args.width / 2 * c)
    halves = [finite_difference(sae, half.split(1024), args.width / 2 * c) for half in x.chunk(2)]
    noise = torch.nn.functional.cosine_similarity(*halves, dim=0)
    print(
        "# Straight-through gradients of thresholds against finite differences\n\n"
        f"`python scripts/comparisons/threshold_gradients.py {args.folder}`: what single batches "
        "estimate, and the true gradient of the expected loss. Bias and scatter are norms, over "
        "that of the true one; cosines are of one batch's estimate and of the mean of all; signs: "
        "the share of latents and batches whose sign is right. Bandwidths are in units of x/c.\n"
    )
    print(
        f"{len(x):,} held-out activations; finite differences over {args.width:g} of x/c: the two "
        f"halves of the text agree with a cosine of {float(noise):.3f}\n"
    )
    print(
        "| kernel | bandwidth | batch | bias | scatter | cosine of a batch | of the mean | signs |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for kernel in KERNELS:
        sae.config.kernel = kernel
        for bandwidth in args.bandwidths:
            for size in args.batch_sizes:
                found = estimates(sae, x[: len(x) // size * size].split(size), bandwidth * c)
                a = agreement(found, true)
                print(
                    f"| {kernel} | {bandwidth:g} | {size:,} | {a.bias:.2f} | {a.scatter:.2f} | "
                    f"{a.cosine:.3f} | {a.mean_cosine:.3f} | {a.sign:.3f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
