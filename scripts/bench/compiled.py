"""How far activations are from float32's: in bfloat16, and in bfloat16 with compiled blocks.

    python scripts/bench/compiled.py [--tokens 4096]

SmolLM2-135M, the residual stream after block 15, rows of 128 tokens of the packaged wiki, positions
of more than three times the median norm left out. Printed is the root of the mean squared
difference over that of the activations.
"""

import argparse
import warnings
from itertools import islice

import torch

from hfsae.activations import HarvestArguments, Harvester, PackedRows, TextArguments
from hfsae.lm import load_lm

SITE, CONTEXT, ROWS = "layers.15", 128, 8


def activations(n_tokens: int, dtype: str, compile: bool) -> torch.Tensor:
    """[n, d], float32, in the order of the text."""
    loaded = load_lm("HuggingFaceTB/SmolLM2-135M-Instruct", dtype=dtype)
    text = TextArguments("packaged:wiki", context_size=CONTEXT, max_document_chars=2000)
    rows = PackedRows(loaded.tokenizer, text, "train", rows=ROWS)
    harvester = Harvester(loaded.lm, [SITE], HarvestArguments(rows=ROWS, compile=compile))
    batches = islice(rows, n_tokens // (ROWS * CONTEXT))
    return torch.cat([harvester(batch).activations[SITE].float() for batch in batches])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=4096)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    exact = activations(args.tokens, "float32", False)
    norms = exact.norm(dim=1)
    typical = norms < 3 * norms.median()
    print(f"{int(typical.sum())} tokens, {int((~typical).sum())} norm outliers left out\n")
    print("| activations | difference from float32 |\n| --- | --- |")
    for name, compile in (("bfloat16", False), ("bfloat16, compiled", True)):
        difference = (activations(args.tokens, "bfloat16", compile) - exact)[typical].norm()
        print(f"| {name} | {100 * float(difference / exact[typical].norm()):.2f} % |")


if __name__ == "__main__":
    main()
