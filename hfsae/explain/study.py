"""Explain latents and score that, in an order that nothing can be fitted to: read the text, choose
latents and windows, write the plan down, then explain and score."""

import hashlib
import json
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..activations import TokenBatch
from ..features.labels import MAX_LENGTH
from ..lm import check_arguments, contract, tokenizer_of
from ..machine.files import replacing, write_whole
from ..machine.names import EXPLANATIONS, EXPLANATIONS_RECORD, EXPLANATIONS_REPORT, FEATURES
from ..models import SAE
from .explainers import Explainer, material_of, one_label, template
from .reading import CUT, MAX_DIRECTIONS, RUN, Reading, read
from .report import report_of
from .scores import LEXICAL, aggregate, lexical
from .windows import Evidence, ExplainArguments, Selection, order_of, select

CONTROLS = {
    "shuffled": "the windows of another latent explained, never its own",
    "direction": "a random unit direction that fires as often; its own windows",
    "anything": "one prediction for all tokens",
    "token_ceiling": "predictions from all tokens of the shown half, not from windows alone",
    "difference": "own minus shuffled, latent by latent",
}


@dataclass
class Explanations:
    """Latents' explanations with scores, and the record of how they were made."""

    rows: list[dict[str, Any]]
    """one a latent: the columns of explanations.parquet"""
    record: dict[str, Any]
    report: str
    """Markdown"""

    def save(self, folder: Path) -> None:
        """Write features/explanations.parquet, .md and .json below a folder; the record, which says
        that they are complete, comes last."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        (folder / FEATURES).mkdir(parents=True, exist_ok=True)
        table = pa.Table.from_pylist(self.rows)
        stamps = {k: self.record[k] for k in ("weights_sha256", "plan_sha256") if k in self.record}
        with replacing(folder / EXPLANATIONS) as path:
            pq.write_table(table.replace_schema_metadata(stamps), path, compression="zstd")
        write_whole(folder / EXPLANATIONS_REPORT, self.report)
        write_record(folder, self.record)


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Write features/explanations.json: a plan, or a plan with its scores."""
    (folder / FEATURES).mkdir(parents=True, exist_ok=True)
    write_whole(folder / EXPLANATIONS_RECORD, json.dumps(record, indent=1) + "\n")


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
    progress: Callable[[int], object] | None = None,
    note_plan: Callable[[dict[str, Any]], object] = lambda plan: None,
) -> Explanations:
    """Explanations of latents, scored on text that they were not made from, beside controls.

        rows = hfsae.PackedRows(tokenizer, text, "test", rows=16, max_tokens=100_000)
        result = hfsae.explain.explain(lm, sae, rows)
        print(result.report)

    Args:
        rows: held-out text.
        explainer: from windows to text.
        source: name of the explainer, for the record.
        explained: latents that the explainer has words for; None: any.
        settings: further facts for the record, part of the plan.
        tokenizer: None: the one that `hfsae.load_lm` loaded with the model.
        norm_limits: the training Harvester's.
        progress: called after each batch with its number of tokens.
        note_plan: called with the plan, before anything is explained or scored.

    Raises:
        ValueError: too few latents fit, one is out of range, or the text is too short.
    """
    check_arguments("explain.explain", lm, sae)
    args = args or ExplainArguments()
    tokenizer = tokenizer or tokenizer_of(lm)
    contract.check(sae.config, lm, tokenizer)
    order = order_of(args, sae.config.d_sae, explained)
    keep_all = args.latents is not None or args.n_latents == "all"
    n_directions = min(MAX_DIRECTIONS, len(order), _number(args, len(order)))
    reading = read(
        lm,
        sae,
        rows,
        order,
        n_directions=n_directions,
        keep_all=keep_all,
        seed=args.seed,
        norm_limits=norm_limits,
        progress=progress,
    )
    selection = select(reading, args, explained)
    record = plan_of(reading, selection, args, source, settings or {})
    note_plan(record)
    materials = [material_of(reading, e, tokenizer) for e in selection.latents]
    texts = {i: one_label(text) for i, text in explainer(materials).items()}
    return _scored(reading, selection, args, texts, record, tokenizer)


def _number(args: ExplainArguments, n: int) -> int:
    return n if args.latents is not None or args.n_latents == "all" else args.n_latents


def plan_of(
    reading: Reading,
    selection: Selection,
    args: ExplainArguments,
    source: str,
    settings: dict[str, Any],
) -> dict[str, Any]:
    """All that is settled before anything is scored, with its hash."""
    plan = {
        **settings,
        "explainer": source,
        "arguments": args.as_plain(),
        "n_tokens": reading.n_computed,
        "n_documents": {"shown": reading.n_documents[0], "tested": reading.n_documents[1]},
        "n_tokens_cut": int((reading.half == CUT).sum()),
        "latents": [evidence.latent for evidence in selection.latents],
        "windows_sha256": _hash(_places(reading, selection.latents + selection.directions)),
        "left_out": selection.left_out,
    }
    return {**plan, "plan_sha256": _hash(plan)}


def _places(reading: Reading, evidences: Sequence[Evidence]) -> list[Any]:
    """The token ids of all windows."""
    return [
        [reading.ids[w.start : w.stop].tolist() for w in (*e.shown, *e.active, *e.inactive)]
        for e in evidences
    ]


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _scored(
    reading: Reading,
    selection: Selection,
    args: ExplainArguments,
    texts: dict[int, str],
    record: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
) -> Explanations:
    latents, directions = selection.latents, selection.directions
    scores, of_directions = lexical(reading, latents, directions, args.seed)
    rows = [_row(e, texts.get(e.latent), record["explainer"], s) for e, s in _both(latents, scores)]
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
        "scores": _finite({"lexical": means}),
        "about": (
            f"lexical: predicted activation of a token = sum / (n + 1) over the shown windows; "
            f"{', '.join(LEXICAL)} on the other half of the documents, which shares no run of "
            f"{RUN} tokens with it (auc: half of the inactive windows hold one of the latent's own "
            f"peak tokens); means over latents with 95 % percentile bootstrap intervals "
            f"over latents; explanations are at most {MAX_LENGTH} characters"
        ),
    }
    report = report_of(reading, latents, rows, means, record, tokenizer, args.seed)
    return Explanations(rows, record, report)


def _both(latents: Sequence[Evidence], scores: Sequence[dict[str, float]]) -> Iterable[Any]:
    return zip(latents, scores, strict=True)


def _row(
    evidence: Evidence, text: str | None, source: str, scores: dict[str, float]
) -> dict[str, Any]:
    hard = sum(window.kind == "hard" for window in evidence.inactive)
    numbers = {k: (v if math.isfinite(v) else None) for k, v in scores.items()}
    return {
        "latent": evidence.latent,
        "explanation": text,
        "source": source,
        "density": evidence.density,
        "n_shown": len(evidence.shown),
        "n_active": len(evidence.active),
        "n_hard": hard,
        "n_random": len(evidence.inactive) - hard,
        **numbers,
    }


def _finite(content: Any) -> Any:
    """Plain values for JSON; NaN becomes null, and an interval a list of three numbers."""
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
