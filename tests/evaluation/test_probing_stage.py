"""Probing as a stage of a run: packaged sets at its end, told before it where it cannot be."""

import csv
import io
import json
import sys

import pyarrow
import pytest

from hfsae.cards import probing_section
from hfsae.evaluation.probing import ProbeArguments
from hfsae.evaluation.probing.extract import extract
from hfsae.io.checksums import changes, weights_hash
from hfsae.io.errors import Refused
from hfsae.io.file_names import PROBING
from hfsae.runs import Recipe, find_saes, probe_saes, run

from ..tiny import tiny_fields, tiny_recipe

pytest.importorskip("sklearn")


@pytest.fixture
def sets(tmp_path, monkeypatch):
    """Two sets of short texts, laid out as in the package sae-probes."""
    folder = tmp_path / "installed" / "sae_probes"
    (folder / "data" / "cleaned_data").mkdir(parents=True)
    (folder / "__init__.py").touch()

    def write(table, rows):
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, [*rows[0]])
        writer.writeheader()
        writer.writerows(rows)
        path = str(folder / "data" / f"{table}.csv.zst")
        with pyarrow.output_stream(path, compression="zstd") as packed:
            packed.write(text.getvalue().encode())

    names = ["200_a", "201_b"]
    kind = {"Data type": "Binary Classification"}
    write(
        "probing_datasets_MASTER",
        [kind | {"Dataset save name": f"cleaned_data/{name}.csv"} for name in names],
    )
    for number, name in enumerate(names):
        texts = [f"{'abc' if i % 2 else 'ghij'} {number} {i}" for i in range(120)]
        write(f"cleaned_data/{name}", [{"prompt": t, "target": len(t.split()[0])} for t in texts])
    monkeypatch.syspath_prepend(folder.parent)
    return names


def test_a_run_ends_with_what_hfsae_probe_gives(tmp_path, loads, sets):
    (folder,) = run(tiny_recipe(tmp_path / "sae", probe_texts=100))
    path = folder / PROBING
    record = json.loads(path.read_text())
    assert [*record["tasks"]] == sets and {*record["tasks"].values()} == {100}
    assert record["weights_sha256"] == weights_hash(folder) and not [*changes(folder, [PROBING])]
    assert json.loads((folder / "evaluation.json").read_text())["probing"] == extract(record)
    assert "## Sparse probing" in (folder / "README.md").read_text()
    assert probing_section(folder)["n_texts"] == 200

    (placed,) = find_saes([{"source": str(folder)}])
    by_hand = probe_saes([placed], ProbeArguments(n_texts=100))
    assert by_hand.rows == record["rows"]
    hashes = {"made_from_sha256", "content_sha256"}  # of a stage's result, which has one more
    again = json.loads(path.read_text())
    assert {k: v for k, v in record.items() if k not in hashes} == {
        k: v for k, v in again.items() if k not in hashes
    }
    before, n_loads = path.read_bytes(), len(loads)
    run(tiny_recipe(tmp_path / "sae", probe_texts=100))
    assert path.read_bytes() == before and len(loads) == n_loads, "it is kept"


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"probe_texts": 60}, "probe_texts is 60: n_texts .* 100"),
        (
            {"probe_texts": 100, "sae": {"sites": ["layers.0", "layers.1"], "site": None}},
            "sae reads layers.0, layers.1; set probe_texts to 0",
        ),
    ],
)
def test_what_cannot_be_probed_is_told_before_the_training(tmp_path, loads, sets, fields, sentence):
    with pytest.raises(Refused, match=sentence):
        run(tiny_recipe(tmp_path / "sae", **fields))
    assert not loads and not (tmp_path / "sae").exists()


def test_sets_that_are_not_installed_are_told_before_the_training(tmp_path, loads, monkeypatch):
    monkeypatch.setitem(sys.modules, "sae_probes", None)
    with pytest.raises(Refused, match=r"pip install --no-deps sae-probes.*or set probe_texts to 0"):
        run(tiny_recipe(tmp_path / "sae", probe_texts=100))
    assert not loads


def test_other_inputs_than_text_are_not_probed(tmp_path):
    fields = tiny_fields(tmp_path, probe_texts=100)
    assert Recipe(**fields).sizes.probing == 100
    several = {"base": {"name": "a"}, "chat": {"name": "b"}}
    assert Recipe(**fields | {"lms": several}).sizes.probing == 0
    with pytest.raises(Refused, match="probe_texts"):
        Recipe(**fields | {"probe_texts": -1})
