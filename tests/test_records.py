"""Files from anywhere: bounded reading, one sentence for damage, lines that a terminal may show."""

import errno
import json
import os

import pytest
import torch

from hfsae.cli import main
from hfsae.io.errors import Damaged
from hfsae.io.files import (
    parse_yaml,
    printable,
    read_json,
    read_tensors,
    reading,
    write_tensors,
    write_whole,
)


def test_yaml_with_a_key_twice_is_refused_with_both_lines():
    with pytest.raises(ValueError, match="'learning_rate' appears twice, on lines 2 and 4"):
        parse_yaml("training:\n  learning_rate: 1\n  batch_size: 2\n  learning_rate: 3\n")
    with pytest.raises(ValueError, match="'x' appears twice, on line 1; keep one"):
        parse_yaml("{x: 1, x: 2}")
    with pytest.raises(ValueError, match="'yes' appears twice, on lines 1 and 2"):
        parse_yaml("true: 1\nyes: 2")
    several = "a: {x: 1}\nb: {x: 2}\n1: 3\n'1': 4"
    assert parse_yaml(several) == {"a": {"x": 1}, "b": {"x": 2}, 1: 3, "1": 4}


@pytest.mark.parametrize(
    "text",
    ["x: !!bool maybe", "x: !!timestamp never", "x: 2024-99-99", "? [1]\n: 2", "x: " + "9" * 5000],
)
def test_values_that_yaml_cannot_make_are_one_sentence(text):
    with pytest.raises(ValueError):
        parse_yaml(text)


def test_yaml_may_share_by_aliases_and_is_not_nested_too_deeply():
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_yaml("[" * 5000)
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_yaml("a: &a [*a]")
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_yaml("[" * 200 + "]" * 200)
    names = zip("abcdefgh", "bcdefghi", strict=True)
    laughs = [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in names]
    with pytest.raises(ValueError, match="1,048,576 lists in lists, or more"):
        parse_yaml("\n".join(["a: &a [x, x]", *laughs]))
    shared = parse_yaml("base: &base {x: 1}\none: *base\ntwo: {<<: *base, y: 2}")
    assert shared["one"] == {"x": 1} and shared["two"] == {"x": 1, "y": 2}


def test_a_recipe_with_a_field_twice_trains_nothing(tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    path.write_text("sae: {d_sae: 32, site: layers.1}\nseed: 1\nsae: {d_sae: 64}\n")
    assert main(["train", str(path)]) == 2
    assert "'sae' appears twice, on lines 1 and 3; keep one of them" in capsys.readouterr().err


def test_json_that_is_deep_or_huge_is_one_sentence(tmp_path, monkeypatch):
    path = tmp_path / "evaluation.json"
    for depth in (200, 100_000):
        path.write_text("[" * depth + "]" * depth)
        with pytest.raises(ValueError, match=r"damaged \(nested too deeply\); `hfsae evaluate"):
            read_json(path)
    os.truncate(path, 2**26 + 1)
    with pytest.raises(ValueError, match="67,108,865 bytes, over the limit of 67,108,864"):
        read_json(path)


@pytest.mark.parametrize("number", ["1e999", "-1e999", "NaN", "Infinity"])
def test_a_number_that_no_float_holds_is_one_sentence(tmp_path, number):
    path = tmp_path / "evaluation.json"
    path.write_text(f'{{"metrics": {{"l0": {{"value": [{number}]}}}}}}')
    with pytest.raises(
        Damaged, match=r"damaged \(.*number.*\); `hfsae evaluate .*` makes it again"
    ):
        read_json(path)


def test_numbers_of_sound_json_are_as_pythons(tmp_path):
    text = '{"a": [1e308, -1e-400, 0, -7, 12345678901234567890, 0.1]}'
    (tmp_path / "x.json").write_text(text)
    assert read_json(tmp_path / "x.json") == json.loads(text)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(ValueError, match=r"config.json is damaged \(not a regular file\)"):
        read_json(tmp_path / "config.json")


@pytest.mark.parametrize("error", [KeyError("x"), TypeError("x"), IndexError("x"), ValueError("x")])
def test_content_that_does_not_fit_is_the_damage_of_its_file(tmp_path, error):
    with pytest.raises(ValueError, match=rf"training.json is damaged \({type(error).__name__}"):  # noqa: SIM117
        with reading(tmp_path / "training.json"):
            raise error


def test_a_line_for_a_terminal_has_nothing_that_it_acts_on():
    assert printable("a\x1b[31m\u202eb\x07\u2066c\x9b") == r"a\x1b[31m\u202eb\x07\u2066c\x9b"
    readable = "naïve 中文 👩\u200d🔬 می\u200cخواهم"  # noqa: RUF001
    assert printable(readable) == readable


@pytest.mark.parametrize(
    "evaluation",
    [{"metrics": []}, {"metrics": {"l0": 3}}, {"metrics": {}, "density_histogram": 1}],
)
def test_records_of_wrong_shapes_are_one_sentence(tmp_path, evaluation, capsys):
    config = {"model_type": "jumprelu_sae", "d_in": 4, "d_sae": 8, "site": "layers.1\x1b[2J"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation))
    assert main(["show", str(tmp_path)]) == 2
    printed = capsys.readouterr()
    assert "evaluation.json is damaged" in printed.err and "\x1b" not in printed.out
    assert r"layers.1\x1b[2J" in printed.out


def test_a_disk_that_fills_is_one_sentence_and_what_was_there_stays(tmp_path, full_disk):
    path = tmp_path / "evaluation.json"
    write_whole(path, "old")
    with pytest.raises(OSError, match=rf"{path} .*too large.*MB free.*make room there"):
        write_whole(path, "x" * 10_000)
    assert path.read_text() == "old" and os.listdir(tmp_path) == [path.name]


def test_a_folder_that_cannot_be_written_to_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"cannot be written .*give a writable folder"):
        write_whole(tmp_path / "file" / "a.json", "x")


def test_a_bare_error_of_a_full_disk_is_told_with_what_helps(monkeypatch, capsys):
    def full(argv):
        raise OSError(errno.ENOSPC, "No space left on device", "/there")

    monkeypatch.setattr("hfsae.cli.verbs.card_verb", full)
    assert main(["card", "x"]) == 2
    assert "No space left on device: '/there'; make room there" in capsys.readouterr().err


def test_warnings_show_nothing_that_a_terminal_acts_on(own_module, capsys):
    shown = 'warnings.formatwarning("a\\x1b[2J\\u202e", UserWarning, "a.py", 1)'
    warns = own_module("warns", f"import warnings\nprint({shown})\n")
    assert main(["card", "nowhere", "--import", warns]) == 2
    assert r"UserWarning: a\x1b[2J\u202e" in capsys.readouterr().out


def test_the_same_tensors_and_metadata_are_the_same_bytes(tmp_path):
    tensors = {"x": torch.arange(6.0), "é": torch.ones(2, 3)}
    metadata = {name: f'"{name}" \\ \n é' for name in "badcfe"}
    for i in range(6):
        write_tensors(tmp_path / f"{i}", tensors, metadata)
    contents = {(tmp_path / f"{i}").read_bytes() for i in range(6)}
    assert len(contents) == 1
    found, said = read_tensors(tmp_path / "0")
    assert said == metadata and all(torch.equal(found[name], t) for name, t in tensors.items())
