"""SAEs that scripts of this folder train themselves, on one stream: `NAME.yaml` has their recipe.

Short trainings: thresholds are set on validation text at the end, as 128 steps are too few for a
running mean of them.
"""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from claim import Subject

import hfsae
from hfsae import EvaluationArguments, PackedRows, Recipe, TextArguments
from hfsae.evaluation import evaluate_all
from hfsae.runs import load_all_trained, run

SMALL: dict[str, Any] = {"n_tokens": 512, "calibration_tokens": 256}
METRICS = ("fvu", "l0")
Trained = tuple[dict[str, hfsae.SAE], dict[str, float]]


def trained(model: str, recipe: Recipe, quick: bool) -> Trained:
    """The recipe's SAEs of a model by its name, "" for a single one, and the norms by site above
    which their training dropped positions."""
    with tempfile.TemporaryDirectory() as folder:
        training = replace(recipe.training, output_dir=folder, **(SMALL if quick else {}))
        sae = {**recipe.sae, **({"d_sae": 64} if quick else {})}
        lm = replace(recipe.lm, name=model)
        run(replace(recipe, lm=lm, license="other", sae=sae, training=training))
        folders = {name: Path(folder) / name for name in recipe.saes or [""]}
        saes, limits = load_all_trained(folders, "cpu")
        for sae in saes.values():
            sae.float().config.model_dtype = None  # the subject's model is in float32
        return saes, limits


def held_out(
    subject: Subject, of: Trained, text: TextArguments, quick: bool
) -> dict[str, dict[str, float]]:
    """By SAE, metrics on 10,000 tokens of the text's test side, which nothing masks."""
    saes, limits = of
    rows = PackedRows(subject.tokenizer, text, "test", rows=8)
    args = EvaluationArguments(n_tokens=300 if quick else 10_000, bootstrap_samples=1)
    results = evaluate_all(subject.lm, saes, rows, args, norm_limits=limits, losses=False)
    return {
        name: {key: result.metrics[key].value for key in METRICS}
        for name, result in results.items()
    }
