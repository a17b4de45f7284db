"""FeatureStore: round trips, foreign readers, and how a latent looks in a terminal."""

import json
import os
from collections.abc import Callable

import duckdb
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
import torch
from datasets import load_dataset

from hfsae.features import ANSI, Example, FeatureStore, Latent, show
from hfsae.features.store import COLUMNS
from hfsae.io.checksums import stamp
from hfsae.io.errors import Damaged, Refused

from ..helpers import unseal


def test_a_saved_store_loads_as_it_was(store, tmp_path):
    store.save(tmp_path)
    loaded = FeatureStore.load(tmp_path)
    assert list(loaded) == list(store)
    assert loaded.meta == store.meta
    assert sorted(os.listdir(tmp_path / "features")) == [
        "examples.parquet",
        "latents.parquet",
        "meta.json",
    ]
    loaded.save(tmp_path)  # onto the very files it reads from
    assert list(FeatureStore.load(tmp_path)) == list(store)


def test_a_store_is_saved_in_a_folder_that_is_not_there_yet(store, tmp_path):
    store.save(tmp_path / "runs" / "first")
    assert list(FeatureStore.load(tmp_path / "runs" / "first")) == list(store)


def test_a_store_of_other_weights_is_refused(store, one_latent_a_token, tmp_path):
    one_latent_a_token.sae.save_pretrained(tmp_path)
    store.meta |= stamp(tmp_path)
    store.save(tmp_path)
    FeatureStore.load(tmp_path)
    with torch.no_grad():
        one_latent_a_token.sae.b_dec += 1
    one_latent_a_token.sae.save_pretrained(tmp_path)
    with pytest.raises(Refused, match=r"meta\.json was made with other weights .*`hfsae collect"):
        FeatureStore.load(tmp_path)


class Meanwhile(dict):
    """The meta of a store; `happens` when the tables are written, and their record comes next."""

    def __init__(self, meta: dict, happens: Callable[[], object]) -> None:
        super().__init__(meta)
        self.happens = happens

    def items(self):
        self.happens()
        return super().items()


def test_a_store_whose_writing_was_cut_short_is_none(store, tmp_path):
    store.save(tmp_path)

    def killed() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        FeatureStore(store.latents, store.examples, Meanwhile(store.meta, killed)).save(tmp_path)
    with pytest.raises(Refused, match=r"features/meta\.json is missing"):
        FeatureStore.load(tmp_path)


def test_of_two_stores_written_at_once_no_mixture_is_taken_for_one(store, tmp_path):
    other = FeatureStore(store.latents, pyarrow.dataset.dataset(_few(store)), dict(store.meta))
    overtaken = Meanwhile(store.meta, lambda: other.save(tmp_path))
    FeatureStore(store.latents, store.examples, overtaken).save(tmp_path)
    with pytest.raises(Refused, match=r"examples\.parquet is damaged \(it is not the file"):
        FeatureStore.load(tmp_path)


def _few(store: FeatureStore) -> pa.Table:
    return store.examples.to_table().slice(1)


def test_hostile_token_strings_survive(store, one_latent_a_token, tmp_path):
    store.save(tmp_path)
    loaded = FeatureStore.load(tmp_path)
    for i, text in enumerate(one_latent_a_token.hostile[1:], start=1):
        assert {e.tokens[e.firing] for e in loaded[i].examples} == {text}


def test_every_column_is_defined_in_the_meta_file(store, tmp_path):
    store.save(tmp_path)
    columns = json.loads((tmp_path / "features" / "meta.json").read_text())["columns"]
    assert columns == COLUMNS
    assert store.latents.column_names == list(columns["latents"])
    assert store.examples.schema.names == list(columns["examples"])


def test_datasets_reads_it(store, tmp_path):
    store.save(tmp_path)
    for name, table in (("latents", store.latents), ("examples", store.examples.to_table())):
        path = str(tmp_path / "features" / f"{name}.parquet")
        rows = load_dataset(
            "parquet", data_files=path, split="train", cache_dir=str(tmp_path / "c")
        )
        assert rows.to_list() == table.to_pylist()


def test_duckdb_reads_it(store, tmp_path):
    store.save(tmp_path)
    path = tmp_path / "features" / "examples.parquet"
    # DuckDB counts from 1
    query = "select tokens[firing + 1], activations[firing + 1], activation from read_parquet(?)"
    rows = duckdb.execute(query + " where latent = 2 and kind = 'top' order by rank", [str(path)])
    top = [e for e in store[2].examples if e.kind == "top"]
    assert rows.fetchall() == [("\x00", e.activation, e.activation) for e in top]
    path = tmp_path / "features" / "latents.parquet"
    query = "select latent, density, list_sum(histogram) from read_parquet(?) order by latent"
    rows = duckdb.execute(query, [str(path)]).fetchall()
    assert rows == [(latent.index, latent.density, latent.n_firings) for latent in store]


def test_an_interrupted_save_leaves_the_old_files_whole(store, tmp_path, request):
    store.save(tmp_path)
    request.getfixturevalue("full_disk")
    with pytest.raises(OSError, match="File too large"):
        store.save(tmp_path)
    assert list(FeatureStore.load(tmp_path)) == list(store)


def test_half_of_a_newer_store_never_passes_for_a_whole_one(store, tmp_path):
    store.save(tmp_path)
    examples, old = tmp_path / "features" / "examples.parquet", tmp_path / "old.parquet"
    examples.rename(old)
    examples.mkdir()  # which no file replaces
    with pytest.raises(OSError, match=r"examples\.parquet cannot be written"):
        store.save(tmp_path)
    examples.rmdir()
    old.rename(examples)
    with pytest.raises(ValueError, match=r"features/meta.json is missing"):
        FeatureStore.load(tmp_path)


def test_a_folder_without_a_store_says_what_is_missing(store, tmp_path):
    with pytest.raises(ValueError, match=r"features/meta.json is missing"):
        FeatureStore.load(tmp_path)
    store.save(tmp_path)
    (tmp_path / "features" / "examples.parquet").unlink()
    with pytest.raises(ValueError, match=r"features/examples.parquet is missing"):
        FeatureStore.load(tmp_path)


@pytest.mark.parametrize("index", [-1, 24])
def test_a_latent_outside_the_store_is_an_index_error(store, index):
    with pytest.raises(IndexError, match="it has 0 to 23"):
        store[index]


def test_picks_are_alive_within_bounds_distinct_and_seeded(store):
    fitting = {latent.index for latent in store if 0.03 <= latent.density <= 0.05}
    picked = store.pick(5, seed=3, min_density=0.03, max_density=0.05)
    assert len(set(picked)) == 5
    assert set(picked) <= fitting
    assert picked == store.pick(5, seed=3, min_density=0.03, max_density=0.05)
    assert set(store.pick(100, min_density=0.03, max_density=0.05)) == fitting
    assert {0, 23}.isdisjoint(store.pick(100, min_density=0.0, max_density=1.0))


def test_every_fitting_latent_is_picked_equally_often(store):
    counts = dict.fromkeys(store.pick(100, max_density=1.0), 0)
    for seed in range(1000):
        for latent in store.pick(2, seed, max_density=1.0):
            counts[latent] += 1
    # 22 latents, binomial with n = 1000 and p = 2 / 22: mean 91, standard deviation 9.1
    assert len(counts) == 22
    assert all(abs(count - 91) < 5 * 9.1 for count in counts.values())


def latent_with(*examples: Example) -> Latent:
    return Latent(7, 0.0123, 4567, 31.25, 8.0, [], [(" cat", 1.5)], [("\n", -2.0)], [], [*examples])


def example(tokens: list[str], firing: int, kind: str = "top") -> Example:
    zeros = [0] * len(tokens)
    return Example(kind, 0, 0, 0, firing, 31.25, firing, tokens, zeros, [float(z) for z in zeros])


def test_show_gives_numbers_tokens_and_the_firing_token_highlighted():
    latent = latent_with(
        example(["The", " black", " cat", " sat"], 2), example([" a", " dog"], 0, "quantile_3")
    )
    assert show(latent).splitlines() == [
        "latent 7: fires on 1.230% of tokens (4,567), max 31.2, mean when active 8",
        "  promotes    ' cat' +1.50",
        "  suppresses  '↵' -2.00",
        "  top",
        "       31.2  The black« cat» sat",
        "  quantile 3",
        "       31.2  « a» dog",
    ]
    assert "The black\x1b[1;30;43m cat\x1b[0m sat" in show(latent, ANSI)


def test_show_keeps_to_its_width_around_the_firing_token():
    latent = latent_with(example(["left "] * 40 + ["HERE"] + [" right"] * 40, 40))
    line = show(latent, width=60).splitlines()[-1]
    assert len(line) == 60
    assert "left «HERE» right" in line


def test_show_lets_no_control_character_reach_the_terminal():
    latent = latent_with(example(["\x1b[2J", "\x00", "\u202e", "\r\n", "é🙂"], 1))
    text = show(latent)
    assert all(c.isprintable() for line in text.split("\n") for c in line)
    assert "\\x1b[2J«\\x00»\\u202e\\r↵é🙂" in text


@pytest.mark.parametrize(
    "column, values",
    [
        ("density", lambda n: pa.array([None] * n, pa.float64())),
        ("latent", lambda n: pa.array(["\x1b[2J"] * n)),
        ("latent", lambda n: pa.array([5] * n)),
        ("promoted_tokens", lambda n: pa.array([7] * n)),
        ("n_firings", lambda n: pa.array([[[1]]] * n)),
    ],
)
def test_latents_of_other_kinds_are_one_sentence(store, tmp_path, column, values):
    store.save(tmp_path)
    unseal(tmp_path)
    _recolumn(tmp_path / "features" / "latents.parquet", column, values(len(store)))
    with pytest.raises(ValueError, match=r"latents.parquet is damaged .*; `hfsae collect"):
        FeatureStore.load(tmp_path)


OUT_OF_RANGE = {
    "histogram": lambda rows: [row[1:] for row in rows],
    "histogram empty": lambda rows: [[] for _ in rows],
    "density": lambda rows: [1.5] * len(rows),
    "density NaN": lambda rows: [float("nan")] * len(rows),
}


@pytest.mark.parametrize("kind", OUT_OF_RANGE)
def test_latents_out_of_range_are_one_sentence(store, tmp_path, kind):
    store.save(tmp_path)
    unseal(tmp_path)
    path, column = tmp_path / "features" / "latents.parquet", kind.partition(" ")[0]
    table = pq.read_table(path)
    changed = OUT_OF_RANGE[kind](table[column].to_pylist())
    _recolumn(path, column, pa.array(changed, table.schema.field(column).type))
    with pytest.raises(Damaged, match=rf"damaged \(.*{column}.*\); `hfsae collect .*` makes it ag"):
        FeatureStore.load(tmp_path)


@pytest.mark.parametrize("edges", [[1, 0], [[1, 2]], ["a"], 5, [0.0, 1.0]])
def test_edges_that_do_not_fit_are_one_sentence(store, tmp_path, edges):
    store.save(tmp_path)
    unseal(tmp_path)
    path = tmp_path / "features" / "meta.json"
    path.write_text(json.dumps(store.meta | {"histogram_edges": edges}))
    with pytest.raises(Damaged, match=r"is damaged .*; `hfsae collect"):
        FeatureStore.load(tmp_path)


@pytest.mark.parametrize(
    "column, values",
    [
        ("firing", lambda n: pa.array([99] * n)),
        ("firing", lambda n: pa.array([None] * n, pa.int32())),
        ("kind", lambda n: pa.array([[["top"]]] * n)),
        ("latent", lambda n: pa.array([-1] * n)),
        ("tokens", lambda n: pa.array([["a", None]] * n)),
    ],
)
def test_examples_of_other_kinds_are_one_sentence(store, tmp_path, column, values):
    store.save(tmp_path)
    unseal(tmp_path)
    n = store.examples.count_rows()
    _recolumn(tmp_path / "features" / "examples.parquet", column, values(n))
    with pytest.raises(ValueError, match=r"examples.parquet is damaged"):
        FeatureStore.load(tmp_path).firings()


def _recolumn(path, column, values):
    table = pq.read_table(path)
    place = table.schema.get_field_index(column)
    pq.write_table(table.set_column(place, column, values), path)
