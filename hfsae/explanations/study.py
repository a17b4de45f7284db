"""Explain latents and score the explanations, in an order that prevents fitting: read the text,
choose latents and windows, write the plan down, then explain and score."""

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..activations import HarvestArguments, TokenBatch
from ..lm import check_arguments, contract, tokenizer_of
from ..machine.files import replacing, write_whole
from ..machine.labels import MAX_LENGTH
from ..machine.names import (
    EVIDENCE,
    EXPLANATIONS,
    EXPLANATIONS_RECORD,
    EXPLANATIONS_REPORT,
    FEATURES,
)
from ..machine.plain import finite
from ..machine.seal import sealed
from ..machine.weights import file_hash
from ..models import SAE
from .arguments import ExplainArguments, ScoreArguments
from .asking import ANY_TEXT, Inquiry, cases_of, judged, prompts_hash
from .evidence import save_windows, tested_windows
from .explainers import Explainer, Name, material_of, one_label, template
from .judges import Judge
from .kept import Found, Kept
from .protocols import by_protocol, sample_of
from .reading import CUT, MAX_DIRECTIONS, RUN, Reading, read
from .report import ShownLatent, examples_of, report_of
from .scorers import Sample, Scorer, scorers_of
from .scores import LEXICAL, aggregate, lexical
from .verdicts import Judged, together
from .windows import Evidence, Selection, order_of, select

CONTROLS = {
    "shuffled": "another latent's windows or explanation, never its own",
    "direction": "random unit directions that fire as often; their own windows",
    "anything": f"one prediction for all tokens, or the explanation {ANY_TEXT!r}",
    "token_ceiling": "predictions from all tokens of the shown half, not from windows alone",
    "difference": "own minus shuffled, latent by latent; of intruder, own minus direction",
}
_ABOUT = (
    f"lexical: predicted activation of a token = sum / (n + 1) over the shown windows; "
    f"{', '.join(LEXICAL)} on the other half of the documents, which shares no run of "
    f"{RUN} tokens with it (auc: half of the inactive windows hold one of the latent's own "
    f"peak tokens); means over latents with 95 % percentile bootstrap intervals "
    f"over latents; explanations are at most {MAX_LENGTH} characters"
)


@dataclass
class Explanations:
    """Latents' explanations with scores, and the record of how they were made."""

    rows: list[dict[str, Any]]
    """one a latent: the columns of explanations.parquet"""
    record: dict[str, Any]
    report: str
    """Markdown"""
    windows: Iterable[dict[str, Any]] = ()
    """that tested the latents, spelt when they are read, once: see `evidence.tested_windows`"""
    directions: list[dict[str, Any]] = field(default_factory=list)
    """one a random direction: density and scores, with those of a judge where it was asked"""
    examples: list[ShownLatent] = field(default_factory=list)
    """latents with their evidence, as the report shows them"""

    def save(self, folder: Path) -> None:
        """Write features/explanations.parquet, .md and .json, and evidence.parquet, below a folder;
        the record, which says that they are complete and has the tables' hashes, comes last."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        (folder / FEATURES).mkdir(parents=True, exist_ok=True)
        table = pa.Table.from_pylist(self.rows)
        stamps = {k: self.record[k] for k in ("weights_sha256", "plan_sha256") if k in self.record}
        with replacing(folder / EXPLANATIONS) as path:
            pq.write_table(table.replace_schema_metadata(stamps), path, compression="zstd")
            hashes = {Path(EXPLANATIONS).name: file_hash(path)}
        hashes[Path(EVIDENCE).name] = save_windows(list(self.windows), folder, stamps)
        write_whole(folder / EXPLANATIONS_REPORT, self.report)
        write_record(folder, self.record, hashes)


def write_record(
    folder: Path, record: dict[str, Any], hashes: Mapping[str, str] | None = None
) -> None:
    """Write features/explanations.json: a plan, or a plan with its scores.

    Args:
        hashes: of the tables beside it, by name.
    """
    (folder / FEATURES).mkdir(parents=True, exist_ok=True)
    text = json.dumps(sealed(record, hashes or {}), indent=1) + "\n"
    write_whole(folder / EXPLANATIONS_RECORD, text)


def explain(
    lm: PreTrainedModel,
    sae: SAE,
    rows: Iterable[TokenBatch],
    args: ExplainArguments | None = None,
    *,
    explainer: Explainer = template,
    source: str = "template",
    explained: Collection[int] | None = None,
    settings: dict[str, Any] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    norm_limits: dict[str, float] | None = None,
    harvest: HarvestArguments | None = None,
    progress: Callable[[int], object] | None = None,
    note_plan: Callable[[dict[str, Any]], object] = lambda plan: None,
    note_names: Callable[[list[dict[str, Any]]], object] = lambda rows: None,
    inquiry: Inquiry = Inquiry(),
    keep: Kept | None = None,
) -> Explanations:
    """Explanations of latents, scored on text that they were not made from, beside controls.

        rows = hfsae.PackedRows(tokenizer, text, "test", rows=16, max_tokens=100_000)
        result = hfsae.explanations.explain(lm, sae, rows)
        print(result.report)

    Args:
        rows: held-out text.
        explainer: from windows to text.
        source: name of the explainer, for the record.
        explained: latents that the explainer can explain; None: all.
        settings: further facts for the record, part of the plan.
        tokenizer: None: the one that `hfsae.load_lm` loaded with the model.
        norm_limits: the training Harvester's.
        harvest: how activations are taken; with a cache they are kept for other SAEs.
        progress: called after each batch with its number of tokens.
        note_plan: called with the plan, before anything is explained or scored.
        note_names: called with the rows of latents that have a name, without scores, before any
            answer is awaited.
        inquiry: scores that ask a judge.
        keep: where what the pass finds is kept, or was by an earlier call: then no row is read.

    Raises:
        ValueError: too few latents qualify, one is out of range, little text, or the judge fails.
        PendingAnswers: the judge answers by file, and some answers are not there yet.
    """
    check_arguments("explanations.explain", lm, sae)
    args = args or ExplainArguments()
    scorers = scorers_of(inquiry.args, inquiry.judge)
    tokenizer = tokenizer or tokenizer_of(lm)
    contract.hold(lm, sae, tokenizer)
    found = keep.found if keep else None
    if found is None:
        order = order_of(args, sae.config.d_sae, explained)
        settled = {"seed": args.seed, "norm_limits": norm_limits, "progress": progress}
        settled["harvest"] = harvest
        reading = read(lm, sae, rows, order, **_extent(args, len(order)), **settled)
        found = Found(reading, select(reading, args, explained))
    study = _Study(*found, args, inquiry.args, tokenizer)
    record = plan_of(study, source, settings or {}, prompts_hash(scorers))
    note_plan(record)
    if keep is not None and keep.found is None:
        keep.save(found)
    study.explain(explainer)
    note_names(study.names(source))
    if inquiry.judge is not None:
        inquiry.judge.settle("explanations")
    results = []
    if inquiry.judge is not None:
        results = [study.judged(scorer, inquiry.judge, inquiry) for scorer in scorers]
        inquiry.judge.settle(" and ".join(scorer.name for scorer in scorers))
    return _scored(study, record, results)


class _Study:
    """What was read, the windows that are shown and judged, and the explanations."""

    def __init__(
        self,
        reading: Reading,
        selection: Selection,
        args: ExplainArguments,
        asked: ScoreArguments,
        tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        self.reading, self.selection, self.args = reading, selection, args
        self.asked, self.tokenizer = asked, tokenizer
        self.texts: dict[int, str] = {}
        self.sure: dict[int, float | None] = {}
        self.latents, self.directions = (
            [by_protocol(evidence, asked.protocol) for evidence in part] for part in selection[:2]
        )

    def explain(self, explainer: Explainer) -> None:
        """Explain the latents, and the directions that explanations are judged on."""
        n_directions = self.asked.directions if self.asked.scores else 0
        explained = self.latents + self.directions[:n_directions]
        materials = [material_of(self.reading, e, self.tokenizer) for e in explained]
        told = explainer(materials).items()
        names = {i: name if isinstance(name, Name) else Name(name, None) for i, name in told}
        self.texts = {i: one_label(name.text) for i, name in names.items()}
        self.sure = {i: name.sure for i, name in names.items()}

    def names(self, source: str) -> list[dict[str, Any]]:
        """Rows of the latents that have a name, without scores."""
        rows = (
            _row(e, self.texts.get(e.latent), self.sure.get(e.latent), source, {})
            for e in self.selection.latents
        )
        return [row for row in rows if row["explanation"] is not None]

    def judged(self, scorer: Scorer, judge: Judge, inquiry: Inquiry) -> Judged:
        """A score of all latents, with its controls."""
        n = self.asked.directions
        directions = self.directions[:n] if scorer.needs_explanation else self.directions
        latents = self.asked.drawn(self.latents, self.args.seed)
        samples = self._samples(latents, scorer), self._samples(directions, scorer)
        cases = list(cases_of(scorer, *samples, self.texts, self.args.seed))
        return together(
            scorer,
            judged(scorer, cases, judge, inquiry.on_progress),
            {e.latent: e.density for e in self.latents + self.directions},
            n_resamples=self.args.bootstrap_samples,
            seed=self.args.seed,
        )

    def _samples(self, evidences: Sequence[Evidence], scorer: Scorer) -> list[Sample]:
        reading, tokenizer = self.reading, self.tokenizer
        return [
            sample_of(reading, e, self.args, self.asked, tokenizer, scorer.takes_all_windows)
            for e in evidences
        ]


def _extent(args: ExplainArguments, n: int) -> dict[str, Any]:
    """How many of n latents are kept, and how many random directions."""
    keep_all = args.latents is not None or args.n_latents == "all"
    wanted = n if args.latents is not None or args.n_latents == "all" else args.n_latents
    return {"n_directions": min(MAX_DIRECTIONS, n, wanted), "keep_all": keep_all}


def plan_of(
    study: _Study, source: str, settings: dict[str, Any], prompts_sha256: str
) -> dict[str, Any]:
    """Everything that is fixed before anything is scored, with its hash."""
    reading, selection = study.reading, study.selection
    plan = {
        **settings,
        "explainer": source,
        "arguments": study.args.as_plain(),
        "asked": study.asked.as_plain(),
        "prompts_sha256": prompts_sha256,
        "n_tokens": reading.n_computed,
        "n_documents": {"shown": reading.n_documents[0], "tested": reading.n_documents[1]},
        "n_tokens_cut": int((reading.half == CUT).sum()),
        "latents": [evidence.latent for evidence in selection.latents],
        **_drawn(study),
        "windows_sha256": _hash(_places(reading, study.latents + study.directions)),
        "left_out": selection.left_out,
    }
    return {**plan, "plan_sha256": _hash(plan)}


def _drawn(study: _Study) -> dict[str, Any]:
    """Which latents are judged, where not all are."""
    if study.asked.latents is None:
        return {}
    return {"judged": [e.latent for e in study.asked.drawn(study.latents, study.args.seed)]}


def _places(reading: Reading, evidences: Sequence[Evidence]) -> list[Any]:
    """The token ids of all windows."""
    return [
        [reading.ids[w.start : w.stop].tolist() for w in (*e.shown, *e.active, *e.inactive)]
        for e in evidences
    ]


def _hash(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _scored(study: _Study, record: dict[str, Any], results: Sequence[Judged]) -> Explanations:
    args, (latents, directions, _) = study.args, study.selection
    scores, of_directions = lexical(study.reading, latents, directions, args.seed)
    for result in results:
        unscored = dict.fromkeys(next(iter(result.of_latents.values())))
        for evidence, row in zip(latents, scores, strict=True):
            row |= result.of_latents.get(evidence.latent, unscored)
    source, texts = record["explainer"], study.texts
    rows = [
        _row(e, texts.get(e.latent), study.sure.get(e.latent), source, s)
        for e, s in _both(latents, scores)
    ]
    means = aggregate(
        scores,
        of_directions,
        [e.density for e in latents],
        [e.density for e in directions],
        n_resamples=args.bootstrap_samples,
        seed=args.seed,
    )
    record = record | {
        "controls": CONTROLS,
        "n_latents": len(latents),
        "n_directions": len(directions),
        "n_unexplained": sum(row["explanation"] is None for row in rows),
        "scores": finite({"lexical": means} | {r.name: r.as_plain() for r in results}),
        "about": _ABOUT,
    }
    shown = rows, means, study.tokenizer, args.seed, results
    examples = examples_of(study.reading, latents, *shown)
    windows = tested_windows(study.reading, latents, study.tokenizer)
    controls = _direction_rows(directions, of_directions, results)
    report = report_of(means, record, results, examples)
    return Explanations(rows, record, report, windows, controls, examples)


def _direction_rows(
    directions: Sequence[Evidence], scores: Sequence[dict[str, float]], judged: Sequence[Judged]
) -> list[dict[str, Any]]:
    rows = [{"density": e.density, **s} for e, s in _both(directions, scores)]
    for result in judged:
        for evidence, row in zip(directions, rows, strict=True):
            row |= result.of_directions.get(evidence.latent, {})
    return rows


def _both(latents: Sequence[Evidence], scores: Sequence[dict[str, float]]) -> Iterable[Any]:
    return zip(latents, scores, strict=True)


def _row(
    evidence: Evidence,
    text: str | None,
    sure: float | None,
    source: str,
    scores: dict[str, float],
) -> dict[str, Any]:
    hard = sum(window.kind == "hard" for window in evidence.inactive)
    return {
        "latent": evidence.latent,
        "explanation": text,
        "sure": sure,
        "source": source,
        "density": evidence.density,
        "n_shown": len(evidence.shown),
        "n_active": len(evidence.active),
        "n_hard": hard,
        "n_random": len(evidence.inactive) - hard,
        **finite(scores),
    }
