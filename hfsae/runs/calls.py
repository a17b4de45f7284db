"""What one call does: train an SAE without writing a recipe, explain its latents, probe it."""

from collections.abc import Sequence
from dataclasses import fields, replace
from inspect import signature
from pathlib import Path
from typing import Any, Literal, SupportsFloat

from ..activations.arguments import Columns, in_memory_texts
from ..evaluation.probing import ProbeArguments, Probing, read_tasks
from ..explanations import ExplainArguments, Explanations, ScoreArguments
from ..explanations.judges import JudgeArguments
from ..io.errors import Refused, closest
from ..models import SAE
from .arguments import ExplainRequest
from .folder import load_trained
from .recipe import Recipe, Sections, read_recipe
from .sae_source import find_sae, find_saes, load_arguments
from .stage_explain import explain_sae
from .stage_probe import probe_saes
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
    if activations is not None and recipe == "quickstart":
        recipe = "activations"
    base = recipe if isinstance(recipe, Recipe) else read_recipe(recipe)
    if base.saes:
        raise Refused(
            "hfsae.train trains one SAE, but the recipe has several in its section saes; run it "
            "with hfsae.runs.run(recipe)"
        )
    if activations is not None:
        is_one = isinstance(activations, str | Path)
        paths = [activations] if is_one else [*activations]
        if not all(isinstance(path, str | Path) for path in paths):
            raise Refused(
                f"activations must be paths of files, got a {type(activations).__name__}; save "
                "arrays as .npy, or train on them by hfsae.activations.TensorSource"
            )
        files: dict[str, Any] = {"files": str(activations) if is_one else [*map(str, paths)]}
        files |= {} if labels is None else {"labels": str(labels)}
        base = replace(base, activations=replace(base.activations, **files))
    elif model is not None and dataset is not None:
        if not isinstance(recipe, Recipe) and model != base.lm.name:
            base = replace(base, license=None)  # this model may come under other terms
        texts = in_memory_texts(dataset, base.text.text_column)
        text = replace(base.text, dataset=texts, fractions={})
        base = replace(base, lm=replace(base.lm, name=model), text=text)
    place = {"site": site} if isinstance(site, str | None) else {"sites": list(site)}
    given = {**place, "d_sae": d_sae, "target_l0": target_l0, **sae}
    given = {name: value for name, value in given.items() if value is not None}
    own = {k: v for k, v in base.sae.items() if k not in ("site", "sites") or site is None}
    training = replace(base.training, output_dir=str(output_dir))
    if n_tokens is not None:
        if not isinstance(n_tokens, SupportsFloat) or float(n_tokens) % 1:  # 2e6 is one
            raise Refused(f"n_tokens must be a whole number, got {n_tokens!r}")
        training = replace(training, n_tokens=int(float(n_tokens)))
    whole = replace(base, sae={**own, **given}, training=training)
    of = "activations" if model is None else f"{model=}"
    return load_trained(run(whole, command=f"hfsae.train({of}, ...)")[0])


def explain(
    source: str | Path,
    *,
    latents: Sequence[int] | None = None,
    n_latents: int | Literal["all"] = 100,
    n_tokens: int = 100_000,
    explainer: str = "template",
    scores: Sequence[str] = (),
    judge: str | JudgeArguments | None = None,
    file: str | Path | None = None,
    controls: Sequence[str] = (),
    seed: int = 0,
    model: str | None = None,
    dataset: str | list[str] | None = None,
    site: str | None = None,
    output_dir: str | Path | None = None,
    **which: object,
) -> Explanations:
    """Names for an SAE's latents, and scores of these names on held-out documents, beside another
    latent's name and random directions. The same as `hfsae explain SOURCE`.

        found = hfsae.explain("runs/mine", latents=[17, 99, 1234])
        print(found.report)

    It is also written below features/ of the SAE's folder, or of runs/NAME, and read from there
    when it is finished.

    Args:
        source: the folder that `hfsae.train` wrote, or any folder or repository of an SAE, in any
            format that `hfsae.load` reads.
        latents: one or more, by index. None: n_latents, drawn among those that fire on 0.01 % to
            10 % of tokens, or "all" of these.
        n_tokens: held-out tokens to read.
        explainer: "template": peak tokens and their shares, without a language model; "lm": a line
            by the judge; "human": labels that people gave; "file": those in `file`.
        scores: beside "lexical", which needs no judge: "detection", "fuzzing", "intruder" and
            others of `hfsae.explanations.scorers`.
        judge: who answers: "packaged" (SmolLM2-135M), a Hub id, or `JudgeArguments` for a server.
        file: parquet or jsonl with latent and explanation; with "lm", names that stand.
        controls: "untrained": an SAE of re-drawn weights that fire as often.
        model: the language model, where the SAE's files do not name it, or another copy.
        dataset: the text, as in `hfsae.train`, of which documents that the training read are left
            out. None: that of the training or of an earlier measure, else packaged texts.
        site: where the SAE reads, if its files do not name it, such as "layers.12".
        output_dir: a folder for the SAE and the results, instead of its own or runs/NAME.
        which: subfolder, layer, width, l0, revision: the SAE of several, as in `hfsae.load`.

    Returns:
        `rows`, one a latent, with scores; `report` in Markdown; `record`: settings and means.

    Raises:
        ValueError: there is no such SAE, language model or text; or an argument does not fit.
    """
    args = ExplainArguments(n_latents=n_latents, latents=latents, n_tokens=n_tokens, seed=seed)
    who = JudgeArguments(model=judge) if isinstance(judge, str) else judge
    path = None if file is None else Path(file)
    request = ExplainRequest(explainer, path, ScoreArguments(scores), who, controls=controls)
    where = {"site": site, "output_dir": output_dir}
    placed = find_sae(load_arguments(source, **which), _sections(model, dataset), **where)
    return explain_sae(placed, args, request)


def probe(
    source: str | Path | Sequence[str | Path],
    *,
    tasks: str = "packaged",
    model: str | None = None,
    site: str | None = None,
    output_dir: str | Path | None = None,
    subfolder: str = "",
    layer: int | None = None,
    width: str | int | None = None,
    l0: int | float | str | None = None,
    revision: str | None = None,
    **options: Any,
) -> Probing:
    """How well a few latents tell two classes of texts apart, beside untrained latents, the model's
    own dimensions and a bag of tokens. The same as `hfsae probe SOURCE ...`.

        result = hfsae.probe("runs/mine", tasks="reviews.jsonl", label_column="stars", k=(1, 5))
        print(result.report)

    probing.json and probing.md are also written into each SAE's folder.

    Args:
        source: as in `hfsae.explain`; or a list, of SAEs on one language model.
        tasks: "packaged": binary sets of the Python package sae-probes; a jsonl file with a text
            and a label a line; or a Hub data set.
        model: the language model, where the SAE's files do not name it, or another copy.
        site: where the SAE reads, if its files do not name it.
        output_dir: a folder for the SAE and the results; of several SAEs, for a folder of each.
        subfolder, layer, width, l0, revision: which SAE of several, as in `hfsae.load`.
        options: fields of `hfsae.evaluation.probing.ProbeArguments` (n_tasks, n_texts, k, n_words,
            uniformity_tokens, seed), and the columns of a file or data set (text_column,
            label_column, split).

    Returns:
        `rows`, one for each task, kind of features and k: auc, f1, accuracy; `report` in Markdown;
        `record`: settings, and means with 95 % intervals.

    Raises:
        ValueError: there is no such SAE, SAEs are of different language models, tasks are unusable,
            an option is unknown, or a package is missing.
    """
    sources = (
        [*source] if isinstance(source, Sequence) and not isinstance(source, str) else [source]
    )
    own = {field.name for field in fields(ProbeArguments)}
    columns = {*signature(read_tasks).parameters} - {"source", "tasks"}
    for name in {*options} - own - columns:
        raise Refused(f"hfsae.probe has no option {name!r}{closest(name, sorted(own | columns))}")
    args = ProbeArguments(**{name: value for name, value in options.items() if name in own})
    which = {"subfolder": subfolder, "layer": layer, "width": width, "l0": l0}
    placed = find_saes(
        [load_arguments(one, revision=revision, **which) for one in sources],
        _sections(model, None),
        site=site,
        output_dir=output_dir,
    )
    given = {name: value for name, value in options.items() if name in columns}
    return probe_saes(placed, args, tasks, **given)


def _sections(model: str | None, dataset: str | list[str] | None) -> Sections:
    lm = {} if model is None else {"lm": {"name": model}}
    return lm | ({} if dataset is None else {"text": {"dataset": dataset}})
