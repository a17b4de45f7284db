"""Records belong to weights: a folder that mixes those of two runs is noticed."""

import hashlib
import json
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import hfsae
from hfsae.cards import write_card
from hfsae.cli import main
from hfsae.hub import write_space
from hfsae.io.checksums import KEY, STAMPED, of_others, refuse_mixture, stamp, weights_hash

from .helpers import refused

JSON = [name for name in STAMPED if name.endswith(".json")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An SAE with each record that names its weights."""
    home = tmp_path / "sae"
    sae = hfsae.ReLUSAE(hfsae.ReLUSAEConfig(d_in=4, d_sae=8, site="layers.1", model_name="m"))
    sae.save_pretrained(home)
    hfsae.write_fingerprint(sae, torch.randn(3, 4), home)
    (home / "features").mkdir()
    for name in JSON:
        (home / name).write_text(json.dumps(stamp(home)))
    return home


def exchange_weights(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    save_file(
        {**state, "b_dec": state["b_dec"] + 1}, folder / "model.safetensors", {"format": "pt"}
    )


def test_the_hash_is_that_of_the_file_as_on_the_hub(folder):
    content = (folder / "model.safetensors").read_bytes()
    assert stamp(folder) == {KEY: hashlib.sha256(content).hexdigest()}
    assert list(of_others(folder)) == []
    exchange_weights(folder)
    assert list(of_others(folder)) == list(STAMPED)


FINGERPRINTS = {
    "a tensor is missing": (lambda t: t.pop("recon"), r"it holds \['counts', "),
    "another tensor": (lambda t: t.update(more=torch.ones(2)), r"it holds .*'more'"),
    "whole activations": (lambda t: t.update(x=t["x"].long()), r"x is torch\.int64"),
    "broken counts": (
        lambda t: t.update(counts=t["counts"].half()),
        r"counts is torch\.float16",
    ),
    "a scalar": (lambda t: t.update(indices=torch.tensor(1)), r"indices is .* \[\]"),
    "one rank more": (lambda t: t.update(x=t["x"][None]), r"x is .* \[1, 3, 4\]"),
    "a row less": (
        lambda t: t.update(recon=t["recon"][:2]),
        "its counts are not those of its act",
    ),
    "a value less": (
        lambda t: t.update(values=t["values"][1:]),
        "its counts are not those of its act",
    ),
    "negative counts": (
        lambda t: t.update(counts=-t["counts"]),
        "its counts are not those of its act",
    ),
    "nothing": (
        lambda t: t.update({n: v[:0] for n, v in t.items()}),
        "its counts are not those of its act",
    ),
    "a NaN": (lambda t: t["values"].fill_(torch.nan), r"values is .*, or not finite"),
}


@pytest.mark.parametrize("kind", FINGERPRINTS)
def test_a_fingerprint_of_another_shape_is_one_sentence(folder, capsys, kind):
    path = folder / "fingerprint.safetensors"
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    change, sentence = FINGERPRINTS[kind]
    change(tensors)
    save_file(tensors, path, metadata)
    said = refused(["verify", str(folder)], capsys)
    assert re.search(
        f"fingerprint.safetensors is damaged, or is not a fingerprint: {sentence}", said
    )


@pytest.mark.parametrize(
    "hashes", ["5", "[]", "{", "[" * 100_000, '{"fingerprint": ' + "9" * 5000 + "}"]
)
def test_a_fingerprint_without_hashes_is_one_sentence(folder, capsys, hashes):
    path = folder / "fingerprint.safetensors"
    save_file(load_file(path), path, {"sha256": hashes})
    assert "is damaged, or is not a fingerprint" in refused(["verify", str(folder)], capsys)


def test_weights_in_several_files_have_one_hash(tmp_path):
    assert weights_hash(tmp_path) is None and stamp(tmp_path) == {}
    for i in (1, 2):
        (tmp_path / f"model-0000{i}-of-00002.safetensors").write_bytes(bytes([i]))
    first = weights_hash(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").write_bytes(b"three")
    assert first is not None and weights_hash(tmp_path) not in (None, first)


def test_records_without_a_hash_or_weights_are_taken_as_they_are(folder):
    exchange_weights(folder)
    (folder / "fingerprint.safetensors").write_bytes(b"damaged: who reads it says so")
    for name in JSON:
        (folder / name).write_text("{}")
    refuse_mixture(folder)
    (folder / "evaluation.json").write_text(json.dumps({KEY: "0"}))
    (folder / "model.safetensors").unlink()
    refuse_mixture(folder)


@pytest.mark.parametrize(
    "name, remedy",
    [
        ("training.json", "put back its weights, or delete it"),
        ("evaluation.json", "`hfsae evaluate {folder}` makes it again"),
        ("features/meta.json", "`hfsae collect {folder}` makes it again"),
    ],
)
def test_show_card_push_and_space_refuse_a_mixture(folder, name, remedy, capsys):
    (folder / name).write_text(json.dumps({KEY: "0" * 64}))
    sentence = f"{folder / name} was made with other weights than those in {folder} now "
    sentence = re.escape(sentence) + ".*" + re.escape(remedy.format(folder=folder))
    for verb in (["show", str(folder)], ["card", str(folder)], ["push", str(folder), "me/sae"]):
        assert main(verb) == 2
        assert re.search(sentence, capsys.readouterr().err)
    with pytest.raises(ValueError, match=sentence):
        hfsae.push(folder.parent, "me/suite")
    with pytest.raises(ValueError, match=sentence):
        write_card(folder)
    with pytest.raises(ValueError, match=sentence):
        write_space(folder.parent / "space", str(folder))
    assert not (folder / "README.md").exists() and not (folder / "figures").exists()


def test_presets_found_for_other_weights_are_not_published(folder, capsys):
    own = {"name": "mine", "prompt": "the", "latents": {"1": 2.0}}  # written by a person: no hash
    path, push = folder / "presets.json", ["push", str(folder), "me/sae", "--dry_run"]
    path.write_text(json.dumps([own, {**own, "seeds": 3, **stamp(folder)}]))
    write_space(folder.parent / "space", str(folder))
    path.write_text(json.dumps([own, {**own, "seeds": 3, KEY: "0" * 64}]))
    sentence = f"presets.json was made with other weights .*`hfsae presets {folder}` puts others"
    assert re.search(sentence, refused(push, capsys))
    with pytest.raises(ValueError, match=sentence):
        write_space(folder.parent / "other", str(folder))
    assert not (folder.parent / "other" / "sae").exists()
    for damaged in ("{}", "[5]", "{"):
        path.write_text(damaged)
        refuse_mixture(folder, ["presets.json"])
