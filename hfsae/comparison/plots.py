"""Figures of a comparison: frontiers, differences from the reference, health; a line an arm."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..cards import figures
from ..cards.figures import plain_ticks, save
from ..io.units import Unit
from .frontier import Frontiers
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
_MARGIN = 1.4
_L0 = "L0 (latents/{0.one})"
_NO_LINE = "no difference to draw:\nno two neighbouring SAEs of an arm\nboth have a value above 0"
_SIDE = 1.05

Titles = Mapping[str, str]


def draw(
    folder: Path, frontiers: Frontiers, measured: Sequence[Measured], titles: Titles, reference: str
) -> dict[str, Path]:
    """Write the figures into `folder`; by name, in the order of the report."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {"frontier": _frontier(frontiers, measured, titles)}
    met = []  # arms whose curve has L0s in common with the reference's
    for arm in frontiers.arms:
        low, high = frontiers.reach([arm, reference])
        has_curves = min(map(frontiers.n_saes, (arm, reference))) > 1
        met += [arm] if arm != reference and low < high and has_curves else []
    if met:
        drawn["difference"] = _difference(frontiers, met, titles, reference)
    drawn["health"] = _health(measured, titles, frontiers.unit)
    return {name: save(figure, folder / f"{name}.png") for name, figure in drawn.items()}


def _frontier(frontiers: Frontiers, measured: Sequence[Measured], titles: Titles) -> "Figure":
    """A dot for each SAE; the mean over seeds, with its interval over seeds and documents."""
    figure, axes_of = panels(len(frontiers.metrics))
    for (metric, label), axes in zip(frontiers.metrics.items(), axes_of, strict=True):
        for i, arm in enumerate(frontiers.arms):
            mine = [m for m in measured if m.arm == arm]
            l0s = [m.metrics["l0"] for m in mine]
            style: dict[str, Any] = {"color": colour(i)}
            dots: dict[str, Any] = {"marker": marker(i), "linewidths": 0, "label": titles[arm]}
            axes.scatter(l0s, [m.metrics[metric] for m in mine], s=14, alpha=0.7, **style, **dots)
            if frontiers.n_saes(arm) > 1:
                grid = _grid(*frontiers.reach([arm]))
                estimates = [frontiers.at(arm, metric, l0) for l0 in grid]
                values = [e.value for e in estimates]
                axes.plot(grid, values, linewidth=1.4, linestyle=line(i), **style)
                low, high = ([e.items[side] for e in estimates] for side in (0, 1))
                axes.fill_between(grid, low, high, alpha=0.12, linewidth=0, **style)
        axes.set(xscale="log", xlabel=_L0.format(frontiers.unit), ylabel=label)
        shown = [m.metrics[metric] for m in measured if m.metrics[metric] > 0]
        has_logs = 2 * len(shown) > len(measured)  # otherwise a log axis would hide most points
        if has_logs:  # and not bands, which go down to nothing where a loss may be none
            axes.set_yscale("log")
            axes.set_ylim(min(shown) / _MARGIN, max(shown) * _MARGIN)
        _plain_axes(axes, y=has_logs)
    legend(figure, axes_of[0])
    return figure


def _difference(
    frontiers: Frontiers, met: Sequence[str], titles: Titles, reference: str
) -> "Figure":
    """Difference of each arm from the reference, with the interval over seeds and documents."""
    figure, axes_of = panels(len(frontiers.metrics))
    for (metric, label), axes in zip(frontiers.metrics.items(), axes_of, strict=True):
        shown, reached, l0s = [0.0], [], []
        axes.axhline(0, color=colour(frontiers.arms.index(reference)), lw=1.4)
        for i, arm in enumerate(frontiers.arms):
            if arm not in met:
                continue
            grid = _grid(*frontiers.reach([arm, reference]))
            estimates = [frontiers.difference(arm, reference, metric, l0) for l0 in grid]
            style: dict[str, Any] = {"color": colour(i)}
            values = [_percent(e.value) for e in estimates]
            axes.plot(grid, values, label=titles[arm], linestyle=line(i), **style)
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
    legend(figure, axes_of[0])
    return figure


def _health(measured: Sequence[Measured], titles: Titles, unit: Unit) -> "Figure":
    shown = {
        "relative_reconstruction_bias": ("gamma (1: no shrinkage)", 1),
        "dead_share": ("dead latents, %", 100),
        "above_10_percent_share": (f"latents on > 10 % of {unit.many}, %", 100),
    }
    figure, axes_of = panels(len(shown))
    arms = list(dict.fromkeys(m.arm for m in measured))
    for (metric, (label, factor)), axes in zip(shown.items(), axes_of, strict=True):
        for i, arm in enumerate(arms):
            mine = sorted((m for m in measured if m.arm == arm), key=lambda m: m.metrics["l0"])
            l0s, values = ([m.metrics[name] for m in mine] for name in ("l0", metric))
            style: dict[str, Any] = {"color": colour(i), "marker": marker(i), "markersize": 4}
            scaled = [factor * value for value in values]
            axes.plot(l0s, scaled, label=titles[arm], linestyle="none", **style)
        axes.set(xscale="log", xlabel=_L0.format(unit), ylabel=label)
        _plain_axes(axes, y=False)
    legend(figure, axes_of[0])
    return figure


def colour(arm: int) -> str:
    """Of the arm of this index."""
    return _COLOURS[arm % len(_COLOURS)]


def line(arm: int) -> str:
    """With its colour, no other arm's among the first 32."""
    return _LINES[arm // len(_COLOURS) % len(_LINES)]


def marker(arm: int) -> str:
    """With its colour, no other arm's among the first 64."""
    return _MARKERS[(arm + arm // len(_COLOURS)) % len(_MARKERS)]


def _percent(log_ratio: float) -> float:
    return 100 * float(np.expm1(log_ratio))


def _grid(low: float, high: float) -> np.ndarray:
    """From low to high; the ends a hair inside, where rounding could lie beyond."""
    return np.geomspace(low * (1 + 1e-9), high * (1 - 1e-9), _GRID_POINTS)


def panels(n: int) -> tuple["Figure", list["Axes"]]:
    """A figure of n panels side by side."""
    return figures.panels((4.6 * n, 4), n_columns=n)


def legend(figure: "Figure", axes: "Axes") -> None:
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
