"""Figures of a comparison: frontiers, differences from the reference, health; a line an arm."""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..cards.figures import plain_ticks, save
from ..evaluation.causal import COUNTS, ORDERS
from ..machine.units import Unit
from .causes import ArmCauses
from .differences import Verdict
from .frontier import METRICS, Frontiers
from .interpretability import N_STRATA
from .latents import SCORES, SCORES_BY_DENSITY, LatentsSection
from .pooled import OverPlaces
from .results import Measured

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette and grey: distinct in every kind of colour vision.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
_MARKERS = "osD^vPX*"
_LINES = ("-", "--", ":", "-.")
_FAR = 20  # times as far from the reference as arms in the middle
_GRID_POINTS = 24
_LEGEND_ROWS = 16
_LABEL = 40  # characters that an axis has room for
_NAME = 48  # and a row
_MARGIN = 1.4
_PERCENTS = (-80, -50, -30, -20, -10, -5, 0, 5, 10, 20, 30, 40, 50, 70, 100, 150, 200, 300, 500)
_WIDE = 0.8  # log ratio from which on only every third of them has room
_LEAST = 1e-3
_L0 = "L0 (latents/{0.one})"
_NO_LINE = "no difference to draw:\nno two neighbouring SAEs of an arm\nboth have a value above 0"
_SIDE = 1.05

Titles = Mapping[str, str]


def draw(
    folder: Path, frontiers: Frontiers, measured: Sequence[Measured], titles: Titles, reference: str
) -> dict[str, Path]:
    """Write the figures into `folder`; by name, in the order of the report."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = {"frontier": _frontier(frontiers, measured, titles)}
    met = [arm for arm in frontiers.arms if _meet(frontiers, arm, reference)]
    if met:
        figures["difference"] = _difference(frontiers, met, titles, reference)
    figures["health"] = _health(measured, titles, frontiers.unit)
    return {name: save(figure, folder / f"{name}.png") for name, figure in figures.items()}


def _frontier(frontiers: Frontiers, measured: Sequence[Measured], titles: Titles) -> "Figure":
    """A dot for each SAE; the mean over seeds, with its interval over seeds and documents."""
    figure, panels = _panels(len(frontiers.metrics))
    for (metric, label), axes in zip(frontiers.metrics.items(), panels, strict=True):
        for i, arm in enumerate(frontiers.arms):
            mine = [m for m in measured if m.arm == arm]
            l0s = [m.metrics["l0"] for m in mine]
            style: dict[str, Any] = {"color": _colour(i)}
            dots: dict[str, Any] = {"marker": _marker(i), "linewidths": 0, "label": titles[arm]}
            axes.scatter(l0s, [m.metrics[metric] for m in mine], s=14, alpha=0.7, **style, **dots)
            if frontiers.n_saes(arm) > 1:
                grid = _grid(*frontiers.reach([arm]))
                estimates = [frontiers.at(arm, metric, l0) for l0 in grid]
                values = [e.value for e in estimates]
                axes.plot(grid, values, linewidth=1.4, linestyle=_line(i), **style)
                low, high = ([e.items[side] for e in estimates] for side in (0, 1))
                axes.fill_between(grid, low, high, alpha=0.12, linewidth=0, **style)
        axes.set(xscale="log", xlabel=_L0.format(frontiers.unit), ylabel=label)
        shown = [m.metrics[metric] for m in measured if m.metrics[metric] > 0]
        has_logs = 2 * len(shown) > len(measured)  # otherwise a log axis would hide most points
        if has_logs:  # and not bands, which go down to nothing where a loss may be none
            axes.set_yscale("log")
            axes.set_ylim(min(shown) / _MARGIN, max(shown) * _MARGIN)
        _plain_axes(axes, y=has_logs)
    _legend(figure, panels[0])
    return figure


def _meet(frontiers: Frontiers, arm: str, reference: str) -> bool:
    """Whether both arms have curves with some L0s in common."""
    low, high = frontiers.reach([arm, reference])
    return arm != reference and low < high and min(map(frontiers.n_saes, (arm, reference))) > 1


def _difference(
    frontiers: Frontiers, met: Sequence[str], titles: Titles, reference: str
) -> "Figure":
    """Difference of each arm from the reference, with the interval over seeds and documents."""
    figure, panels = _panels(len(frontiers.metrics))
    for (metric, label), axes in zip(frontiers.metrics.items(), panels, strict=True):
        shown, reached, l0s = [0.0], [], []
        axes.axhline(0, color=_colour(frontiers.arms.index(reference)), lw=1.4)
        for i, arm in enumerate(frontiers.arms):
            if arm not in met:
                continue
            grid = _grid(*frontiers.reach([arm, reference]))
            estimates = [frontiers.difference(arm, reference, metric, l0) for l0 in grid]
            style: dict[str, Any] = {"color": _colour(i)}
            values = [_percent(e.value) for e in estimates]
            axes.plot(grid, values, label=titles[arm], linestyle=_line(i), **style)
            shown.extend(values)
            l0s.extend(grid)
            reached.append(float(np.nanmax(np.abs(values), initial=0.0)))
            low, high = ([_percent(e.items[side]) for e in estimates] for side in (0, 1))
            axes.fill_between(grid, low, high, alpha=0.15, linewidth=0, **style)
        axes.set(xscale="log", xlabel=_L0.format(frontiers.unit))
        axes.set_xlim(min(l0s) / _SIDE, max(l0s) * _SIDE)  # though nothing may be to be seen
        margin = (_MARGIN - 1) * (np.nanmax(shown) - np.nanmin(shown))  # bands go far beyond
        if margin:
            axes.set_ylim(np.nanmin(shown) - margin, np.nanmax(shown) + margin)
        else:
            axes.text(0.5, 0.6, _NO_LINE, transform=axes.transAxes, ha="center", color="#555555")
        if max(reached) > _FAR * np.median(reached):  # else all but one lie on the axis
            axes.set_yscale("symlog", linthresh=1.0)
            axes.yaxis.set_major_formatter("{x:g}")
        axes.set_ylabel(textwrap.fill(f"{label}, % from {titles[reference]}", _LABEL))
        _plain_axes(axes, y=False)
    _legend(figure, panels[0])
    return figure


def _health(measured: Sequence[Measured], titles: Titles, unit: Unit) -> "Figure":
    shown: dict[str, Callable[[float], float]] = {
        "relative_reconstruction_bias": lambda value: value,
        "dead_share": lambda value: 100 * value,
        "above_10_percent_share": lambda value: 100 * value,
    }
    dense = f"latents on > 10 % of {unit.many}, %"
    labels = ("gamma (1: no shrinkage)", "dead latents, %", dense)
    figure, panels = _panels(len(shown))
    arms = list(dict.fromkeys(m.arm for m in measured))
    for (metric, scaled), label, axes in zip(shown.items(), labels, panels, strict=True):
        for i, arm in enumerate(arms):
            mine = sorted((m for m in measured if m.arm == arm), key=lambda m: m.metrics["l0"])
            dots: dict[str, Any] = {"marker": _marker(i), "markersize": 4}
            axes.plot(
                [m.metrics["l0"] for m in mine],
                [scaled(m.metrics[metric]) for m in mine],
                color=_colour(i),
                label=titles[arm],
                linestyle="none",
                **dots,
            )
        axes.set(xscale="log", xlabel=_L0.format(unit), ylabel=label)
        _plain_axes(axes, y=False)
    _legend(figure, panels[0])
    return figure


def draw_causes(path: Path, arms: Mapping[str, ArmCauses]) -> Path:
    """The effect of n latents alone, and the loss without them; dashed: n random ones."""
    figure, panels = _panels(2)
    labels = {"alone": "with n latents only", "without": "lost without n latents"}
    for (curve, label), axes in zip(labels.items(), panels, strict=True):
        for i, (title, arm) in enumerate(arms.items()):
            for order, line in zip(ORDERS, ("-", "--"), strict=True):
                shares = [arm.share(curve, order, n) for n in COUNTS]
                name = title if order == ORDERS[0] else None
                style: dict[str, Any] = {"color": _colour(i), "linestyle": line, "label": name}
                axes.plot(COUNTS, [s.value for s in shares], linewidth=1.4, **style)
                if order == ORDERS[0]:
                    low, high = ([s[side] for s in shares] for side in (1, 2))
                    axes.fill_between(COUNTS, low, high, alpha=0.12, lw=0, color=_colour(i))
        axes.set(xscale="log", xlabel="n latents", ylabel=f"share of m(f) - m(0) {label}")
        axes.set_xticks(COUNTS, map(str, COUNTS), minor=False)
        axes.minorticks_off()
    _legend(figure, panels[0])
    return save(figure, path)


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
    figure, panels = _panels(len(areas))
    for (metric, of_arms), axes in zip(areas.items(), panels, strict=True):
        axes.axhline(0, color="#555555", lw=1)
        for i, (arm, of_sites) in enumerate(of_arms.items(), start=1):
            at = np.arange(len(sites)) + 0.8 * (i / (len(of_arms) + 1) - 0.5)
            percents = 100 * np.expm1(of_sites)
            style: dict[str, Any] = {"color": _colour(i), "marker": _marker(i), "linestyle": "none"}
            axes.plot(at.repeat(of_sites.shape[1]), percents.ravel(), markersize=4, **style)
            means = 100 * np.expm1(of_sites.mean(axis=1))
            axes.vlines(at, 0, means, color=_colour(i), lw=3, alpha=0.35, label=titles[arm])
        axes.set_xticks(range(len(sites)), [site.removeprefix("layers.") for site in sites])
        axes.set_xlim(-0.5, len(sites) - 0.5)  # though the last may have nothing to be seen
        axes.set(xlabel=xlabel, ylabel=f"{METRICS[metric]}, % from the reference")
    _legend(figure, panels[0])
    return save(figure, path)


def draw_verdicts(path: Path, verdicts: Mapping[str, Sequence[Verdict]]) -> Path:
    """Save the figure of verdicts."""
    return save(verdicts_figure(verdicts), path)


def verdicts_figure(verdicts: Mapping[str, Sequence[Verdict]]) -> "Figure":
    """A row an arm: its difference over L0s, with both intervals; filled where it is shown."""
    figure, panels = _panels(len(verdicts))
    rows = list(dict.fromkeys((v.of, v.arm) for found in verdicts.values() for v in found))
    comparisons = list(dict.fromkeys(of for of, _ in rows))
    figure.set_size_inches(11, 1.2 + 0.2 * len(rows))
    for (metric, of_metric), axes in zip(verdicts.items(), panels, strict=True):
        axes.axvline(0, color="#555555", lw=1)
        for v in of_metric:
            y, colour = rows.index((v.of, v.arm)), _colour(comparisons.index(v.of))
            for sides, width in ((v.estimate.items, 0.8), (v.estimate.seeds, 2.6)):
                axes.hlines(y, *sides, color=colour, lw=width)
            face = colour if v.estimate.is_shown else "white"
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
    figure, panels = _panels(len(found))
    names = list(dict.fromkeys((r.arm, r.reference) for rows in found.values() for r in rows))
    figure.set_size_inches(11, 1.4 + 0.4 * len(names))
    for (metric, of_metric), axes in zip(found.items(), panels, strict=True):
        axes.axvline(0, color="#555555", lw=1)
        ends = []
        for row in of_metric:
            y, p, colour = names.index((row.arm, row.reference)), row.pooled, _colour(0)
            axes.plot(row.values, [y - 0.25] * len(row.values), "o", color="#777777", mfc="none")
            for sides, width in ((p.predicted, 0.8), (p.interval, 2.6)):
                axes.hlines(y, *sides, color=colour, lw=width)
            axes.plot(p.value, y, "D", color=colour, mfc=colour if p.is_shown else "white")
            ends += [*row.values, *p.interval]
        shown = [textwrap.fill(arm, _LABEL) if axes is panels[0] else "" for arm, _ in names]
        axes.set_yticks(range(len(names)), shown, fontsize=8)
        axes.set_ylim(len(names) - 0.5, -0.5)
        _log_axis(axes, ends, METRICS[metric])
    return save(figure, path)


def _log_axis(axes: "Axes", ends: Sequence[float], label: str) -> None:
    """From the least to the largest of these log ratios and 0, with ticks in per cent."""
    low, high = np.nanmin([0.0, *ends]), np.nanmax([0.0, *ends])
    margin = 0.04 * (high - low) + _LEAST
    axes.set_xlim(low - margin, high + margin)
    coarse = _PERCENTS[:: 1 if high - low < _WIDE else 3]
    ticks = [t for t in coarse if low - margin <= np.log1p(t / 100) <= high + margin]
    axes.set_xticks(np.log1p(np.array(ticks) / 100), [f"{t:+d}" if t else "0" for t in ticks])
    axes.set_xlabel(f"{label}, % from the reference")


def draw_interpretability(path: Path, section: LatentsSection) -> Path:
    """Scores by tenth of density, an arm a line; dotted: the reference's controls."""
    figure, panels = _panels(len(SCORES_BY_DENSITY))
    values, x = section.middle, np.arange(1, N_STRATA + 1)
    for name, axes in zip(SCORES_BY_DENSITY, panels, strict=True):
        for i, (title, arm, part) in enumerate(section.rows()):
            is_control = i >= len(values.arms)
            style: dict[str, Any] = {"color": "#777777" if is_control else _colour(i)}
            style |= {"linestyle": ":" if is_control else _line(i), "marker": _marker(i)}
            of_part = SCORES[name]._replace(part=part)
            spreads = [values.stratum(arm, of_part, stratum) for stratum in range(N_STRATA)]
            axes.plot(x, [s.value for s in spreads], label=title, markersize=4, **style)
            if not is_control:
                low, high = ([s.items[side] for s in spreads] for side in (0, 1))
                axes.fill_between(x, low, high, alpha=0.1, lw=0, color=style["color"])
        axes.set(xlabel="tenth of density, rare to frequent", ylabel=name)
        axes.set_xticks(x)
    _legend(figure, panels[0])
    return save(figure, path)


def _colour(arm: int) -> str:
    return _COLOURS[arm % len(_COLOURS)]


def _line(arm: int) -> str:
    """With its colour, no other arm's among the first 32."""
    return _LINES[arm // len(_COLOURS) % len(_LINES)]


def _marker(arm: int) -> str:
    """With its colour, no other arm's among the first 64."""
    return _MARKERS[(arm + arm // len(_COLOURS)) % len(_MARKERS)]


def _percent(log_ratio: float) -> float:
    return 100 * float(np.expm1(log_ratio))


def _grid(low: float, high: float) -> np.ndarray:
    """From low to high; the ends a hair inside, where rounding could lie beyond."""
    return np.geomspace(low * (1 + 1e-9), high * (1 - 1e-9), _GRID_POINTS)


def _panels(n: int) -> tuple["Figure", list["Axes"]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * n, 4), dpi=100, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(1, n, squeeze=False)[0])
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#E0E0E0", linewidth=0.7)
        axes.set_axisbelow(True)
    return figure, panels


def _legend(figure: "Figure", axes: "Axes") -> None:
    """A legend beside the panels, where it covers nothing, however many arms there are."""
    handles, labels = axes.get_legend_handles_labels()
    columns = 1 + (len(labels) - 1) // _LEGEND_ROWS
    figure.set_figwidth(figure.get_figwidth() + columns * (0.5 + 0.07 * max(map(len, labels))))
    figure.legend(
        handles, labels, loc="outside right center", ncols=columns, frameon=False, fontsize=8
    )


def _plain_axes(axes: "Axes", *, y: bool) -> None:
    """Plain numbers on x, and on y where asked; elsewhere y has at least no offset."""
    plain_ticks(axes.xaxis)
    if y:
        plain_ticks(axes.yaxis)
    elif axes.get_yscale() == "linear":
        axes.ticklabel_format(axis="y", useOffset=False)
