"""The report of explained latents: scores beside controls; the best, the worst, random ones."""

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from ..activations import held_out_sentence, is_held_out
from ..evaluation.statistics import Interval
from ..io.files import printable
from ..io.markdown import table
from .corpus import CorpusActivations
from .lexical import LEXICAL
from .verdicts import Verdict, is_above
from .windows import Evidence, window_text

N_BEST, N_RANDOM = 5, 10
_SHOWN = {"shown": 3, "active": 2, "inactive": 2}  # windows of a latent
_NOT_TOLD = ": not told from another latent's"
_WIDTH = 40  # characters of text on either side
_COLUMNS = ("own", "shuffled", "difference", "direction", "anything", "token_ceiling")
_TITLES = {
    "uniform": "Each latent counts the same",
    "by_frequency": "Latents count by how often they fire",
}
Means = Mapping[str, Mapping[str, Mapping[str, Interval]]]
BEST, WORST, RANDOM = "best", "worst", "random"


class ShownLatent(NamedTuple):
    """A latent that the report shows."""

    group: str
    """best, worst or random"""
    latent: int
    text: str
    """its explanation, scores and windows, in lines"""


def report_of(
    means: Means,
    record: Mapping[str, Any],
    verdicts: Sequence[Verdict],
    examples: Sequence[ShownLatent],
) -> str:
    """The report, as Markdown."""
    differences = []
    for score in LEXICAL:
        is_clear = is_distinct(means, score)
        shown = _shown(means["uniform"][score]["difference"])
        differences.append(f"{score} {shown}{'' if is_clear else _NOT_TOLD}")
    headline = f"**Above another latent's explanation**: {'; '.join(differences)}."
    parts = ["# Names for latents", _about(record), headline]
    if verdicts:
        judge, asked = record.get("judge") or {}, record["asked"]
        said = [f"The judge is `{judge.get('model', 'none')}`"]
        if asked["protocol"] != "ours":
            said.append(f"windows and score are those of the protocol `{asked['protocol']}`")
        if n := record["n_unexplained"]:
            said.append(f"{n} latents have no explanation: what was answered for them is none")
        parts.append(f"{'; '.join(said)}.")
        parts += [f"**{verdict.name}**: {sentence_of(verdict)}." for verdict in verdicts]
    columns = [column.replace("_", " ") for column in _COLUMNS]
    for weighting, title in _TITLES.items():
        by_score = means[weighting]
        rows = [[score, *(_shown(by_score[score][c]) for c in _COLUMNS)] for score in LEXICAL]
        parts += [f"## {title}", table([["score", *columns], *rows])]
        rows = []
        for verdict in verdicts:
            for metric, of in verdict.means[weighting].items():
                numbers = [_shown(of[c]) if c in of else "-" for c in _COLUMNS[:-1]]
                name = f"{verdict.name} {metric.replace('_', ' ')}"
                rows.append([name, *numbers, f"{verdict.failed_share:.1%}"])
        if verdicts:
            parts.append(table([["score", *columns[:-1], "failed"], *rows]))
    controls = (f"{name.replace('_', ' ')}: {text}" for name, text in record["controls"].items())
    scores = "".join(f" {verdict.name}: {verdict.about}." for verdict in verdicts)
    parts.append(f"{record['about']}.{scores} {'; '.join(controls)}.")
    ranking = _ranking(means, verdicts)
    ranked = {BEST: f"The best, by {ranking[1]}", WORST: "The worst"} if ranking else {}
    for group, title in {**ranked, RANDOM: "Random ones"}.items():
        parts.append(f"## {title}")
        parts += [indented(example.text) for example in examples if example.group == group]
    return "\n\n".join(parts) + "\n"


def examples_of(
    reading: CorpusActivations,
    latents: Sequence[Evidence],
    rows: Sequence[dict[str, Any]],
    means: Means,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    verdicts: Sequence[Verdict] = (),
) -> list[ShownLatent]:
    """The best, the worst and random latents with their evidence, ranked by a score that tells
    latents from its control; without one, random ones alone."""
    groups: dict[str, Sequence[dict[str, Any]]] = {}
    if ranking := _ranking(means, verdicts):
        column, _ = ranking
        known = (row for row in rows if row[column] is not None)
        ranked = sorted(known, key=lambda row: row[column], reverse=True)
        groups = {BEST: ranked[:N_BEST], WORST: ranked[-N_BEST:]}
    groups[RANDOM] = random.Random(seed).sample(list(rows), min(N_RANDOM, len(rows)))
    evidence = {e.latent: e for e in latents}
    return [
        ShownLatent(group, row["latent"], _latent(reading, evidence, row, tokenizer, verdicts))
        for group, chosen in groups.items()
        for row in chosen
    ]


def indented(text: str) -> str:
    """Lines as they are, in Markdown."""
    return "\n".join(f"    {line}" for line in text.split("\n"))


def sentence_of(result: Verdict) -> str:
    """What a score shows: the headline, or why there is none."""
    own, weighted = (
        result.means[weighting][result.metric]["own"] for weighting in ("uniform", "by_frequency")
    )
    difference = result.means["uniform"][result.metric]["difference"]
    other = "another latent's" if result.control == "shuffled" else "random directions'"
    if len(result.of_latents) == 1:
        return f"{result.metric} {own.value:.3f}, of one latent: no other has a name to compare"
    failed = f"{result.n_failed:,} of {result.n_items:,} items have no answer"
    if not result.has_headline:
        return f"no headline, since {failed}"
    text = (
        f"{result.metric} {_shown(own)}, or {_shown(weighted)} with latents weighted by how often "
        f"they fire; {_shown(difference)} above {other}"
    )
    if difference.low > 0 and is_above(own.low, result.chance):
        verdict = "this judge tells them apart"
    elif difference.low > 0:
        verdict = f"but {_shown(own)} is not above chance, {result.chance}: nothing is ranked by it"
    elif difference.high < 0:
        verdict = "it is below, so that nothing is ranked by it"
    else:
        verdict = "this judge cannot tell them apart, so that nothing is ranked by it"
    return f"{text}: {verdict}{f'; {failed}' if result.n_failed else ''}"


def is_distinct(means: Means, score: str = "pearson") -> bool:
    """Whether the interval of own minus shuffled lies above 0."""
    return means["uniform"][score]["difference"].low > 0


def _about(record: Mapping[str, Any]) -> str:
    documents, text = record["n_documents"], record.get("text") or {}
    held_out = "held-out documents" if is_held_out(text) else "documents"
    of = f"from {documents['shown']:,} {held_out} and tested on {documents['tested']:,} others"
    if record["explainer"] in ("file", "human"):
        of = f"and tested on {documents['tested']:,} {held_out}"
    why = f"{held_out_sentence(text)}. " if held_out_sentence(text) else ""
    left_out = ", ".join(f"{count:,} {reason}" for reason, count in record["left_out"].items())
    return (
        f"{record['n_latents']} latents, explained by `{record['explainer']}` {of}, "
        f"{record['n_tokens']:,} tokens in all ({record['n_tokens_cut']:,} of the tested half cut "
        f"out: runs of text that the other half has, too). {why}Left out: {left_out or 'none'}. "
        f"The plan, written before anything was scored: `{record['plan_sha256'][:16]}`."
    )


def _shown(interval: Interval) -> str:
    if math.isnan(interval.value):
        return "-"
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def _ranking(means: Means, verdicts: Sequence[Verdict]) -> tuple[str, str] | None:
    """The column that ranks latents, and its title: the first of the judge's scores that tells them
    from its control, else Pearson; None: neither does."""
    columns = [(f"{r.name}_{r.metric}", f"{r.name}, {r.metric}") for r in verdicts if r.tells_apart]
    columns += [("pearson", "Pearson")] if is_distinct(means) else []
    return columns[0] if columns else None


def _latent(
    reading: CorpusActivations,
    evidence: Mapping[int, Evidence],
    row: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    verdicts: Sequence[Verdict],
) -> str:
    """A latent's explanation, scores and windows, in lines."""
    scores = ", ".join(f"{name} {_number(row[name])}" for name in LEXICAL)
    shuffled = ", ".join(_number(row[f"shuffled_{name}"]) for name in LEXICAL)
    lines = [
        f"latent {row['latent']}: {row['explanation'] or 'no explanation'}",
        f"  {scores} (shuffled {shuffled}); fires on {row['density']:.3%} of tokens",
    ]
    numbers = []
    for verdict in verdicts:
        column = f"{verdict.name}_{verdict.metric}"
        numbers.append(f"{verdict.name} {verdict.metric} {_number(row[column])}")
        if f"shuffled_{column}" in row:
            numbers[-1] += f" (shuffled {_number(row[f'shuffled_{column}'])})"
    if verdicts:
        lines.append("  " + "; ".join(numbers))
    for kind, n in _SHOWN.items():
        for window in getattr(evidence[row["latent"]], kind)[:n]:
            label = kind if kind != "inactive" else window.kind
            tokens, peak, *_ = window_text(reading, window, tokenizer)
            left, right = (printable("".join(t)) for t in (tokens[:peak], tokens[peak + 1 :]))
            line = f"{left[-_WIDTH:]}«{printable(tokens[peak])}»{right[:_WIDTH]}"
            lines.append(f"  {label:<7}{window.activation:>8.3g}  {line}")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
