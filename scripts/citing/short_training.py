"""SAEs that scripts of this folder train themselves, on one stream: `NAME.yaml` has their recipe.

Short trainings: thresholds are set on validation text at the end, as 128 steps are too few for a
running mean of them.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from claim import Subject

import hfsae
from hfsae import EvaluationArguments, PackedRows, Recipe, TextArguments
from hfsae.evaluation import evaluate_all
from hfsae.runs import load_trained, run

SMALL: dict[str, Any] = {"n_tokens": 512, "calibration_tokens": 256}
METRICS = ("fvu", "l0", "coherence")


def trained(subject: Subject, recipe: Recipe, quick: bool) -> dict[str, hfsae.SAE]:
    """The recipe's SAEs in float32, by name ("" for a single one), of the subject's model."""
    with tempfile.TemporaryDirectory() as folder:
        training = replace(recipe.training, output_dir=folder, **(SMALL if quick else {}))
        sae = {**recipe.sae, **({"d_sae": 64} if quick else {})}
        lm = replace(recipe.lm, name=subject.name)
        run(replace(recipe, lm=lm, license="other", sae=sae, training=training))
        return {name: load_trained(Path(folder) / name).float() for name in recipe.saes or [""]}


def held_out(
    subject: Subject, saes: Mapping[str, hfsae.SAE], text: TextArguments, quick: bool
) -> dict[str, dict[str, float]]:
    """By SAE, metrics on 10,000 tokens of the text's test side, which nothing masks."""
    rows = PackedRows(subject.tokenizer, text, "test", rows=8)
    args = EvaluationArguments(n_tokens=300 if quick else 10_000, bootstrap_samples=1)
    results = evaluate_all(subject.lm, saes, rows, args, losses=False)
    return {
        name: {key: result.metrics[key].value for key in METRICS if key in result.metrics}
        for name, result in results.items()
    }
