"""The report of explained latents: scores beside controls; the best, the worst, random ones."""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from ..activations import held_out_sentence, is_held_out
from ..evaluation.statistics import Interval
from ..io.files import printable
from ..io.markdown import table
from .explainers import spelt
from .reading import CorpusActivations
from .scores import LEXICAL
from .verdicts import Judged, is_above
from .windows import Evidence, Window

N_BEST, N_RANDOM = 5, 10
_SHOWN = {"shown": 3, "active": 2, "inactive": 2}  # windows of a latent
_WIDTH = 40  # characters of text on either side
_COLUMNS = ("own", "shuffled", "difference", "direction", "anything", "token_ceiling")
_JUDGED_COLUMNS = ("own", "shuffled", "difference", "direction", "anything")
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
    judged: Sequence[Judged],
    examples: Sequence[ShownLatent],
) -> str:
    """The report, as Markdown."""
    parts = ["# Names for latents", _about(record), _headline(means)]
    if judged:
        parts.append(_judge(record))
        parts += [f"**{result.name}**: {verdict_of(result)}." for result in judged]
    for weighting, title in _TITLES.items():
        parts += [f"## {title}", _table(means[weighting])]
        if judged:
            parts.append(_judged_table(judged, weighting))
    parts.append(_legend(record, judged))
    for group, title in _titles(means, judged).items():
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
    judged: Sequence[Judged] = (),
) -> list[ShownLatent]:
    """The best, the worst and random latents with their evidence, ranked by a score that tells
    latents from its control; without one, random ones alone."""
    evidence = {e.latent: e for e in latents}
    return [
        ShownLatent(
            group,
            row["latent"],
            _latent(reading, evidence[row["latent"]], row, tokenizer, judged),
        )
        for group, chosen in _choices(rows, means, seed, judged)
        for row in chosen
    ]


def indented(text: str) -> str:
    """Lines as they are, in Markdown."""
    return "\n".join(f"    {line}" for line in text.split("\n"))


def _judge(record: Mapping[str, Any]) -> str:
    """Who answered, and by which protocol."""
    judge, asked = record.get("judge") or {}, record["asked"]
    parts = [f"The judge is `{judge.get('model', 'none')}`"]
    if asked["protocol"] != "ours":
        parts.append(f"windows and score are those of the protocol `{asked['protocol']}`")
    if n := record["n_unexplained"]:
        parts.append(f"{n} latents have no explanation: what was answered for them is none")
    return f"{'; '.join(parts)}."


def verdict_of(result: Judged) -> str:
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
        low, high = result.bounds["own"]
        return (
            f"no headline, since {failed}: {result.metric} is between {low:.3f}, all of these "
            f"wrong, and {high:.3f}, all right"
        )
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
    if result.n_failed:
        low, high = result.bounds["difference"]
        verdict += (
            f"; {failed}: with all of them against it {low:+.3f}, with all for it {high:+.3f}"
        )
    return f"{text}: {verdict}"


def _judged_table(judged: Sequence[Judged], weighting: str) -> str:
    rows = [["score", *(column.replace("_", " ") for column in _JUDGED_COLUMNS), "failed"]]
    for result in judged:
        for metric, columns in result.means[weighting].items():
            numbers = [_shown(columns[c]) if c in columns else "-" for c in _JUDGED_COLUMNS]
            title = f"{result.name} {metric.replace('_', ' ')}"
            rows.append([title, *numbers, f"{result.failed_share:.1%}"])
    return table(rows)


def is_told_apart(means: Means, score: str = "pearson") -> bool:
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


def _headline(means: Means) -> str:
    lines = []
    for score in LEXICAL:
        difference = means["uniform"][score]["difference"]
        verdict = "" if is_told_apart(means, score) else ": not told from another latent's"
        lines.append(f"{score} {_shown(difference)}{verdict}")
    return f"**Above another latent's explanation**: {'; '.join(lines)}."


def _table(by_score: Mapping[str, Mapping[str, Interval]]) -> str:
    rows = [["score", *(column.replace("_", " ") for column in _COLUMNS)]]
    for score in LEXICAL:
        rows.append([score, *(_shown(by_score[score][column]) for column in _COLUMNS)])
    return table(rows)


def _shown(interval: Interval) -> str:
    if math.isnan(interval.value):
        return "-"
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def _legend(record: Mapping[str, Any], judged: Sequence[Judged]) -> str:
    controls = "; ".join(
        f"{name.replace('_', ' ')}: {text}" for name, text in record["controls"].items()
    )
    scores = "".join(f" {result.name}: {result.about}." for result in judged)
    return f"{record['about']}.{scores} {controls}."


def _ranking(means: Means, judged: Sequence[Judged]) -> tuple[str, str] | None:
    """The column that ranks latents, and its title: the first of the judge's scores that tells them
    from its control, else Pearson; None: neither does."""
    columns = [(f"{r.name}_{r.metric}", f"{r.name}, {r.metric}") for r in judged if r.tells_apart]
    columns += [("pearson", "Pearson")] if is_told_apart(means) else []
    return columns[0] if columns else None


def _titles(means: Means, judged: Sequence[Judged]) -> dict[str, str]:
    """The groups of examples, in order."""
    ranking = _ranking(means, judged)
    ranked = {BEST: f"The best, by {ranking[1]}", WORST: "The worst"} if ranking else {}
    return {**ranked, RANDOM: "Random ones"}


def _choices(
    rows: Sequence[dict[str, Any]], means: Means, seed: int, judged: Sequence[Judged]
) -> Iterator[tuple[str, Sequence[dict[str, Any]]]]:
    """Groups of latents that are shown."""
    if ranking := _ranking(means, judged):
        column, _ = ranking
        ranked = sorted(
            (row for row in rows if row[column] is not None),
            key=lambda row: row[column],
            reverse=True,
        )
        yield BEST, ranked[:N_BEST]
        yield WORST, ranked[-N_BEST:]
    yield RANDOM, random.Random(seed).sample(list(rows), min(N_RANDOM, len(rows)))


def _latent(
    reading: CorpusActivations,
    evidence: Evidence,
    row: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    judged: Sequence[Judged],
) -> str:
    scores = ", ".join(f"{name} {_number(row[name])}" for name in LEXICAL)
    shuffled = ", ".join(_number(row[f"shuffled_{name}"]) for name in LEXICAL)
    lines = [
        f"latent {row['latent']}: {row['explanation'] or 'no explanation'}",
        f"  {scores} (shuffled {shuffled}); fires on {row['density']:.3%} of tokens",
    ]
    if judged:
        lines.append("  " + "; ".join(_judged_number(row, result) for result in judged))
    for kind, n in _SHOWN.items():
        windows: Sequence[Window] = getattr(evidence, kind)
        for window in windows[:n]:
            label = kind if kind != "inactive" else window.kind
            lines.append(
                f"  {label:<7}{window.activation:>8.3g}  {_line(reading, window, tokenizer)}"
            )
    return "\n".join(lines)


def _judged_number(row: Mapping[str, Any], result: Judged) -> str:
    column = f"{result.name}_{result.metric}"
    text = f"{result.name} {result.metric} {_number(row[column])}"
    shuffled = f"shuffled_{column}"
    return f"{text} (shuffled {_number(row[shuffled])})" if shuffled in row else text


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _line(reading: CorpusActivations, window: Window, tokenizer: PreTrainedTokenizerBase) -> str:
    tokens, peak, *_ = spelt(reading, window, tokenizer)
    left, right = printable("".join(tokens[:peak])), printable("".join(tokens[peak + 1 :]))
    return f"{left[-_WIDTH:]}«{printable(tokens[peak])}»{right[:_WIDTH]}"
