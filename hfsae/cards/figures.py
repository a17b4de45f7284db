"""Figures of a trained SAE, drawn from the files in its folder and sized for a model card.

matplotlib is imported only when drawing, and used without pyplot: no global state, no display.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig

from .. import models as models  # its Auto classes, so that config.json can be read
from ..io.errors import Damaged, Refused
from ..io.file_names import DIFF, EVALUATION, FIGURES, LOG, TRAINING, WEIGHTS
from ..io.files import damaged, opened_tensors, read_json, reading, replacing
from ..io.units import TOKEN, Unit, unit_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# Okabe and Ito's palette: distinct in every kind of colour vision, and in grey.
_BLUE, _ORANGE, _INK = "#0072B2", "#D55E00", "#222222"
_LABEL: dict[str, Any] = {"color": _INK, "va": "top"}
_LABEL |= {"bbox": {"facecolor": "white", "edgecolor": "none", "pad": 1}}  # over grid lines
_MANY_BINS = 60
_LOGGED = ("step", "fvu", "l0")  # what a figure shows of a line of the log


def draw(folder: str | Path) -> list[Path]:
    """Write `folder/figures/*.png`: those whose data the folder holds.

    density and l0 need evaluation.json, training needs log.jsonl, thresholds a JumpReLU SAE, diff
    needs diff.json.
    """
    target = Path(folder) / FIGURES
    target.mkdir(parents=True, exist_ok=True)
    return [save(figure, target / f"{name}.png") for name, figure in figures_of(Path(folder))]


def figures_of(folder: Path) -> Iterator[tuple[str, "Figure"]]:
    """The figures whose data a folder holds, by name."""
    config, record = AutoConfig.from_pretrained(folder), _json(folder / TRAINING)
    target_l0, unit = getattr(config, "target_l0", None), unit_of(record)
    if evaluation := _json(folder / EVALUATION):
        with reading(folder / EVALUATION):
            density = torch.tensor(evaluation["density"], dtype=torch.float64)
            yield "density", density_figure(density, n_tokens=evaluation["n_tokens"], unit=unit)
            histogram = torch.tensor(evaluation["l0_histogram"])
            yield "l0", l0_figure(histogram, target_l0=target_l0, unit=unit)
    path = folder / LOG
    with reading(path):
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        log = [{name: float(line[name]) for name in _LOGGED} for line in map(json.loads, lines)]
    with reading(folder / TRAINING):
        batch_size = record.get("training", {}).get("batch_size")
        if len(log) > 1 and batch_size:
            warm = int(record.get("warm_start_tokens", 0))
            how: dict[str, Any] = {"target_l0": target_l0, "warm_start_tokens": warm, "unit": unit}
            yield "training", training_figure(log, batch_size=batch_size, **how)
    path = folder / WEIGHTS
    if config.has_thresholds and path.is_file():
        try:
            with opened_tensors(path) as file:  # alone: the matrices beside it may be gigabytes
                threshold = file.get_tensor("threshold")
        except SafetensorError as error:
            raise Refused(f"{path} is damaged ({error}); train or copy it again") from error
        if threshold.shape != (config.d_sae,):
            raise Damaged(damaged(path, f"threshold has shape {list(threshold.shape)}"))
        yield "thresholds", thresholds_figure(threshold * config.latent_scale)
    if compared := _json(folder / DIFF):
        with reading(folder / DIFF):
            yield "diff", diff_figure(compared)


def _json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def save(figure: "Figure", path: Path) -> Path:
    """Save a figure, whole or not at all, with the same bytes for the same data."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})
    return path


def density_figure(
    density: Float[Tensor, " d_sae"], *, n_tokens: int, unit: Unit = TOKEN
) -> "Figure":
    """Latents by the share of tokens they fire on; dead ones have no bar, but the title has their
    share.

    Args:
        n_tokens: number of tokens behind the shares; the smallest share is 1 / n_tokens.
    """
    dead, above_1, above_10 = (
        f"{100 * float(chosen.double().mean()):.2g} %"
        for chosen in (density == 0, density > 0.01, density > 0.1)
    )
    units = unit.many
    figure, (axes,) = _blank(
        f"Firing density of {len(density):,} latents on {n_tokens:,} {units}\n"
        f"{dead} never fire, {above_1} on more than 1 % of {units}, {above_10} on more than 10 %"
    )
    alive = density[density > 0]
    # Five bins a decade: with more, the lowest shares (1, 2, 3 tokens) leave gaps between them.
    lowest = -max(2, len(str(n_tokens - 1)))
    edges = torch.logspace(lowest, 0, -lowest * 5 + 1, dtype=torch.float64)
    axes.hist(alive.tolist(), bins=edges.tolist(), color=_BLUE, edgecolor="white", linewidth=0.5)
    axes.set(xscale="log", xlim=(10.0**lowest, 1.0))
    axes.set_xlabel(f"density: share of {unit.many} on which a latent fires (log scale)")
    axes.set_ylabel("latents")
    for limit in (0.01, 0.1):
        _mark(axes, limit)
    return figure


def l0_figure(
    histogram: Int[Tensor, " k"], *, target_l0: int | float | None = None, unit: Unit = TOKEN
) -> "Figure":
    """Tokens by their number of non-zero latents; entry k counts the tokens with exactly k."""
    n_tokens, cumulative = int(histogram.sum()), histogram.cumsum(0)
    mean = float((histogram * torch.arange(len(histogram))).sum()) / max(n_tokens, 1)
    figure, (axes,) = _blank(f"Non-zero latents per {unit.one}, {n_tokens:,} {unit.many}")
    shown = int((cumulative < 0.999 * n_tokens).sum()) + 1  # a few tokens can have many times more
    width = -(-shown // _MANY_BINS)
    bins = torch.nn.functional.pad(histogram[:shown], (0, -shown % width)).view(-1, width).sum(1)
    left = torch.arange(len(bins)) * width - 0.5
    axes.bar(left.tolist(), bins.tolist(), width, align="edge", color=_BLUE, edgecolor="white")
    beyond = n_tokens - int(histogram[:shown].sum())
    rest = f"; {beyond:,} {unit.many} lie beyond" if beyond else ""
    axes.set_xlabel(f"L0 (latents/{unit.one}){rest}")
    axes.set_ylabel(unit.many if width == 1 else f"{unit.many} per {width} latents")
    axes.margins(x=0.02, y=0.2)
    target = "" if target_l0 is None else f" (target {target_l0:g})"
    _mark(axes, mean, f"mean {mean:.1f}{target}")
    return figure


def training_figure(
    log: list[dict[str, Any]],
    *,
    batch_size: int,
    target_l0: int | float | None = None,
    warm_start_tokens: int = 0,
    unit: Unit = TOKEN,
) -> "Figure":
    """FVU and L0 of single batches against tokens; `log` holds the lines of log.jsonl."""
    from matplotlib.ticker import EngFormatter

    figure, (fvu, l0) = _blank("Training: single batches", n_rows=2)
    tokens = [(line["step"] + 1) * batch_size for line in log]
    marker = "o" if len(log) < 20 else ""  # a line of two points is hard to see
    fvu.plot(tokens, [line["fvu"] for line in log], color=_BLUE, marker=marker)
    fvu.set(yscale="log", ylabel="FVU (log scale)")
    plain_ticks(fvu.yaxis)
    l0.plot(tokens, [line["l0"] for line in log], color=_BLUE, marker=marker)
    l0.set(ylabel=f"L0 (latents/{unit.one})", xlabel=f"{unit.many} trained on")
    l0.margins(y=0.15)
    l0.xaxis.set_major_formatter(EngFormatter(sep=""))  # 200k, 4G
    if max(line["l0"] for line in log) > 5 * log[-1]["l0"] > 0:
        l0.set(yscale="log", ylabel=f"L0 (latents/{unit.one}, log)")
        plain_ticks(l0.yaxis)
    if target_l0 is not None:
        l0.axhline(target_l0, color=_ORANGE, linestyle="--", label=f"target {target_l0:g}")
        l0.legend(frameon=False, loc="best")
    if warm_start_tokens:
        _mark(fvu, warm_start_tokens, "warm start ends")
        _mark(l0, warm_start_tokens)
    return figure


def thresholds_figure(threshold: Float[Tensor, " d_sae"]) -> "Figure":
    """Latents by their JumpReLU threshold, raw units."""
    figure, (axes,) = _blank(f"Thresholds of {len(threshold):,} latents")
    shown = threshold[threshold <= 2 * threshold.quantile(0.99)]  # a few can be far higher
    beyond = len(threshold) - len(shown)
    axes.hist(shown.tolist(), bins=_MANY_BINS, color=_BLUE, edgecolor="white", linewidth=0.5)
    more = f"; {beyond:,} latents lie beyond" if beyond else ""
    axes.set_xlabel(f"threshold (raw units of the activations){more}")
    axes.set_ylabel("latents")
    axes.margins(y=0.2)
    median = float(threshold.median())
    _mark(axes, median, f"median {median:.3g}")
    return figure


def diff_figure(compared: dict[str, Any]) -> "Figure":
    """Latents that fire by the share of their decoder row that is the second model's, and by how
    much of the change from one model to the other each explains, with intervals.

    Args:
        compared: the content of diff.json.
    """
    first, second = compared["models"]
    columns = compared["latents"]
    names = ("share", "explained", "explained_low", "explained_high")
    rows = [row for row in zip(*(columns[name] for name in names), strict=True) if None not in row]
    n_fired = sum(n > 0 for n in columns["n_firings"])
    figure, (axes,) = _blank(
        f"{first} and {second}: {n_fired:,} latents fire, {len(rows):,} of them write not the same "
        "in both\nwhat each explains of the change, with 95 % intervals over documents"
    )
    for share, value, low, high in rows:
        axes.plot([share, share], [100 * low, 100 * high], color=_BLUE, linewidth=1.2)
        axes.plot([share], [100 * value], "o", color=_BLUE, markersize=4)
    axes.axhline(0, color=_INK, linewidth=0.8)
    axes.set(xlim=(-0.02, 1.02), ylabel="% of the change")
    axes.set_xlabel(f"r: share of a latent's decoder row that is {second}'s")
    for limit in (0.1, 0.4, 0.6, 0.9):
        _mark(axes, limit)
    axes.margins(y=0.2)
    return figure


def _blank(title: str, n_rows: int = 1) -> tuple["Figure", list["Axes"]]:
    """A titled figure 800 pixels wide with a column of axes that share their x."""
    figure, column = panels((8, 2.2 + 1.6 * n_rows), n_rows, sharex=True)
    for axes in column:
        axes.grid(visible=False, axis="x")
    column[0].set_title(title, loc="left", fontsize=11)
    return figure, column


def panels(
    size: tuple[float, float], n_rows: int = 1, n_columns: int = 1, *, sharex: bool = False
) -> tuple["Figure", list["Axes"]]:
    """A figure of this size in inches, and its axes, with a pale grid behind them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=100, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    every = list(figure.subplots(n_rows, n_columns, sharex=sharex, squeeze=False).flat)
    for axes in every:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#E0E0E0", linewidth=0.8)
        axes.set_axisbelow(True)
    return figure, every


def _mark(axes: "Axes", x: int | float, text: str = "") -> None:
    """A dashed line across, labelled at the upper end, on the side that has room."""
    axes.axvline(x, color=_INK, linestyle="--", linewidth=1.2)
    place = axes.transAxes.inverted().transform(axes.transData.transform((x, 1.0)))[0]
    side, offset = ("left", 4) if place < 0.85 else ("right", -4)
    axes.annotate(
        text,
        (x, 0.97),
        xycoords=axes.get_xaxis_transform(),
        xytext=(offset, 0),
        textcoords="offset points",
        ha=side,
        **_LABEL,
    )


def plain_ticks(axis: "Axis") -> None:
    """Ticks at 0.2, 0.3 and so on: a short log axis may hold no power of ten."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

    low, high = axis.get_view_interval()
    whole = LogLocator(subs=range(1, 10) if high < 6 * low else (1, 2, 5))
    axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]) if high < 3 * low else whole)
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())
