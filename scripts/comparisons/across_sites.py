"""One comparison at several sites of a model: a report for each, and one over all of them.

Over sites, an arm's difference from the reference is the area between their frontiers, d[site,
seed], over the L0s that both reach at every site. Modelled as

    d[site, seed] = mean + of_site[site] + of_seed[site, seed]

with both terms drawn at random, the mean's interval is Student's t over the sites' means, and
speaks of sites like these; `between` and `within` are the terms' standard deviations, by moments
(every site has the same seeds). Of these sites alone the mean's interval is Student's t over the
seeds' means.
"""

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hfsae.comparison import (
    LEVEL,
    METRICS,
    Comparison,
    Differences,
    difference_cell,
    evaluated_on,
    holm,
    model_of,
    page_of,
    percent,
    t_interval,
    t_p,
)

from . import figures
from .markdown import table, they_differ

_METHOD = """\
Areas between an arm's frontier and that of {reference} (mean log ratio over log L0) at each site,
and their mean. `these sites`: its 95 % interval over seeds. `sites like these`: by a random-effects
model of sites and seeds, Student's t over the sites' means. `between sites`, `between seeds`:
standard deviations, in percentage points. **Bold**: the interval excludes 0, and p is below
{level:g} after Holm's correction for a metric's rows. Sites where {loss} is not above 0 have no log
ratio, and are left out. A dash: no two L0s of the tables that both reach at every site, or one
seed."""


class Overall(NamedTuple):
    """An arm's difference from the reference over sites, in log ratios."""

    value: float
    of_these: tuple[float, float]
    """its interval for these sites, over seeds; NaN for one seed"""
    of_all: tuple[float, float]
    """for sites like these, by the random-effects model"""
    between: float
    """standard deviation between sites"""
    within: float
    """standard deviation between seeds of a site; NaN for one seed"""
    p_of_these: float
    """that the mean is 0, over seeds"""
    p_of_all: float


def overall(areas: np.ndarray) -> Overall:
    """From areas [sites, seeds]: the random-effects model of this module's head. All NaN for fewer
    than two sites."""
    if len(areas) < 2:
        nan = float("nan")
        return Overall(nan, (nan, nan), (nan, nan), nan, nan, nan, nan)
    n_seeds, means, of_seeds = areas.shape[1], areas.mean(axis=1), areas.mean(axis=0)
    within = float(areas.var(axis=1, ddof=1).mean()) if n_seeds > 1 else float("nan")
    between = float(means.var(ddof=1)) - (within / n_seeds if n_seeds > 1 else 0.0)
    spread = max(between, 0.0) ** 0.5 if np.isfinite(between) else float("nan")
    intervals = t_interval(of_seeds), t_interval(means)
    return Overall(float(means.mean()), *intervals, spread, within**0.5, t_p(of_seeds), t_p(means))


class AcrossSites:
    """Everything that the report over all sites shows, computed from each site's differences."""

    def __init__(self, comparison: Comparison, differences: Mapping[str, Differences]) -> None:
        self.c, self.differences = comparison, differences
        self.measured = {site: own.measured for site, own in differences.items()}
        self.frontiers = {site: own.frontiers for site, own in differences.items()}
        self.metrics = next(iter(differences.values())).metrics
        self.reference = comparison.reference_arm
        self.others = [arm for arm in comparison.arms if arm != self.reference]

    def reach(self, arm: str) -> tuple[float, float]:
        """The L0s, between the ends of at_l0, that the arm and the reference reach everywhere."""
        sides = [f.reach([arm, self.reference]) for f in self.frontiers.values()]
        at = self.c.at_l0
        return max(min(at), *(low for low, _ in sides)), min(max(at), *(high for _, high in sides))

    def areas(self, arm: str, metric: str) -> np.ndarray:
        """[sites, seeds]: areas between the arm's and the reference's frontiers; NaN where one of
        them has one SAE, and so no curve."""
        low, high = self.reach(arm)
        pair = arm, self.reference
        of_sites = [f.areas(*pair, metric, low, high)[:, 0] for f in self.frontiers.values()]
        has_curves = min(f.n_saes(a) for f in self.frontiers.values() for a in pair) > 1
        known = low < high and has_curves
        return np.stack(of_sites) if known else np.full(np.shape(of_sites), np.nan)

    def known_areas(self, arm: str, metric: str) -> np.ndarray:
        """The areas of the sites that have one for every seed."""
        areas = self.areas(arm, metric)
        return areas[np.isfinite(areas).all(axis=1)]

    @cached_property
    def overall(self) -> dict[str, dict[str, Overall]]:
        """[metric][arm]; each p is corrected for the arms of a metric."""
        tables = {}
        for metric in self.metrics:
            rows = [overall(self.known_areas(arm, metric)) for arm in self.others]
            of_these = holm([row.p_of_these for row in rows])
            of_all = holm([row.p_of_all for row in rows])
            corrected = [
                row._replace(p_of_these=these, p_of_all=every)
                for row, these, every in zip(rows, of_these, of_all, strict=True)
            ]
            tables[metric] = dict(zip(self.others, corrected, strict=True))
        return tables

    def ranks(self, site: str, l0: float) -> dict[str, int]:
        """Each arm's place by FVU at an L0, 1 for the smallest; arms without a value have none."""
        values = {arm: self.frontiers[site].at(arm, "fvu", l0).value for arm in self.c.arms}
        known = sorted((arm for arm in values if np.isfinite(values[arm])), key=values.__getitem__)
        return {arm: place for place, arm in enumerate(known, start=1)}


def write_report(across: AcrossSites, command: str) -> Path:
    """Write the report over all sites, beside the folders of the sites' own; returns its folder."""
    comparison, folder = across.c, across.c.report_folder
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    titles = {arm: comparison.title(arm) for arm in across.others}
    areas = {
        metric: {arm: across.areas(arm, metric) for arm in across.others}
        for metric in across.metrics
    }
    if across.others:
        xlabel = "site" if comparison.kind == "files" else "site (block, or its sublayer)"
        figures.draw_sites(
            folder / "figures" / "sites.png", areas, list(across.measured), titles, xlabel
        )
    text = "\n\n".join(_parts(across, command)) + "\n"
    (folder / "report.md").write_text(text, encoding="utf-8")
    (folder / "report.html").write_text(page_of(text, folder), encoding="utf-8")
    return folder


def _parts(across: AcrossSites, command: str) -> Iterator[str]:
    c, sites = across.c, list(across.measured)
    arms = f"{len(c.arms)} arms" if across.others else c.title(across.reference)
    yield f"# {arms} at {len(sites)} sites: fidelity at equal L0"
    some = [m for saes in across.measured.values() for m in saes]
    yield (
        f"{len(some)} SAEs of {model_of(c)}, each trained on "
        f"{some[0].record['n_tokens']:,} activations; seeds {', '.join(map(str, c.seeds))}. Each "
        "site has a report of its own: "
        f"{', '.join(f'[{site}]({site})' for site in sites)}."
    )
    if across.others:
        yield from _differences(across)
    yield "## Order of the arms"
    l0s = ", ".join(f"{l0:g}" for l0 in c.at_l0)
    yield f"Places by mean FVU at L0 {l0s} (1: the smallest), whether or not differences are shown."
    yield _order(across)
    yield "## Silent latents"
    yield (
        f"Latents that fire on none of {evaluated_on(c, some)}, %, from the "
        "sparsest SAEs to the densest; means over seeds."
    )
    yield _silent(across)
    yield "## Reproduce"
    yield f"```\n{command}\n```"


def _differences(across: AcrossSites) -> Iterator[str]:
    c = across.c
    yield f"![By how much {they_differ(across.metrics)}, by site](figures/sites.png)"
    yield "## Over all sites"
    loss = "a loss" if "delta_loss" in across.metrics else "FVU"
    yield _METHOD.format(reference=c.title(across.reference), level=LEVEL, loss=loss)
    yield from (overall_table(across, metric) for metric in across.metrics)
    yield "## By site and L0"
    yield (
        f"Relative differences from {c.title(across.reference)}; negative is better. Bold and "
        "italics as in the sites' reports. `area` is over the L0s of the row."
    )
    yield from (_by_site(across, metric) for metric in across.metrics)


def overall_table(across: AcrossSites, metric: str) -> str:
    """Each arm's mean over sites, with its intervals, as Markdown."""
    head = [METRICS[metric], "sites", "L0", "mean", "these sites", "sites like these"]
    rows = [[*head, "least to most", "between sites", "between seeds"]]
    for arm, row in across.overall[metric].items():
        title, (low, high) = across.c.title(arm), across.reach(arm)
        if not np.isfinite(row.value):
            rows.append([title, *["-"] * (len(rows[0]) - 1)])
            continue
        means = across.known_areas(arm, metric).mean(axis=1)
        spreads = (f"{100 * x:.1f}" if np.isfinite(x) else "-" for x in (row.between, row.within))
        rows.append(
            [
                title,
                f"{len(means)} of {len(across.measured)}",
                f"{low:.0f} to {high:.0f}",
                f"{percent(row.value)} %",
                interval_cell(row.of_these, row.p_of_these),
                interval_cell(row.of_all, row.p_of_all),
                f"{percent(means.min())} to {percent(means.max())}",
                *spreads,
            ]
        )
    return table(rows)


def interval_cell(sides: tuple[float, float], p: float) -> str:
    """A 95 % interval of a log ratio in per cent, bold if it excludes 0 and p is small enough."""
    low, high = sides
    if not np.isfinite(low + high):
        return "-"
    mark = "**" if (low > 0 or high < 0) and p < LEVEL else ""
    return f"{mark}{percent(low)} to {percent(high)}{mark}"


def _by_site(across: AcrossSites, metric: str) -> str:
    l0s = across.c.at_l0
    rows = [[METRICS[metric], *(f"L0 {l0:g}" for l0 in l0s), "area"]]
    for site, differences in across.differences.items():
        for arm, cells in differences.tables[metric].items():
            of_l0s = dict(zip(differences.l0s, cells, strict=False))
            area = cells[len(differences.l0s) :]
            shown = [difference_cell(of_l0s[l0]) if l0 in of_l0s else "-" for l0 in l0s]
            shown.append(difference_cell(area[0]) if area else "-")
            rows.append([f"{site}: {across.c.title(arm)}", *shown])
    return table(rows)


def _order(across: AcrossSites) -> str:
    rows = [["arm", *across.measured]]
    ranks = {site: [across.ranks(site, l0) for l0 in across.c.at_l0] for site in across.measured}
    for arm in across.c.arms:
        cells = [
            ", ".join(str(of_l0.get(arm, "-")) for of_l0 in of_site) for of_site in ranks.values()
        ]
        rows.append([across.c.title(arm), *cells])
    return table(rows)


def _silent(across: AcrossSites) -> str:
    rows = [["arm", *across.measured]]
    for arm in across.c.arms:
        row = [across.c.title(arm)]
        for saes in across.measured.values():
            mine = sorted((m for m in saes if m.arm == arm), key=lambda m: m.value)
            names = dict.fromkeys(m.name for m in mine)
            shares = [[m.metrics["dead_share"] for m in mine if m.name == name] for name in names]
            row.append(", ".join(f"{100 * sum(of) / len(of):.0f}" for of in shares))
        rows.append(row)
    return table(rows)
