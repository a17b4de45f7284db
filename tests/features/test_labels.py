"""Labels: what is written is read, whoever writes, and nothing else is."""

import json
import os
import threading
from pathlib import Path

import pytest

import hfsae
from hfsae.features import read_labels, write_label, write_labels
from hfsae.io.checksums import stamp

from ..helpers import make, refused, save_store


def test_labels_that_are_written_are_read(tmp_path):
    assert read_labels(tmp_path) == {}
    hostile = "<script>alert('x')</script> {{7*7}} ${HOME} ümläut 🙂"
    assert write_label(tmp_path, 12, "  the sea ") == {12: "the sea"}
    write_label(tmp_path, 3, hostile)
    assert read_labels(tmp_path) == {12: "the sea", 3: hostile}
    write_label(tmp_path, 12, "ships")
    assert write_label(tmp_path, 3, " ") == {12: "ships"} == read_labels(tmp_path)
    assert (
        write_labels(tmp_path, {3: ""}, hides=True) == {12: "ships", 3: ""} == read_labels(tmp_path)
    )
    assert write_label(tmp_path, 3, "") == {12: "ships"} == read_labels(tmp_path)
    assert os.listdir(tmp_path / "features") == ["labels.json"]
    stored = json.loads((tmp_path / "features" / "labels.json").read_text(encoding="utf-8"))
    assert stored == {"labels": {"12": "ships"}}


@pytest.fixture
def sae(tmp_path) -> Path:
    config = hfsae.ReLUSAEConfig(d_in=4, d_sae=8, site="layers.1", model_name="m")
    hfsae.ReLUSAE(config).save_pretrained(tmp_path / "sae")
    return tmp_path / "sae"


def other_weights(sae: Path) -> None:
    hfsae.ReLUSAE(hfsae.ReLUSAEConfig(d_in=4, d_sae=8)).save_pretrained(sae)


def test_labels_elsewhere_of_an_earlier_version_are_put_aside_by_the_next_label(sae, tmp_path):
    home = tmp_path / "mine"
    write_label(home, 1, "the sea", sae)
    path = home / "features" / "labels.json"
    before = path.read_text()
    other_weights(sae)
    with pytest.raises(ValueError, match="was made with other weights"):
        read_labels(home, sae)
    assert write_label(home, 2, "ships", sae) == {2: "ships"} == read_labels(home, sae)
    aside = path.with_name(f"labels-{json.loads(before)['weights_sha256'][:12]}.json")
    assert aside.read_text() == before and len(os.listdir(path.parent)) == 2


def test_labels_of_other_weights_are_refused_and_left_as_they_are(sae):
    home = sae
    write_label(home, 1, "the sea", sae)
    path = home / "features" / "labels.json"
    before = path.read_text()
    assert json.loads(before) == {**stamp(sae), "labels": {"1": "the sea"}} and stamp(sae)
    other_weights(sae)
    for attempt in (lambda: read_labels(home, sae), lambda: write_label(home, 2, "x", sae)):
        with pytest.raises(ValueError, match=r"was made with other weights .*, delete weights_sha"):
            attempt()
    assert path.read_text() == before
    path.write_text('{"labels": {"1": "by hand"}}')
    assert read_labels(home, sae) == {1: "by hand"}


def test_labels_edited_by_hand_are_read_and_keep_the_hash_of_weights_that_are_gone(sae):
    write_label(sae, 1, "the see")
    path = sae / "features" / "labels.json"
    path.write_text(path.read_text().replace("the see", "the sea"))
    assert read_labels(sae) == {1: "the sea"}
    (sae / "model.safetensors").unlink()
    write_label(sae, 2, "ships")
    assert len(json.loads(path.read_text())["weights_sha256"]) == 64


@pytest.mark.parametrize(
    ("latent", "label", "sentence"),
    [
        (1, "x" * 201, "at most 200 characters, this one 201"),
        (1, "two\nlines", "one line of printable text; this one has '\\\\n'"),
        (1, "a\x1b[31mred", "this one has '\\\\x1b'"),
        (1, "\u202egnp", "this one has '\\\\u202e'"),
        (-1, "x", "latent -1 is not an index"),
        (True, "x", "latent True is not an index"),
    ],
)
def test_a_label_that_is_none_is_refused_and_changes_nothing(tmp_path, latent, label, sentence):
    write_label(tmp_path, 1, "kept")
    with pytest.raises(ValueError, match=sentence):
        write_label(tmp_path, latent, label)
    assert read_labels(tmp_path) == {1: "kept"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"labels": [1]}',
        '{"labels": {"x": "y"}}',
        '{"labels": {"1": 2}}',
        '{"labels": {"1": "a\\u0007"}}',
        "\x00",
        "[" * 100_000,
    ],
)
def test_a_file_that_holds_no_labels_is_one_sentence_and_left_as_it_is(tmp_path, text):
    path = tmp_path / "features" / "labels.json"
    path.parent.mkdir()
    path.write_text(text)
    for attempt in (lambda: read_labels(tmp_path), lambda: write_label(tmp_path, 1, "x")):
        with pytest.raises(ValueError, match="holds no labels: it must look like") as error:
            attempt()
        assert "\n" not in str(error.value)
    assert path.read_text() == text


@pytest.mark.parametrize("text", ["{}", "[]", '{"labels": {"x": "y"}}'])
def test_a_card_of_a_folder_whose_labels_are_none_is_refused_in_one_sentence(
    tmp_path, text, capsys
):
    make(hfsae.JumpReLUSAEConfig).save_pretrained(tmp_path)
    save_store(tmp_path)
    (tmp_path / "features" / "labels.json").write_text(text)
    sentence = refused(["card", str(tmp_path)], capsys)
    assert "features/labels.json holds no labels: it must look like" in sentence
    assert ('it has no "labels"' in sentence) == (text == "{}")
    assert not (tmp_path / "README.md").exists()


def test_threads_that_write_at_once_lose_nothing(tmp_path):
    def write(start: int) -> None:
        for latent in range(start, start + 10):
            write_label(tmp_path, latent, f"label {latent}")

    threads = [threading.Thread(target=write, args=(10 * i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read_labels(tmp_path) == {i: f"label {i}" for i in range(40)}


def test_an_interrupted_write_leaves_the_old_file(tmp_path, full_disk):
    text = "word " * 9 + "and a number"
    with pytest.raises(OSError, match="File too large"):
        for latent in range(1000):
            write_label(tmp_path, latent, text)
    labels = read_labels(tmp_path)
    assert len(labels) > 9 and labels == dict.fromkeys(range(len(labels)), text)
    assert os.listdir(tmp_path / "features") == ["labels.json"]
