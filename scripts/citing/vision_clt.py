"""Can a cross-layer transcoder (CLT) stand for the MLPs of a vision model, and do its rows to later
layers help? CLT-ViT (arXiv:2604.13304) keeps CLIP's zero-shot accuracy, mostly in later layers.

    python scripts/citing/vision_clt.py [--quick] OUT.json

vision_clt.yaml trains on all positions of handwritten digits, on one stream: a CLT of the MLPs of
the later half of DINOv2-small's blocks; a transcoder for each MLP, in sum with as many latents and
as high an L0 ("per_layer"); and wider ones, in sum with as many weights ("wide"). Controls: each
MLP's mean output ("means"), and the model itself ("none"). On held-out digits: FVU, the mean over
MLPs; the change, 1 - cosine, of the model's output (CLS) on all of an arm's reconstructions; and
accuracy, the share of outputs that are nearest by cosine to the mean of their class in the model
itself, of other digits: in the place of CLIP's names of classes. Means over seeds with 95 %
intervals by Student's t, which hold the digits fixed.
"""

import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from claim import Run, over_seeds, to_file
from short_training import trained

import hfsae
from hfsae import EvaluationArguments, Recipe
from hfsae.activations import ActivationBatch, InputSource, Split
from hfsae.evaluation import evaluate_reconstructions
from hfsae.lm import forward
from hfsae.runs import read_recipe

sys.path.append(str(Path(__file__).parents[1]))
import vision

LATENTS, K = 512, 16  # of each MLP
SIDES: tuple[Split, ...] = ("validation", "test")


def dictionaries(mlps: Sequence[str], latents: int) -> dict[str, dict[str, Any]]:
    """What differs in the recipe of each: the CLT's, and those of two arms, one for each MLP."""
    n, sites = len(mlps), [f"{mlp}:in -> {mlp}" for mlp in mlps]
    clt = {"model_type": "batch_topk_clt", "sites": sites, "d_sae": n * latents, "k": n * K}
    return {"clt": clt} | {
        f"{arm}.{i}": {"site": f"{mlp}:in", "target_site": mlp, "d_sae": d_sae, "k": K}
        for arm, d_sae in (("per_layer", latents), ("wide", latents * (n + 3) // 4))
        for i, mlp in enumerate(mlps)
    }


def fidelity(saes: Sequence[hfsae.SAE], acts: Sequence[ActivationBatch]) -> Run:
    """FVU, the mean over MLPs, and the L0 of all SAEs together."""
    args = EvaluationArguments(bootstrap_samples=1)
    metrics = [evaluate_reconstructions(sae, acts, args).metrics for sae in saes]
    names = [key for key in metrics[0] if key.startswith("fvu@")] or ["fvu"]
    fvu = [of[name].value for of in metrics for name in names]
    return {"fvu": sum(fvu) / len(fvu), "l0": sum(of["l0"].value for of in metrics)}


def of_model(folder: str, recipe: Recipe, quick: bool) -> Run:
    model = (encoder := hfsae.load_encoder(folder, dtype="float32")).model
    blocks = range(model.config.num_hidden_layers)
    mlps = [f"encoder.layer.{i}.mlp" for i in blocks[len(blocks) // 2 :]]
    sites = [site for mlp in mlps for site in (mlp, f"{mlp}:in")]
    source = InputSource(recipe.images, encoder, sites, recipe.harvest)
    (labels,), n_tokens = source.labels().values(), 300 if quick else 80_000  # 312 digits
    inputs = {side: [*source.inputs(side, n_tokens)] for side in SIDES}
    numbers = torch.tensor([int(label or -1) for label in labels])
    classes = {side: numbers[torch.cat([of.document for of in inputs[side]])] for side in SIDES}

    @torch.no_grad()
    def outputs(side: Split, how: AbstractContextManager) -> torch.Tensor:
        with how:
            return torch.cat([forward(model, one.inputs).pooler_output for one in inputs[side]])

    known, own = (outputs(side, ExitStack()) for side in SIDES)
    there = classes["validation"].unique()
    centres = torch.stack([known[classes["validation"] == i].mean(0) for i in there])

    def of_run(how: AbstractContextManager) -> dict[str, float]:
        changed = outputs("test", how)
        nearest = torch.cosine_similarity(changed[:, None], centres, dim=-1).argmax(1)
        right = (there[nearest] == classes["test"]).double().mean()
        change = 1 - torch.cosine_similarity(changed, own).mean()
        return {"change": float(change), "accuracy": float(right)}

    acts = {side: [*source.batches(side, n_tokens)] for side in SIDES}
    y = {mlp: torch.cat([of.activations[mlp] for of in acts["validation"]]) for mlp in mlps}
    means = hfsae.patch(model, {m: lambda x, y=y[m].mean(0): y.expand_as(x) for m in mlps})
    rows: dict[str, Run] = {"none": of_run(ExitStack()), "means": of_run(means)}
    seeds, saes = list[dict[str, Run]](), dictionaries(mlps, 16 if quick else LATENTS)
    for seed in range(2 if quick else 3):
        made, _ = trained(folder, replace(recipe, seed=seed, saes=saes), quick)
        seeds.append({})
        for arm in ("clt", "per_layer", "wide"):
            of = [sae for name, sae in made.items() if name.split(".")[0] == arm]
            hooks = ExitStack()
            for sae in of:
                hooks.enter_context(hfsae.splice(model, sae, spare_tokens=()))
            seeds[-1][arm] = of_run(hooks) | fidelity(of, acts["test"])
    for arm, first in seeds[0].items():
        rows[arm] = {key: over_seeds([of[arm][key] for of in seeds]) for key in first}
        less = {key: [of["clt"][key] - of[arm][key] for of in seeds] for key in first}
        rows[arm] |= {f"the CLT's {key} less this": over_seeds(of) for key, of in less.items()}
    return {"mlps": mlps, "seeds": len(seeds), "digits": len(own), "rows": rows}


def measure(quick: bool) -> Iterator[Run]:
    recipe = read_recipe(Path(__file__).with_suffix(".yaml"))
    with tempfile.TemporaryDirectory() as name:
        vision.write_model(Path(name, "model"))
        vision.write_pictures(Path(name, "mnist"), "mnist")
        recipe.images.folder = f"{name}/mnist"
        yield {"model": "facebook/dinov2-small", **of_model(f"{name}/model", recipe, quick)}


if __name__ == "__main__":
    to_file(__doc__, measure)
