"""A Space's folder: what the Hub reads of it, and that it opens what was asked for."""

import json
import re
from pathlib import Path

import pytest
import yaml

import hfsae
from hfsae.hub import write_space

ROOT = Path(__file__).parent.parent
KNOWN = {
    "title",
    "emoji",
    "colorFrom",
    "colorTo",
    "sdk",
    "sdk_version",
    "python_version",
    "app_file",
    "pinned",
    "license",
    "short_description",
    "tags",
    "suggested_hardware",
    "models",
    "preload_from_hub",
}


def front_matter(folder: Path) -> dict:
    text = (folder / "README.md").read_text(encoding="utf-8")
    return yaml.safe_load(re.match(r"---\n(.*?)---\n", text, re.DOTALL)[1])


def test_demo_is_what_is_written_for_the_shipped_sae(tmp_path):
    """So there is one app, and demo/ alone is a Space; `write_space("demo")` makes it again."""
    written = write_space(tmp_path / "space")
    names = {path.name for path in written.iterdir()}
    assert names == {path.name for path in (ROOT / "demo").iterdir() if path.is_file()}
    for name in names:
        assert (ROOT / "demo" / name).read_text() == (written / name).read_text(), name


def test_the_app_of_a_space_is_python_that_uses_public_names_alone(tmp_path):
    text = (write_space(tmp_path, "me/sae", layer=12, width="16k") / "app.py").read_text()
    compile(text, "app.py", "exec")
    assert "hfsae.demo.launch('me/sae', layer=12, width='16k', mcp=True)" in text
    assert set(re.findall(r"^\s*import (\S+)", text, re.M)) == {
        "contextlib",
        "spaces",
        "hfsae.demo",
    }


def test_the_front_matter_is_what_the_hub_knows(tmp_path):
    front = front_matter(write_space(tmp_path, "me/sae", model="google/gemma-2-2b"))
    assert set(front) <= KNOWN and front["sdk"] == "gradio" and front["app_file"] == "app.py"
    assert len(front["short_description"]) <= 60
    assert front["models"] == front["preload_from_hub"] == ["me/sae", "google/gemma-2-2b"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", front["sdk_version"])


def test_a_language_models_folder_is_refused(tmp_path):
    lm = tmp_path / "lm"
    lm.mkdir()
    (lm / "config.json").write_text('{"model_type": "llama"}')
    (lm / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"is not the folder of a trained SAE: its config\.json"):
        write_space(tmp_path / "space", str(lm))
    assert not (tmp_path / "space").exists()


def test_another_language_model_than_the_sae_s_is_warned_of(tmp_path, caplog):
    config = hfsae.JumpReLUSAEConfig(d_in=4, d_sae=8, site="layers.1", model_name="me/lm")
    hfsae.JumpReLUSAE(config).save_pretrained(tmp_path / "sae")
    write_space(tmp_path / "space", str(tmp_path / "sae"), model="me/lm")
    assert not caplog.text
    write_space(tmp_path / "space", str(tmp_path / "sae"), model="you/lm")
    assert "the SAE was trained on activations of me/lm: with another model, you/lm" in caplog.text


def test_a_folder_is_copied_into_the_space_without_what_is_private(tmp_path):
    sae, space = tmp_path / "sae", tmp_path / "space"
    config = hfsae.JumpReLUSAEConfig(d_in=4, d_sae=8, site="layers.1", model_name="me/lm")
    hfsae.JumpReLUSAE(config).save_pretrained(sae)
    (sae / "recipe.yaml").write_text("output_dir: /home/me")
    (sae / "log.jsonl").write_text("{}")
    write_space(space, str(sae))
    assert {p.name for p in (space / "sae").iterdir()} == {"config.json", "model.safetensors"}
    assert "launch('sae', mcp=True)" in (space / "app.py").read_text()
    assert front_matter(space)["models"] == ["me/lm"]
    assert str(tmp_path) not in "".join(p.read_text() for p in space.glob("*.*"))
    assert hfsae.load(space / "sae").config.d_sae == 8
    origin = {"origin": "folder /home/me/lm", "dtype": "bfloat16"}
    (sae / "training.json").write_text(json.dumps({"lm": origin, "command": "hfsae /home/me"}))
    write_space(space, str(tmp_path), subfolder="sae", model=str(tmp_path))
    assert "/home/me" not in (space / "sae" / "training.json").read_text()
    origin |= {"name": "me/lm", "origin": "folder me/lm"}
    (sae / "training.json").write_text(json.dumps({"lm": origin}))
    write_space(space, str(sae))
    assert "models" not in front_matter(space), "nor is one that has the form of a repository's id"
    assert hfsae.load(space / "sae").config.model_name == "./lm"
    write_space(space, str(tmp_path), subfolder="sae", model=str(tmp_path))
    assert "models" not in front_matter(space), "a folder of this machine is no model on the Hub"
    assert hfsae.load(space / "sae").config.d_sae == 8
    with pytest.raises(
        ValueError, match=r"layer is only for repositories; give the SAE's own folder"
    ):
        write_space(space, str(sae), layer=1)
    (sae / "model.safetensors").rename(sae / "ae.pt")
    with pytest.raises(ValueError, match=r"with model\.safetensors; for another library"):
        write_space(space, str(sae))
    assert hfsae.load(space / "sae").config.d_sae == 8, "what was there is left"


def test_a_space_written_again_from_its_own_sae_loses_nothing(tmp_path):
    sae, space = tmp_path / "sae", tmp_path / "space"
    config = hfsae.JumpReLUSAEConfig(d_in=4, d_sae=8, site="layers.1", model_name="me/lm")
    hfsae.JumpReLUSAE(config).save_pretrained(sae)
    write_space(space, str(sae))
    (space / "hfsae-1.0-py3-none-any.whl").write_bytes(b"")
    (space / "requirements.txt").write_text("./hfsae-1.0-py3-none-any.whl[demo]\n")
    write_space(space, str(space / "sae"), title="Again")
    assert hfsae.load(space / "sae").config.d_sae == 8
    assert front_matter(space)["title"] == "Again"
    assert "whl" in (space / "requirements.txt").read_text()
    deep = space / "sae" / "deep"
    hfsae.JumpReLUSAE(config).save_pretrained(deep)
    with pytest.raises(ValueError, match="which would be replaced; name another output"):
        write_space(space, str(deep))
    assert hfsae.load(deep).config.d_sae == 8


def test_another_folder_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match="holds something else"):
        write_space(tmp_path, "me/sae")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no config\.json"):
        write_space(tmp_path / "space", str(tmp_path / "empty"))


def test_graphs_are_copied_into_the_space_and_what_is_none_is_refused_before_anything_is_written(
    tmp_path,
):
    graphs = ROOT / "demo" / "graphs"
    space = write_space(tmp_path / "space", "me/sae", graphs=graphs)
    names = {path.name for path in graphs.glob("*.json")} - {"graph-metadata.json"}
    assert {path.name for path in (space / "graphs").iterdir()} == names
    write_space(space, "me/sae", graphs=space / "graphs")
    write_space(space, "me/sae")
    assert {path.name for path in (space / "graphs").iterdir()} == names, "its own stay"
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match="holds no graph"):
        write_space(tmp_path / "new", "me/sae", graphs=tmp_path / "other")
    assert not (tmp_path / "new").exists()
