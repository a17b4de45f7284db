"""Several comparisons in one report: a verdict over all of them, then each report in full.

A verdict is on an arm's difference from its comparison's reference over all L0s that both reach:
the area between their frontiers. A comparison at several sites has one at each. Among all verdicts
of a metric p is corrected anew, so that what is shown here is shown whatever else was compared. An
arm's verdicts at several places are pooled, too (`pooled.py`).
"""

import math
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from hfsae.comparison import (
    LEVEL,
    METRICS,
    Differences,
    corrected,
    difference_cell,
    n_harvests,
    page_of,
    percent,
)

from . import figures
from .across_sites import AcrossSites, interval_cell, overall_table
from .markdown import table, they_differ
from .pooled import OverPlaces, Verdict, over_places

_METHOD = """\
By how much {they_differ} from the reference's over all L0s of a row: the area
between two frontiers (mean log ratio over log L0; at one L0 the difference there). In brackets two
95 % intervals, both paired: Student's t over seeds, and a bootstrap of seeds and held-out
documents. **Bold**, and filled in the figure: both exclude 0, and p is below {level:g} after Holm's
correction for all rows of the metric that have a value ({n}); *italics*: both exclude 0, and the
correction does not let it count. `p`: after the correction; one near {level:g} is shown by little.
`at L0s`: at how many of the L0s of its own report's table the difference is shown there: an area
may be shown where the difference at some L0 is not, or has the other sign."""
_LEAST_P = 0.001

_PLACES_METHOD = """\
A place is a site of a comparison; an arm's rows above at two places or more, from one reference,
are pooled by a random-effects model of places. `mean`: with its 95 % interval over places like
these, Student's t with the error of Hartung and Knapp and of Sidik and Jonkman. `a new place`: 95 %
prediction interval of the difference there; a dash for two places. `tau`: standard deviation
between places, by Paule and Mandel, in percentage points. **Bold**: the interval excludes 0, and p
is below {level:g} after Holm's correction for the rows of the metric. Places are few and were not
drawn at random, those of one model have its weights and {texts} in common, and a site of two
comparisons counts twice: so intervals are for places like these, and may be too short for others.
Rows of one seed, or without a value, are left out. In the figure, rings are places, a filled mean
is a bold one, and thin lines are for a new place."""


def verdicts(compared: Sequence[Differences | AcrossSites], metric: str) -> list[Verdict]:
    """Of all arms that have one, in the order of the comparisons; corrected for their number."""
    found = [row for each in compared for row in _verdicts(each, metric)]
    estimates = corrected([row.estimate for row in found])
    return [row._replace(estimate=e) for row, e in zip(found, estimates, strict=True)]


def write_report(compared: Sequence[Differences | AcrossSites], folder: Path, command: str) -> Path:
    """Write report.md (the verdict), report.html (it, and each report in full) and the figure;
    returns the folder."""
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    metrics = [metric for metric in METRICS if any(metric in each.metrics for each in compared)]
    tables = {metric: verdicts(compared, metric) for metric in metrics}
    if any(tables.values()):
        figures.draw_verdicts(folder / "figures" / "verdict.png", tables)
    text = "\n\n".join(_parts(compared, tables, folder, command)) + "\n"
    (folder / "report.md").write_text(text, encoding="utf-8")
    whole = [text, *(_in_full(each, folder) for each in compared)]
    page = page_of("\n".join(whole), folder)
    (folder / "report.html").write_text(page, encoding="utf-8")
    return folder


def _verdicts(compared: Differences | AcrossSites, metric: str) -> Iterator[Verdict]:
    name = compared.c.report_folder.name
    if isinstance(compared, AcrossSites):
        of_sites = {f"{name}, {site}": own for site, own in compared.differences.items()}
    else:
        of_sites = {name: compared}
    for of, differences in of_sites.items():
        for arm, cells in differences.tables.get(metric, {}).items():
            frontiers, of_arm = differences.frontiers, (arm, differences.reference, metric)
            low, high = frontiers.reach([arm])
            l0s = [l0 for l0 in differences.l0s if low <= l0 <= high]
            if l0s:  # of several L0s the area; not corrected
                estimate = frontiers.difference(*of_arm, l0s[0])
                if len(l0s) > 1:
                    estimate = frontiers.area(*of_arm, l0s[0], l0s[-1])
                shown = sum(cell.is_significant for cell in cells[: len(differences.l0s)])
                titles = compared.c.title(arm), compared.c.title(differences.reference)
                n_seeds = len(compared.c.seeds)
                yield Verdict(of, titles[0], l0s, estimate, shown, titles[1], n_seeds)


def _parts(
    compared: Sequence[Differences | AcrossSites],
    tables: dict[str, list[Verdict]],
    folder: Path,
    command: str,
) -> Iterator[str]:
    yield f"# {len(compared)} comparisons and their verdict"
    yield _comparisons(compared, folder)
    yield "## Verdict"
    if any(tables.values()):
        counts = [sum(not math.isnan(v.estimate.value) for v in rows) for rows in tables.values()]
        n, differ = " and ".join(map(str, counts)), they_differ(tables)
        yield _METHOD.format(they_differ=differ, level=LEVEL, n=n)
        yield f"![By how much {differ}](figures/verdict.png)"
        yield from (_table(metric, rows) for metric, rows in tables.items())
        yield from _over_places(tables, folder, "texts" if _read_text(compared) else "inputs")
    else:
        yield "None: no two arms of a comparison reach an L0 of its tables."
    for across in compared:
        if isinstance(across, AcrossSites) and across.others:
            yield f"## Over the sites of {across.c.report_folder.name}"
            yield f"[Its report]({_path(across, folder)}) explains the columns."
            yield from (overall_table(across, metric) for metric in across.metrics)
    yield "## Reproduce"
    yield (
        f"```\n{command}\n```\n\nIt trains what the reports' folders lack, and writes every report "
        "again. `report.html`, beside this file, holds all of them in full."
    )


def _comparisons(compared: Sequence[Differences | AcrossSites], folder: Path) -> str:
    about = ["SAEs", "latents", "activations", "seeds", "reference", "machines", "harvests"]
    rows = [["comparison", "site", *about]]
    for each in compared:
        is_several = isinstance(each, AcrossSites)
        of_sites = list(each.measured.values()) if is_several else [each.measured]
        saes = [m for those in of_sites for m in those]
        widths = sorted({m.record["sae_as_trained"]["d_sae"] for m in saes})
        rows.append(
            [
                f"[{each.c.report_folder.name}]({_path(each, folder)})",
                ", ".join(each.measured) if is_several else str(each.c.sae.get("site")),
                f"{len(saes):,}",
                ", ".join(f"{width:,}" for width in widths),
                f"{saes[0].record['n_tokens']:,}",
                str(len(each.c.seeds)),
                each.c.title(each.c.reference_arm),
                "; ".join(sorted({m.record["machine"] or "not recorded" for m in saes})),
                str(max(map(n_harvests, of_sites))),
            ]
        )
    inputs, more = "inputs were", "different ones, by rounding or by content"
    if _read_text(compared):
        inputs, more = "text was", "equal up to rounding"
    return (
        f"{table(rows)}\n\n*Harvests*: in how many ways the {inputs} read at each site, by norm "
        "limits and, where recorded, hashes of all activations. 1: all arms saw the same ones, to "
        f"the bit; more: {more}."
    )


def _read_text(compared: Sequence[Differences | AcrossSites]) -> bool:
    """Whether all of these comparisons are of language models."""
    return all(each.c.kind == "text" for each in compared)


def _table(metric: str, found: Sequence[Verdict]) -> str:
    rows = [[METRICS[metric], "L0", "difference", "p", "at L0s"]]
    for row in found:
        ends = f"{row.l0s[0]:g} to {row.l0s[-1]:g}" if len(row.l0s) > 1 else f"{row.l0s[0]:g}"
        counts = f"{row.n_shown} of {len(row.l0s)}"
        difference, p = difference_cell(row.estimate), _p_cell(row.estimate.p)
        rows.append([f"{row.of}: {row.arm}", ends, difference, p, counts])
    return table(rows)


def _p_cell(p: float) -> str:
    return "-" if math.isnan(p) else f"{p:.3f}" if p >= _LEAST_P else f"< {_LEAST_P}"


def _over_places(tables: dict[str, list[Verdict]], folder: Path, texts: str) -> Iterator[str]:
    """The section of differences over all places, and its figure; nothing if no arm has two."""
    found = {metric: over_places(rows) for metric, rows in tables.items()}
    if not any(found.values()):
        return
    figures.draw_places(folder / "figures" / "places.png", found)
    yield "## Over all places"
    yield _PLACES_METHOD.format(level=LEVEL, texts=texts)
    yield f"![By how much {they_differ(found)} over all places](figures/places.png)"
    yield from (_places_table(metric, rows) for metric, rows in found.items() if rows)


def _places_table(metric: str, found: Sequence[OverPlaces]) -> str:
    head = ["reference", "places", "mean", "95 % interval", "a new place", "least to most", "tau"]
    rows = [[METRICS[metric], *head]]
    for row in found:
        p, own = row.pooled, row.values
        rows.append(
            [
                row.arm,
                row.reference,
                str(len(own)),
                f"{percent(p.value)} %",
                interval_cell(p.interval, p.p),
                interval_cell(p.predicted, 1.0),
                f"{percent(min(own))} to {percent(max(own))}",
                f"{100 * p.tau:.1f}",
            ]
        )
    return table(rows)


def _in_full(compared: Differences | AcrossSites, folder: Path) -> str:
    """A comparison's report, and those of its sites, a level below, with links from `folder`."""
    home = compared.c.report_folder
    homes = [home]
    if isinstance(compared, AcrossSites):
        homes += [own.c.report_folder for own in compared.differences.values()]
    texts = []
    for each in homes:
        text = re.sub(
            "^#", "##", (each / "report.md").read_text(encoding="utf-8"), flags=re.MULTILINE
        )
        start = Path(os.path.relpath(each, folder)).as_posix()
        texts.append(re.sub(r"\]\((?!\w+:)", f"]({start}/", text))
    return "\n".join(texts)


def _path(compared: Differences | AcrossSites, folder: Path) -> str:
    return Path(os.path.relpath(compared.c.report_folder, folder)).as_posix()
