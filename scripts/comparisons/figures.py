"""Figures of these reports: causes, scores by density, sites, verdicts and places."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hfsae.comparison import METRICS, plots

from .causal_control import COUNTS, ORDERS
from .interpretability import N_STRATA
from .pooled import OverPlaces, Verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .causes import ArmCauses
    from .latents import LatentsSection

_LABEL = 40  # characters that an axis has room for
_NAME = 48  # and a row
_PERCENTS = (-80, -50, -30, -20, -10, -5, 0, 5, 10, 20, 30, 40, 50, 70, 100, 150, 200, 300, 500)
_WIDE = 0.8  # log ratio from which on only every third of them has room
_LEAST = 1e-3

Titles = Mapping[str, str]


def draw_causes(path: Path, arms: "Mapping[str, ArmCauses]") -> Path:
    """The effect of n latents alone, and the loss without them; dashed: n random ones."""
    figure, panels = plots.panels(2)
    labels = {"alone": "with n latents only", "without": "lost without n latents"}
    for (curve, label), axes in zip(labels.items(), panels, strict=True):
        for i, (title, arm) in enumerate(arms.items()):
            for order, line in zip(ORDERS, ("-", "--"), strict=True):
                shares = [arm.share(curve, order, n) for n in COUNTS]
                name = title if order == ORDERS[0] else None
                style: dict[str, Any] = {"color": plots.colour(i), "linestyle": line, "label": name}
                axes.plot(COUNTS, [s.value for s in shares], linewidth=1.4, **style)
                if order == ORDERS[0]:
                    low, high = ([s[side] for s in shares] for side in (1, 2))
                    axes.fill_between(COUNTS, low, high, alpha=0.12, lw=0, color=plots.colour(i))
        axes.set(xscale="log", xlabel="n latents", ylabel=f"share of m(f) - m(0) {label}")
        axes.set_xticks(COUNTS, map(str, COUNTS), minor=False)
        axes.minorticks_off()
    plots.legend(figure, panels[0])
    return plots.save(figure, path)


def draw_sites(
    path: Path,
    areas: Mapping[str, Mapping[str, np.ndarray]],
    sites: Sequence[str],
    titles: Titles,
    xlabel: str,
) -> Path:
    """Each arm's area from the reference at each site: a dot a seed, a bar for their mean.

    Args:
        areas: [metric][arm] -> [sites, seeds], log ratios.
    """
    figure, panels = plots.panels(len(areas))
    for (metric, of_arms), axes in zip(areas.items(), panels, strict=True):
        axes.axhline(0, color="#555555", lw=1)
        for i, (arm, of_sites) in enumerate(of_arms.items(), start=1):
            at = np.arange(len(sites)) + 0.8 * (i / (len(of_arms) + 1) - 0.5)
            percents = 100 * np.expm1(of_sites)
            style: dict[str, Any] = {
                "color": plots.colour(i),
                "marker": plots.marker(i),
                "linestyle": "none",
            }
            axes.plot(at.repeat(of_sites.shape[1]), percents.ravel(), markersize=4, **style)
            means = 100 * np.expm1(of_sites.mean(axis=1))
            axes.vlines(at, 0, means, color=plots.colour(i), lw=3, alpha=0.35, label=titles[arm])
        axes.set_xticks(range(len(sites)), [site.removeprefix("layers.") for site in sites])
        axes.set_xlim(-0.5, len(sites) - 0.5)  # though the last may have nothing to be seen
        axes.set(xlabel=xlabel, ylabel=f"{METRICS[metric]}, % from the reference")
    plots.legend(figure, panels[0])
    return plots.save(figure, path)


def draw_verdicts(path: Path, verdicts: Mapping[str, Sequence[Verdict]]) -> Path:
    """Save the figure of verdicts."""
    return plots.save(verdicts_figure(verdicts), path)


def verdicts_figure(verdicts: Mapping[str, Sequence[Verdict]]) -> "Figure":
    """A row an arm: its difference over L0s, with both intervals; filled where it is shown."""
    figure, panels = plots.panels(len(verdicts))
    rows = list(dict.fromkeys((v.of, v.arm) for found in verdicts.values() for v in found))
    comparisons = list(dict.fromkeys(of for of, _ in rows))
    figure.set_size_inches(11, 1.2 + 0.2 * len(rows))
    for (metric, of_metric), axes in zip(verdicts.items(), panels, strict=True):
        axes.axvline(0, color="#555555", lw=1)
        for v in of_metric:
            y, colour = rows.index((v.of, v.arm)), plots.colour(comparisons.index(v.of))
            for sides, width in ((v.estimate.items, 0.8), (v.estimate.seeds, 2.6)):
                axes.hlines(y, *sides, color=colour, lw=width)
            face = colour if v.estimate.is_significant else "white"
            axes.plot(v.estimate.value, y, "o", color=colour, markerfacecolor=face, markersize=5)
        names = [f"{arm[:_NAME]}  ({of})" if axes is panels[0] else "" for of, arm in rows]
        axes.set_yticks(range(len(rows)), names, fontsize=7)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        # By the intervals over seeds: those over documents can reach a loss of 0.
        estimates = [v.estimate for v in of_metric]
        _log_axis(axes, [end for e in estimates for end in (e.value, *e.seeds)], METRICS[metric])
    return figure


def draw_places(path: Path, found: Mapping[str, Sequence[OverPlaces]]) -> Path:
    """A row an arm: a ring a place; their mean with its interval, thick, and that of a new place,
    thin; filled where the mean is shown."""
    figure, panels = plots.panels(len(found))
    names = list(dict.fromkeys((r.arm, r.reference) for rows in found.values() for r in rows))
    figure.set_size_inches(11, 1.4 + 0.4 * len(names))
    for (metric, of_metric), axes in zip(found.items(), panels, strict=True):
        axes.axvline(0, color="#555555", lw=1)
        ends = []
        for row in of_metric:
            y, p, colour = names.index((row.arm, row.reference)), row.pooled, plots.colour(0)
            axes.plot(row.values, [y - 0.25] * len(row.values), "o", color="#777777", mfc="none")
            for sides, width in ((p.predicted, 0.8), (p.interval, 2.6)):
                axes.hlines(y, *sides, color=colour, lw=width)
            axes.plot(p.value, y, "D", color=colour, mfc=colour if p.is_significant else "white")
            ends += [*row.values, *p.interval]
        shown = [textwrap.fill(arm, _LABEL) if axes is panels[0] else "" for arm, _ in names]
        axes.set_yticks(range(len(names)), shown, fontsize=8)
        axes.set_ylim(len(names) - 0.5, -0.5)
        _log_axis(axes, ends, METRICS[metric])
    return plots.save(figure, path)


def _log_axis(axes: "Axes", ends: Sequence[float], label: str) -> None:
    """From the least to the largest of these log ratios and 0, with ticks in per cent."""
    low, high = np.nanmin([0.0, *ends]), np.nanmax([0.0, *ends])
    margin = 0.04 * (high - low) + _LEAST
    axes.set_xlim(low - margin, high + margin)
    coarse = _PERCENTS[:: 1 if high - low < _WIDE else 3]
    ticks = [t for t in coarse if low - margin <= np.log1p(t / 100) <= high + margin]
    axes.set_xticks(np.log1p(np.array(ticks) / 100), [f"{t:+d}" if t else "0" for t in ticks])
    axes.set_xlabel(f"{label}, % from the reference")


def draw_interpretability(path: Path, section: "LatentsSection") -> Path:
    """Scores by tenth of density, an arm a line; dotted: the reference's controls."""
    from .latents import SCORES, SCORES_BY_DENSITY

    figure, panels = plots.panels(len(SCORES_BY_DENSITY))
    values, x = section.middle, np.arange(1, N_STRATA + 1)
    for name, axes in zip(SCORES_BY_DENSITY, panels, strict=True):
        for i, (title, arm, part) in enumerate(section.rows()):
            is_control = i >= len(values.arms)
            style: dict[str, Any] = {"color": "#777777" if is_control else plots.colour(i)}
            style |= {"linestyle": ":" if is_control else plots.line(i), "marker": plots.marker(i)}
            of_part = SCORES[name]._replace(part=part)
            spreads = [values.stratum(arm, of_part, stratum) for stratum in range(N_STRATA)]
            axes.plot(x, [s.value for s in spreads], label=title, markersize=4, **style)
            if not is_control:
                low, high = ([s.items[side] for s in spreads] for side in (0, 1))
                axes.fill_between(x, low, high, alpha=0.1, lw=0, color=style["color"])
        axes.set(xlabel="tenth of density, rare to frequent", ylabel=name)
        axes.set_xticks(x)
    plots.legend(figure, panels[0])
    return plots.save(figure, path)
