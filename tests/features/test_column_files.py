"""Files of labels: read by ids or by place, and refused with a sentence where they do not fit."""

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from hfsae.features import read_labels_table
from hfsae.io.errors import Damaged, Refused


def write(folder, name: str, columns: dict[str, list]):
    path = folder / name
    table = pa.table(columns)
    if name.endswith(".csv"):
        pyarrow.csv.write_csv(table, path)
    else:
        pq.write_table(table, path)
    return path


@pytest.mark.parametrize("name", ["labels.csv", "labels.parquet"])
def test_labels_are_read_by_the_ids_of_documents(tmp_path, name):
    path = write(
        tmp_path, name, {"document": [7, 3, 5], "age": [1.5, 2.5, None], "k": ["a", "b", ""]}
    )
    labels = read_labels_table(path, [3, 3, 5, 5, 7])
    assert labels.document.tolist() == [7, 3, 5] and labels.position is None
    assert labels.columns == {"age": [1.5, 2.5, None], "k": ["a", "b", ""]}
    (age, no_classes), (k, classes) = labels.numbered().values()
    np.testing.assert_array_equal(age, [1.5, 2.5, np.nan])
    np.testing.assert_array_equal(k, [0, 1, np.nan])
    assert (no_classes, classes) == (None, ["a", "b"])


@pytest.mark.parametrize("name", ["labels.csv", "labels.parquet"])
def test_ids_may_be_names_which_are_numbered_as_they_come(tmp_path, name):
    path = write(tmp_path, name, {"document": ["007", "b.png"], "is_bad": [True, False]})
    labels = read_labels_table(path, ["b.png", "a.png", "007"])
    assert labels.document.tolist() == [2, 0]
    ((values, classes),) = labels.numbered().values()
    assert classes == ["False", "True"] and values.tolist() == [1, 0]


def test_ids_are_looked_up_by_the_number_that_a_document_has_among_the_activations(tmp_path):
    path = write(tmp_path, "l.csv", {"document": [7, 3, 5], "k": ["a", "b", "c"]})
    labels = read_labels_table(path, [2, 2, 0, 1], ids=[3, 5, 7])
    assert dict(zip(labels.document.tolist(), labels.columns["k"], strict=True)) == {
        2: "a",
        0: "b",
        1: "c",
    }


def test_without_ids_a_table_has_a_row_for_each_document_or_for_each_row(tmp_path):
    rows = [9, 9, 4, 4, 4, 9, 6]
    of_documents = read_labels_table(write(tmp_path, "d.csv", {"k": ["x", "y", "x"]}), rows)
    assert of_documents.document.tolist() == [9, 4, 6] and of_documents.position is None
    of_rows = read_labels_table(write(tmp_path, "r.csv", {"k": list("xyxyxyx")}), rows)
    assert of_rows.document.tolist() == rows
    assert of_rows.position is not None
    assert of_rows.position.tolist() == [0, 1, 0, 1, 2, 2, 0]


def test_ids_under_another_name_are_told_and_not_taken_for_labels(tmp_path, caplog):
    rows, columns = ["b", "b", "a", "c"], {"doc": ["a", "b", "c"], "k": ["x", "y", "x"]}
    path = write(tmp_path, "l.csv", columns)
    with pytest.raises(
        ValueError, match=r"'doc' of .* holds the ids of the documents in another order"
    ):
        read_labels_table(path, rows)
    with caplog.at_level("INFO"):
        read_labels_table(write(tmp_path, "k.csv", {"k": columns["k"]}), rows)
    assert "were matched in order: it has no column 'document'" in caplog.text


@pytest.mark.parametrize(
    "spelt",
    [lambda i: f"{i:03}", lambda i: f"doc{i}", float, lambda i: f"acts/{i}", lambda i: i + 2],
)
@pytest.mark.parametrize("name", ["l.csv", "l.parquet"])
def test_ids_that_are_spelt_otherwise_do_not_let_rows_be_matched_in_order(tmp_path, name, spelt):
    ids = [(7 * i) % 30 for i in range(30)]
    rows = [i for i in range(30) for _ in range(2)]
    columns = {"id": [spelt(i) for i in ids], "k": [i % 2 for i in ids]}
    path = write(tmp_path, name, columns)
    with pytest.raises(
        Refused, match=r"column 'id' of .* holds the ids of the documents.*; call it"
    ):
        read_labels_table(path, rows, ids=[*range(30)])
    if spelt(0) != 2:
        same = {"id": [spelt(i) for i in range(30)], "k": columns["k"], "x": np.arange(30) / 100}
        labels = read_labels_table(write(tmp_path, f"2{name}", same), rows, ids=[*range(30)])
        assert labels.document.tolist() == [*range(30)] and [*labels.columns] == ["k", "x"]
    per_row = {"id": [spelt(i) for i in ids for _ in range(2)], "k": [0, 1] * 30}
    with pytest.raises(Refused, match=r"column 'id' of .* holds the ids of the documents"):
        read_labels_table(write(tmp_path, f"3{name}", per_row), rows, ids=[*range(30)])


def test_ids_may_stand_in_any_column_of_that_name(tmp_path):
    columns = {"k": ["a", "b", "a"], "document": [7, 3, 5]}
    labels = read_labels_table(write(tmp_path, "l.csv", columns), [3, 5, 7])
    assert labels.document.tolist() == [7, 3, 5] and [*labels.columns] == ["k"]


def test_whole_numbers_with_few_values_are_classes(tmp_path):
    columns = {
        "digit": [i % 10 for i in range(60)],
        "as_floats": [float(i % 3) for i in range(60)],
        "year": [1900 + i for i in range(60)],
        "height": [i % 5 + 0.5 for i in range(60)],
    }
    labels = read_labels_table(write(tmp_path, "l.parquet", columns), np.arange(60))
    classes = {name: classes for name, (_, classes) in labels.numbered().items()}
    assert classes == {
        "digit": [str(i) for i in range(10)],
        "as_floats": ["0", "1", "2"],
        "year": None,
        "height": None,
    }


def test_columns_that_cannot_be_used_are_logged_and_left_out(tmp_path, caplog):
    columns = {
        "one": [3] * 120,
        "empty": pa.array([None] * 120, pa.float64()),
        "lists": [[1]] * 120,
        "ids": [f"text {7 * i}" for i in range(120)],
        "good": [i % 2 for i in range(120)],
    }
    labels = read_labels_table(write(tmp_path, "l.parquet", columns), np.arange(120))
    assert [*labels.numbered()] == ["good"]
    assert caplog.messages[:4] == [
        "column 'one' is left out: its only value is 3",
        "column 'empty' is left out: it has no value",
        "column 'lists' is left out: it holds values of type list",
        "column 'ids' is left out: it has 120 different texts, over 100",
    ]


REFUSED = {
    "another length": (
        "k\nx\ny\n",
        r"labels.csv has 2 rows; give one to each of the 3 documents or their 4 rows, or a col",
    ),
    "an unknown document": (
        "document,k\nab,x\nnoon,y\n",
        r"labels.csv, row 2: there is no document 'noon' among the 3 of .*; closest: 'moon'",
    ),
    "a document twice": (
        "document,k\nab,x\nmoon,y\nab,y\n",
        r"labels.csv, row 3: document 'ab' is in row 1 already",
    ),
    "no column": ("document\nab\n", "labels.csv has no column of labels"),
    "no column that can be used": (
        "k\nx\nx\nx\n",
        r"no column of labels can be used \(column 'k' is left out: its only value is 'x'\)",
    ),
    "a name twice": ("k,k\n1,2\n1,3\n2,2\n", "labels.csv has two columns 'k'"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_tables_that_do_not_fit_are_refused(tmp_path, kind):
    content, sentence = REFUSED[kind]
    path = tmp_path / "labels.csv"
    path.write_text(content)
    with pytest.raises(Refused, match=sentence):
        read_labels_table(path, ["ab", "ab", "cd", "moon"])


@pytest.mark.parametrize("name", ["labels.csv", "labels.parquet"])
def test_damaged_files_are_one_sentence(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"a,b\n1\n2,3,4\n")
    with pytest.raises(Damaged, match=rf"{name} is damaged \("):
        read_labels_table(path, [0, 1])


def test_files_of_other_kinds_and_missing_ones_are_refused(tmp_path):
    with pytest.raises(Refused, match=r"labels.xlsx is not a table of labels; give a .csv or"):
        read_labels_table(tmp_path / "labels.xlsx", [0])
    with pytest.raises(Refused, match=r"there is no file .*labels.csv"):
        read_labels_table(tmp_path / "labels.csv", [0])
