"""A recipe for a tiny language model; with the fixture `loads`, every name is that model."""

from pathlib import Path
from typing import Any

from hfsae.activations import HarvestArguments, ShuffleArguments, TextArguments
from hfsae.evaluation import EvaluationArguments
from hfsae.features import CollectArguments
from hfsae.recipe import LMArguments, Recipe
from hfsae.training import TrainingArguments

TEXTS = [f"document {i}: " + "abcdefghij " * (3 + i % 5) for i in range(200)]


def tiny_fields(folder: Path, **fields) -> dict[str, Any]:
    """Of a Recipe, or of a kind of Recipe."""
    training = {"n_tokens": 640, "batch_size": 32, "learning_rate": 1e-3, "logging_steps": 5}
    training |= {"warmup_steps": 0, "sparsity_warmup_steps": 0, "warm_start_steps": 5}
    training |= fields.pop("training", {})
    sae = {"site": "layers.1", "d_sae": 32, "target_l0": 4, "bandwidth": 0.1}
    defaults = {
        "lm": LMArguments(name="tiny/gemma"),
        "text": TextArguments(dataset=TEXTS, context_size=16, held_out_fraction=0.2),
        "harvest": HarvestArguments(rows=8, max_norm_ratio=5.0),
        "shuffle": ShuffleArguments(bucket_tokens=320),
        "sae": sae | {"log_threshold": False} | fields.pop("sae", {}),
        "training": TrainingArguments(output_dir=str(folder), **training),
        "evaluation": EvaluationArguments(n_tokens=300, bootstrap_samples=20),
        "collect": CollectArguments(top=3, quantiles=2, per_quantile=1, reservoir=4),
        "collect_tokens": 500,
    }
    return defaults | fields


def tiny_recipe(folder: Path, **fields) -> Recipe:
    return Recipe(**tiny_fields(folder, **fields))
