"""Train in one call, without writing a recipe."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import SupportsFloat

from ..activations.arguments import Columns, in_memory_texts
from ..io.errors import Refused
from ..models import SAE
from .fields import Recipe
from .folder import load_trained
from .recipe_files import licence_with, read_recipe
from .stages import run


def train(
    model: str | None = None,
    site: str | Sequence[str] | None = None,
    dataset: str | Path | Sequence[str] | Columns | None = None,
    *,
    activations: str | Path | Sequence[str] | None = None,
    labels: str | Path | None = None,
    d_sae: int,
    output_dir: str | Path,
    target_l0: int | float | None = None,
    n_tokens: int | None = None,
    recipe: Recipe | str | Path = "quickstart",
    **sae: object,
) -> SAE:
    """Train an SAE on activations of a language model, or in files, with all stages of a run.

        sae = hfsae.train(
            model="HuggingFaceTB/SmolLM2-135M-Instruct", site="layers.12", dataset="my.jsonl",
            d_sae=4096, target_l0=50, output_dir="runs/mine",
        )
        sae = hfsae.train(activations="acts.safetensors", d_sae=4096, output_dir="runs/mine")

    Called again, it resumes. `output_dir` can be pushed. The same as `hfsae train RECIPE`.

    Args:
        model: Hub id or folder of a causal language model, or a .gguf file.
        site: where activations are read: "layers.12" is the residual stream after block 12,
            "layers.12.mlp" its MLP's output; a list: one SAE over several places.
        dataset: a .txt, .jsonl or .parquet file, a folder of them, a Hub data set, packaged texts
            ("packaged:wiki"), a list of texts, or a `datasets.Dataset` (its text.text_column).
        activations: in the place of model and dataset: .safetensors, .npy or .parquet files of
            activations, a folder or a glob of them; `site` is a tensor's name (None: the only one).
        labels: of these, a .csv or .parquet table with a row for each document.
        d_sae: number of latents; 8 to 32 times the width of activations is usual.
        output_dir: a new folder, or that of the same run.
        target_l0: latents that fire on a token, on average. None: the recipe's.
        n_tokens: activations to train on, each pass counted; None: the recipe's (6 x 262,144).
            Later stages follow it, unless the recipe has numbers.
        recipe: all other settings: a `Recipe`, a YAML file, or one that comes with hfsae, by name;
            with another model than a file's own, its `license` does not count. "quickstart" (of
            files "activations") is for some millions of tokens, `Recipe()`, the paper's, for more.
        sae: more fields of the SAE's config: model_type="topk_sae", k=32, bandwidth=0.01.

    Raises:
        ValueError: a setting that is unknown or does not fit, or a folder of another run.
        KeyboardInterrupt: Ctrl-C or SIGTERM; training saves a checkpoint first, and resumes there.
    """
    if not isinstance(output_dir, str | Path):
        raise Refused(f"output_dir must be a folder, such as 'runs/mine', got {output_dir!r}")
    if activations is None and labels is not None:
        raise Refused("labels belong to activations in files; name these, or give a recipe")
    if activations is not None and (model is not None or dataset is not None):
        raise Refused("activations stand in the place of model and dataset; give one of them")
    if activations is None and (model is None or site is None or dataset is None):
        raise Refused(
            "hfsae.train needs a model, a site and a dataset, or activations in files; for "
            "pictures give a recipe to hfsae.runs.run"
        )
    base = _for_one(recipe if activations is None or recipe != "quickstart" else "activations")
    if activations is not None:
        files = {"files": _paths(activations)} | ({} if labels is None else {"labels": str(labels)})
        base = replace(base, activations=replace(base.activations, **files))
    elif model is not None and dataset is not None:
        if not isinstance(recipe, Recipe):
            base = replace(base, license=licence_with(base, model))
        texts = in_memory_texts(dataset, base.text.text_column)
        text = replace(base.text, dataset=texts, fractions={})
        base = replace(base, lm=replace(base.lm, name=model), text=text)
    place = {"site": site} if isinstance(site, str | None) else {"sites": list(site)}
    fields = {**place, "d_sae": d_sae, "target_l0": target_l0, **sae}
    given = {name: value for name, value in fields.items() if value is not None}
    own = {k: v for k, v in base.sae.items() if k not in ("site", "sites") or site is None}
    training = replace(base.training, output_dir=str(output_dir))
    if n_tokens is not None:
        if not isinstance(n_tokens, SupportsFloat) or float(n_tokens) % 1:  # 2e6 is one
            raise Refused(f"n_tokens must be a whole number, got {n_tokens!r}")
        training = replace(training, n_tokens=int(float(n_tokens)))
    whole = replace(base, sae={**own, **given}, training=training)
    of = "activations" if model is None else f"{model=}"
    return load_trained(run(whole, command=f"hfsae.train({of}, ...)")[0])


def _paths(files: str | Path | Sequence[str]) -> str | list[str]:
    parts = [files] if isinstance(files, str | Path) else [*files]
    if not all(isinstance(part, str | Path) for part in parts):
        raise Refused(
            f"activations must be paths of files, got a {type(files).__name__}; save arrays as "
            ".npy, or train on them by hfsae.activations.TensorSource"
        )
    return str(files) if isinstance(files, str | Path) else [str(path) for path in files]


def _for_one(recipe: Recipe | str | Path) -> Recipe:
    """The recipe, of one SAE."""
    base = recipe if isinstance(recipe, Recipe) else read_recipe(recipe)
    if base.saes:
        raise Refused(
            "hfsae.train trains one SAE, but the recipe has several in its section saes; run it "
            "with hfsae.runs.run(recipe)"
        )
    return base
