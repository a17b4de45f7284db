"""Write a language model whose weights are drawn anew: what of an SAE comes from the text alone?

python scripts/redrawn_lm.py runs/redrawn-lm
hfsae train quickstart --lm.name runs/redrawn-lm --training.output_dir runs/redrawn
hfsae explain runs/redrawn --n_tokens 50000      the same scores as for the trained model

Each matrix is normal with its own mean and spread; norms' gains stay. --keep_embeddings keeps the
embedding and the output layer, so that tokens stay as similar as they were. The tokenizer is the
model's own, so that texts and windows are the same.
"""

import argparse

import torch
from transformers import PreTrainedModel

import hfsae


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", help="a new folder for the model")
    parser.add_argument("--name", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--keep_embeddings", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    lm, tokenizer, _ = hfsae.load_lm(args.name, dtype="bfloat16")
    redraw_(lm, args.seed, args.keep_embeddings)
    lm.save_pretrained(args.folder)
    tokenizer.save_pretrained(args.folder)
    print(f"wrote {args.folder}")


@torch.no_grad()
def redraw_(lm: PreTrainedModel, seed: int, keep_embeddings: bool) -> None:
    """Draw all matrices anew, each normal with its own mean and standard deviation."""
    generator = torch.Generator().manual_seed(seed)
    kept = (lm.get_input_embeddings(), lm.get_output_embeddings()) if keep_embeddings else ()
    spared = {id(layer.weight) for layer in kept if layer is not None}
    for parameter in lm.parameters():
        if parameter.ndim > 1 and id(parameter) not in spared:
            values = parameter.float()
            drawn = torch.randn(values.shape, generator=generator)
            parameter.copy_(values.mean() + values.std() * drawn)


if __name__ == "__main__":
    main()
