"""SAEBench's core evaluation of one of our SAEs, offline. Needs the saebench environment.

PYTHONPATH=. FOLDER/saebench/bin/python scripts/interop/run_saebench.py \
    SAE_FOLDER MODEL_FOLDER DATA_FOLDER OUT N_BATCHES
MODEL_FOLDER is a Transformers folder with the SAE's language model and DATA_FOLDER holds
train.jsonl, as write_saebench_inputs.py writes them. A batch has 8 rows of 128 tokens. SAEBench's
results go to OUT; printed is a table of them and, where SAE_FOLDER has an evaluation.json, of
hfsae's own numbers, which are of other tokens.

What the columns do not share: SAEBench counts every token but BOS, EOS and padding, hfsae also
leaves out norm outliers (attention sinks), of which one is enough to move pooled sums. SAEBench's
`explained_variance` is not 1 - FVU: from the mean squared norm it takes the square of the mean of
x^2, over tokens and dimensions, where the squares of the dimensions' means belong.
`explained_variance_legacy` is a mean of tokens' ratios. Its zero ablation also replaces BOS.
"""

import os

os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"

import json
import sys
from pathlib import Path
from typing import Any

import transformer_lens.loading_from_pretrained as lens
from sae_bench.evals.core.main import multiple_evals
from transformers import AutoModel

import hfsae
from hfsae.convert import SAEBenchSAE

# SAEBench's group and name, and ours (a metric of evaluation.json), of which "1 - " is taken
ROWS = (
    ("sparsity", "l0", "l0"),
    ("model_performance_preservation", "ce_loss_score", "loss_recovered_zero"),
    ("model_performance_preservation", "ce_loss_without_sae", "ce_clean"),
    ("model_performance_preservation", "ce_loss_with_sae", "ce_spliced"),
    ("model_performance_preservation", "ce_loss_with_ablation", "ce_zero"),
    ("model_behavior_preservation", "kl_div_with_sae", "kl"),
    ("reconstruction_quality", "explained_variance", "1 - fvu"),
    ("reconstruction_quality", "explained_variance_legacy", "1 - fvu"),
    ("reconstruction_quality", "cossim", "cosine"),
    ("shrinkage", "relative_reconstruction_bias", "relative_reconstruction_bias"),
    ("misc_metrics", "frac_alive", "1 - dead_share"),
    ("misc_metrics", "freq_over_1_percent", "above_1_percent_share"),
    ("misc_metrics", "freq_over_10_percent", "above_10_percent_share"),
)


def evaluated(sae: SAEBenchSAE, data: Path, out: Path, n_batches: int) -> dict[str, Any]:
    """SAEBench's metrics, by group and name."""
    results = multiple_evals(
        [("hfsae", sae)],  # pyright: ignore
        n_eval_reconstruction_batches=n_batches,
        n_eval_sparsity_variance_batches=n_batches,
        eval_batch_size_prompts=8,
        compute_featurewise_density_statistics=True,
        compute_featurewise_weight_based_metrics=True,
        exclude_special_tokens_from_reconstruction=True,
        dataset=str(data.resolve()),
        context_size=128,
        output_folder=str(out),
        dtype="float32",
        device="cpu",
        force_rerun=True,
    )
    if not results:  # it logs the reason and goes on
        raise SystemExit("SAEBench evaluated nothing; its log above says why")
    return results[0]["metrics"]


def table(metrics: dict[str, Any], ours: dict[str, Any]) -> str:
    """SAEBench's numbers with hfsae's beside them."""
    text = "| SAEBench | value | hfsae | value |\n| --- | --- | --- | --- |\n"
    for group, name, own in ROWS:
        metric = own.removeprefix("1 - ")
        value = ours.get(metric, {}).get("value", float("nan"))
        value = value if metric == own else 1 - value
        text += f"| {name} | {metrics[group][name]:.4g} | {own} | {value:.4g} |\n"
    return text


def main() -> None:
    """Load, evaluate, print."""
    folder, model, data, out = map(Path, sys.argv[1:5])
    sae = AutoModel.from_pretrained(folder)
    assert isinstance(sae, hfsae.SAE)
    model_name = str(model.resolve())
    lens.OFFICIAL_MODEL_NAMES.append(model_name)  # TransformerLens knows no folders otherwise
    metrics = evaluated(SAEBenchSAE(sae, model_name), data, out, int(sys.argv[5]))
    file = folder / "evaluation.json"
    ours = json.loads(file.read_text())["metrics"] if file.is_file() else {}
    print(json.dumps(metrics, indent=1), file=sys.stderr)
    print(f"{metrics['token_stats']}\n\n{table(metrics, ours)}")


if __name__ == "__main__":
    main()
