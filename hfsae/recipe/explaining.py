"""Explanations of the latents of an SAE, on held-out text."""

import json
import logging
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from tqdm.auto import tqdm

from ..explanations import (
    ExplainArguments,
    Explainer,
    Explanations,
    Inquiry,
    explain,
    from_labels,
    lm_explainer,
    read_file,
    template,
)
from ..explanations.arguments import LEXICAL
from ..explanations.asking import OnProgress, prompts_hash
from ..explanations.explainers import Name, keeping
from ..explanations.judges import (
    BatchFileJudge,
    DryRunJudge,
    Judge,
    JudgeArguments,
    PendingAnswers,
    judge_of,
)
from ..explanations.kept import Kept
from ..explanations.scorers import scorers_of
from ..explanations.stored import UNSCORED, stored_names
from ..explanations.study import write_record
from ..explanations.windows import order_of
from ..features import FeatureStore
from ..features.labels import read_labels
from ..lm import LoadedLM
from ..machine.files import read_json, read_table, reading, write_whole
from ..machine.names import (
    CALLS,
    EXPLANATIONS,
    EXPLANATIONS_RECORD,
    EXPLANATIONS_REPORT,
    FOUND,
    META,
    STUDY_PLAN,
    TRAINING,
)
from ..machine.refused import Refused
from ..machine.seal import changes, refuse_changed
from ..machine.weights import refuse_mixture, stamp
from .asked import JUDGE, UNTRAINED, ExplainRequest
from .controls import add_untrained, untrained
from .folder import locked_run
from .naming import save_named, settings_of
from .placed import PlacedSAE, check_held_out, limits_of, opened
from .text import read_rows, token_bar

logger = logging.getLogger(__name__)
T = TypeVar("T")


def check_explain(placed: PlacedSAE, args: ExplainArguments) -> None:
    """Check what explanations of an SAE need, before anything is loaded.

    Raises:
        ValueError: the SAE's text holds out no documents or cannot be read, or a latent is out of
            range.
    """
    check_held_out(placed, "explanations are tested on documents")
    order_of(args, placed.sae.config.d_sae)


def explain_sae(
    placed: PlacedSAE, args: ExplainArguments, request: ExplainRequest | None = None
) -> Explanations:
    """Explain latents of an SAE in its folder; returns the report. A dry run returns only its plan;
    where answers by file are missing, it returns what is to be answered.

    Results are files below its features/. Results that were finished by the same plan are kept, and
    a question that was answered once is not asked again.

    Raises:
        ValueError: there is no held-out text, an argument does not fit, or the judge cannot answer.
    """
    check_explain(placed, args)
    with locked_run(placed.root, [placed.folder]):
        refuse_mixture(placed.folder, [TRAINING, META])
        refuse_changed(placed.folder, [META])  # from whose examples names are made, at the end
        return _explain(placed, args, request or ExplainRequest())


def _explain(placed: PlacedSAE, args: ExplainArguments, request: ExplainRequest) -> Explanations:
    recipe, sae, folder = placed.recipe, placed.sae, placed.folder
    texts, standing = _texts(request, folder, sae.config.d_sae)
    settings = {**settings_of(recipe), **_given(texts), **_who(request.judge), **stamp(folder)}
    if standing:
        words = json.dumps(sorted((latent, name.text) for latent, name in standing.items()))
        settings["standing"] = {"n": len(standing), "sha256": sha256(words.encode()).hexdigest()}
    if not request.dry_run and (finished := _finished(folder, settings, args, request)):
        logger.info("%s is complete: nothing to do", folder / EXPLANATIONS)
        return finished
    judge = _judge(request, folder)
    scorers_of(request.scores, judge)  # so does a judge that cannot answer
    loaded = opened(placed)
    limits = limits_of(placed, loaded)
    with _answer_bar(request.dry_run) as on_progress:
        explainer = _explainer(request, texts, judge, on_progress)
        inquiry = Inquiry(request.scores, judge, on_progress)
        parts = _Parts(placed, args, request, loaded, limits, explainer, inquiry, standing, {}, [])
        try:
            result = parts.in_one_round(texts, settings)
        except PendingAnswers as waits:
            result = Explanations([], {}, str(waits))
            if parts.named:
                result.report += f"\n{_save_names(folder, parts.plan, parts.named)}"
    if request.dry_run:
        return Explanations([], {}, _plan(judge))
    if isinstance(judge, BatchFileJudge):
        if not result.rows:
            judge.refuse_unused()
        for note in judge.notes():
            logger.warning("%s", note)
    if result.rows:
        _save(folder, result, judge, request.judge)
        for path in beside.glob(FOUND) if (beside := _beside(request)) else ():
            path.unlink()
    return result


class _Parts(NamedTuple):
    """What a request consists of: the study, names of latents outside it, and a control; `plan` and
    `named` take the study's plan, and rows of the latents that have a name so far."""

    placed: PlacedSAE
    args: ExplainArguments
    request: ExplainRequest
    loaded: LoadedLM
    limits: dict[str, float]
    explainer: Explainer
    inquiry: Inquiry
    standing: dict[int, Name]
    """names that the explainer need not make"""
    plan: dict[str, Any]
    named: list[dict[str, Any]]

    def in_one_round(self, texts: dict[int, str] | None, settings: dict[str, Any]) -> Explanations:
        """The parts together.

        Raises:
            PendingAnswers: answers come by file and are not there yet; each part has asked by then.
        """
        waiting: list[str] = []
        result = _or_note(waiting, lambda: self.study(texts, settings))
        names = _or_note(waiting, lambda: self.other_names({*self.plan["latents"]}))
        control = _or_note(waiting, lambda: self.control(settings))
        if result is None or waiting:
            raise PendingAnswers("\n".join(waiting))
        result.rows += names or []
        result.record["n_named_untested"] = len(names or [])
        if control is not None:
            add_untrained(result, control)
        return result

    def study(self, texts: dict[int, str] | None, settings: dict[str, Any]) -> Explanations:
        """The study; its plan goes onto the disk before anything is explained."""

        def note(settled: dict[str, Any]) -> None:
            self.plan.update(settled)
            _note_plan(self.request, self.placed.folder, settled)

        with token_bar("explain", self.args.n_tokens) as progress:
            return explain(
                self.loaded.lm,
                self.placed.sae,
                read_rows(self.placed.recipe, self.loaded, "test", self.args.n_tokens),
                self.args,
                explainer=keeping(self.standing, self.explainer),
                source=self.request.explainer,
                explained=texts,
                settings=settings,
                tokenizer=self.loaded.tokenizer,
                norm_limits=self.limits,
                progress=progress,
                note_plan=note,
                note_names=self.named.extend,
                inquiry=self.inquiry,
                keep=self.kept("found.safetensors", settings),
            )

    def kept(self, name: str, settings: Mapping[str, Any]) -> Kept | None:
        """The file beside the requests with what a pass found; None where no answers come by file.

        Args:
            settings: of the recipe and the SAE.
        """
        if self.request.dry_run or (beside := _beside(self.request)) is None:
            return None
        args, harvest = self.args.as_plain(), vars(self.placed.recipe.harvest)
        made_from = {"settings": settings, "arguments": args, "limits": self.limits}
        made_from |= {"harvest": harvest, "judged": self.request.scores.latents, "of": name}
        return Kept(beside / name, made_from)

    def other_names(self, studied: Collection[int]) -> list[dict[str, Any]]:
        """Where the judge names all latents, or those of a list: names from stored examples for
        those that the study leaves out, as they are too rare or too frequent for it."""
        wanted, d_sae = self.args.latents, self.placed.sae.config.d_sae
        names_all = self.args.n_latents == "all" or wanted is not None
        judge, folder = self.inquiry.judge, self.placed.folder
        if judge is None or self.request.explainer != JUDGE or not names_all:
            return []
        if not (folder / META).is_file():
            logger.info("note: %s has no stored examples to name other latents from", folder)
            return []
        unwanted = {*range(d_sae)} - {*(range(d_sae) if wanted is None else wanted)}
        store = FeatureStore.load(folder)
        explainer = keeping(self.standing, self.explainer)
        names = stored_names(store, unwanted | {*studied}, explainer, JUDGE)
        self.named.extend(names)
        judge.settle("names from stored examples")
        return names

    def control(self, settings: Mapping[str, Any]) -> Explanations | str | None:
        """Explanations of an SAE of re-drawn weights, if they are asked for."""
        if UNTRAINED not in self.request.controls:
            return None
        given = self.request.explainer in ("human", "file")  # words for latents of the trained one
        return untrained(
            self.placed.recipe,
            self.loaded,
            self.placed.sae,
            self.args,
            self.limits,
            explainer=template if given else self.explainer,
            inquiry=self.inquiry,
            keep=self.kept("found-untrained.safetensors", settings),
        )


def _or_note(waiting: list[str], part: Callable[[], T]) -> T | None:
    """What a part gives; None where it waits for answers, and its sentence is noted."""
    try:
        return part()
    except PendingAnswers as waits:
        waiting.append(str(waits))
        return None


def _note_plan(request: ExplainRequest, folder: Path, plan: dict[str, Any]) -> None:
    """Write the plan down: where answers come by file beside the requests, since what the folder
    has stays until they are there.

    Raises:
        ValueError: the requests are of another plan.
    """
    if request.dry_run:
        return
    if (beside := _beside(request)) is None:
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


def _beside(request: ExplainRequest) -> Path | None:
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


def _save(
    folder: Path, result: Explanations, judge: Judge | None, args: JudgeArguments | None
) -> None:
    """Write the results, with what was asked for them."""
    if judge is not None and args is not None:
        usage = {**vars(judge.usage), "price": judge.usage.price(args)}
        usage |= {"key_env": args.key_variable} if args.is_served else {}
        result.record["usage"] = usage
        result.report += (
            f"\nThe judge had {usage['n_calls']:,} calls, {usage['n_repeated']:,} answers of "
            f"earlier runs, {usage['n_failed']:,} failures, {usage['n_tokens_in']:,} tokens in and "
            f"{usage['n_tokens_out']:,} out, in {usage['seconds']:,.0f} s"
            f"{_money(usage['price'])}.\n"
        )
    save_named(result, folder)


def _money(price: float | None) -> str:
    return "" if price is None else f", for {price:,.2f} of the currency of the prices"


def _judge(request: ExplainRequest, folder: Path) -> Judge | None:
    if request.judge is None:
        return None
    make = DryRunJudge if request.dry_run else judge_of
    return make(request.judge, folder / CALLS)


def _who(judge: JudgeArguments | None) -> dict[str, Any]:
    """Who answers, for the plan."""
    return {} if judge is None else {"judge": judge.as_plain()}


def _plan(judge: Judge | None) -> str:
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
    every = 0.2 if sys.stderr.isatty() else 15.0

    def on_progress(name: str, n_done: int, n_in_all: int, mean: float) -> None:
        if dry_run:
            return
        if name not in bars:
            _close(bars)
            bars[name] = tqdm(total=n_in_all, desc=name, unit="answer", mininterval=every)
        if mean == mean:
            bars[name].set_postfix(mean=f"{mean:.3f}", refresh=False)
        bars[name].update(n_done - bars[name].n)

    yield on_progress
    _close(bars)


def _close(bars: dict[str, tqdm]) -> None:
    for bar in bars.values():
        bar.close()


def _explainer(
    request: ExplainRequest,
    texts: dict[int, str] | None,
    judge: Judge | None,
    on_progress: OnProgress,
) -> Explainer:
    if texts is not None:
        return from_labels(texts)
    if request.explainer == "template" or judge is None:
        return template
    return lm_explainer(
        judge, lambda n, n_in_all: on_progress("explanations", n, n_in_all, float("nan"))
    )


def _texts(
    request: ExplainRequest, folder: Path, d_sae: int
) -> tuple[dict[int, str] | None, dict[int, Name]]:
    """Explanations that are given, or None: they are to be made; and of these, names that stand."""
    if request.file is not None:
        names = read_file(request.file, d_sae, stamp(folder).get("weights_sha256"))
        if request.explainer == JUDGE:
            return None, names
        return {latent: name.text for latent, name in names.items()}, {}
    if request.explainer in ("template", JUDGE):
        return None, {}
    texts = {latent: text for latent, text in read_labels(folder).items() if text}
    if not texts:
        raise Refused(f"no latent of {folder} has a label; give labels in `hfsae demo {folder}`")
    return texts, {}


def _given(texts: dict[int, str] | None) -> dict[str, Any]:
    """The explanations' part of the settings."""
    return {} if texts is None else {"given": {str(k): texts[k] for k in sorted(texts)}}


def _finished(
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
        same |= {"prompts_sha256": prompts_hash(scorers)}  # answers to other questions
    is_same = all(record.get(key) == value for key, value in same.items())
    is_same &= {*request.controls} <= {*record}
    if not is_same or "scores" not in record:
        return None
    return Explanations(_rows(paths[1]), record, paths[2].read_text(encoding="utf-8"))


def _rows(path: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    with reading(path):
        columns = pq.read_schema(path).names
    return read_table(path, columns).to_pylist()
