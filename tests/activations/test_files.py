"""Files of activations as a source: each training row once an epoch, and no held-out one."""

import json
import logging
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from hfsae.activations import (
    ActivationArguments,
    FileSource,
    ShuffleArguments,
    ShuffledActivations,
    Source,
    check_files,
    sites_in,
)
from hfsae.training import Trainer
from tests.training.planted import arguments, assert_same_bits, make_sae, stop_at, weights

FORMATS = ["safetensors", "npy", "parquet"]
SITE = "acts"
FRACTION = 0.3


class Made(NamedTuple):
    args: ActivationArguments
    document: np.ndarray
    keep: np.ndarray


def numbered(n: int, first: int = 0) -> torch.Tensor:
    """Rows that hold their own number i, exact in any dtype: [i // 128, i % 128, 1, -i % 7]."""
    i = torch.arange(first, first + n)
    return torch.stack([i // 128, i % 128, torch.ones(n, dtype=torch.int64), -i % 7], 1).float()


def row_numbers(x: torch.Tensor) -> list[int]:
    return (x[:, 0].long() * 128 + x[:, 1].long()).tolist()


def write(folder: Path, form: str, number: int, **tensors: torch.Tensor) -> None:
    """A shard."""
    folder.mkdir(exist_ok=True)
    if form == "safetensors":
        save_file(tensors, folder / f"part{number}.safetensors")
    elif form == "npy":
        for name, x in tensors.items():
            np.save(folder / f"{name}-part{number}.npy", x.numpy())
    else:
        columns: dict[str, Any] = {
            name: list(x.numpy()) if x.ndim > 1 else x.numpy() for name, x in tensors.items()
        }
        rows = {2: 100, 10: 37, 11: 1000}[number]
        pq.write_table(pa.table(columns), folder / f"part{number}.parquet", row_group_size=rows)


def made(folder: Path, form: str = "safetensors", **fields) -> Made:
    """1,500 rows in three shards, of 60 documents in pieces of 5 rows; a tenth is to leave out. The
    second is [rows, ctx, d] where the format has such tensors."""
    rng = np.random.default_rng(0)
    document, keep = np.repeat(rng.integers(0, 60, 300), 5), rng.random(1500) > 0.1
    for number, start, stop in ((2, 0, 700), (10, 700, 1001), (11, 1001, 1500)):
        marks = {"document": document[start:stop], "keep": keep[start:stop]}
        tensors = {name: torch.from_numpy(x.copy()) for name, x in marks.items()}
        tensors[SITE] = numbered(stop - start, start)
        if number == 10 and form != "parquet":
            tensors = {name: x.unflatten(0, (43, 7)) for name, x in tensors.items()}
        write(folder, form, number, **tensors)
    return Made(arguments_for(folder, **fields), document, keep)


def arguments_for(files: Path | str, **fields) -> ActivationArguments:
    settings: dict[str, Any] = {"held_out_fraction": FRACTION, "block": 64, **fields}
    return ActivationArguments(files=str(files), **settings)


def place(document: object) -> float:
    """Where in [0, 1) the hash of a document's id lies."""
    return int(blake2b(str(document).encode(), digest_size=8).hexdigest(), 16) / 2**64


def rows_on(side: str, files: Made, validation: float = 0.0) -> list[int]:
    """By the definition of the sides: a loop over all rows."""
    ends = {"test": (0, FRACTION), "validation": (FRACTION, FRACTION + validation)}
    low, high = ends.get(side, (FRACTION + validation, 1))
    places = [place(document) for document in files.document]
    return [i for i, at in enumerate(places) if files.keep[i] and low <= at < high]


def filled(sources: list[FileSource], n: int) -> tuple[list[int], str, int]:
    """What processes gather in one filling: rows, the digest, and how many were left out."""
    fillings = [source.fill(n, rank, len(sources)) for rank, source in enumerate(sources)]
    rounds = zip(*(filling.parts for filling in fillings), strict=True)
    rows = torch.cat([part[SITE] for parts in rounds for part in parts])
    about = {filling[:3] for filling in fillings}
    assert len(about) == 1, "processes disagree"
    capacity, n_special, digest = about.pop()
    assert capacity == len(rows)
    return row_numbers(rows), digest, n_special


@pytest.mark.parametrize("n_processes", [1, 2, 3])
@pytest.mark.parametrize("form", FORMATS)
def test_each_training_row_comes_once_an_epoch_and_no_held_out_one(tmp_path, form, n_processes):
    files = made(tmp_path / "a", form)
    expected = rows_on("train", files)
    sources = [FileSource(files.args, [SITE], 16) for _ in range(n_processes)]
    rows, digests, n_left_out = [], [], []
    while len(rows) < 3 * len(expected):
        new, digest, n = filled(sources, 117)
        assert len(new) == 117
        rows, digests, n_left_out = rows + new, [*digests, digest], [*n_left_out, n]
    epochs = [rows[i * len(expected) : (i + 1) * len(expected)] for i in range(3)]
    assert all(sorted(epoch) == expected for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] and epochs[0] != expected
    assert len({*digests}) == len(digests)
    in_an_epoch = sum(at >= FRACTION for at in map(place, files.document)) - len(expected)
    assert 3 * in_an_epoch <= sum(n_left_out) < 4 * in_an_epoch


@pytest.mark.parametrize("form", FORMATS)
def test_any_number_of_processes_gathers_the_same_rows_in_the_same_order(tmp_path, form):
    args = made(tmp_path / "a", form).args
    one = [filled([FileSource(args, [SITE], 16)], 300)]
    for n in (2, 5):
        assert [filled([FileSource(args, [SITE], 16) for _ in range(n)], 300)] == one
    fillings = [FileSource(args, [SITE], 16).fill(300, rank, 2) for rank in range(2)]
    one, other = ({row for part in f.parts for row in row_numbers(part[SITE])} for f in fillings)
    assert not one & other and len(one) > 50 < len(other)


def test_rows_of_a_block_are_read_together_and_blocks_change_places(tmp_path):
    files = made(tmp_path / "a")
    source = FileSource(files.args, [SITE], 16)
    expected = {*rows_on("train", files)}
    parts = [row_numbers(part[SITE]) for part in source.fill(len(expected)).parts]
    shards = ((0, 700), (700, 1001), (1001, 1500))
    starts = [(start, end) for first, end in shards for start in range(first, end, 64)]
    blocks = [range(start, min(start + 64, end)) for start, end in starts]
    whole = [[row for row in block if row in expected] for block in blocks]
    assert sorted(parts) == sorted(whole) and parts != sorted(parts)
    other = FileSource(replace(files.args, seed=1), [SITE], 16)
    assert [row_numbers(part[SITE]) for part in other.fill(len(expected)).parts] != parts


@pytest.mark.parametrize("row_group, is_equal", [(64, True), (37, True), (128, True), (500, False)])
def test_a_table_gives_the_rows_of_other_formats_in_their_order_or_tells_why_not(
    tmp_path, row_group, is_equal, caplog
):
    x, document = numbered(500), torch.arange(500) // 5
    save_file({SITE: x, "document": document}, tmp_path / "a.safetensors")
    table = pa.table({SITE: list(x.numpy()), "document": document.numpy()})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=row_group)
    args = [arguments_for(tmp_path / name) for name in ("a.safetensors", "a.parquet")]
    streams = [stream_of(one) for one in args]
    batches = [[stream.next_batch()[SITE] for _ in range(30)] for stream in streams]
    assert all(map(torch.equal, *batches)) == is_equal
    digests = [stream.record["digests"][SITE] for stream in streams]
    assert (digests[0] == digests[1]) == is_equal
    for one in args:
        FileSource(one, [SITE], 16).tell_doubts()
    why = "row groups change places as a whole (up to 8 blocks of 64 rows)"
    assert (why in caplog.text) == (not is_equal) and caplog.text.count("of at most 128") < 2


def test_a_bucket_is_never_larger_than_an_epoch_and_loses_no_row(tmp_path):
    files = made(tmp_path / "a")
    expected = rows_on("train", files)
    source = FileSource(files.args, [SITE], 64)
    rows = [filled([source], 10_000)[0] for _ in range(3)]
    assert [len(new) for new in rows] == [len(expected) // 64 * 64] * 3
    assert sorted((rows[0] + rows[1])[: len(expected)]) == expected


@pytest.mark.parametrize("side", ["train", "validation", "test"])
@pytest.mark.parametrize("form", FORMATS)
def test_a_side_comes_in_the_order_of_the_files_with_documents_and_places(tmp_path, form, side):
    files = made(tmp_path / "a", form, validation_fraction=0.2)
    source = FileSource(files.args, [SITE])
    batches = list(source.batches(side))
    rows = [row for batch in batches for row in row_numbers(batch.activations[SITE])]
    expected = rows_on(side, files, 0.2)
    assert rows == expected == source.row_numbers(side).tolist()
    assert source.n_rows(side) == len(expected) > 100
    assert max(len(batch.document) for batch in batches) <= 64
    documents = [source.documents[i] for batch in batches for i in batch.document.tolist()]
    assert documents == files.document[expected].tolist()
    places = [i for batch in batches for i in batch.position.tolist()]
    seen = dict.fromkeys(range(60), -1)
    by_row = []
    for document in files.document.tolist():
        seen[document] += 1
        by_row.append(seen[document])
    assert places == [by_row[row] for row in expected]
    first = [
        row for batch in source.batches(side, 70) for row in row_numbers(batch.activations[SITE])
    ]
    assert first == expected[:70]
    i = documents.index(documents[-1])
    caption = source.caption(int(torch.cat([batch.document for batch in batches])[i]), places[i])
    assert caption == f"document {documents[i]}, row {places[i]}"


def test_documents_of_a_table_may_be_texts(tmp_path):
    names = [f"text {i // 7}" for i in range(210)]
    acts = list(numbered(210).numpy())
    table = pa.table({SITE: acts, "from": names})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=50)
    args = arguments_for(tmp_path / "a.parquet", documents="from")
    source = FileSource(args, [SITE], 8)
    held_out = [i for i in range(210) if place(names[i]) < FRACTION]
    (batch, *rest) = source.batches("test")
    assert row_numbers(torch.cat([b.activations[SITE] for b in (batch, *rest)])) == held_out
    assert source.caption(int(batch.document[8]), int(batch.position[8])) == (
        f"document {names[held_out[8]]}, row {held_out[8] % 7}"
    )
    assert source.documents == [*dict.fromkeys(names)]


@pytest.mark.parametrize("form", FORMATS)
def test_documents_under_another_name_are_told(tmp_path, form, caplog):
    document = torch.arange(200) // 5
    write(tmp_path / "a", form, 11, **{SITE: numbered(200), "documents": document})
    with pytest.raises(
        ValueError, match="has no 'document', and 'documents' with a value for each"
    ):
        check_files(arguments_for(tmp_path / "a"), [SITE])
    named = FileSource(arguments_for(tmp_path / "a", documents="documents"), [SITE])
    named.tell_doubts()
    assert named.documents == [*range(40)] and "is not read" not in caplog.text
    assert len(FileSource(arguments_for(tmp_path / "a", documents=""), [SITE]).documents) == 1
    both = {SITE: numbered(200), "document": document, "documents": document.flip(0)}
    write(tmp_path / "b", form, 11, **both)
    FileSource(arguments_for(tmp_path / "b"), [SITE]).tell_doubts()
    assert "are in 'document' (activations.documents), and 'documents' is not read" in caplog.text


def test_without_documents_rows_of_sequences_and_thousands_of_rows_are_documents(tmp_path):
    save_file({SITE: numbered(60 * 5).view(60, 5, 4)}, tmp_path / "a.safetensors")
    save_file({SITE: numbered(30_500)}, tmp_path / "b.safetensors")
    for name, size in (("a", 5), ("b", 1000)):
        source = FileSource(arguments_for(tmp_path / f"{name}.safetensors"), [SITE], 8)
        n = sum(source.n_rows(side) for side in ("train", "test"))
        ids = [f"{name}.safetensors {row // size}" for row in range(n)]
        held_out = [row for row in range(n) if place(ids[row]) < FRACTION]
        batches = list(source.batches("test"))
        assert row_numbers(torch.cat([batch.activations[SITE] for batch in batches])) == held_out
        assert torch.cat([batch.position for batch in batches]).tolist() == [
            row % size for row in held_out
        ]
        last, row = batches[-1], held_out[-1]
        where = f"row {row // 5}, position {row % 5}" if name == "a" else f"row {row:,}"
        caption = source.caption(int(last.document[-1]), int(last.position[-1]))
        assert caption == f"{name}.safetensors, {where}"
        assert source.documents == [*dict.fromkeys(ids)]
    both = FileSource(arguments_for(tmp_path), [SITE], 8)
    n_each = (("a", 60), ("b", 31))
    assert both.documents == [f"{name}.safetensors {i}" for name, n in n_each for i in range(n)]
    last = list(both.batches("test"))[-1]
    assert both.caption(int(last.document[-1]), int(last.position[-1])) == caption
    assert both.documents[int(last.document[-1])] == ids[held_out[-1]]


def test_two_sites_stay_aligned_and_keep_their_dtypes(tmp_path):
    acts = numbered(400)
    tensors = {"one": acts.bfloat16(), "two": (acts[:, :3] * 2).view(40, 10, 3).half()}
    save_file(tensors, tmp_path / "a.safetensors")
    args = arguments_for(tmp_path, sites={"layers.2": "two"}, documents="")
    assert sites_in(args) == ["one", "two"]
    shapes = check_files(args, ["one", "layers.2"])
    assert shapes.widths == {"one": 4, "layers.2": 3} and shapes.n_rows == 400
    assert shapes.dtypes == {"one": torch.bfloat16, "layers.2": torch.float16}
    source = FileSource(replace(args, held_out_fraction=0.0), ["one", "layers.2"], 8)
    stream = ShuffledActivations(source, ShuffleArguments(bucket_tokens=80), 8)
    assert {site: x.dtype for site, x in stream.held().items()} == shapes.dtypes
    places, rows = [], []
    for _ in range(30):  # three buckets
        batch = stream.next_batch()
        assert torch.equal(batch["one"][:, :3] * 2, batch["layers.2"])
        places.append([x.data_ptr() for x in stream.held().values()])
        rows += batch["one"].tolist()
    assert places == places[:1] * 30, "a bucket takes the memory of the one before"
    assert len({*map(tuple, rows)}) == 240


def stream_of(args: ActivationArguments, *, prefetch: bool = False) -> ShuffledActivations:
    source = FileSource(args, [SITE], 16)
    assert isinstance(source, Source)
    return ShuffledActivations(source, ShuffleArguments(bucket_tokens=208, prefetch=prefetch), 16)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("stop_after", [0, 1, 13, 14, 60, 100])
def test_a_stopped_stream_goes_on_to_the_bit(tmp_path, form, stop_after):
    args = made(tmp_path / "a", form).args
    whole, stopped = stream_of(args), stream_of(args, prefetch=True)
    for _ in range(stop_after):
        whole.next_batch(), stopped.next_batch()
    state = json.loads(json.dumps(stopped.state_dict()))
    stopped.close()
    resumed = stream_of(args)
    resumed.load_state_dict(state)
    for _ in range(30):
        assert torch.equal(whole.next_batch()[SITE], resumed.next_batch()[SITE])
    assert resumed.record == whole.record and whole.record["dropped_special"] > 0


def test_batches_hand_out_each_training_row_once_an_epoch(tmp_path):
    files = made(tmp_path / "a")
    expected, stream = rows_on("train", files), stream_of(files.args)
    n_batches = -(-2 * len(expected) // 208) * 13  # whole buckets, which hold two epochs
    rows = [row for _ in range(n_batches) for row in row_numbers(stream.next_batch()[SITE])]
    counts = np.bincount(rows, minlength=1500)
    assert {*np.flatnonzero(counts)} == {*expected} and {*counts[expected]} <= {2, 3}


def test_an_sae_that_trains_on_files_resumes_to_the_bit(tmp_path):
    x = torch.randn(3000, 16, generator=torch.Generator().manual_seed(0))
    save_file({"layers.1": x}, tmp_path / "a.safetensors")
    args = arguments_for(tmp_path / "a.safetensors", held_out_fraction=0.0)

    def stream() -> ShuffledActivations:
        source = FileSource(args, ["layers.1"], 256)
        return ShuffledActivations(source, ShuffleArguments(bucket_tokens=1024), 256)

    whole, resumed = make_sae(), make_sae()
    Trainer(whole, stream(), arguments(tmp_path / "whole")).train()
    parts, stopping = arguments(tmp_path / "parts", save_steps=0), stream()
    stopping.next_batch = stop_at(stopping, 14)  # within the fourth bucket, of the second epoch
    with pytest.raises(KeyboardInterrupt):
        Trainer(make_sae(), stopping, parts).train()
    Trainer(resumed, stream(), parts).train()
    assert_same_bits(weights(resumed), weights(whole))


def test_other_files_or_settings_at_a_loaded_position_are_refused(tmp_path):
    files = made(tmp_path / "a")
    stream = stream_of(files.args)
    stream.next_batch()
    state = stream.state_dict()
    for fields in ({"seed": 1}, {"block": 63}, {"held_out_fraction": 0.5}):
        resumed = stream_of(replace(files.args, **fields))
        resumed.load_state_dict(state)
        with pytest.raises(ValueError, match="or how they are read, differ from those"):
            resumed.next_batch()
    write(tmp_path / "a", "safetensors", 12, acts=numbered(9), document=torch.arange(9),
          keep=torch.ones(9).bool())  # fmt: skip
    with pytest.raises(ValueError, match="the activation files differ from those at the start"):
        stream_of(files.args).load_state_dict(state)


@pytest.mark.parametrize("form", FORMATS)
def test_the_hash_of_files_covers_names_documents_and_both_ends(tmp_path, form):
    def digest(change: Callable[[dict[str, torch.Tensor]], object], name: str = "a") -> str | None:
        tensors = {SITE: numbered(300), "document": torch.arange(300) // 5}
        change(tensors)
        write(tmp_path / name, form, 2, **tensors)
        return FileSource(arguments_for(tmp_path / name), [SITE]).content()

    same = digest(lambda t: None)
    assert digest(lambda t: None, "b") == same, "a folder may move"
    for change in (
        lambda t: t[SITE][0, 0].add_(1),
        lambda t: t[SITE][-1, -1].add_(1),
        lambda t: t["document"][150].add_(1),
        lambda t: t.update({SITE: t[SITE].half()}),
        lambda t: t.update({SITE: t[SITE][:299], "document": t["document"][:299]}),
    ):
        assert digest(change, "c") != same
    (file,) = (path for path in (tmp_path / "b").iterdir() if "document" not in path.name)
    file.rename(file.with_name(file.name.replace("part2", "part3")))
    assert FileSource(arguments_for(tmp_path / "b"), [SITE]).content() != same


def test_a_file_far_larger_than_a_bucket_is_not_loaded(tmp_path):
    n, width = 2**16, 2**15  # 8 GiB of zeros, of which none is on the disk
    about = {"dtype": "F32", "shape": [n, width], "data_offsets": [0, n * width * 4]}
    header = json.dumps({SITE: about}).encode()
    with (tmp_path / "a.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + n * width * 4)
    tracemalloc.start()
    try:
        source = FileSource(arguments_for(tmp_path, block=16), [SITE], 16)
        for part in source.fill(64).parts:
            assert not part[SITE].any() and len(part[SITE]) <= 16
        assert len(next(source.batches("test")).document) == 16
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 2**21 < peak < 2**24


def save(folder: Path, **tensors: torch.Tensor) -> ActivationArguments:
    save_file(tensors, folder / "a.safetensors")
    return arguments_for(folder, documents="document" if "document" in tensors else "")


X = numbered(300)
DOCUMENT = torch.arange(300) // 5
BAD_TENSORS = {
    "integers": ({SITE: X.long()}, "holds int64 at site 'acts'; convert it to float32, float16"),
    "complex": ({SITE: X * 1j}, "holds complex64 at site"),
    "float64": ({SITE: X.double()}, "holds float64 at site"),
    "float8": ({SITE: X.to(torch.float8_e4m3fn)}, "holds float8_e4m3 at site"),
    "no vectors": ({SITE: X[:, 0].clone()}, r"has shape \[300\] at site 'acts'; give \[n, d\] or"),
    "4 axes": ({SITE: X.view(3, 10, 10, 4)}, r"has shape \[3, 10, 10, 4\]"),
    "no rows": ({SITE: X[:0]}, r"has shape \[0, 4\] .* none of them 0"),
    "document": ({SITE: X, "document": DOCUMENT[1:].clone()}, "has 299 values in 'document'"),
    "a document of rows": (
        {SITE: X.view(60, 5, 4), "document": torch.arange(60)},
        "has 60 values in 'document' for 300 rows of activations; give one for each row",
    ),
    "float documents": ({SITE: X, "document": X[:, 0].clone()}, "holds float32 in 'document'"),
    "keep": ({SITE: X, "keep": torch.ones(299).bool()}, "has 299 values in 'keep' for 300 rows"),
    "integer keep": ({SITE: X, "keep": torch.ones(300).long()}, "holds int64 in 'keep'"),
    "few": ({SITE: X[:20], "document": DOCUMENT[:20]}, r"has \d+ training rows, of 20 rows in"),
    "none kept": ({SITE: X, "keep": torch.zeros(300).bool()}, "has 0 training rows, of 300"),
    "no held-out": (
        {SITE: X, "document": torch.full((300,), 3)},
        r"none of the 1 documents of .*a\.safetensors gives a row on the test side at "
        r"activations\.held_out_fraction=0\.3; change it, or give more documents",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", list(BAD_TENSORS))
def test_bad_tensors_are_refused_before_anything_is_trained(tmp_path, what):
    tensors, sentence = BAD_TENSORS[what]
    args = save(tmp_path, **tensors)
    with pytest.raises(ValueError, match=sentence) as refusal:
        FileSource(args, [SITE], 64)
    assert "a.safetensors" in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_single_document_without_an_id_is_refused_with_how_to_give_ids(tmp_path):
    save_file({SITE: X}, tmp_path / "b.safetensors")
    assert place("b.safetensors 0") > 0.01
    args = arguments_for(tmp_path, held_out_fraction=0.01)
    with pytest.raises(ValueError, match="more documents, or ids in a tensor `document`"):
        FileSource(args, [SITE], 64)
    source = FileSource(args, [SITE])  # nothing is trained
    with pytest.raises(ValueError, match=r"none of the 1 documents of .* on the test side"):
        next(source.batches("test"))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("form", FORMATS)
def test_numbers_that_are_not_finite_are_refused_with_file_row_and_count(tmp_path, form, bad):
    x = X.clone()
    x[7, 2] = x[7, 3] = x[50, 0] = bad
    write(tmp_path, form, 2, acts=x, document=torch.arange(300))
    args = arguments_for(tmp_path, held_out_fraction=0.0)
    sentence = r"row 7 of .*part2\.\w+ holds NaN or infinity at site 'acts', as do 1 more of the"
    with pytest.raises(ValueError, match=sentence):
        for part in FileSource(args, [SITE], 8).fill(300).parts:
            assert part[SITE].isfinite().all()
    keep = torch.ones(300, dtype=torch.bool)
    keep[[7, 50]] = False
    write(tmp_path, form, 2, acts=x, document=torch.arange(300), keep=keep)
    parts = [part[SITE] for part in FileSource(args, [SITE], 8).fill(298).parts]
    assert len(torch.cat(parts)) == 298


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_large_numbers_whose_sum_is_not_finite_are_read(tmp_path, dtype):
    x = torch.full((300, 4), torch.finfo(dtype).max, dtype=dtype)
    args = replace(save(tmp_path, acts=x), held_out_fraction=0.0)
    parts = [part[SITE] for part in FileSource(args, [SITE], 8).fill(300).parts]
    assert torch.equal(torch.cat(parts), x)


def test_the_place_of_a_number_that_is_not_finite_has_both_indices_in_a_sequence(tmp_path):
    x = X.clone().view(60, 5, 4)
    x[3, 2, 1] = torch.nan
    args = replace(save(tmp_path, acts=x), held_out_fraction=0.0)
    with pytest.raises(ValueError, match=r"row 3, position 2 of .*a\.safetensors holds NaN"):
        list(FileSource(args, [SITE], 8).fill(300).parts)


OTHER_SHARDS = {
    "width": ({SITE: X[:, :3].clone()}, "part10.* of width 3 at .*, and .*part2.* width 4"),
    "dtype": ({SITE: X.half()}, "part10.* holds float16 of width 4 .* one dtype and width"),
    "no document": ({SITE: X}, r"part10\.safetensors has no tensor or column 'document'"),
    "another site": ({"act": X}, r"part10\.safetensors does not hold site 'acts'; closest: 'act'"),
}  # fmt: skip


@pytest.mark.parametrize("what", list(OTHER_SHARDS))
def test_shards_that_differ_are_refused(tmp_path, what):
    other, sentence = OTHER_SHARDS[what]
    marks = {} if what == "no document" else {"document": DOCUMENT}
    write(tmp_path, "safetensors", 2, acts=X, document=DOCUMENT)
    write(tmp_path, "safetensors", 10, **other, **marks)
    with pytest.raises(ValueError, match=sentence):
        check_files(arguments_for(tmp_path), [SITE])


def test_documents_of_two_kinds_and_sites_with_other_rows_are_refused(tmp_path):
    for number, documents in ((1, ["a"] * 5), (2, [1] * 5)):
        table = pa.table({SITE: list(numbered(5).numpy()), "document": documents})
        pq.write_table(table, tmp_path / f"{number}.parquet")
    with pytest.raises(ValueError, match=r"'document' is int64 in .*2\.parquet and text in .*1\."):
        check_files(arguments_for(tmp_path), [SITE])
    (tmp_path / "b").mkdir()
    args = save(tmp_path / "b", one=X, two=X[:299].clone())
    with pytest.raises(ValueError, match=r"has 299 rows at site 'two', and .* 300 at another"):
        check_files(args, ["one", "two"])


PATHS = {
    "empty": ("", "activations.files is empty; name a file"),
    "absent": ("no/*.npy", r"activations\.files: no .* file is at '.*no/\*\.npy'; check the path"),
    "folder": ("empty", r"no \.safetensors, \.npy or \.parquet file is at '.*empty'"),
    "pickles": ("pickles", r"pickles/a\.pt is a pickle"),
    "suffix": ("notes.txt", r"notes\.txt cannot be read; convert it to \.safetensors"),
    "twice": (["a.safetensors", "*.safetensors"], r"names .*a\.safetensors twice"),
}


@pytest.mark.parametrize("what", list(PATHS))
def test_paths_without_shards_are_refused(tmp_path, what, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(tmp_path, acts=X)
    for folder in ("empty", "pickles"):
        Path(folder).mkdir()
        Path(folder, "README.md").write_text("about")
    Path("pickles/a.pt").touch()
    Path("notes.txt").touch()
    files, sentence = PATHS[what]
    with pytest.raises(ValueError, match=sentence):
        check_files(ActivationArguments(files), [SITE])


def test_files_are_a_path_a_glob_a_folder_or_a_list_and_the_labels_are_none_of_them(tmp_path):
    folder = tmp_path / "a"
    made(folder, "parquet")
    pq.write_table(pa.table({"label": ["a"]}), folder / "labels.parquet")
    (folder / "README.md").touch()
    labels = str(folder / "labels.parquet")
    for files, n in (
        (str(folder), 1500),
        (str(folder / "part*"), 1500),
        ([str(folder / "part2.parquet"), str(folder / "part1[01].parquet")], 1500),
        (str(folder / "part10.parquet"), 301),
    ):
        assert check_files(ActivationArguments(files, labels=labels), [SITE]).n_rows == n
    listed = [str(folder / "part11.parquet"), str(folder / "part2*")]
    args = ActivationArguments(listed, held_out_fraction=1.0, labels=labels)
    first = next(FileSource(args, [SITE]).batches("test")).activations[SITE]
    assert row_numbers(first)[0] >= 1001


SETTINGS = {
    "files": ({"files": None}, "activations.files is None; name a file"),
    "no files": ({"files": []}, r"activations.files is \[\]; name a file"),
    "numbers": ({"files": [3]}, "activations.files holds 3; name files"),
    "documents": ({"documents": None}, "activations.documents is None; give a name, or '' for"),
    "share": ({"held_out_fraction": 1.5}, "activations.held_out_fraction is 1.5; use a fraction"),
    "validation": ({"validation_fraction": -1}, "activations.validation_fraction is -1; use a"),
    "block": ({"block": 0}, "activations.block is 0; it must be 1 or more"),
    "large block": ({"block": 2**30}, "activations.block must be at most"),
    "seed": ({"seed": -1}, "activations.seed must be a whole number"),
}


@pytest.mark.parametrize("what", list(SETTINGS))
def test_bad_settings_are_refused(what):
    fields, sentence = SETTINGS[what]
    with pytest.raises(ValueError, match=sentence):
        ActivationArguments(**fields)


def test_names_that_nothing_has_are_refused_with_the_nearest(tmp_path):
    args = save(tmp_path, acts=X, documents=DOCUMENT)
    with pytest.raises(ValueError, match=r"activations\.sites has 'act', .* closest: 'acts'"):
        check_files(replace(args, sites={"act": "acts"}), [SITE])
    with pytest.raises(ValueError, match=r"'x', for site 'acts'; closest: .*activations\.sites"):
        check_files(replace(args, sites={SITE: "x"}), [SITE])
    with pytest.raises(ValueError, match="no tensor or column 'docs'; closest: 'documents'"):
        check_files(replace(args, documents="docs"), [SITE])
    with pytest.raises(ValueError, match="no site is named; the files have acts"):
        check_files(args, [])
    assert check_files(replace(args, documents="documents"), [SITE]).n_rows == 300


def test_a_column_without_variation_and_a_few_huge_rows_are_warned_of_once(tmp_path, caplog):
    x = torch.randn(400, 4, generator=torch.Generator().manual_seed(0))
    x[:, 1] = 0.5
    x[::40] *= 1e5
    args = replace(save(tmp_path, acts=x), held_out_fraction=0.0, block=400)
    source = FileSource(args, [SITE], 8)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            list(source.fill(400).parts)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "the mean norm (" in caplog.text and "more than 100 times the median" in caplog.text
    caplog.clear()
    x[::40] = x[1::40].clone()
    save_file({SITE: x}, tmp_path / "a.safetensors")
    with caplog.at_level(logging.WARNING):
        list(FileSource(args, [SITE], 8).fill(400).parts)
    (record,) = caplog.records
    assert "1 of 4 columns have one value in the 400 rows read first, such as column 1" in (
        record.getMessage()
    )


def test_a_file_that_becomes_shorter_while_it_is_read_is_refused(tmp_path):
    source = FileSource(replace(save(tmp_path, acts=X), held_out_fraction=0.0), [SITE], 8)
    path = tmp_path / "a.safetensors"
    path.write_bytes(path.read_bytes()[:-999])
    with pytest.raises(ValueError, match=r"a\.safetensors is damaged \(it has become shorter\)"):
        list(source.fill(300).parts)


def test_the_record_of_a_training_has_the_settings_and_the_sides(tmp_path):
    files = made(tmp_path / "a")
    about = FileSource(files.args, [SITE], 8).describe()["activations"]
    assert about["files"] == files.args.files and about["block"] == 64
    assert about["train_rows"] == len(rows_on("train", files)) and about["n_documents"] == 60
    assert about["test_rows"] == len(rows_on("test", files)) and about["validation_rows"] == 0
    assert about["origin"] == "local files" and json.dumps(about)
