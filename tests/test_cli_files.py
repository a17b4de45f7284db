"""list, push, verify and convert, as a person meets them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig

import hfsae
from hfsae.cli import main

from .helpers import activations, make

FIXTURES = Path(__file__).parent / "convert" / "fixtures"
ID = "alice/sae"


@pytest.fixture
def folder(tmp_path) -> Path:
    sae = make(hfsae.JumpReLUSAEConfig).eval()
    sae.save_pretrained(tmp_path / "sae")
    hfsae.write_fingerprint(sae, activations(64), tmp_path / "sae")
    return tmp_path / "sae"


def test_push_list_and_verify_over_http_with_the_token_of_the_environment(
    hub, folder, tmp_path, monkeypatch, capsys
):
    """The first in a process of its own; the others in this one, which has imported hfsae."""
    argv = ["push", str(folder), ID, "--public", "--subfolder", "l0_50"]
    pushed = hub.run_python("-m", "hfsae", *argv, home=tmp_path, token="hf_write")
    assert pushed.returncode == 0, pushed.stderr
    assert pushed.stdout.startswith(f"new public model repository {ID}, 4 files")
    assert "visible to EVERYONE" in pushed.stdout and "\npushed: http://127" in pushed.stdout
    assert main(["list", ID]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["path", "format", "layer", "width", "L0"],
        ["l0_50", "hfsae", "50.0"],
    ]
    assert main(["verify", ID, "--l0", "50"]) == 0
    assert capsys.readouterr().out.startswith("reproduced; weights are intact")
    monkeypatch.setenv("HF_TOKEN", "hf_read")
    assert main(["push", str(folder), ID]) == 2
    *_, sentence = capsys.readouterr().err.splitlines()
    assert sentence.startswith(f"hfsae: error: cannot push to {ID}: your tok")


def test_a_damaged_sae_fails_its_verification_with_exit_code_1(folder, capsys):
    weights = load_file(folder / "model.safetensors")
    weights["W_dec"].view(torch.uint8)[5, 0] ^= 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SystemExit) as left:
        main(["verify", str(folder)])
    assert left.value.code == 1
    assert capsys.readouterr().out.startswith(
        "DAMAGED: W_dec differ from what was saved; 64 tokens"
    )


def test_convert_writes_another_format_and_lists_the_options(capsys, tmp_path):
    suite, out = str(FIXTURES / "gemma_scope"), tmp_path / "out"
    given = ["--to", "saelens", "--subfolder", "gemma-scope-2b-pt-res", "--layer", "1", "--l0", "5"]
    assert main(["convert", suite, str(out), *given]) == 0
    assert capsys.readouterr().out.startswith(f"wrote {out}: JumpReLUSAE(d_in=12, d_sae=24")
    assert json.loads((out / "cfg.json").read_text())["architecture"] == "jumprelu"
    assert main(["convert", suite, str(tmp_path / "b"), "--to", "saelens"]) == 2
    assert "has 5 SAEs; choose: gemma-scope-2b-pt-att/" in capsys.readouterr().err
    assert main(["convert", suite, str(out), *given]) == 2
    assert "already exists; give another path" in capsys.readouterr().err
    assert main(["convert", suite, str(tmp_path / "c"), "--to", "sparsify", *given[2:]]) == 2
    assert "sparsify files hold TopK SAEs" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    back = str(tmp_path / "back")
    assert main(["convert", str(out), back, "--to", "gemma_scope"]) == 0
    said = capsys.readouterr().out
    assert "left out, since gemma_scope files have no field for it: site, model_name" in said


def test_list_shows_what_paths_tell(capsys):
    assert main(["list", str(FIXTURES / "gemma_scope_2"), "--json"]) == 0
    entries = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [e["l0"] for e in entries] == ["small"] * 5
    assert {(e["format"], e["layer"], e["width"]) for e in entries} == {("gemma_scope_2", 1, 16384)}


def test_a_single_sae_is_listed_by_what_its_config_and_metrics_say(hub, folder, capsys):
    header = ["path", "format", "layer", "width", "L0"]

    def listed(source: str) -> list[str]:
        assert main(["list", source]) == 0
        first, *rows = (line.split() for line in capsys.readouterr().out.splitlines())
        assert first == header and len(rows) == 1
        return rows[0]

    make(hfsae.JumpReLUSAEConfig, site="layers.3", target_l0=7).save_pretrained(folder)
    assert listed(str(folder)) == [".", "hfsae", "3", "40", "7.0"]
    metrics = {"metrics": {"l0": {"value": 7.3123}}}
    (folder / "evaluation.json").write_text(json.dumps(metrics))
    assert listed(str(folder)) == [".", "hfsae", "3", "40", "7.3"]
    for name in ("config.json", "model.safetensors", "evaluation.json"):
        hub.add_file(ID, name, (folder / name).read_bytes())
    assert listed(ID) == [".", "hfsae", "3", "40", "7.3"]
    fetched = {r.path.rpartition("/")[2] for r in hub.seen() if "/resolve/" in r.path}
    assert fetched == {"config.json", "evaluation.json"}
    assert len(hub.seen("GET", f"^/api/models/{ID}$")) == 1
    runs = folder.parent / "runs"
    lm = runs / "lm"
    LlamaConfig().save_pretrained(lm)  # a language model beside is none
    (lm / "model.safetensors").touch()
    make(hfsae.TopKSAEConfig, k=4).save_pretrained(runs / "sae")
    assert listed(str(runs))[0] == "sae"
    make(hfsae.TopKSAEConfig, k=4).save_pretrained(folder.parent / "topk")
    assert listed(str(folder.parent / "topk")) == [".", "hfsae", "1", "40", "4.0"]


@pytest.mark.parametrize(
    "config, said",
    [({"d_sae": "\x1b[2J"}, "invalid literal"), ({"site": 7}, "expected string"), ([], "damaged")],
)
def test_a_config_that_says_nothing_sound_leaves_the_list_as_it_was(folder, config, said, caplog):
    (folder / "config.json").write_text(json.dumps(config))
    assert hfsae.list_saes(folder) == [("", "hfsae", None, None, None)]
    assert said in caplog.text


def test_a_gated_sae_is_listed_and_the_log_says_why_no_more_is_known(hub, folder, caplog):
    for name in ("config.json", "model.safetensors"):
        hub.add_file(ID, name, (folder / name).read_bytes())
    hub.repos["models", ID].gated = "manual"
    assert hfsae.list_saes(ID) == [("", "hfsae", None, None, None)]
    assert f"layer, width and L0 of {ID} are unknown: " in caplog.text
    assert "it is gated; ask for access at" in caplog.text


def test_a_folder_without_an_sae_is_one_sentence(capsys, tmp_path):
    (tmp_path / "notes.txt").write_text("")
    assert main(["verify", str(tmp_path)]) == 2
    assert "holds no SAE in a known format" in capsys.readouterr().err
    with pytest.raises(SystemExit) as left:
        main(["list", str(tmp_path)])
    assert left.value.code == 1
    assert "no SAE in a known format (hfsae, gemma_scope" in capsys.readouterr().out


def test_each_sae_of_a_folder_is_listed_by_what_its_config_says(tmp_path, capsys):
    for name, site, k in (("a", "layers.3", 5), ("l0_7", "layers.4", 6)):
        make(hfsae.TopKSAEConfig, site=site, k=k).save_pretrained(tmp_path / name)
    assert main(["list", str(tmp_path)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert rows == [["a", "hfsae", "3", "40", "5.0"], ["l0_7", "hfsae", "4", "40", "7.0"]]


@pytest.mark.parametrize(
    "source, row",
    [
        ("saelens/topk", ["saelens", "1", "24", "5.0"]),
        ("saelens/older_standard", ["saelens", "1", "24"]),
        ("saelens/trained_batchtopk", ["saelens", "1", "24", "4.5"]),
        ("sparsify/run", ["sparsify", "1", "24", "4.0"]),
        ("sparsify/expansion_factor", ["sparsify", "24", "4.0"]),
        ("dictionary_learning/jumprelu", ["dictionary_learning", "1", "24", "20.0"]),
    ],
)
def test_saes_of_other_libraries_are_listed_by_what_their_configs_say(source, row, capsys):
    assert main(["list", str(FIXTURES / source)]) == 0
    rows = [line.split()[1:] for line in capsys.readouterr().out.splitlines()[1:]]
    assert rows and all(shown == row for shown in rows)


def test_verify_without_a_fingerprint_says_what_it_can_and_exits_with_3(folder, tmp_path, capsys):
    assert main(["convert", str(folder), str(tmp_path / "other"), "--to", "gemma_scope"]) == 0
    capsys.readouterr()
    said = []
    for _ in range(2):
        with pytest.raises(SystemExit) as left:
            main(["verify", str(tmp_path / "other")])
        assert left.value.code == 3
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] and said[0].startswith("NOT COMPARED: ")
    assert "has no fingerprint.safetensors; its " in said[0] and "are finite; SHA-256" in said[0]


def test_a_push_is_planned_offline_without_a_look_at_the_repository(folder, capsys):
    assert main(["push", str(folder), ID, "--dry_run"]) == 0
    said = capsys.readouterr().out
    assert f"model repository {ID} (not looked at: HF_HUB_OFFLINE is set)" in said
    assert "model.safetensors" in said and "if this push creates it" in said


@pytest.mark.parametrize("subfolder", ["../up", "/up", "a/../../up"])
def test_a_push_offline_refuses_a_subfolder_outside_first(folder, capsys, subfolder):
    assert main(["push", str(folder), ID, "--dry_run", "--subfolder", subfolder]) == 2
    said = capsys.readouterr()
    assert said.out == "" and f"subfolder '{subfolder}' lies outside the repository" in said.err


@pytest.mark.parametrize("has_card", [True, False])
def test_a_push_refuses_damaged_metrics_before_it_looks(folder, hub, capsys, caplog, has_card):
    (folder / "evaluation.json").write_text('{"metrics": ')
    if has_card:
        (folder / "README.md").write_text("# Mine")
    assert main(["push", str(folder), ID, "--dry_run"]) == 2
    said = capsys.readouterr()
    assert said.out == "" and "evaluation.json is damaged" in said.err and hub.requests == []
    assert not caplog.text, "one sentence, not a warning beside it"


@pytest.mark.parametrize("l0", [".", "many"])
def test_an_l0_is_a_number_or_a_word_that_suites_have(folder, tmp_path, capsys, l0):
    for verb in (["verify", str(folder)], ["convert", str(folder), str(tmp_path / "x")]):
        to = ["--to", "saelens"] if verb[0] == "convert" else []
        assert main([*verb, *to, "--l0", l0]) == 2
        error = capsys.readouterr().err
        assert f"l0 must be positive and finite, or one of small, medium, big; got '{l0}'" in error
