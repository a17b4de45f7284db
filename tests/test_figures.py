"""Figures: the numbers they show, and files that are whole and the same each time."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from hfsae.cards import figures
from hfsae.models import BatchTopKSAE, BatchTopKSAEConfig, JumpReLUSAE, JumpReLUSAEConfig

pytestmark = pytest.mark.renders

LOG = [
    {"step": 0, "sae": "", "fvu": 0.9, "l0": 80.0},
    {"step": 10, "sae": "", "fvu": 0.5, "l0": 60.0},
    {"step": 20, "sae": "", "fvu": 0.4, "l0": 52.0, "l0_coefficient": 6e-4},
    {"step": 30, "sae": "", "fvu": 0.3, "l0": 50.0, "l0_coefficient": 6e-4},
]


def texts(figure) -> str:
    """All that is written inside a figure, but for ticks."""
    parts = []
    for axes in figure.axes:
        parts += [axes.get_title(loc="left"), axes.get_xlabel(), axes.get_ylabel()]
        parts += [text.get_text() for text in axes.texts]
    return " | ".join(parts)


def bars(axes) -> list[tuple[float, float, float]]:
    """(left, right, height) of the bars that show."""
    found = [(p.get_x(), p.get_x() + p.get_width(), p.get_height()) for p in axes.patches]
    return [bar for bar in found if bar[2]]


@pytest.fixture
def folder(tmp_path) -> Path:
    """What a finished run leaves, as far as figures read it."""
    sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=4, d_sae=8, site="layers.1", target_l0=50 / 8))
    with torch.no_grad():
        sae.threshold.copy_(torch.arange(1.0, 9.0))
    sae.save_pretrained(tmp_path)
    evaluation = {"density": [0, 0.001, 0.02, 0.2] * 2, "l0_histogram": [0, 5, 3, 2]}
    (tmp_path / "evaluation.json").write_text(json.dumps({**evaluation, "n_tokens": 1000}))
    (tmp_path / "training.json").write_text(json.dumps({"training": {"batch_size": 512}}))
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LOG))
    return tmp_path


def test_density_bars_hold_the_living_latents_and_shares_are_told():
    density = torch.tensor([0, 0, 0.001, 0.02, 0.02, 0.5, 0.5, 0.5], dtype=torch.float64)
    figure = figures.density_figure(density, n_tokens=1000)
    (axes,) = figure.axes
    assert sum(height for *_, height in bars(axes)) == 6
    for left, right, height in bars(axes):
        # a hair of room: 0.001 itself is an edge
        inside = (density >= left * (1 - 1e-9)) & (density < right * (1 - 1e-9))
        assert int(inside.sum()) == height
    written = texts(figure)
    shares = "25 % never fire, 62 % on more than 1 % of tokens, 38 % on more than 10 %"
    assert shares in written
    assert "8 latents on 1,000 tokens" in written
    assert axes.get_xscale() == "log" and axes.get_xlim()[1] == 1.0


def test_density_of_a_latent_that_fired_once_has_a_bar():
    for n_tokens in (1, 7, 1000, 1001, 123_456_789):
        figure = figures.density_figure(torch.tensor([1 / n_tokens]).double(), n_tokens=n_tokens)
        assert sum(height for *_, height in bars(figure.axes[0])) == 1


def test_l0_bars_are_the_histogram_and_the_mean_is_marked():
    figure = figures.l0_figure(torch.tensor([0, 5, 3, 2]), target_l0=2)
    (axes,) = figure.axes
    assert bars(axes) == [(0.5, 1.5, 5), (1.5, 2.5, 3), (2.5, 3.5, 2)]
    assert "mean 1.7 (target 2)" in texts(figure)
    assert axes.lines[0].get_xdata()[0] == pytest.approx(1.7)


def test_a_long_l0_histogram_is_binned_without_losing_a_token():
    generator = torch.Generator().manual_seed(0)
    histogram = torch.randint(1, 100, (1234,), generator=generator)
    figure = figures.l0_figure(histogram)
    (axes,) = figure.axes
    n_shown = sum(int(height) for *_, height in bars(axes))
    n_tokens = int(histogram.sum())
    assert len(bars(axes)) <= 60
    assert n_shown >= 0.999 * n_tokens
    beyond = n_tokens - n_shown
    assert (f"{beyond:,} tokens lie beyond" in texts(figure)) == (beyond > 0)


def test_tokens_with_far_more_latents_do_not_squeeze_the_rest():
    histogram = torch.zeros(5001, dtype=torch.long)
    histogram[50], histogram[5000] = 10_000, 3
    figure = figures.l0_figure(histogram)
    assert bars(figure.axes[0]) == [(49.5, 50.5, 10_000)]
    assert "3 tokens lie beyond" in texts(figure)


def test_the_training_curve_shows_the_log_against_tokens():
    figure = figures.training_figure(LOG, batch_size=512, target_l0=50)
    fvu, l0 = figure.axes
    tokens = [512, 11 * 512, 21 * 512, 31 * 512]
    assert list(fvu.lines[0].get_xdata()) == list(l0.lines[0].get_xdata()) == tokens
    assert list(fvu.lines[0].get_ydata()) == [0.9, 0.5, 0.4, 0.3]
    assert list(l0.lines[0].get_ydata()) == [80, 60, 52, 50]
    assert fvu.get_yscale() == "log"
    assert list(l0.lines[1].get_ydata()) == [50, 50]
    assert l0.get_legend().get_texts()[0].get_text() == "target 50"


def test_the_end_of_a_warm_start_is_marked_where_there_was_one():
    figure = figures.training_figure(LOG, batch_size=512, warm_start_tokens=15 * 512)
    assert "warm start ends" in texts(figure)
    assert figure.axes[0].lines[-1].get_xdata()[0] == 15 * 512
    assert "warm start" not in texts(figures.training_figure(LOG, batch_size=512))


def test_fvu_ticks_are_plain_numbers_however_short_the_axis():
    for low in (0.55, 0.3, 0.05, 0.001):
        log = [{**LOG[0], "step": i, "fvu": low**i} for i in (0, 1)]
        figure = figures.training_figure(log, batch_size=1)
        figure.canvas.draw()
        labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
        low_limit, high_limit = figure.axes[0].get_ylim()
        seen = [float(t) for t in labels if t and low_limit <= float(t) <= high_limit]
        assert len(seen) >= 2


def test_an_l0_that_falls_far_gets_a_log_axis():
    log = [
        {"step": i, "sae": "", "fvu": 0.5, "l0": l0} for i, l0 in enumerate((900.0, 100.0, 50.0))
    ]
    assert figures.training_figure(log, batch_size=1).axes[1].get_yscale() == "log"
    assert figures.training_figure(LOG, batch_size=1).axes[1].get_yscale() == "linear"
    for line in log:
        line["l0"] = 0.0  # nothing fires
    assert figures.training_figure(log, batch_size=1).axes[1].get_yscale() == "linear"


def test_thresholds_are_counted_and_their_median_told():
    figure = figures.thresholds_figure(torch.tensor([1.0, 2.0, 3.0, 3.5, 4.0]))
    assert sum(height for *_, height in bars(figure.axes[0])) == 5
    assert "median 3" in texts(figure) and "beyond" not in texts(figure)


def test_a_few_high_thresholds_do_not_squeeze_the_rest():
    figure = figures.thresholds_figure(torch.cat([torch.rand(997) + 1, torch.full((3,), 100.0)]))
    assert sum(height for *_, height in bars(figure.axes[0])) == 997
    assert max(right for _, right, _ in bars(figure.axes[0])) <= 2
    assert "3 latents lie beyond" in texts(figure)


def test_equal_thresholds_can_be_drawn():
    figure = figures.thresholds_figure(torch.full((7,), 0.001))
    assert sum(height for *_, height in bars(figure.axes[0])) == 7


def test_every_axis_is_labelled_and_quantities_have_units():
    drawn = [
        figures.density_figure(torch.rand(9).double(), n_tokens=100),
        figures.l0_figure(torch.tensor([1, 2])),
        figures.thresholds_figure(torch.rand(9)),
        figures.training_figure(LOG, batch_size=512),
    ]
    for figure in drawn:
        assert all(axes.get_ylabel() for axes in figure.axes)
        assert figure.axes[-1].get_xlabel()
    assert "share of tokens" in texts(drawn[0]) and "latents/token" in texts(drawn[1])
    assert "raw units" in texts(drawn[2]) and "tokens trained on" in texts(drawn[3])


def test_no_label_leaves_its_figure_or_covers_another(folder):
    for _, figure in figures.figures_of(folder):
        figure.canvas.draw()
        boxes = [text.get_window_extent() for axes in figure.axes for text in axes.texts]
        for i, box in enumerate(boxes):
            assert box.x0 >= 0 and box.x1 <= 800 and box.y1 <= figure.bbox.y1
            assert not any(box.overlaps(other) for other in boxes[:i])


@pytest.mark.parametrize("x", [0, 30, 100])
def test_a_marks_text_stays_inside_at_either_end(x):
    histogram = torch.ones(101, dtype=torch.long)
    histogram[x] = 10**5
    figure = figures.l0_figure(histogram, target_l0=1000)
    figure.canvas.draw()
    box = figure.axes[0].texts[0].get_window_extent()
    assert box.x0 >= 0 and box.x1 <= 800


def test_a_folder_gets_the_figures_whose_data_it_holds(folder):
    paths = figures.draw(folder)
    assert [p.name for p in paths] == ["density.png", "l0.png", "training.png", "thresholds.png"]
    assert sorted(p.name for p in (folder / "figures").iterdir()) == sorted(p.name for p in paths)
    for path in paths:
        with Image.open(path) as image:
            assert image.format == "PNG" and image.width == 800
            assert image.convert("RGB").getpixel((1, 1)) == (255, 255, 255)  # also on dark pages
    for name in ("evaluation.json", "log.jsonl", "model.safetensors"):
        (folder / name).unlink()
    assert figures.draw(folder) == []


def test_the_same_data_gives_the_same_bytes(folder):
    first = [path.read_bytes() for path in figures.draw(folder)]
    assert [path.read_bytes() for path in figures.draw(folder)] == first


def test_thresholds_are_read_in_raw_units(folder):
    config = json.loads((folder / "config.json").read_text()) | {"activation_scale": 10.0}
    (folder / "config.json").write_text(json.dumps(config))
    named = dict(figures.figures_of(folder))
    assert "median 40" in texts(named["thresholds"])  # of 10, 20 ... 80, the lower middle one
    assert "mean 1.7 (target 6.25)" in texts(named["l0"])


def test_an_interrupted_write_leaves_the_old_figure(folder, request):
    before = [path.read_bytes() for path in figures.draw(folder)]
    (folder / "evaluation.json").write_text(
        json.dumps({"density": [0.5] * 8, "l0_histogram": [1], "n_tokens": 10})
    )
    request.getfixturevalue("full_disk")
    with pytest.raises(OSError, match="File too large"):
        figures.draw(folder)
    names = ("density", "l0", "training", "thresholds")
    assert [(folder / "figures" / f"{name}.png").read_bytes() for name in names] == before


def test_drawing_leaves_matplotlib_as_it_was(folder):
    import matplotlib

    before, backend = dict(matplotlib.rcParams), matplotlib.get_backend()
    figures.draw(folder)
    assert dict(matplotlib.rcParams) == before and matplotlib.get_backend() == backend


def test_a_damaged_weight_file_is_named(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        figures.draw(folder)


def test_one_threshold_for_all_latents_is_no_histogram(tmp_path):
    sae = BatchTopKSAE(BatchTopKSAEConfig(d_in=4, d_sae=8, k=2))
    sae.save_pretrained(tmp_path)
    assert figures.draw(tmp_path) == []


@pytest.mark.parametrize("record", [{"warm_start_tokens": "x"}, {"training": "x"}])
def test_a_training_record_of_other_kinds_is_one_sentence(folder, record):
    path = folder / "training.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | record))
    with pytest.raises(ValueError, match=r"training.json is damaged .*; restore an intact copy"):
        figures.draw(folder)
