"""For tiny language models: a recipe, token rows, an SAE of each kind.

With the fixture `loads`, every name is that of the tiny language model.
"""

import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, PreTrainedModel

import hfsae
from hfsae.activations import HarvestArguments, ShuffleArguments, TextArguments
from hfsae.evaluation import EvaluationArguments
from hfsae.features import CollectArguments
from hfsae.models import SAE
from hfsae.runs import LMArguments, Recipe
from hfsae.training import TrainingArguments

TEXTS = [f"document {i}: " + "abcdefghij " * (3 + i % 5) for i in range(200)]
D, D_SAE = 16, 40
VARIANTS = {
    "relu": (hfsae.ReLUSAEConfig, {}),
    "jumprelu": (hfsae.JumpReLUSAEConfig, {"initial_threshold": 0.1}),
    "gated": (hfsae.GatedSAEConfig, {}),
    "topk": (hfsae.TopKSAEConfig, {"k": 5}),
    "layer_norm": (hfsae.ReLUSAEConfig, {"token_norm": "layer_norm"}),
    "unit_rms": (hfsae.TopKSAEConfig, {"k": 5, "token_norm": "unit_rms"}),
    "scaled": (hfsae.ReLUSAEConfig, {"activation_scale": 3.0, "subtract_b_dec": True}),
}


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


def letters() -> list[str]:
    """Sixty texts of sixty random letters each."""
    rng = random.Random(0)
    return [" ".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=60)) for _ in range(60)]


def letters_recipe(folder: Path, **fields) -> Recipe:
    """Of an SAE with 48 latents on `letters`, more than half of which are held out."""
    text = TextArguments(dataset=letters(), context_size=64, held_out_fraction=0.6)
    return tiny_recipe(folder, **{"text": text, "sae": {"d_sae": 48}} | fields)


def tokens(side: str = "right", rows: int = 3, ctx: int = 12, seed: int = 0) -> dict[str, Tensor]:
    """Random rows behind a BOS; all but the first padded by three tokens on one side."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 259, (rows, ctx), generator=generator)
    mask = torch.ones_like(ids)
    padding = slice(0, 3) if side == "left" else slice(ctx - 3, ctx)
    ids[1:, padding] = mask[1:, padding] = 0
    ids[0, 0] = 2
    ids[1:, 3 if side == "left" else 0] = 2
    return {"input_ids": ids, "attention_mask": mask}


def stack(lm: PreTrainedModel) -> str:
    return "h" if hasattr(lm.base_model, "h") else "layers"


def n_hooks(lm: PreTrainedModel) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in lm.modules())


def make_sae(site: str = "layers.1", variant: str = "relu", seed: int = 1, **fields) -> SAE:
    """A random SAE; its biases are not 0, and its decoder rows have norms of their own."""
    config_class, defaults = VARIANTS[variant]
    config = config_class(d_in=D, d_sae=D_SAE, site=site, **defaults | fields)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sae = AutoModel.from_config(config)
        with torch.no_grad():
            for name, parameter in sae.named_parameters():
                if name != "threshold":
                    parameter.copy_(torch.randn_like(parameter) / 3)
    return sae.eval().requires_grad_(False)
