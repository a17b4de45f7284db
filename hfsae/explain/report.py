"""The report of explained latents: scores beside controls; the best, the worst, random ones."""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..machine.files import printable
from ..machine.markdown import table
from .explainers import spelt
from .reading import Reading
from .scores import LEXICAL, Interval
from .windows import Evidence, Window

N_BEST, N_RANDOM = 5, 10
_SHOWN = {"shown": 3, "active": 2, "inactive": 2}  # windows of a latent
_WIDTH = 40  # characters of text on either side
_COLUMNS = ("own", "shuffled", "difference", "direction", "anything", "token_ceiling")
_TITLES = {
    "uniform": "Each latent counts the same",
    "by_frequency": "Latents count by how often they fire",
}
Means = Mapping[str, Mapping[str, Mapping[str, Interval]]]


def report_of(
    reading: Reading,
    latents: Sequence[Evidence],
    rows: Sequence[dict[str, Any]],
    means: Means,
    record: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
) -> str:
    """The report, as Markdown."""
    parts = ["# Names for latents", _about(record), _headline(means)]
    for weighting, title in _TITLES.items():
        parts += [f"## {title}", _table(means[weighting])]
    parts.append(_legend(record))
    evidence = {e.latent: e for e in latents}
    for title, chosen in _choices(rows, means, seed):
        parts.append(f"## {title}")
        parts += [_latent(reading, evidence[row["latent"]], row, tokenizer) for row in chosen]
    return "\n\n".join(parts) + "\n"


def is_told_apart(means: Means, score: str = "pearson") -> bool:
    """Whether the interval of own minus shuffled lies above 0."""
    return means["uniform"][score]["difference"].low > 0


def _about(record: Mapping[str, Any]) -> str:
    documents = record["n_documents"]
    left_out = ", ".join(f"{count:,} {reason}" for reason, count in record["left_out"].items())
    return (
        f"{record['n_latents']} latents, explained by `{record['explainer']}` from "
        f"{documents['shown']:,} held-out documents and tested on {documents['tested']:,} others, "
        f"{record['n_tokens']:,} tokens in all ({record['n_tokens_cut']:,} of the tested half cut "
        f"out: runs of text that the other half has, too). Left out: {left_out or 'none'}. The "
        f"plan, written before anything was scored: `{record['plan_sha256'][:16]}`."
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


def _legend(record: Mapping[str, Any]) -> str:
    controls = "; ".join(
        f"{name.replace('_', ' ')}: {text}" for name, text in record["controls"].items()
    )
    return f"{record['about']}. {controls}."


def _choices(
    rows: Sequence[dict[str, Any]], means: Means, seed: int
) -> Iterator[tuple[str, Sequence[dict[str, Any]]]]:
    """Which latents are shown: none are ranked where scores do not tell them from shuffled ones."""
    ranked = sorted(rows, key=lambda row: row["pearson"], reverse=True)
    if is_told_apart(means):
        yield "The best, by Pearson", ranked[:N_BEST]
        yield "The worst", ranked[-N_BEST:]
    yield "Random ones", random.Random(seed).sample(list(rows), min(N_RANDOM, len(rows)))


def _latent(
    reading: Reading,
    evidence: Evidence,
    row: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
) -> str:
    scores = ", ".join(f"{name} {_number(row[name])}" for name in LEXICAL)
    shuffled = ", ".join(_number(row[f"shuffled_{name}"]) for name in LEXICAL)
    lines = [
        f"latent {row['latent']}: {row['explanation'] or 'no explanation'}",
        f"  {scores} (shuffled {shuffled}); fires on {row['density']:.3%} of tokens",
    ]
    for kind, n in _SHOWN.items():
        windows: Sequence[Window] = getattr(evidence, kind)
        for window in windows[:n]:
            label = kind if kind != "inactive" else window.kind
            lines.append(
                f"  {label:<7}{window.activation:>8.3g}  {_line(reading, window, tokenizer)}"
            )
    return "\n".join(f"    {line}" for line in lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _line(reading: Reading, window: Window, tokenizer: PreTrainedTokenizerBase) -> str:
    tokens, peak, _ = spelt(reading, window, tokenizer)
    left, right = printable("".join(tokens[:peak])), printable("".join(tokens[peak + 1 :]))
    return f"{left[-_WIDTH:]}«{printable(tokens[peak])}»{right[:_WIDTH]}"
