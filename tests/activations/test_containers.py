"""Files of activations: what their headers say, rows at any place, and what is refused."""

import json
import pickle
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from hfsae.activations import ActivationArguments, sites_in
from hfsae.activations.arguments import natural
from hfsae.activations.shards import open_shards

FORMATS = ["safetensors", "npy", "parquet"]
SITE = "layers.1"


def numbers(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def saved(folder: Path, form: str, acts: torch.Tensor, **options) -> Path:
    """A file of one site; options are those of `pyarrow.parquet.write_table`."""
    path = folder / f"{SITE}.{form}"
    if form == "safetensors":
        save_file({"other": torch.ones(3), SITE: acts}, path)
    elif form == "npy":
        np.save(path, acts.numpy())
    else:
        lists = pa.FixedSizeListArray.from_arrays(acts.numpy().reshape(-1), acts.shape[-1])
        pq.write_table(pa.table({"other": range(len(lists)), SITE: lists}), path, **options)
    return path


def only(path: Path):
    """The shard in one file."""
    return open_shards([path], {SITE: SITE})[0]


@pytest.mark.parametrize(
    "form, dtype",
    [
        *((form, dtype) for form in FORMATS for dtype in (torch.float32, torch.float16)),
        ("safetensors", torch.bfloat16),
    ],
)
def test_rows_are_those_of_the_tensor_at_any_place(tmp_path, form, dtype):
    for shape in [(50, 3)] if form == "parquet" else [(50, 3), (10, 5, 3)]:
        check_rows(tmp_path, form, shape, dtype)


def check_rows(folder: Path, form: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    acts = numbers(*shape, dtype=dtype)
    shard = only(saved(folder, form, acts, row_group_size=20))
    header, read = shard.header(SITE), shard.reader([SITE])
    assert (header.shape, f"torch.{header.kind}", header.n_rows) == (shape, str(dtype), 50)
    for start, stop in [(0, 50), (0, 1), (7, 11), (11, 30), (12, 13), (49, 50), (20, 45), (45, 46)]:
        assert torch.equal(read(start, stop)[SITE], acts.reshape(50, 3)[start:stop])


@pytest.mark.parametrize("lists", [pa.list_, pa.large_list])
@pytest.mark.parametrize("kind", ["float32", "float16"])
def test_a_parquet_column_may_have_lists_that_could_differ_in_length(tmp_path, lists, kind):
    acts = numbers(9, 4).numpy().astype(kind)
    column = pa.array(list(acts), lists(pa.from_numpy_dtype(acts.dtype)))
    pq.write_table(pa.table({SITE: column}), tmp_path / "a.parquet", row_group_size=2)
    shard = only(tmp_path / "a.parquet")
    assert shard.header(SITE)[1:3] == (kind, (9, 4))
    assert np.array_equal(shard.reader([SITE])(3, 8)[SITE].numpy(), acts[3:8])


def test_units_of_a_parquet_file_are_blocks_or_row_groups_larger_than_two_of_them(tmp_path):
    shard = only(saved(tmp_path, "parquet", numbers(50, 3), row_group_size=20))
    assert [*shard.units(50, 7)] == [(0, 20), (20, 40), (40, 50)]
    assert [*shard.units(50, 10)] == [(i, i + 10) for i in range(0, 50, 10)]
    assert [*shard.units(50, 30)] == [(0, 30), (30, 50)]
    assert [*shard.units(50, 99)] == [(0, 50)]


def test_two_columns_whose_names_begin_alike_are_told_apart(tmp_path):
    acts = numbers(6, 4).numpy()
    columns = {SITE: list(acts), f"{SITE}.mlp": list(acts[:, :2] + 1)}
    table = {name: pa.array(lists, pa.list_(pa.float32())) for name, lists in columns.items()}
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    shard = only(tmp_path / "a.parquet")
    assert shard.header(SITE).shape == (6, 4) and shard.header(f"{SITE}.mlp").shape == (6, 2)
    assert np.array_equal(shard.reader([SITE])(1, 3)[SITE].numpy(), acts[1:3])


def test_a_file_larger_than_any_memory_gives_its_last_rows(tmp_path):
    n, width = 2**31, 128
    about = {"dtype": "F32", "shape": [n, width], "data_offsets": [0, n * width * 4]}
    header = json.dumps({SITE: about}).encode()
    path = tmp_path / "a.safetensors"
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        try:
            file.truncate(8 + len(header) + n * width * 4)  # 1 TiB, of which none is on the disk
        except OSError:
            pytest.skip("this disk has no files of 1 TiB")
        file.seek(-4, 2)
        file.write(np.float32(7).tobytes())
    rows = only(path).reader([SITE])(n - 2, n)[SITE]
    assert rows.sum() == 7 and rows[1, -1] == 7


def test_a_large_row_group_is_decoded_a_part_at_a_time(tmp_path):
    acts = numbers(2**15, 256)  # 32 MB
    path = saved(tmp_path, "parquet", acts, use_dictionary=False, compression="none")
    before, read = pa.total_allocated_bytes(), only(path).reader([SITE])
    rows = read(30_000, 30_008)[SITE]
    assert 0 < pa.total_allocated_bytes() - before < 12e6
    assert torch.equal(rows, acts[30_000:30_008])


def test_files_are_in_natural_order():
    names = [
        "b/part1",
        "a/part10.npy",
        "a/part2.npy",
        "a/part02.npy",
        "a/x-3-of-12",
        "a/x-12-of-12",
    ]
    ordered = ["a/part02.npy", "a/part2.npy", "a/part10.npy", "a/x-3-of-12", "a/x-12-of-12"]
    found = [str(path) for path in sorted(map(Path, sorted(names)), key=natural)]
    assert found == [*ordered, "b/part1"]


def test_npy_files_are_sites_by_their_names_and_shards_by_their_numbers(tmp_path):
    def values(tensors: dict[str, str]) -> list[dict[str, float]]:
        shards = open_shards(paths, tensors, ["document"])
        reads = [shard.reader([*tensors.values()])(2, 3) for shard in shards]
        return [{name: float(x[0, 0]) for name, x in read.items()} for read in reads]

    names = ["layers.1", "layers.2", "a-part1", "a-part2", "b-00001-of-00002", "b-00002-of-00002"]
    for i, name in enumerate([*names, "x3", "x4"]):
        np.save(tmp_path / f"{name}.npy", np.full((3, 2), i, "float32"))
    paths = sorted(tmp_path.iterdir())
    assert sites_in(ActivationArguments([*map(str, paths)])) == [
        "a",
        "b",
        "layers.1",
        "layers.2",
        "x3",
        "x4",
    ]
    assert values({"s": "layers.1", "t": "layers.2"}) == [{"layers.1": 0, "layers.2": 1}]
    assert values({"s": "a", "t": "b"}) == [{"a": 2, "b": 4}, {"a": 3, "b": 5}]
    assert values({"s": "x*"}) == [{"x*": 6}, {"x*": 7}]
    with pytest.raises(ValueError, match=r"has 2 files for 'a' and 1 for 'layers.1'"):
        values({"s": "a", "t": "layers.1"})
    np.save(tmp_path / "document.npy", np.arange(3))
    paths = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"has 2 files for 'a' and 1 for 'document'"):
        values({"s": "a"})
    for number in (1, 2):
        np.save(tmp_path / f"document_{number}.npy", np.arange(3) + number)
    paths = [path for path in sorted(tmp_path.iterdir()) if path.stem != "document"]
    shards = open_shards(paths, {"s": "a"}, ["document"])
    assert [shard.values("document").tolist() for shard in shards] == [[1, 2, 3], [2, 3, 4]]


def test_sites_of_a_file_are_its_tensors_of_vectors(tmp_path):
    assert sites_in(ActivationArguments(saved(tmp_path, "safetensors", numbers(4, 2)))) == [SITE]
    assert sites_in(ActivationArguments(saved(tmp_path, "parquet", numbers(4, 2)))) == [SITE]
    ragged = pa.array([[1.0], [1.0, 2.0]], pa.list_(pa.float32()))
    whole = pa.array([[1.0], [2.0]], pa.list_(pa.float32()))
    pq.write_table(pa.table({"ragged": ragged, "whole": whole}), tmp_path / "b.parquet")
    assert sites_in(ActivationArguments(tmp_path / "b.parquet")) == ["whole"]


def test_texts_and_numbers_of_rows_are_read_whole(tmp_path):
    words = ["b", "a", "b", "é", "a"]
    for column in (
        pa.array(words),
        pa.array(words).dictionary_encode(),
        pa.array(words, "large_string"),
    ):
        table = pa.table({"document": column, "number": range(5)})
        pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
        (shard,) = open_shards([tmp_path / "a.parquet"], {})
        assert shard.header("document").kind == "text"
        assert shard.values("document").tolist() == words
        assert shard.values("number").tolist() == [*range(5)]


def cut_off(path: Path, n: int = 5) -> Path:
    path.write_bytes(path.read_bytes()[:-n])
    return path


def array(folder: Path, values: np.ndarray) -> Path:
    np.save(folder / f"{SITE}.npy", values)
    return folder / f"{SITE}.npy"


def named(folder: Path, name: str, content: bytes = b"abc") -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def lying(folder: Path) -> Path:
    """A header that claims another size than its tensor has."""
    header = {SITE: {"dtype": "F32", "shape": [9, 4], "data_offsets": [0, 8]}}
    text = json.dumps(header).encode()
    return named(folder, "a.safetensors", len(text).to_bytes(8, "little") + text + bytes(8))


BAD = {
    "pt": (lambda f: named(f, "a.pt"), r"a\.pt is a pickle, .*`tensor = torch.load\(\".*a\.pt\", "
           r"weights_only=True\)`, then `safetensors\.torch\.save_file\(.*a\.safetensors\"\)`"),
    "pkl": (lambda f: named(f, "a.pkl"), "is a pickle"),
    "pickled": (lambda f: named(f, f"{SITE}.npy", pickle.dumps([1.0])), r"1\.npy is a pickle, "),
    "npz": (lambda f: named(f, "a.npz"), r"is an archive, .* `numpy\.save\("),
    "objects": (lambda f: array(f, np.array([[1.0], None], dtype=object)), "pickled objects"),
    "structured": (lambda f: array(f, np.zeros(3, [("a", "f4")])), "save bfloat16 as safetensors"),
    "by columns": (lambda f: array(f, np.asfortranarray(np.ones((3, 2)))), "column by column"),
    "byte order": (lambda f: array(f, np.ones((3, 2), ">f4")), r"astype\(\"float32\"\)"),
    "short npy": (lambda f: cut_off(array(f, np.ones((3, 2)))), r"it has 171 of 176 bytes"),
    "no npy": (lambda f: named(f, f"{SITE}.npy"), r"layers\.1\.npy is damaged"),
    "short safetensors": (lambda f: cut_off(saved(f, "safetensors", numbers(3, 2))), "cut off: it"),
    "lying": (lying, r"'layers\.1' has 8 bytes for \[9, 4\]"),
    "lfs": (lambda f: named(f, "a.safetensors", b"version https://git"), "do not begin with"),
    "empty": (lambda f: named(f, "a.safetensors", b""), "its 0 bytes do not begin with"),
    "no json": (lambda f: named(f, "a.safetensors", bytes([3, *[0] * 7]) + b"abc"), "is damaged"),
    "short parquet": (lambda f: cut_off(saved(f, "parquet", numbers(3, 2))), "parquet is damaged"),
    "absent": (lambda f: f / "a.parquet", "a.parquet cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("what", list(BAD))
def test_a_bad_file_is_refused_in_a_sentence_with_its_name(tmp_path, what):
    make, sentence = BAD[what]
    path = make(tmp_path)
    with pytest.raises(ValueError, match=sentence) as refusal:
        only(path)
    assert str(path) in str(refusal.value) and "\n" not in str(refusal.value)


def test_the_lines_that_convert_an_array_of_objects_convert_it(tmp_path):
    acts = numbers(4, 3).numpy()
    rows = np.empty(4, dtype=object)
    rows[:] = list(acts)
    path = array(tmp_path, rows)
    with pytest.raises(ValueError, match="pickled objects") as refusal:
        only(path)
    names = {"numpy": np}
    for line in re.findall("`(.*?)`", str(refusal.value)):
        exec(line, names)
    assert np.array_equal(only(path).reader([SITE])(0, 4)[SITE].numpy(), acts)


def test_an_absent_site_is_refused_with_the_nearest_names(tmp_path):
    for form in ("safetensors", "parquet"):
        path = saved(tmp_path, form, numbers(4, 2))
        with pytest.raises(ValueError, match=r"not hold site 'layer\.1'; closest: 'layers\.1'"):
            open_shards([path], {"layer.1": "layer.1"})
    path = saved(tmp_path, "npy", numbers(4, 2))
    with pytest.raises(ValueError, match=r"no .npy file is called x, for site 'a'.*'layers\.1'"):
        open_shards([path], {"a": "x"})


def test_files_of_two_formats_are_refused(tmp_path):
    paths = [saved(tmp_path, form, numbers(4, 2)) for form in FORMATS[:2]]
    with pytest.raises(ValueError, match=r"has \.npy and \.safetensors files; name those of one"):
        open_shards(paths, {SITE: SITE})


def test_ragged_lists_and_empty_numbers_are_refused_with_their_row(tmp_path):
    def shard(rows: list, kind: pa.DataType | None = None):
        column = pa.array(rows, kind or pa.list_(pa.float32()))
        pq.write_table(pa.table({SITE: column}), tmp_path / "a.parquet")
        return only(tmp_path / "a.parquet")

    with pytest.raises(ValueError, match=r"lists of different lengths .*\(5 numbers in 2 rows\)"):
        shard([[1, 2, 3], [4, 5]]).header(SITE)
    ragged = shard([[1, 2], [3, 4], [5], [6, 7, 8]])
    with pytest.raises(ValueError, match=r"row 2 of .*a\.parquet has 1 numbers in 'layers\.1'"):
        ragged.reader([SITE])(1, 4)
    fixed = pa.list_(pa.float32(), 2)
    for kind in (pa.list_(pa.float32()), fixed):
        with pytest.raises(ValueError, match=r"row 1 of .*a\.parquet has an empty number"):
            shard([[1, 2], [3, None]], kind).reader([SITE])(0, 2)
    with pytest.raises(ValueError, match=r"row 1 of .*a\.parquet has no value in column"):
        shard([[1, 2], None], fixed).reader([SITE])(0, 2)
