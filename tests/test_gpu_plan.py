"""What steps take on a GPU, as predicted and as measured: both by code that runs on a CPU."""

import importlib
import json
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

BENCH = Path(__file__).parent.parent / "scripts" / "bench"


@pytest.fixture(scope="module")
def scripts():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCH)
        names = ("floors", "gpu", "compiled_kernels")
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})


@pytest.mark.skipif(find_spec("triton") is None, reason="no Triton")
@pytest.mark.parametrize("card", ["H100", "MI300X"])
def test_kernels_load_a_number_once_and_spill_nothing(scripts, card, monkeypatch, tmp_path):
    """A number of each of two rows in `dots`, and of one in `sums`."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for name, kernel in scripts.compiled_kernels.compiled(scripts.floors.CARDS[card]).items():
        assert kernel["bytes"] == {"dots": 8, "sums": 4}[name]
        assert kernel["products"] == 1
        assert kernel["spilled"] == 0
        assert 16 <= kernel["registers"] <= 128
        assert 0 < kernel["shared"] <= 4096


def test_a_dense_step_has_five_products_and_an_entry_of_a_sparse_one_reads_five_rows(scripts):
    """Of x in the encoder's values and its gradient, of the decoder for what is written, and of the
    output's gradient for the latents' and the decoder's."""
    pytest.importorskip("triton")
    sparse, dense = (
        scripts.floors.counted(kind, bf16=kind == "never") for kind in ("always", "never")
    )
    (run,) = json.loads(scripts.gpu.RESULT.read_text(encoding="utf-8"))["runs"]
    for kind, found in (("sparse", sparse), ("dense", dense)):  # torch's versions differ a little
        assert found == pytest.approx(run["steps"][kind], rel=0.1)
    assert [sparse["products"], sparse["rows"]] == [1, 5]
    assert [dense["products"], dense["rows"]] == [5, 0]


def test_a_sparse_step_takes_as_long_as_a_dense_one_at_the_density_that_is_told(scripts):
    rows = {"products": 1, "pair": 4, "weight": 100, "activation": 50, "rows": 5}
    dense = {"products": 5, "pair": 100, "weight": 100, "activation": 50, "rows": 0}
    (made,) = scripts.floors.floors({"sparse": rows, "dense": dense}, sizes=[(100, 1000)])
    for name, card in scripts.floors.CARDS.items():
        memory, cache = made["cards"][name]["even"]
        assert cache == pytest.approx(2 * memory, rel=1e-2)
        n_entries = memory * 1000 * 4096
        ms = scripts.floors.floor(rows, card, 100, 1000, 4096, n_entries)
        assert ms == pytest.approx(scripts.floors.floor(dense, card, 100, 1000, 4096, 0), rel=1e-2)


def test_the_table_of_a_card_is_measured_with_what_is_predicted_beside(scripts, monkeypatch):
    monkeypatch.setattr(scripts.gpu, "name_of", lambda device: "NVIDIA H100 80GB HBM3")
    cpu = torch.device("cpu")
    made = scripts.gpu.measured([(16, 1024)], [4, 8], 32, cpu, rounds=1, warmup=1)
    head, *rows = scripts.floors.rows_of(made)
    assert head[1:] == ["NVIDIA H100 80GB HBM3", "H100, predicted", "torch's loops / float32"]
    assert [row[0] for row in rows] == [
        *(f"16 x 1,024, L0 {l0}" for l0 in (4, 8)),
        "16 x 1,024, even at a density of",
    ]
    assert all(float(ms) > 0 for row in rows[:2] for cell in row[1:] for ms in cell.split(" / "))
