"""Explain latents and score the explanations, in an order that prevents fitting: read the text,
choose latents and windows, write the plan down, then explain and score."""

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..activations import HarvestArguments, TokenBatch
from ..io.checksums import file_hash, sealed
from ..io.file_names import (
    EVIDENCE,
    EXPLANATIONS,
    EXPLANATIONS_RECORD,
    EXPLANATIONS_REPORT,
    FEATURES,
)
from ..io.files import json_safe, replacing, write_whole
from ..io.labels import MAX_LENGTH
from ..lm import check_arguments, contract, tokenizer_of
from ..models import SAE
from .arguments import PAPER, ExplainArguments, ScoreArguments
from .corpus import CUT, MAX_DIRECTIONS, RUN, CorpusActivations, read
from .explainers import Explainer, names_by, template
from .lexical import LEXICAL, aggregate, lexical
from .report import ShownLatent, examples_of, report_of
from .scorers import sample_of, scorers_of
from .verdicts import (
    ANY_TEXT,
    ScoringRequest,
    Verdict,
    cases_of,
    prompts_hash,
    results_of,
    verdict_of,
)
from .windows import (
    Evidence,
    Selection,
    StudyFile,
    order_of,
    select,
    shown_windows,
    window_text,
)

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
    """that tested the latents, made when they are read, once: see `tested_windows`"""
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
        kinds = {"latent": pa.int32(), "kind": pa.string(), "activation": pa.float32()}
        kinds |= {"firing": pa.int32(), "tokens": pa.list_(pa.string())}
        kinds["activations"] = pa.list_(pa.float32())
        windows = pa.Table.from_pylist(list(self.windows), schema=pa.schema(kinds))
        with replacing(folder / EVIDENCE) as path:
            pq.write_table(windows.replace_schema_metadata(stamps), path, compression="zstd")
            hashes[Path(EVIDENCE).name] = file_hash(path)
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
    inquiry: ScoringRequest = ScoringRequest(),
    keep: StudyFile | None = None,
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
    args, asked, judge = args or ExplainArguments(), inquiry.args, inquiry.judge
    scorers = scorers_of(asked, judge)
    tokenizer = tokenizer or tokenizer_of(lm)
    contract.check_model(lm, sae, tokenizer)

    # Read the text; choose latents and windows.
    if keep is not None and keep.content is not None:
        reading, selection = keep.content
    else:
        order = order_of(args, sae.config.d_sae, explained)
        is_drawn = args.latents is None and args.n_latents != "all"
        n_wanted = int(args.n_latents) if is_drawn else len(order)
        reading = read(
            lm,
            sae,
            rows,
            order,
            n_directions=min(MAX_DIRECTIONS, len(order), n_wanted),
            keep_all=not is_drawn,
            seed=args.seed,
            norm_limits=norm_limits,
            harvest=harvest,
            progress=progress,
        )
        selection = select(reading, args, explained)
    latents, directions = selection.latents, selection.directions
    if asked.protocol == PAPER:  # the windows that explain test, too
        latents, directions = (
            [evidence._replace(active=evidence.shown, inactive=[]) for evidence in part]
            for part in (latents, directions)
        )
    asks = prompts_hash(scorers, source)
    facts = {**(settings or {}), "explainer": source, "prompts_sha256": asks}
    plan = _plan(facts, reading, selection, latents, directions, args, asked)
    note_plan(plan)
    if keep is not None and keep.content is None:
        keep.save(reading, selection)

    # Explain the latents, and the directions that explanations are judged on.
    with_names = latents + directions[: asked.directions if asked.scores else 0]
    names = names_by(explainer, shown_windows(reading, with_names, tokenizer))
    table = []
    for e in selection.latents:
        name, n_hard = names.get(e.latent), sum(window.kind == "hard" for window in e.inactive)
        row = {
            "latent": e.latent,
            "explanation": None if name is None else name.text,
            "sure": None if name is None else name.sure,
            "source": source,
            "density": e.density,
            "n_shown": len(e.shown),
            "n_active": len(e.active),
            "n_hard": n_hard,
            "n_random": len(e.inactive) - n_hard,
        }
        table.append(row)
    note_names([row for row in table if row["explanation"] is not None])

    verdicts = []
    if judge is not None:
        judge.settle("explanations")
        texts = {i: name.text for i, name in names.items()}
        for scorer in scorers:
            n = asked.directions if scorer.needs_explanation else len(directions)
            own, random = (
                [
                    sample_of(reading, e, args, asked, tokenizer, scorer.takes_all_windows)
                    for e in part
                ]
                for part in (asked.drawn(latents, args.seed), directions[:n])
            )
            cases = list(cases_of(scorer, own, random, texts, args.seed))
            results = results_of(scorer, cases, judge, inquiry.on_progress)
            densities = {e.latent: e.density for e in latents + directions}
            how = {"n_resamples": args.bootstrap_samples, "seed": args.seed}
            verdicts.append(verdict_of(scorer, results, densities, **how))
        judge.settle(" and ".join(scorer.name for scorer in scorers))
    return _scored(reading, selection, table, plan, verdicts, args, tokenizer)


def _plan(
    facts: Mapping[str, Any],
    reading: CorpusActivations,
    selection: Selection,
    latents: Sequence[Evidence],
    directions: Sequence[Evidence],
    args: ExplainArguments,
    asked: ScoreArguments,
) -> dict[str, Any]:
    """Everything that is fixed before anything is scored, with its hash.

    Args:
        facts: settings, explainer and prompts.
        latents: with the windows that test them.
        directions: the same of random directions.
    """
    judged = {}
    if asked.latents is not None:
        judged["judged"] = [e.latent for e in asked.drawn(latents, args.seed)]
    windows = [
        [reading.ids[w.start : w.stop].tolist() for w in (*e.shown, *e.active, *e.inactive)]
        for e in (*latents, *directions)
    ]
    plan = {
        **facts,
        "arguments": args.as_plain(),
        "asked": asked.as_plain(),
        "n_tokens": reading.n_computed,
        "n_documents": {"shown": reading.n_documents[0], "tested": reading.n_documents[1]},
        "n_tokens_cut": int((reading.half == CUT).sum()),
        "latents": [evidence.latent for evidence in selection.latents],
        **judged,
        "windows_sha256": _hash(windows),
        "left_out": selection.left_out,
    }
    return {**plan, "plan_sha256": _hash(plan)}


def _hash(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _scored(
    reading: CorpusActivations,
    selection: Selection,
    rows: list[dict[str, Any]],
    plan: dict[str, Any],
    verdicts: Sequence[Verdict],
    args: ExplainArguments,
    tokenizer: PreTrainedTokenizerBase,
) -> Explanations:
    """The scores that need no judge, and all of them as table, record and report."""
    latents, directions, _ = selection
    scores, of_directions = lexical(reading, latents, directions, args.seed)
    controls = [{"density": e.density, **s} for e, s in zip(directions, of_directions, strict=True)]
    for row, evidence, own in zip(rows, latents, scores, strict=True):
        for verdict in verdicts:
            unscored = dict.fromkeys(next(iter(verdict.of_latents.values())))
            own |= verdict.of_latents.get(evidence.latent, unscored)
        row |= json_safe(own)
    means = aggregate(
        scores,
        of_directions,
        [e.density for e in latents],
        [e.density for e in directions],
        n_resamples=args.bootstrap_samples,
        seed=args.seed,
    )
    record = plan | {
        "controls": CONTROLS,
        "n_latents": len(latents),
        "n_directions": len(directions),
        "n_unexplained": sum(row["explanation"] is None for row in rows),
        "scores": json_safe({"lexical": means} | {r.name: r.as_plain() for r in verdicts}),
        "about": _ABOUT,
    }
    for evidence, row in zip(directions, controls, strict=True):
        for verdict in verdicts:
            row |= verdict.of_directions.get(evidence.latent, {})
    examples = examples_of(reading, latents, rows, means, tokenizer, args.seed, verdicts)
    windows = tested_windows(reading, latents, tokenizer)
    report = report_of(means, record, verdicts, examples)
    return Explanations(rows, record, report, windows, controls, examples)


def tested_windows(
    reading: CorpusActivations, latents: Sequence[Evidence], tokenizer: PreTrainedTokenizerBase
) -> Iterator[dict[str, Any]]:
    """A row for each window of the tested half: the latent; the kind ("quantile_1" to
    "quantile_5", where it fires; "hard" or "random", where it does not); the activation at the
    peak, or 0; `firing`, the index of the peak or centre; tokens, and the activation on each."""
    for evidence in latents:
        activations = evidence.activations(len(reading.ids))
        for window in (*evidence.active, *evidence.inactive):
            tokens, peak, _, values = window_text(reading, window, tokenizer, activations)
            yield {
                "latent": evidence.latent,
                "kind": window.kind,
                "activation": window.activation,
                "firing": peak,
                "tokens": tokens,
                "activations": list(values),
            }
