"""Explanations by template, from people's labels, and from files of others."""

import gzip
import json
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hfsae.explanations import explainers
from hfsae.explanations.explainers import from_labels, one_label, read_file, template
from hfsae.explanations.windows import (
    ExplainArguments,
    Window,
    WindowText,
    select,
    shown_windows,
)

from .conftest import read_planted

SOME_WINDOW = Window(0, 1, 0, 1.0, "top")


def named(*windows: tuple[list[str], int]) -> str:
    """The template's text for windows given as tokens and the peak's index."""
    shown = [WindowText(tokens, peak, SOME_WINDOW) for tokens, peak in windows]
    return template({7: shown})[7]


def test_the_template_names_the_token_that_a_latent_was_planted_on(planted):
    latents = [14, 30, 31]
    reading = read_planted(planted, latents)
    selection = select(reading, ExplainArguments(latents=latents))
    texts = template(shown_windows(reading, selection.latents, planted.tokenizer))
    assert [*texts] == latents
    for latent, text in texts.items():
        assert text.startswith((f'"w{latent - 12}" 100%', f'"w{latent - 12}" 9')), text


def test_pieces_are_joined_to_their_word_and_spellings_counted_together():
    text = named(
        ([" the", " cit", "izen", "s", "."], 2),
        ([" all", " Cit", "izen", "s"], 1),
        ([" citizens"], 0),
        ([" law"], 0),
    )
    assert text == '"citizens" 75%, "law" 25%'


def test_a_piece_that_ends_different_words_is_named_itself():
    text = named(
        ([" nat", "ion"], 1), ([" stat", "ion"], 1), ([" mot", "ion", "s"], 1), ([" Ion"], 0)
    )
    assert text == '"-ion" 50%, "-ion-" 25%, "Ion" 25%'


def test_line_ends_and_blanks_are_named_as_such():
    text = named(([" end", ".", "\n\n"], 2), ([" end", ".", "\n"], 2), ([" a", "  ", "b"], 1))
    assert text == 'a line end 67%, a blank 33%; after "."'


def test_the_neighbour_is_named_that_stands_there_in_over_half():
    text = named(
        ([" such", " as", " a", " mat", "ter", " of"], 2),
        ([" As", " a", " matter"], 1),
        ([" as", " an", " end"], 1),
        ([" was", " an", " end"], 1),
    )
    assert text == '"a" 50%, "an" 50%; after "as"'
    assert named(([" x", "\n", " y"], 1), ([" x", "\n", " z"], 1)) == 'a line end 100%; after "x"'


def test_a_latent_whose_peaks_are_all_different_is_unclear_unless_a_neighbour_tells():
    others = [([f" word{i}", f" peak{i}"], 1) for i in range(10)]
    assert named(*others) == "unclear"
    assert named(*others[2:], ([" a", " law"], 1), ([" the", " law"], 1)).startswith('"law" 20%')
    after = [([" the", f" peak{i}"], 1) for i in range(10)]
    assert named(*after).endswith('; after "the"')


def test_a_template_is_one_printable_line_of_at_most_200_characters():
    words = ["\x1b[31m" + letter * 60 for letter in "abcdefgh"]
    windows = [([" before" * 8, f" {word}"], 1) for word in words]
    text = named(*windows)
    assert len(text) <= 200 and text.isprintable() and "…" in text


def test_labels_are_given_for_those_latents_that_have_one():
    explain = from_labels({3: "the sea", 4: ""})
    assert explain({3: [], 4: [], 5: []}) == {3: "the sea"}


def test_long_texts_are_cut_at_a_word():
    text = one_label("word " * 100)
    assert len(text) <= 200 and text.endswith("word…")
    assert one_label(" two\nlines ") == "two lines"


ROWS = [{"latent": 3, "explanation": "the sea"}, {"latent": 5, "explanation": "a law\n"}]
NEURONPEDIA = [
    {"modelId": "m", "layer": "6-res", "index": "3", "description": "the sea", "embedding": [0.1]},
    {"modelId": "m", "layer": "6-res", "index": "3", "description": "a second one"},
    {"modelId": "m", "layer": "6-res", "index": "5", "description": " a law "},
    {"modelId": "m", "layer": "6-res", "index": "6", "description": None},
]


def write(path, rows) -> None:
    lines = "\n".join(map(json.dumps, rows)).encode()
    if path.name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.name.endswith(".gz"):
        path.write_bytes(gzip.compress(lines))
    else:
        path.write_bytes(lines + b"\n\n")


@pytest.mark.parametrize("rows", [ROWS, NEURONPEDIA])
@pytest.mark.parametrize("name", ["e.parquet", "e.jsonl", "e.jsonl.gz"])
def test_a_file_gives_its_explanations(tmp_path, name, rows):
    write(tmp_path / name, rows)
    names = read_file(tmp_path / name, 40, "hash")
    assert {latent: name.text for latent, name in names.items()} == {3: "the sea", 5: "a law"}


@pytest.mark.parametrize(
    "name, content, sentence",
    [
        ("e.csv", b"", r"e\.csv is not a \.parquet or \.jsonl file"),
        ("e.jsonl", b"{", r"line 1 of .*e\.jsonl is not JSON"),
        ("e.jsonl", b"[3]", "row 1 of .* is not an object"),
        ("e.jsonl", b'{"index": "x", "description": "t"}', "names no latent"),
        ("e.jsonl", b'{"latent": 1, "label": 3}', "has 3 as an explanation; give text"),
        ("e.jsonl", b'{"latent": 40, "label": "t"}', "0 to 39: these are explanations of another"),
        ("e.jsonl", b'{"latent": 4}', "holds no explanations"),
        ("e.jsonl", b"\xff\xfe", "is not JSON"),
        ("e.jsonl.gz", b"not gzip", "cannot be read"),
        ("e.json", b"", r"is not a \.parquet or \.jsonl file"),
        ("e.parquet", b"PAR1 and so on", "is not a valid parquet file"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path, name, content, sentence):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        read_file(tmp_path / name, 40, None)


def test_a_packed_file_is_not_unpacked_beyond_a_limit(tmp_path, monkeypatch):
    name, most = "e.jsonl.gz", "_MAX_LINE"
    (tmp_path / name).write_bytes(gzip.compress(bytes(2**26)))
    monkeypatch.setattr(explainers, most, 2**16, raising=False)
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"(more|longer) than 65,536 bytes"):
        read_file(tmp_path / name, 40, None)
    assert tracemalloc.get_traced_memory()[1] < 2**23
    tracemalloc.stop()


def test_a_missing_file_and_explanations_of_other_weights_are_refused(tmp_path):
    with pytest.raises(ValueError, match="there is no file"):
        read_file(tmp_path / "e.jsonl", 40, None)
    table = pa.Table.from_pylist(ROWS).replace_schema_metadata({"weights_sha256": "theirs"})
    pq.write_table(table, tmp_path / "e.parquet")
    assert read_file(tmp_path / "e.parquet", 40, "theirs")
    with pytest.raises(ValueError, match="explanations of another SAE: its weights_sha256 differs"):
        read_file(tmp_path / "e.parquet", 40, "ours")
