"""Explanations of the latents of a run's SAE, by the run's own recipe and held-out text."""

import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any

from ..activations import text_fingerprint
from ..explain import ExplainArguments, Explainer, explain, from_labels, read_file, template
from ..explain.study import write_record
from ..explain.windows import order_of
from ..features.labels import read_labels
from ..machine.files import read_json
from ..machine.names import EXPLANATIONS, EXPLANATIONS_RECORD, EXPLANATIONS_REPORT, RECIPE, TRAINING
from ..machine.refused import Refused
from ..machine.visible import public_record
from ..machine.weights import refuse_mixture, stamp
from ..training.trainer import make_accelerator, sum_products_in_float32
from .carried import read_recipe
from .fields import Recipe
from .folder import alone, home_of, load_trained, norm_limits
from .naming import save_named
from .stages import load, read_rows, token_bar

logger = logging.getLogger(__name__)
EXPLAINERS = ("template", "human", "file")


def explain_folder(
    folder: Path, args: ExplainArguments, kind: str = "template", file: Path | None = None
) -> str:
    """Explain latents of the SAE in a run's folder; the report.

    Results are files below its features/. What is finished by the same plan is not done again.

    Args:
        kind: "template"; "human": people's labels; "file": those of `file`.

    Raises:
        ValueError: the folder is of no run, has no held-out text, or an argument does not fit.
    """
    home = home_of(folder)
    if home is None:
        raise Refused(
            f"{folder} is not of a run: without a recipe.yaml its language model and held-out text "
            "are unknown; `hfsae train` writes one"
        )
    recipe = read_recipe(home / RECIPE)
    if recipe.text.held_out_fraction == 0:
        raise Refused(
            f"{home / RECIPE} holds out no documents (text.held_out_fraction is 0), and "
            "explanations are tested on documents that training has not read; train with 0.05"
        )
    with alone(home, [folder]):
        refuse_mixture(folder, [TRAINING])
        return _explain(recipe, folder, args, kind, file)


def _explain(
    recipe: Recipe, folder: Path, args: ExplainArguments, kind: str, file: Path | None
) -> str:
    sae = load_trained(folder)
    explainer, explained, more = _explainer(kind, file, folder, sae.config.d_sae)
    order_of(args, sae.config.d_sae)  # a latent out of range fails before the model is loaded
    settings = {**_settings(recipe), **more, **stamp(folder)}
    if report := _finished(folder, settings, args, kind):
        logger.info("%s is complete: nothing to do", folder / EXPLANATIONS)
        return report
    sum_products_in_float32()
    loaded = load(recipe.lm, str(make_accelerator(recipe.training).device))
    sae.to(loaded.lm.device)  # pyright: ignore
    rows = read_rows(recipe, loaded, "test", args.n_tokens)
    with token_bar("explain", args.n_tokens) as progress:
        result = explain(
            loaded.lm,
            sae,
            rows,
            args,
            explainer=explainer,
            source=kind,
            explained=explained,
            settings=settings,
            tokenizer=loaded.tokenizer,
            norm_limits=norm_limits(sae, folder),
            progress=progress,
            note_plan=lambda plan: write_record(folder, plan),
        )
    save_named(result, folder)
    return result.report


def _explainer(
    kind: str, file: Path | None, folder: Path, d_sae: int
) -> tuple[Explainer, Collection[int] | None, dict[str, Any]]:
    """The explainer, latents that it has words for (None: any), and its part of the settings."""
    if (kind == "file") != (file is not None):
        raise Refused("a file goes with one explainer: --explainer file --file PATH")
    if kind == "template":
        return template, None, {}
    if file is not None:
        texts = read_file(file, d_sae, stamp(folder).get("weights_sha256"))
    else:
        texts = {latent: text for latent, text in read_labels(folder).items() if text}
        if not texts:
            raise Refused(
                f"nobody has labelled latents of {folder}; `hfsae demo {folder}` takes labels"
            )
    return from_labels(texts), texts, {"given": {str(k): texts[k] for k in sorted(texts)}}


def _settings(recipe: Recipe) -> dict[str, Any]:
    """What the recipe contributes: the model and the text, without paths of this machine."""
    text = {"fingerprint": text_fingerprint(recipe.text), "side": "test"}
    return public_record({"lm": vars(recipe.lm), "text": {**vars(recipe.text), **text}})


def _finished(
    folder: Path, settings: dict[str, Any], args: ExplainArguments, kind: str
) -> str | None:
    """The report, if the same was done with the same weights."""
    paths = [folder / name for name in (EXPLANATIONS_RECORD, EXPLANATIONS, EXPLANATIONS_REPORT)]
    if not all(path.is_file() for path in paths):
        return None
    record = read_json(paths[0])
    same = {**settings, "explainer": kind, "arguments": args.as_plain()}
    is_same = all(record.get(key) == value for key, value in same.items())
    return paths[2].read_text(encoding="utf-8") if is_same and "scores" in record else None
