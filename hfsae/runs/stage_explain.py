"""Explanations of an SAE's latents on held-out text: as `hfsae explain` asks for them, and as the
stage of a run that names latents.

    explain_sae -> texts that stand, judge -> study, names outside it, control -> files
"""

import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

from tqdm.auto import tqdm

from .. import cards
from ..activations import text_digest, text_record
from ..evaluation.untrained import SAMPLE_TOKENS
from ..explanations import (
    ExplainArguments,
    Explainer,
    Explanations,
    ScoringRequest,
    explain,
    from_labels,
    lm_explainer,
    read_file,
    template,
)
from ..explanations.arguments import LEXICAL
from ..explanations.explainers import UNSCORED, Name, stored_names
from ..explanations.judges import BatchFileJudge, DryRunJudge, Judge, PendingAnswers, judge_of
from ..explanations.scorers import scorers_of
from ..explanations.study import write_record
from ..explanations.untrained import comparison_of, section_of, untrained_like
from ..explanations.verdicts import OnProgress, prompts_hash
from ..explanations.windows import StudyFile, TooFew, order_of
from ..features import FeatureStore
from ..features.labels import read_labels
from ..io.checksums import changes, refuse_changed, refuse_mixture, stamp
from ..io.errors import Refused
from ..io.file_names import (
    CALLS,
    EVIDENCE,
    EXPLANATIONS,
    EXPLANATIONS_RECORD,
    EXPLANATIONS_REPORT,
    FEATURES,
    FOUND,
    META,
    STUDY_PLAN,
    TRAINING,
)
from ..io.files import read_json, read_table, reading, write_whole
from ..io.local_paths import without_local_paths
from ..lm import LoadedLM
from ..models import SAE
from .arguments import JUDGE, UNTRAINED, ExplainRequest
from .inputs import Job, read_rows, token_bar
from .recipe import Recipe
from .results import locked_run
from .sae_source import SAEInContext, check_held_out, limits_of, load_lm_for, open_folder

logger = logging.getLogger(__name__)
T = TypeVar("T")
TEMPLATE = "template"


def stage_names(job: Job) -> None:
    """Names by template for all latents that there are examples of, and scores of a hundred, as
    `hfsae explain` gives them. Where held-out text is too little for scores there are names alone.
    """
    recipe, folder = job.recipe, job.folder
    args = ExplainArguments(n_tokens=recipe.sizes.names)
    settings = {**settings_of(recipe), **stamp(folder)}
    try:
        if recipe.text.held_out_fraction == 0:
            raise Refused("the recipe holds out no documents (text.held_out_fraction is 0)")
        loaded = job.with_lm
        with token_bar("name", args.n_tokens) as bar:
            result = explain(
                loaded.lm,
                job.sae,
                read_rows(recipe, loaded, "test", args.n_tokens),
                args,
                source=TEMPLATE,
                settings=settings,
                tokenizer=loaded.tokenizer,
                norm_limits=job.limits,
                progress=bar.update,
                note_plan=lambda plan: write_record(folder, plan),
            )
    except Refused as error:
        again = f"`hfsae explain {folder} --n_tokens N` tries again"
        logger.info("note: names of latents have no scores: %s; %s", error, again)
        record = {**settings, "explainer": TEMPLATE, "arguments": args.as_plain(), "latents": []}
        report = f"# Names for latents\n\nThey have no scores: {error}.\n"
        result = Explanations([], {**record, UNSCORED: str(error)}, report)
    _add_stored_names(result, folder)
    result.record |= job.more or {}
    if result.rows:
        result.save(folder)
        return
    (folder / FEATURES).mkdir(exist_ok=True)
    for name in (EXPLANATIONS, EVIDENCE):
        (folder / name).unlink(missing_ok=True)
    write_whole(folder / EXPLANATIONS_REPORT, result.report)
    write_record(folder, result.record)


def is_named(record: Path) -> bool:
    """Whether the record of explanations is there, and has more than their plan."""
    return record.exists() and bool({"scores", UNSCORED} & {*read_json(record)})


def save_named(result: Explanations, folder: Path) -> None:
    """Save explanations, and the card with them. Beside those by template and by a judge, latents
    that have examples in the folder get a name by template."""
    if result.record["explainer"] in (TEMPLATE, JUDGE):
        _add_stored_names(result, folder)
    result.save(folder)
    cards.write_card(folder)


def _add_stored_names(result: Explanations, folder: Path) -> None:
    """Add the names of latents that have examples in the folder and no explanation in `result`."""
    if (folder / META).is_file():
        names = stored_names(FeatureStore.load(folder), {row["latent"] for row in result.rows})
        result.rows += names
        result.record["n_stored_names"] = len(names)


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """What a recipe contributes to explanations: the model and the text, without paths of this
    machine."""
    # the key that records have: the hash of a study's plan covers it
    text = {"fingerprint": text_digest(recipe.text), "side": "test"}
    return without_local_paths(
        {"lm": vars(recipe.lm), "text": {**text_record(recipe.text), **text}}
    )


def explain_sae(
    placed: SAEInContext, args: ExplainArguments, request: ExplainRequest | None = None
) -> Explanations:
    """Explain latents of an SAE in its folder; returns the report. A dry run returns only its plan;
    where answers by file are missing, it returns what is to be answered.

    Results are files below its features/. Results that were finished by the same plan are kept, and
    a question that was answered once is not asked again.

    Raises:
        ValueError: there is no held-out text, an argument does not fit, or the judge cannot answer.
    """
    check_held_out(placed, "explanations are tested on documents")
    order_of(args, placed.sae.config.d_sae)  # refuses a latent that is out of range
    request, folder = request or ExplainRequest(), placed.folder
    with locked_run(placed.root, [folder]) if request.dry_run else open_folder(placed):
        refuse_mixture(folder, [TRAINING, META])
        refuse_changed(folder, [META])  # from whose examples names are made, at the end
        texts, standing = _texts(request, folder, placed.sae.config.d_sae)
        settings = settings_of(placed.recipe)
        if texts is not None:
            settings["given"] = {str(latent): texts[latent] for latent in sorted(texts)}
        if request.judge is not None:
            settings["judge"] = request.judge.as_plain()
        settings |= stamp(folder)
        if standing:
            words = json.dumps(sorted((latent, name.text) for latent, name in standing.items()))
            digest = sha256(words.encode()).hexdigest()
            settings["standing"] = {"n": len(standing), "sha256": digest}
        if not request.dry_run and (finished := _stored(folder, settings, args, request)):
            logger.info("%s is complete: nothing to do", folder / EXPLANATIONS)
            return finished
        judge = None
        if request.judge is not None:
            judge = (DryRunJudge if request.dry_run else judge_of)(request.judge, folder / CALLS)
        scorers_of(request.scores, judge)  # so does a judge that cannot answer
        loaded = load_lm_for(placed)
        with _answer_bar(request.dry_run) as on_progress:
            explainer = template
            if texts is not None:
                explainer = from_labels(texts)
            elif request.explainer == JUDGE and judge is not None:
                explainer = lm_explainer(
                    judge, lambda n, n_in_all: on_progress("explanations", n, n_in_all, math.nan)
                )
            inquiry = ScoringRequest(request.scores, judge, on_progress)
            result = _explain(
                placed, args, request, loaded, explainer, inquiry, texts, standing, settings
            )
        if request.dry_run:
            return Explanations([], {}, _plan_lines(judge))
        if isinstance(judge, BatchFileJudge):
            if not result.rows:
                judge.refuse_unused()
            for note in judge.notes():
                logger.warning("%s", note)
        if not result.rows:
            return result
        if judge is not None and request.judge is not None:
            usage = {**vars(judge.usage), "price": judge.usage.price(request.judge)}
            usage |= {"key_env": request.judge.key_variable} if request.judge.is_served else {}
            result.record["usage"] = usage
            money = ""
            if usage["price"] is not None:
                money = f", for {usage['price']:,.2f} of the currency of the prices"
            result.report += (
                f"\nThe judge had {usage['n_calls']:,} calls, {usage['n_repeated']:,} answers of "
                f"earlier runs, {usage['n_failed']:,} failures, {usage['n_tokens_in']:,} tokens in "
                f"and {usage['n_tokens_out']:,} out, in {usage['seconds']:,.0f} s{money}.\n"
            )
        save_named(result, folder)
        if (beside := _requests_folder(request)) is not None:
            for path in beside.glob(FOUND):
                path.unlink()
        return result


def _explain(
    placed: SAEInContext,
    args: ExplainArguments,
    request: ExplainRequest,
    loaded: LoadedLM,
    explainer: Explainer,
    inquiry: ScoringRequest,
    texts: dict[int, str] | None,
    standing: Mapping[int, Name],
    settings: dict[str, Any],
) -> Explanations:
    """The study, names of latents outside it, and a control. Where answers come by file, each part
    has asked before this returns without rows: its report tells what is to be answered.

    Args:
        texts: explanations that are given.
        standing: names that the explainer need not make.
        settings: of the recipe, the SAE and the judge.
    """
    recipe, sae, folder = placed.recipe, placed.sae, placed.folder
    limits, how = limits_of(placed, loaded), from_labels(standing, explainer)
    plan, named, waiting = dict[str, Any](), list[dict[str, Any]](), list[str]()

    def study_file(name: str) -> StudyFile | None:
        """The file beside the requests with what a pass found."""
        if request.dry_run or (beside := _requests_folder(request)) is None:
            return None
        made_from = {"settings": settings, "arguments": args.as_plain(), "limits": limits}
        made_from |= {"harvest": vars(recipe.harvest), "judged": request.scores.latents}
        return StudyFile(beside / name, made_from | {"of": name})

    def note_plan(new: dict[str, Any]) -> None:
        plan.update(new)
        _write_plan(new, request, folder)

    def unless_pending(part: Callable[[], T]) -> T | None:
        try:
            return part()
        except PendingAnswers as waits:
            waiting.append(str(waits))
            return None

    def other_names() -> list[dict[str, Any]]:
        """From stored examples: of latents that are too rare or too frequent for the study."""
        judge, wanted, every = inquiry.judge, args.latents, range(sae.config.d_sae)
        names_all = args.n_latents == "all" or wanted is not None
        if judge is None or request.explainer != JUDGE or not names_all:
            return []
        if not (folder / META).is_file():
            logger.info("note: %s has no stored examples to name other latents from", folder)
            return []
        unwanted = {*every} - {*(every if wanted is None else wanted)} | {*plan["latents"]}
        names = stored_names(FeatureStore.load(folder), unwanted, how, JUDGE)
        named.extend(names)
        judge.settle("names from stored examples")
        return names

    with token_bar("explain", args.n_tokens) as bar:
        result = unless_pending(
            lambda: explain(
                loaded.lm,
                sae,
                read_rows(recipe, loaded, "test", args.n_tokens),
                args,
                explainer=how,
                source=request.explainer,
                explained=texts,
                settings=settings,
                tokenizer=loaded.tokenizer,
                norm_limits=limits,
                progress=bar.update,
                note_plan=note_plan,
                note_names=named.extend,
                inquiry=inquiry,
                keep=study_file("found.safetensors"),
            )
        )
    names, redrawn = unless_pending(other_names), None
    if UNTRAINED in request.controls:
        if request.explainer in ("human", "file"):  # words for latents of the trained one
            explainer = template
        keep = study_file("found-untrained.safetensors")
        redrawn = unless_pending(
            lambda: shuffled_weights(
                recipe, loaded, sae, args, limits, explainer=explainer, inquiry=inquiry, keep=keep
            )
        )
    if result is None or waiting:
        waiting += [_save_names(folder, plan, named)] if named else []
        return Explanations([], {}, "\n".join(waiting))
    result.rows += names or []
    result.record["n_named_untested"] = len(names or [])
    if isinstance(redrawn, str):
        result.record[UNTRAINED] = {"refused": redrawn}
    elif redrawn is not None:
        means = comparison_of(result, redrawn)
        result.record[UNTRAINED] = {"n_latents": redrawn.record["n_latents"], **means}
        result.report += "\n" + section_of(means)
    return result


def shuffled_weights(
    recipe: Recipe,
    loaded: LoadedLM,
    sae: SAE,
    args: ExplainArguments,
    limits: dict[str, float],
    *,
    explainer: Explainer,
    inquiry: ScoringRequest,
    keep: StudyFile | None = None,
) -> Explanations | str:
    """Explanations of an SAE of re-drawn weights, made and scored as those of `sae`: of as many
    latents as are judged there. Where too few of its latents qualify, it returns the reason.

    The text is read again: once for densities, once for windows; not where this is kept.

    Args:
        limits: by site, the largest norm of a kept activation.
        keep: as in `explain`.

    Raises:
        PendingAnswers: the judge is asked by file, and answers are not there yet.
    """
    other = sae  # which encodes nothing where all was found before
    if keep is None or keep.content is None:
        rows = read_rows(recipe, loaded, "test", SAMPLE_TOKENS)
        other = untrained_like(loaded.lm, sae, rows, seed=args.seed, norm_limits=limits)
    if (n_judged := inquiry.args.latents) is not None and args.latents is None:
        n = n_judged if args.n_latents == "all" else min(n_judged, args.n_latents)
        args = replace(args, n_latents=n)
    on_progress = inquiry.on_progress

    def as_control(name: str, n_done: int, n_in_all: int, mean: float) -> None:
        if on_progress is not None:
            on_progress(f"{UNTRAINED} {name}", n_done, n_in_all, mean)

    with token_bar("untrained", args.n_tokens) as bar:
        try:
            return explain(
                loaded.lm,
                other,
                read_rows(recipe, loaded, "test", args.n_tokens),
                args,
                explainer=explainer,
                source=UNTRAINED,
                tokenizer=loaded.tokenizer,
                norm_limits=limits,
                progress=bar.update,
                inquiry=inquiry._replace(
                    args=replace(inquiry.args, directions=0), on_progress=as_control
                ),
                keep=keep,
            )
        except TooFew as error:  # and no refusal of the judge, which may pass
            logger.warning("no scores of re-drawn weights: %s", error)
            return str(error)


def _write_plan(plan: dict[str, Any], request: ExplainRequest, folder: Path) -> None:
    """Write the plan down: where answers come by file beside the requests, since what the folder
    has stays until they are there."""
    if request.dry_run:
        return
    if (beside := _requests_folder(request)) is None:
        write_record(folder, plan)
        return
    path = beside / STUDY_PLAN
    other = read_json(path).get("plan_sha256") if path.is_file() else None
    if other not in (None, plan["plan_sha256"]):
        raise Refused(
            f"{path} is the plan {str(other)[:12]}, and this one is "
            f"{plan['plan_sha256'][:12]}: SAE, text or settings differ; give another "
            "folder for its requests"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(plan, indent=1) + "\n")


def _requests_folder(request: ExplainRequest) -> Path | None:
    """The folder of requests; None where no answers come by file."""
    requests = request.judge.requests if request.judge is not None else None
    return None if requests is None else Path(requests).expanduser()


def _save_names(folder: Path, plan: dict[str, Any], named: list[dict[str, Any]]) -> str:
    """Write the names so far, without scores, unless a judge has named or tested what is there; a
    sentence on them."""
    n, path = len(named), folder / EXPLANATIONS_RECORD
    before = read_json(path) if path.is_file() else {}
    if "scores" in before and (before["explainer"] == JUDGE or {*before["scores"]} - {LEXICAL}):
        return f"{n:,} names are there; those in {folder} stay until all answers are."
    record = {**plan, UNSCORED: "the judge's answers are not all there yet"}
    record["n_named_untested"] = n
    report = f"# Names for latents\n\n{n:,} so far: {record[UNSCORED]}.\n"
    save_named(Explanations(list(named), record, report), folder)
    return f"{n:,} names are there, without scores: {folder / EXPLANATIONS}"


def _plan_lines(judge: Judge | None) -> str:
    """What a dry run counted, in lines."""
    if not isinstance(judge, DryRunJudge):
        return "A dry run: these scores need no judge."
    plan = judge.plan()
    lines = [
        f"A dry run: nothing was sent to {judge.name}.",
        f"calls       {plan['n_calls']:,}, and {plan['n_answered_before']:,} answered earlier",
        f"tokens in   {plan['n_tokens_in']:,}, by {plan['tokens_counted_by']}",
        f"tokens out  {plan['n_tokens_out']:,}; {plan['most_tokens_out']:,} at most",
    ]
    if plan["rate"]:
        lines.append(f"time        {plan['seconds']:,.0f} s at {plan['rate']}")
    price = plan["price"]
    lines.append(
        "money       give --price_in and --price_out, for a million tokens each"
        if price is None
        else f"money       {price:,.2f}"
    )
    return "\n".join(lines)


@contextmanager
def _answer_bar(dry_run: bool) -> Iterator[OnProgress]:
    """A progress bar of answers for each score, with the running mean of its headline."""
    bars: dict[str, tqdm] = {}

    def on_progress(name: str, n_done: int, n_in_all: int, mean: float) -> None:
        if dry_run:
            return
        if name not in bars:
            for bar in bars.values():
                bar.close()
            bars[name] = token_bar(name, n_in_all, unit="answer")
        if mean == mean:
            bars[name].set_postfix(mean=f"{mean:.3f}", refresh=False)
        bars[name].update(n_done - bars[name].n)

    yield on_progress
    for bar in bars.values():
        bar.close()


def _texts(
    request: ExplainRequest, folder: Path, d_sae: int
) -> tuple[dict[int, str] | None, Mapping[int, Name]]:
    """Explanations that are given, or None: they are to be made; and of these, names that stand."""
    if request.file is not None:
        names = read_file(request.file, d_sae, stamp(folder).get("weights_sha256"))
        if request.explainer == JUDGE:
            return None, names
        return {latent: name.text for latent, name in names.items()}, {}
    if request.explainer in (TEMPLATE, JUDGE):
        return None, {}
    texts = {latent: text for latent, text in read_labels(folder).items() if text}
    if not texts:
        raise Refused(f"no latent of {folder} has a label; give labels in `hfsae demo {folder}`")
    return texts, {}


def _stored(
    folder: Path, settings: dict[str, Any], args: ExplainArguments, request: ExplainRequest
) -> Explanations | None:
    """What is stored, if the same was done with the same weights."""
    paths = [folder / name for name in (EXPLANATIONS_RECORD, EXPLANATIONS, EXPLANATIONS_REPORT)]
    if not all(path.is_file() for path in paths):
        return None
    for change in changes(folder, [EXPLANATIONS_RECORD]):
        logger.warning("%s: %s; explanations are made again", change.path, change.why)
        return None
    record = read_json(paths[0])
    same = {**settings, "explainer": request.explainer, "arguments": args.as_plain()}
    same |= {"asked": request.scores.as_plain(), "judge": settings.get("judge")}
    if request.judge is not None:
        scorers = scorers_of(request.scores, request.judge)
        asks = prompts_hash(scorers, request.explainer)
        same |= {"prompts_sha256": asks}  # else: answers to other questions
    is_same = all(record.get(key) == value for key, value in same.items())
    is_same &= {*request.controls} <= {*record}
    if not is_same or "scores" not in record:
        return None
    import pyarrow.parquet as pq

    with reading(paths[1]):
        columns = pq.read_schema(paths[1]).names
    rows = read_table(paths[1], columns).to_pylist()
    return Explanations(rows, record, paths[2].read_text(encoding="utf-8"))
