"""Explain latents, or probe SAEs, in one call."""

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import fields
from inspect import signature
from pathlib import Path
from typing import Any, Literal

from ..evaluation.probing import ProbeArguments, Probing, read_tasks
from ..explanations import ExplainArguments, Explanations, ScoreArguments
from ..explanations.judges import JudgeArguments
from ..io.errors import Refused, closest
from .context import SAEInContext
from .explain_request import ExplainRequest
from .fields import Sections
from .stage_explain import check_explain, explain_sae
from .stage_probe import probe_saes
from .sae_source import chosen, filled, find_sae, find_saes

logger = logging.getLogger(__name__)


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
        file: parquet, jsonl or json with latent and explanation; with "lm", names that stand.
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
    placed = find_sae(chosen(source, **which), _given(model, dataset), **where)
    return explain_placed(placed, args, request)


def explain_placed(
    placed: SAEInContext, args: ExplainArguments, request: ExplainRequest
) -> Explanations:
    """Explain latents of an SAE that `find_sae` found; a dry run writes nothing.

    Raises:
        ValueError: as `hfsae.runs.explain_sae`.
    """
    check_explain(placed, args)
    with nullcontext() if request.dry_run else filled(placed):
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
        [chosen(one, revision=revision, **which) for one in sources],
        _given(model, None),
        site=site,
        output_dir=output_dir,
    )
    given = {name: value for name, value in options.items() if name in columns}
    return probe_placed(placed, args, tasks, **given)


def probe_placed(
    placed: Sequence[SAEInContext], args: ProbeArguments, tasks: str = "packaged", **columns: str
) -> Probing:
    """Probe SAEs that `find_saes` found.

    Raises:
        ValueError: as `hfsae.runs.probe_saes`.
    """
    for one in placed:
        with filled(one):
            pass  # each run's folder is free while texts are read, which takes long
    return probe_saes(placed, args, tasks, **columns)


def _given(model: str | None, dataset: str | list[str] | None) -> Sections:
    lm = {} if model is None else {"lm": {"name": model}}
    return lm | ({} if dataset is None else {"text": {"dataset": dataset}})
