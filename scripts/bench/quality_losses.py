"""The language model's loss with the SAEs of `quality.py`, whichever library trained them.

Each SAE is read from the weights that `quality_sides.py` wrote, its thresholds times the factor at
which it has the L0 asked for, and put in the place of the activations on test documents.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel

from hfsae.activations import PackedRows
from hfsae.evaluation import EvaluationArguments, evaluate_all
from hfsae.models import SAE
from hfsae.runs import Recipe, load

KIND = {"JumpReLU": "jumprelu_sae", "BatchTopK": "batch_topk_sae", "TopK": "topk_sae"}


@torch.no_grad()
def sae_of(weights: Path, *, calibrated: bool = True, **fields) -> SAE:
    """The SAE that a library trained, of raw activations.

    Args:
        calibrated: thresholds times the factor at which it has the L0 asked for.
        fields: of its config.
    """
    with safe_open(weights, "pt") as file:
        about = file.metadata()
    tensors = load_file(weights)
    scale = float(about["scale"])
    own = {"d_in": len(tensors["W_enc"]), "activation_scale": scale, "log_threshold": False}
    if fields["model_type"] != KIND["JumpReLU"]:
        del own["log_threshold"]
    sae = AutoModel.from_config(AutoConfig.for_model(**{**own, **fields}))
    for name, parameter in sae.named_parameters():
        factor = float(about["factor"]) if calibrated and name == "threshold" else 1.0
        parameter.copy_(tensors[name] * factor)
    return sae.eval()


def delta_losses(
    recipe: Recipe, weights: Mapping[Path, Path], l0: int, n: int
) -> dict[Path, float]:
    """In nats on n test tokens, of the SAE of each run by its weights.

    All share one run of the language model without an SAE.
    """
    loaded, (site,) = load(recipe.lm), recipe.sites
    rows = PackedRows(loaded.tokenizer, recipe.text, "test", rows=recipe.harvest.rows, max_tokens=n)
    saes = {}
    for run, path in weights.items():
        (kind,) = (kind for variant, kind in KIND.items() if f"-{variant}-" in run.name)
        k = {} if kind == KIND["JumpReLU"] else {"k": l0}
        fields = {"d_sae": load_file(path)["W_dec"].shape[0], "site": site, **k}
        saes[run.stem] = sae_of(path, model_type=kind, **fields)
    results = evaluate_all(loaded.lm, saes, rows, EvaluationArguments(n_tokens=n))
    return {run: results[run.stem].metrics["delta_loss"].value for run in weights}
