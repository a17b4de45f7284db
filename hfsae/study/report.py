"""The report of a study, once it is closed: report.md, one HTML file, and a row for each answer."""

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..evaluation.statistics import Interval
from ..machine.files import damaged, printable, read_json, reading, replacing, write_whole
from ..machine.markdown import table
from ..machine.names import (
    REPORT,
    REPORT_PAGE,
    STUDY_ANSWERS,
    STUDY_CLOSED,
    STUDY_PLAN,
    STUDY_ROWS,
    STUDY_TABLE,
)
from ..machine.refused import Damaged, Refused
from ..machine.seal import CHANGED, is_changed, sealed
from .answers import Ledger, answer_hashes, is_closed, ledgers
from .correlation import LEAST
from .plan import Plan
from .results import (
    CHANCE_P,
    FAILURES,
    LEAST_JUDGED,
    LEAST_OWN,
    LEAST_PASSED,
    Answers,
    AutomatedScore,
    OfSAE,
    Rater,
    Results,
    rater_of,
    results_of,
    scores_of,
)

_STYLE = """:root{color-scheme:light dark}
body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;margin:1rem 0;font-size:13px;display:block;overflow-x:auto}
td,th{border:1px solid #8886;padding:.25rem .6rem;text-align:right;white-space:nowrap}
td:first-child,th:first-child{text-align:left}code{overflow-wrap:anywhere}"""
_EXAMPLES = 12  # answers in words
_HASHES = "answers_sha256"  # in closed.json


def close(study: Path) -> None:
    """End a study: from here on no answer is taken, and its report can be written. closed.json has
    a hash of each rater's answers, so that the report is of these.

    Raises:
        ValueError: there is no study, nobody has answered, or it is closed already.
    """
    plan = Plan.load(study)
    if is_closed(study):
        raise Refused(f"{study} is closed already; `hfsae study report {study}` writes its report")
    given = ledgers(study, plan)
    answers = {name: len(ledger.latest) for name, ledger in given.items()}
    if not any(answers.values()):
        raise Refused(f"nobody has answered in {study}; `hfsae study rate {study}` opens its page")
    at = datetime.now(timezone.utc).isoformat(timespec="seconds")
    content = {"plan_sha256": plan.hash, "closed_at": at, "answers": answers}
    content |= {_HASHES: answer_hashes(given)}
    write_whole(study / STUDY_CLOSED, json.dumps(sealed(content), indent=1) + "\n")


def _refuse_other_answers(study: Path, plan: Plan, given: Mapping[str, Ledger]) -> None:
    """Refuse a closed study whose plan or answers are others now. Studies that were closed before
    closed.json had hashes are accepted."""
    path = study / STUDY_CLOSED
    closed = read_json(path)
    if is_changed(closed):
        raise Damaged(damaged(path, CHANGED))
    if _HASHES not in closed:
        return
    with reading(path):
        then, now = dict(closed[_HASHES]), answer_hashes(given)
        is_other_plan = closed["plan_sha256"] != plan.hash
    if is_other_plan:
        raise Refused(f"{study} was closed with another plan; put back its {STUDY_PLAN}")
    for name in sorted({*then, *now}):
        if then.get(name) != now.get(name):
            file = study / STUDY_ANSWERS / f"{name}.jsonl"
            what = "were changed" if name in now else "are missing"
            raise Damaged(
                f"the answers of {name} {what if name in then else 'were added'} after {study} was "
                f"closed ({file}); put back what was there, or delete {path} and close the study "
                "again, with the answers as they are now"
            )


def progress(study: Path) -> str:
    """How many items each rater has answered: the only figures of an open study.

    Raises:
        ValueError: there is no study, or a file in it is damaged.
    """
    plan = Plan.load(study)
    lines = [f"{study} is open: {len(plan.items)} items, plan {plan.hash[:16]}."]
    for name, ledger in ledgers(study, plan).items():
        lines.append(f"  {name:<20}{len(ledger.latest):>5} answered")
    lines.append(
        f"Figures are shown after `hfsae study close {study}`, which ends it: looking at "
        "them earlier could influence the ratings."
    )
    return "\n".join(lines)


def write_report(study: Path, about: str = "") -> str:
    """Write report.md, report.html, report.csv and report.parquet into a closed study's folder;
    the report.

    Args:
        about: who or what rated, in a sentence; it stands at the top.

    Raises:
        ValueError: the study is open, a file in it is damaged, or an answer was changed, removed or
            added after it was closed.
    """
    plan = Plan.load(study)
    if not is_closed(study):
        raise Refused(f"{study} is open; `hfsae study close {study}` ends it")
    given = ledgers(study, plan)
    _refuse_other_answers(study, plan, given)
    answers = Answers(plan, given)
    text = "\n\n".join(_parts(plan, answers, given, study, about)) + "\n"
    write_whole(study / REPORT, text)
    write_whole(study / REPORT_PAGE, _html(text))
    _write_rows(list(answers.rows()), study)
    return text


def _parts(
    plan: Plan, answers: Answers, given: Mapping[str, Ledger], study: Path, about: str
) -> Iterator[str]:
    raters = [rater_of(answers, name) for name in answers.raters]
    failed = [rater.name for rater in raters if not rater.passes]
    yield "# Ratings of latents"
    yield _about(plan, raters, read_json(study / STUDY_CLOSED), about)
    yield from _results(answers, study, "" if not failed else "all raters, ")
    if failed:
        yield " ".join(_reasons(raters))
        passing = [rater.name for rater in raters if rater.passes]
        if passing:
            yield from _results(answers.only(passing), study, f"without {_listed(failed)}, ")
    yield "## Raters"
    yield _raters(raters)
    yield (
        "Controls passed: random directions, which fire as often as latents, not rated yes. "
        "Intruders: which of five windows is of another latent; chance is 0.2. With the others: "
        "rank correlation with the ratings of another rater, mean over them. In brackets: Wilson's "
        "95 % intervals. The figures above stand with and without a rater who fails: who passed "
        f"less than {LEAST_PASSED:.0%} of the controls, named intruders no more often than by "
        f"chance (one-sided exact binomial p above {CHANCE_P:g}), or gave less than "
        f"{LEAST_PASSED:.0%} of the repeated items the same answer again; intruders and repeats "
        f"count from {LEAST_JUDGED} on."
    )
    yield from _words(answers)


def _reasons(raters: Sequence[Rater]) -> Iterator[str]:
    """A sentence for each way to fail, with those who did."""
    for failure, text in FAILURES.items():
        names = [rater.name for rater in raters if failure in rater.failures]
        if names:
            yield f"**{_listed(names)}** {text}."


def _about(plan: Plan, raters: Sequence[Rater], closed: Mapping[str, Any], about: str) -> str:
    kinds = [item.kind for item in plan.items]
    counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
    lead = f"{about.rstrip('.')}. " if about else ""
    return (
        f"{lead}{len(raters)} raters ({_listed([r.name for r in raters])}), blind to SAE, latent "
        f"and kind, each in an order of their own. {len(kinds)} items ({counts}) of "
        f"{len(plan.saes)} SAEs on `{plan.lm}`, {plan.arguments['windows']} windows each. The plan "
        f"was settled before the first answer: `{plan.hash}`. Closed "
        f"{closed.get('closed_at', 'at an unknown time')}."
    )


def _results(answers: Answers, study: Path, who: str) -> Iterator[str]:
    results = results_of(answers, study)
    yield f"## {_title(who + 'by SAE')}"
    yield _saes(results.saes)
    yield (
        "Do the marked tokens share one meaning: no 0, maybe 1, yes 2. Intervals: 95 % bootstraps "
        "over latents, for these raters; in the column before the last for other raters, too, "
        "by a t-interval that is wide for two raters who are not alike."
    )
    if results.differences:
        yield f"## {_title(who + 'differences')}"
        yield _differences(results)
        yield (
            "Mean rating of the first minus that of the second. p: two-sided, labels of latents "
            "permuted within blocks and raters, for all raters at once; then corrected for the "
            "number of pairs (Holm). An interval that holds 0 shows no difference. Wilcoxon-Pratt: "
            "two-sided exact p of the signed-rank test with Pratt's zeros, which the Gated SAE "
            "paper (Rajamanoharan et al. 2024) has for its ratings; pairs are latents of one "
            "block, each with its mean over raters, as several ratings of one latent are not "
            "independent. It is not corrected for the number of pairs of SAEs."
        )
    yield from _agreement(results, who)
    yield from _scores(results, answers.plan, study, who)


def _title(text: str) -> str:
    return text[:1].upper() + text[1:]


def _saes(saes: Sequence[OfSAE]) -> str:
    head = ["SAE", "L0", "latents", "ratings", "yes", "mean rating", "over raters too", "intruders"]
    rows = [
        [
            f"{sae.name}",
            "-" if sae.l0 is None else f"{sae.l0:.1f}",
            str(sae.n_latents),
            str(sae.n_ratings),
            shown(sae.yes),
            shown(sae.mean),
            shown(sae.mean_over_both),
            shown(sae.intruders),
        ]
        for sae in saes
    ]
    return table([head, *rows])


def _differences(results: Results) -> str:
    rows = [["pair", "difference", "p", "p, Holm", "p, Wilcoxon-Pratt"]]
    for (one, other), (difference, p) in results.differences.items():
        numbers = [shown(difference.value, signed=True)]
        ps = [_number(value) for value in (difference.p, p, difference.signed_rank)]
        rows.append([f"{one} - {other}", *numbers, *ps])
    return table(rows)


def _agreement(results: Results, who: str) -> Iterator[str]:
    yield f"## {_title(who + 'agreement')}"
    if not results.agreement:
        yield "No two raters have rated the same items."
        return
    rows = [["coefficient", "value"]]
    yield table(rows + [[name, shown(value)] for name, value in results.agreement.items()])
    yield (
        "On latents and random directions, each once. Intervals are 95 % jackknifes over items. "
        "AC1 and AC2 do not fall when nearly all answers are equal, as alpha does."
    )


def _scores(results: Results, plan: Plan, study: Path, who: str) -> Iterator[str]:
    missing = [f"{name}: {why}" for name, table, why in scores_of(plan, study) if table is None]
    yield f"## {_title(who + 'beside automated scores')}"
    if results.scores:
        yield _score_table(results.scores)
        yield (
            "Mean rating of latents (no random directions: pooled with them any score would "
            "correlate) with the scores of `hfsae explain`; 95 % bootstraps over latents; an SAE "
            f"of its own from {LEAST_OWN} latents on. Corrected: as with raters who make no "
            "errors, the score's own left; raters weigh as much as they go with the others "
            "(table of raters), so that it can be above 1, and cannot be estimated where the "
            "raters' agreement may be none; intervals by the jackknife over latents. "
            "AUC: how often a latent rated yes (mean 1.5 or more) has the larger score than one "
            "rated no (0.5 or less); intervals by Newcombe's method 5 with the larger of two "
            f"variances, from {LEAST} of each on."
        )
    if missing:
        yield f"No scores: {'; '.join(missing)}."


def _score_table(scores: Sequence[AutomatedScore]) -> str:
    head = ["score", "SAE", "latents", "Spearman", "Pearson", "Spearman, corrected"]
    rows = [[*head, "yes / no", "AUC, yes against no"]]
    for score in scores:
        n = score.correlation
        numbers = [shown(n.spearman), shown(n.pearson), _corrected(n.corrected)]
        classes = [f"{n.n_yes} / {n.n_no}", shown(n.auc)]
        rows.append([f"`{score.name}`", score.sae, str(n.n), *numbers, *classes])
    return table(rows)


def _corrected(interval: Interval) -> str:
    return "cannot be estimated" if math.isnan(interval.value) else shown(interval)


def _raters(raters: Sequence[Rater]) -> str:
    head = ["rater", "answers", "skipped", "yes", "mean rating", "controls passed"]
    more = ["mean of controls", "intruders", "same answer again", "with the others", "s an item"]
    rows = [[*head, *more]]
    for r in raters:
        rows.append(
            [
                f"{r.name}{'' if r.passes else ' (fails)'}",
                str(r.n_answered),
                str(r.n_skipped),
                _number(r.yes),
                _number(r.mean),
                shown(r.controls),
                _number(r.control_mean),
                shown(r.intruders),
                shown(r.repeats),
                _number(r.with_others),
                _number(r.seconds, 1) if r.seconds else "-",
            ]
        )
    return table(rows)


def _words(answers: Answers) -> Iterator[str]:
    """Some answers in words."""
    rows = [row for row in answers.rows() if row["words"]]
    if rows:
        yield "## In words"
        step = max(1, len(rows) // _EXAMPLES)
        listed = [
            f"- {row['sae']} {'direction' if row['latent'] is None else row['latent']}, "
            f"{row['answer']} ({row['rater']}): {_plain(row['words'])}"
            for row in rows[::step][:_EXAMPLES]
        ]
        yield "\n".join(listed)


def _plain(text: str) -> str:
    """A rater's words, without what Markdown or HTML would make of them."""
    return "".join(f"\\{c}" if c in "\\`*_[]<>|&!#~" else c for c in printable(text))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)


def shown(interval: Interval, *, signed: bool = False) -> str:
    """A value and its interval; "-" where there is none."""
    if math.isnan(interval.value):
        return "-"
    sign = "+" if signed else ""
    value = f"{interval.value:{sign}.2f}"
    if math.isnan(interval.low):
        return value
    return f"{value} [{interval.low:{sign}.2f}, {interval.high:{sign}.2f}]"


def _number(value: float, digits: int = 2) -> str:
    if math.isnan(value):
        return "-"
    return "< 0.001" if digits == 2 and 0 < value < 0.001 else f"{value:.{max(digits, 1)}f}"


def _html(text: str) -> str:
    """The report as one HTML file."""
    from markdown_it import MarkdownIt

    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Ratings of latents</title><style>{_STYLE}</style></head><body>\n{body}"
        "</body></html>\n"
    )


def _write_rows(rows: Sequence[dict[str, Any]], study: Path) -> None:
    """report.csv and report.parquet: an answer a row."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(study / STUDY_ROWS, text.getvalue())
    kinds = {
        "latent": pa.int64(),
        "rating": pa.int64(),
        "is_right": pa.bool_(),
        "block": pa.int64(),
    }
    kinds |= {"density": pa.float64(), "seconds": pa.float64()}
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in rows[0]])
    with replacing(study / STUDY_TABLE) as path:
        pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), path, compression="zstd")
