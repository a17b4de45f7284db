"""What the version before called by another name goes on working: files and public names."""

import shutil
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModel

import hfsae
from hfsae.cards import render_card
from hfsae.cli import main
from hfsae.machine.names import FINGERPRINT, FINGERPRINTS, existing
from hfsae.machine.weights import of_others
from hfsae.recipe import run

from .helpers import activations, make
from .tiny import tiny_recipe

ID, WRITE = "alice/sae", "hf_write"
FORMER = FINGERPRINTS[1]


def of_version_0_1(folder: Path) -> Path:
    """The folder with its fingerprint as version 0.1 wrote it: another name, another key."""
    with safe_open(folder / FINGERPRINT, "pt") as file:
        metadata = file.metadata()
    hashes = metadata["sha256"].replace('"fingerprint": ', '"probe": ')
    save_file(load_file(folder / FINGERPRINT), folder / FORMER, {**metadata, "sha256": hashes})
    (folder / FINGERPRINT).unlink()
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    home, sae = tmp_path / "sae", make(hfsae.JumpReLUSAEConfig)
    sae.save_pretrained(home)
    hfsae.write_fingerprint(sae, activations(16), home)
    return of_version_0_1(home)


def other_weights(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    state["b_dec"][0] += 1
    save_file(state, folder / "model.safetensors", {"format": "pt"})


def test_a_fingerprint_under_its_former_name_verifies(folder, capsys):
    assert FORMER == "probe.safetensors" and existing(folder, FINGERPRINT).name == FORMER
    assert AutoModel.from_pretrained(folder).verify().ok and hfsae.load(folder).verify(folder).ok
    assert main(["verify", str(folder)]) == 0 and "intact to the bit" in capsys.readouterr().out
    assert "`sae.verify()` checks" in render_card(folder)
    other_weights(folder)
    assert AutoModel.from_pretrained(folder).verify().damaged == ["b_dec"]
    assert list(of_others(folder)) == [FINGERPRINT]


def test_writing_one_replaces_it(folder):
    sae = AutoModel.from_pretrained(folder)
    hfsae.write_fingerprint(sae, activations(16), folder)
    assert (folder / FINGERPRINT).is_file() and not (folder / FORMER).exists()


def test_a_run_of_version_0_1_is_complete(tmp_path, loads):
    (folder,) = run(tiny_recipe(tmp_path / "sae"))
    of_version_0_1(folder)
    shutil.copystat(folder / "training.json", folder / FORMER)
    run(tiny_recipe(tmp_path / "sae"))
    assert len(loads) == 1 and not (folder / FINGERPRINT).exists()


def test_former_public_names_work_with_a_warning(folder):
    with pytest.warns(FutureWarning, match=r"hfsae\.write_probe has the name hfsae\.write_finger"):
        assert hfsae.write_probe is hfsae.write_fingerprint
    sae = AutoModel.from_pretrained(folder)
    with pytest.warns(FutureWarning, match=r"verify\(probe=\.\.\.\) has the name") as caught:
        assert sae.verify(probe=folder).ok
    assert caught[0].filename == __file__
    assert "write_probe" not in dir(hfsae)
    with pytest.warns(FutureWarning, match=r"sae\.scale has the name sae\.latent_scale"):
        assert sae.scale == sae.latent_scale
    with pytest.warns(FutureWarning, match=r"config\.places has the name config\.reads"):
        assert sae.config.places == (sae.config.site, sae.config.site)
